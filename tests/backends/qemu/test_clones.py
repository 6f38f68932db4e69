"""Templates and their clones over a stand-in for QEMU: the disks, the devices, and what is refused."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import uvm
from tests.backends.qemu import images
from tests.backends.qemu.standin import StandInBackend, StandInLauncher
from uvm.errors import VMStateError

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def _host(tmp_path: Path) -> AsyncIterator[StandInBackend]:
    """A host with two disks and a kernel, of which nothing is left but these and the directory of clones."""
    for name in ("vmlinux", "initrd.img"):
        (tmp_path / name).touch()
    for name in ("written.img", "read.img"):
        images.written(tmp_path / name, bytes(images.MIB))
    (tmp_path / "clones").mkdir()
    async with StandInBackend(StandInLauncher(), tmp_path / "run") as backend:
        yield backend
    assert os.listdir(tmp_path / "clones") == []
    assert backend._access.entries() == []
    assert os.listdir(tmp_path / "run") == ["lock"]


def _options(tmp_path: Path, **options: Any) -> uvm.LCOWOptions:
    return uvm.LCOWOptions(
        **{"memory_mb": 64, "boot_files_path": str(tmp_path), "kernel_direct": True, **options}
    )


async def _attach(vm: uvm.UtilityVM, tmp_path: Path) -> None:
    """Attach a disk that the guest writes to, and one that it reads."""
    mount = uvm.Mount(filesystem="ext4", guest_path="/mnt/data")
    await vm.scsi.attach(tmp_path / "written.img", mount=mount)
    await vm.scsi.attach(tmp_path / "read.img", read_only=True)


async def test_a_pool_of_clones_hands_them_out_with_disks_of_their_own(tmp_path: Path) -> None:
    async def prepare(vm: uvm.UtilityVM) -> None:
        await _attach(vm, tmp_path)

    async with _host(tmp_path) as backend:
        options = _options(tmp_path, scratch_directory=tmp_path / "clones")
        pool = uvm.Pool(options, backend=backend, ready=2, clones=True, prepare_template=prepare)
        overlays: set[str] = set()
        async with pool:
            for _ in range(3):
                async with pool.vm() as vm:
                    written, read = vm.devices().disks
                    assert written.mounts == ("/mnt/data",)
                    assert read.host_path == str(tmp_path / "read.img")
                    overlays.add(written.host_path)
                    assert (await vm.run(["echo", "hello"])).stdout == b"hello\n"
                    standin = backend.launcher.started[vm.id]
                    nodes = standin.machine.nodes
                    assert (nodes["disk-0-0"]["driver"], nodes["disk-0-0"]["read_only"]) == ("qcow2", False)
                    below = nodes["disk-0-0"]["backing"]
                    assert (below["driver"], below["read-only"]) == ("raw", True)
                    assert nodes["disk-0-1"]["driver"] == "raw"
                    # The disks are there before the state is loaded.
                    commands = standin.commands
                    assert commands.index("migrate-incoming") > max(
                        number for number, name in enumerate(commands) if name == "device_add"
                    )
        assert len(overlays) == 3
        assert (tmp_path / "written.img").read_bytes() == bytes(images.MIB)


async def test_a_template_is_not_deleted_while_clones_need_its_disks(tmp_path: Path) -> None:
    async with (
        _host(tmp_path) as backend,
        uvm.UtilityVM.create(_options(tmp_path, template=True), backend=backend) as vm,
    ):
        await vm.start()
        await _attach(vm, tmp_path)
        template = await vm.save_template()
        options = _options(tmp_path, clone_of=template, scratch_directory=tmp_path / "clones")
        async with uvm.UtilityVM.create(options, backend=backend) as clone:
            await clone.start()
            with pytest.raises(VMStateError, match=clone.id):
                await template.delete(backend)
            assert (await clone.run(["true"])).exit_code == 0
        await template.delete(backend)
