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
from tests.backends.qemu.standin import StandIn, StandInBackend, StandInLauncher
from uvm.backends.qemu.guestimage.cache import Cache, Image
from uvm.errors import HostError, NoSpaceError, NotSupportedError, VMStateError

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


def _has_balloon(standin: StandIn) -> bool:
    return "virtio-balloon" in " ".join(standin.arguments)


@pytest.mark.parametrize("packed", [False, True])
async def test_layers_are_at_the_same_places_in_clones(tmp_path: Path, packed: bool) -> None:
    async with _host(tmp_path) as backend:
        layers = [images.written(tmp_path / f"layer{n}.vhd", images.fixed_vhd()) for n in range(3)]
        options = _options(tmp_path, template=True, vpmem_multi_mapping=packed)
        async with uvm.UtilityVM.create(options, backend=backend) as vm:
            await vm.start()
            first, *_ = [await vm.vpmem.add(path) for path in layers]
            await first.release()
            there, standin = vm.vpmem.layers, backend.launcher.started[vm.id]
            places = _places(standin)
            template = await vm.save_template()
            of_clone = _options(tmp_path, clone_of=template, vpmem_multi_mapping=packed)
            async with uvm.UtilityVM.create(of_clone, backend=backend) as clone:
                await clone.start()
                assert clone.vpmem.layers == there
                assert _places(backend.launcher.started[clone.id]) == places
                assert sorted(places.values()) == ([257, 258] if packed else [1, 2])
                for layer in there:
                    await clone.vpmem.remove(layer.host_path)
                # A place that is free again is used.
                await clone.vpmem.add(layers[0])
                assert [*_places(backend.launcher.started[clone.id]).values()] == [256 if packed else 0]


def _places(standin: StandIn) -> dict[str, int]:
    """The LUNs of the layers, by their serial."""
    devices = standin.machine.devices.values()
    return {each["serial"]: each["lun"] for each in devices if each.get("bus") == "vpmem.0"}


async def test_a_template_and_its_clones_have_no_balloon_and_keep_their_memory(tmp_path: Path) -> None:
    async with _host(tmp_path) as backend:
        started = backend.launcher.started
        async with uvm.UtilityVM.create(_options(tmp_path), backend=backend) as other:
            assert _has_balloon(started[other.id])
        async with uvm.UtilityVM.create(_options(tmp_path, template=True), backend=backend) as vm:
            await vm.start()
            with pytest.raises(NotSupportedError, match="memory of a template"):
                await vm.update_memory(memory_mb=32)
            options = _options(tmp_path, clone_of=await vm.save_template())
            async with uvm.UtilityVM.create(options, backend=backend) as clone:
                await clone.start()
                with pytest.raises(NotSupportedError, match="memory of a template"):
                    await clone.update_memory(memory_mb=32)
                assert not _has_balloon(started[vm.id])
                assert not _has_balloon(started[clone.id])
                assert "balloon" not in started[clone.id].commands


async def test_disks_of_a_template_that_are_over_others_are_cloned(tmp_path: Path) -> None:
    async with _host(tmp_path) as backend:
        over = images.qcow2(backing="written.img", backing_format="raw")
        layers = [images.written(tmp_path / f"{name}.qcow2", over) for name in ("written", "read", "pmem")]
        base = str(tmp_path / "written.img")
        options = _options(tmp_path, template=True)
        async with uvm.UtilityVM.create(options, backend=backend) as vm:
            await vm.start()
            await backend.grant_access(base, vm.id, "read")
            await vm.scsi.attach(layers[0])
            await vm.scsi.attach(layers[1], read_only=True)
            await vm.vpmem.add(layers[2])
            of_clone = _options(
                tmp_path, clone_of=await vm.save_template(), scratch_directory=tmp_path / "clones"
            )
            async with uvm.UtilityVM.create(of_clone, backend=backend) as clone:
                await clone.start()
                nodes = backend.launcher.started[clone.id].machine.nodes
                assert nodes["disk-0-0"]["backing"]["backing"]["driver"] == "raw"
                read = [each for name, each in nodes.items() if name != "disk-0-0"]
                assert [each["backing"]["driver"] for each in read] == ["raw", "raw"]
                # To the clone itself it was not granted.
                with pytest.raises(HostError, match=r"E_ACCESSDENIED.*written\.img"):
                    await clone.scsi.attach(images.written(tmp_path / "other.qcow2", over), read_only=True)
            await backend.revoke_access(base, vm.id)


async def test_what_was_not_created_as_a_template_is_not_saved_as_one(tmp_path: Path) -> None:
    async with (
        _host(tmp_path) as backend,
        uvm.UtilityVM.create(_options(tmp_path), backend=backend) as vm,
    ):
        await vm.start()
        await vm.pause()
        system = await backend.open(vm.id)
        with pytest.raises(HostError, match=r"HCS_E_INVALID_STATE.*not created to be one"):
            await system.save({"SaveType": "AsTemplate"})
        await system.close()


async def test_a_template_and_a_clone_start_only_where_there_is_room_for_them(tmp_path: Path) -> None:
    async with _host(tmp_path) as backend:
        started = backend.launcher.started
        options = _options(tmp_path, template=True)
        backend.memory_mb = 63
        with pytest.raises(NoSpaceError, match="needs 64 MB of memory, and 63 MB are available"):
            await _started(backend, options)
        for allowed in (_options(tmp_path), _options(tmp_path, allow_overcommit=True)):
            await _started(backend, allowed)
        with pytest.raises(NoSpaceError, match="needs 64 MB"):
            await _started(backend, _options(tmp_path, allow_overcommit=False))
        backend.memory_mb = 64
        async with uvm.UtilityVM.create(options, backend=backend) as vm:
            await vm.start()
            of_clone = _options(tmp_path, clone_of=await vm.save_template())
            backend.memory_mb, before = 10, len(started)
            with pytest.raises(NoSpaceError, match="10 MB are available"):
                await _started(backend, of_clone)
            assert len(started) == before
            backend.memory_mb = 64
            await _started(backend, of_clone)


async def _started(backend: StandInBackend, options: uvm.LCOWOptions) -> None:
    async with uvm.UtilityVM.create(options, backend=backend) as vm:
        await vm.start()


async def test_what_has_changed_under_a_template_is_not_cloned(tmp_path: Path) -> None:
    async with (
        _host(tmp_path) as backend,
        uvm.UtilityVM.create(_options(tmp_path, template=True), backend=backend) as vm,
    ):
        await vm.start()
        of_clone = _options(tmp_path, clone_of=await vm.save_template())
        await _started(backend, of_clone)
        (tmp_path / "vmlinux").write_bytes(b"another kernel")
        with pytest.raises(HostError, match=r"HCS_E_IMAGE_MISMATCH.*kernel"):
            await _started(backend, of_clone)
        (tmp_path / "vmlinux").write_bytes(b"")
        backend.launcher.prepare = _upgrade
        with pytest.raises(HostError, match=r"HCS_E_IMAGE_MISMATCH.*machine"):
            await _started(backend, of_clone)


async def test_a_clone_runs_on_the_guest_image_of_its_template_though_there_is_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _host(tmp_path) as backend:
        for name in ("older", "newer"):
            (tmp_path / name).mkdir()
            for file in ("kernel", "initrd"):
                (tmp_path / name / file).write_text(name)
        made = iter(("older", "newer"))

        async def newest() -> Image:
            return Image(tmp_path / next(made), {})

        monkeypatch.setattr(backend._boots, "_guest_image", newest)
        options = uvm.LCOWOptions(memory_mb=64, template=True)
        async with uvm.UtilityVM.create(options, backend=backend) as vm:
            await vm.start()
            of_clone = uvm.LCOWOptions(memory_mb=64, clone_of=await vm.save_template())
            assert not _is_pruned(tmp_path, "older")
            async with uvm.UtilityVM.create(of_clone, backend=backend) as clone:
                await clone.start()
                assert str(tmp_path / "older" / "kernel") in backend.launcher.started[clone.id].arguments
                # With a lock of its own, it could keep others from the image.
                files = [os.stat(each) for each in (tmp_path / "older", *(tmp_path / "older").iterdir())]
                assert backend.launcher.inherited.isdisjoint((each.st_dev, each.st_ino) for each in files)
                await vm.close()
                assert not _is_pruned(tmp_path, "older")
        assert _is_pruned(tmp_path, "older")
        await _started(backend, uvm.LCOWOptions(memory_mb=64))
        assert _is_pruned(tmp_path, "newer")
        assert next(made, None) is None


def _is_pruned(tmp_path: Path, name: str) -> bool:
    """Have an image pruned unless it is in use."""
    return Cache(tmp_path).prune(Image(tmp_path / name, {"key": "none"}))


def _upgrade(standin: StandIn) -> None:
    standin.machine_type = "pc-q35-8.0"


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
