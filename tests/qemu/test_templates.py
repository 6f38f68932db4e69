"""Templates and clones of real VMs, and states in files: what goes on, and what is each one's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import uvm
from tests.qemu.images import ext4 as ext4_image
from tests.qemu.limits import BOOT_SECONDS, PATIENCE_SECONDS
from tests.qemu.test_devices import ext4, said
from tests.qemu.vms import MEMORY_MB, backend_of, leaving_nothing, open_to_all, process_of, running_vm
from uvm.backends.qemu.backend import QEMUBackend
from uvm.backends.qemu.runtime import ProcessName
from uvm.errors import HostError, NotSupportedError, VMStateError

pytestmark = pytest.mark.anyio

#: How far a guest's clock may be from the host's, which is read before or after it.
LATE_SECONDS = max(5.0, BOOT_SECONDS)
#: Counts as long as it runs.
_COUNTER = "n=0; while :; do n=$((n+1)); echo $n > /run/count; sleep 0.05; done"


def _clone(of: uvm.Template, directory: Path, number: int = 0, **options: Any) -> uvm.LCOWOptions:
    scratch = directory / f"clone{number}"
    scratch.mkdir(exist_ok=True)
    return uvm.LCOWOptions(
        memory_mb=MEMORY_MB, processors=1, clone_of=of, scratch_directory=scratch, **options
    )


async def test_clones_go_on_where_their_template_was_saved_each_with_its_own(tmp_path: Path) -> None:
    path = await ext4(tmp_path)
    async with backend_of(tmp_path) as backend, running_vm(backend, template=True) as vm:
        mount = uvm.Mount(filesystem="ext4", guest_path="/mnt/data")
        await vm.scsi.attach(path, mount=mount)
        await said(vm, "echo template > /mnt/data/file; echo in memory > /run/file")
        await vm.open_process(["sh", "-c", _COUNTER])
        process = ProcessName.of(process_of(backend, vm))
        identity = await said(vm, "cat /etc/machine-id")
        template = await vm.save_template()
        assert process is not None
        assert not process.runs
        as_saved = await anyio.Path(path).read_bytes()
        drawn, identities = set(), {identity}
        for number in range(2):
            options = _clone(template, tmp_path, number)
            async with uvm.UtilityVM.create(options, backend=backend) as clone:
                await clone.start()
                assert await said(clone, "cat /run/file /mnt/data/file") == "in memory\ntemplate\n"
                drawn.add(await said(clone, "od -An -tx8 -N16 /dev/urandom"))
                identities.add(await said(clone, "cat /etc/machine-id"))
                asked = time.time()
                there = int(await said(clone, "date +%s"))
                assert asked - LATE_SECONDS < there < time.time() + LATE_SECONDS
                # What ran goes on.
                before = await said(clone, "cat /run/count")
                assert await said(
                    clone, f"until [ $(cat /run/count) -gt {before.strip()} ]; do :; done; echo on"
                )
                await said(clone, f"echo {number} > /mnt/data/file; sync")
                with pytest.raises(VMStateError, match="close them first"):
                    await template.delete(backend)
                [overlay] = [disk.host_path for disk in clone.devices().disks]
                assert (await clone.shutdown()).exit_type == "GracefulExit"
                _check_image(overlay)
            assert os.listdir(options.scratch_directory) == []
        assert (len(drawn), len(identities)) == (2, 3)
        assert await anyio.Path(path).read_bytes() == as_saved
        async with running_vm(backend) as other:
            with pytest.raises(HostError, match="ERROR_SHARING_VIOLATION"):
                await other.scsi.attach(path)
            await other.scsi.attach(path, read_only=True)
        await template.delete(backend)


def _check_image(path: str) -> None:
    program = shutil.which("qemu-img")
    if program is not None:
        subprocess.run([program, "check", path], check=True, stdout=subprocess.DEVNULL)


async def test_what_clones_write_to_memory_is_in_no_other(tmp_path: Path) -> None:
    async with backend_of(tmp_path) as backend:
        async with running_vm(backend, template=True) as vm:
            await said(vm, "echo template > /run/file")
            template = await vm.save_template()
            first, second = [
                uvm.UtilityVM.create(_clone(template, tmp_path, number), backend=backend)
                for number in range(2)
            ]
            async with first as one, second as other:
                for each in (one, other):
                    await each.start()
                await said(one, "dd if=/dev/urandom of=/run/big bs=1M count=64 2>&1; echo one > /run/file")
                assert await said(other, "cat /run/file; ls /run/big 2>/dev/null || true") == "template\n"
                with pytest.raises(NotSupportedError, match="memory of a template"):
                    await one.update_memory(memory_mb=MEMORY_MB // 2)
                # A clone needs nothing of its template any more.
                await vm.close()
                assert await said(other, "cat /run/file") == "template\n"
        assert backend._vms == {}


async def test_a_pool_of_clones_boots_one_vm(tmp_path: Path) -> None:
    booted = []

    async def prepare(vm: uvm.UtilityVM) -> None:
        booted.append(vm.id)
        await said(vm, "echo prepared > /run/file")

    with leaving_nothing(tmp_path) as pids:
        async with backend_of(tmp_path) as backend:
            options = uvm.LCOWOptions(memory_mb=MEMORY_MB, processors=1)
            pool = uvm.Pool(options, backend=backend, ready=1, clones=True, prepare_template=prepare)
            async with pool:
                for _ in range(3):
                    async with pool.vm() as vm:
                        pids.append(process_of(backend, vm))
                        assert await said(vm, "cat /run/file; echo used > /run/file") == "prepared\n"
                        assert vm.template_id == booted[0]
                assert (len(set(pids)), len(booted)) == (3, 1)


@pytest.mark.parametrize("packed", [False, True])
async def test_a_clone_has_the_layers_of_its_template(tmp_path: Path, packed: bool) -> None:
    paths = [_layer(tmp_path, number) for number in range(3)]
    async with (
        backend_of(tmp_path) as backend,
        running_vm(backend, template=True, vpmem_multi_mapping=packed) as vm,
    ):
        first, *_ = [await vm.vpmem.add(path) for path in paths]
        await first.release()
        script = "cat " + " ".join(f"{layer.guest_path}/number" for layer in vm.vpmem.layers)
        assert await said(vm, script) == "1\n2\n"
        template, layers = await vm.save_template(), vm.vpmem.layers
        of_clone = _clone(template, tmp_path, vpmem_multi_mapping=packed)
        async with uvm.UtilityVM.create(of_clone, backend=backend) as clone:
            await clone.start()
            assert clone.vpmem.layers == layers
            # Not from what the guest has cached.
            assert await said(clone, f"echo 3 > /proc/sys/vm/drop_caches; {script}") == "1\n2\n"
            for path in paths[1:]:
                await clone.vpmem.remove(path)
            again = await clone.vpmem.add(paths[0])
            assert await said(clone, f"cat {again.guest_path}/number") == "0\n"


def _layer(directory: Path, number: int) -> str:
    """A layer with a file that says a number."""
    tree = directory / f"tree{number}"
    tree.mkdir()
    (tree / "number").write_text(f"{number}\n")
    return str(ext4_image(directory / f"layer{number}.img", source=tree))


async def test_what_is_shared_keeps_a_vm_from_being_saved(tmp_path: Path) -> None:
    async with backend_of(tmp_path) as backend, running_vm(backend, template=True) as vm:
        async with vm.plan9.add(open_to_all(tmp_path), "/mnt/share"):
            with pytest.raises(VMStateError, match="shared"):
                await vm.save_template()
        assert (await vm.run(["true"])).exit_code == 0


def _restored(path: Path) -> uvm.LCOWOptions:
    state = {"VirtualMachine": {"RestoreState": {"SaveStateFilePath": str(path)}}}
    return uvm.LCOWOptions(memory_mb=MEMORY_MB, processors=1, additional_json=state)


async def test_a_vm_goes_on_from_a_file_in_another_process_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with leaving_nothing(tmp_path):
        async with backend_of(tmp_path) as backend, running_vm(backend) as vm:
            await said(vm, "echo saved > /run/file")
            await vm.pause()
            await vm.save(path)
        async with backend_of(tmp_path) as backend:
            await _check_restored(backend, path)


async def _check_restored(backend: QEMUBackend, path: Path) -> None:
    async with uvm.UtilityVM.create(_restored(path), backend=backend) as vm:
        with anyio.fail_after(PATIENCE_SECONDS):
            await vm.start()
        assert await said(vm, "cat /run/file") == "saved\n"
    os.chmod(path, 0o644)
    with pytest.raises(HostError, match="E_ACCESSDENIED"):
        async with uvm.UtilityVM.create(_restored(path), backend=backend):
            pass
    os.chmod(path, 0o600)
    other = uvm.LCOWOptions(
        memory_mb=MEMORY_MB * 2,
        additional_json={"VirtualMachine": {"RestoreState": {"SaveStateFilePath": str(path)}}},
    )
    with pytest.raises(HostError, match="HCS_E_IMAGE_MISMATCH"):
        async with uvm.UtilityVM.create(other, backend=backend):
            pass
    assert backend._vms == {}
