"""Devices of real VMs: many at once, each kind from both sides, and a removal that the guest refuses."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

import uvm
from tests.qemu.vms import backend_of, open_to_all, process_of, running_vm
from uvm.backends.qemu import monitor
from uvm.backends.qemu.backend import QEMUBackend
from uvm.errors import HostError
from uvm.schema.guest import RESOURCE_MAPPED_VIRTUAL_DISK, LCOWMappedVirtualDisk
from uvm.schema.requests import ADD, REMOVE, ModificationRequest, scsi_attachment_path

pytestmark = pytest.mark.anyio

MIB = 1 << 20
#: A disk with text, for a guest that reads it without a file system.
TEXT = b"from the host\n"


def disk(directory: Path, name: str, size: int = MIB) -> str:
    """Return a disk that begins with its name."""
    path = directory / name
    path.write_bytes(f"{name}\n".encode().ljust(size, b"\0"))
    return str(path)


async def ext4(directory: Path, name: str = "ext4.img") -> str:
    """Return a disk with an empty ext4, in the format that its name says, made by this machine's tools."""
    raw, path = str(directory / f"{name}.raw"), str(directory / name)
    disk(directory, f"{name}.raw", 16 * MIB)
    await anyio.run_process(["mkfs.ext4", "-q", raw])
    format = {".vhd": "vpc", ".vhdx": "vhdx", ".qcow2": "qcow2"}.get(Path(name).suffix, "raw")
    await anyio.run_process(["qemu-img", "convert", "-f", "raw", "-O", format, raw, path])
    return path


def plugged(backend: QEMUBackend, vm: uvm.UtilityVM) -> int:
    """How many devices the backend has attached."""
    return backend._vms[vm.id].devices.count


async def said(vm: uvm.UtilityVM, script: str) -> str:
    """What a script writes in the guest."""
    done = await vm.run(["sh", "-c", script], text=True)
    assert done.exit_code == 0, done
    return done.stdout


async def test_sixty_four_disks_are_attached_at_once_read_and_gone(tmp_path: Path) -> None:
    async with backend_of(tmp_path) as backend, running_vm(backend, vpmem_count=0) as vm:
        leases: list[uvm.ScsiLease] = []

        async def attach(number: int) -> None:
            path = disk(tmp_path, f"disk{number}.img")
            mount = uvm.Mount(block_device=True, guest_path=f"/dev/mine/{number}")
            leases.append(await vm.scsi.attach(path, read_only=number % 2 == 0, mount=mount))

        async with anyio.create_task_group() as tasks:
            for number in range(64):
                tasks.start_soon(attach, number)
        found = await said(vm, "for n in $(seq 0 63); do head -n1 /dev/mine/$n; done")
        assert found.split() == [f"disk{number}.img" for number in range(64)]
        assert await said(vm, "cat /sys/block/sd*/ro | sort | uniq -c | tr -s ' '") == " 32 0\n 32 1\n"
        async with anyio.create_task_group() as tasks:
            for lease in leases:
                tasks.start_soon(lease.release)
        assert plugged(backend, vm) == 0
        assert await said(vm, "ls /sys/block | grep -c ^sd || true") == "0\n"


async def test_the_last_lun_of_the_last_controller_is_that_in_the_guest(tmp_path: Path) -> None:
    async with backend_of(tmp_path) as backend, running_vm(backend, vpmem_count=0) as vm:
        path, slot = disk(tmp_path, "last.img"), scsi_attachment_path(3, 63)
        system, guest = await backend.open(vm.id), vm._link.guest
        assert guest is not None
        settings = {"Type": "VirtualDisk", "Path": path, "ReadOnly": True}
        await system.modify({"ResourcePath": slot, "RequestType": "Add", "Settings": settings})
        mounted = LCOWMappedVirtualDisk(
            controller=3, lun=63, mount_path="/dev/mine/last", read_only=True, block_dev=True
        )
        for action in (ADD, REMOVE):
            request = ModificationRequest(
                request_type=action, resource_type=RESOURCE_MAPPED_VIRTUAL_DISK, settings=mounted
            )
            await guest.modify(request)
            if action == ADD:
                assert await said(vm, "head -n1 /dev/mine/last") == "last.img\n"
        await system.modify({"ResourcePath": slot, "RequestType": "Remove"})
        assert plugged(backend, vm) == 0
        await system.close()


async def test_what_a_guest_writes_to_an_image_of_each_format_is_in_it(tmp_path: Path) -> None:
    paths = [await ext4(tmp_path, name) for name in ("raw.img", "a.vhd", "a.vhdx", "a.qcow2")]
    async with backend_of(tmp_path) as backend, running_vm(backend) as vm:
        for path in paths:
            for written in ("", "once\n"):
                async with vm.scsi.attach(path, mount=uvm.Mount(filesystem="ext4")) as lease:
                    there = lease.guest_path
                    assert await said(vm, f"cat {there}/file 2>/dev/null || true") == written
                    await said(vm, f"echo once >> {there}/file; sync")
        assert plugged(backend, vm) == 0


async def test_what_a_guest_has_synced_is_there_when_qemu_was_killed(tmp_path: Path) -> None:
    path, mount = await ext4(tmp_path, "a.qcow2"), uvm.Mount(filesystem="ext4", guest_path="/mnt/data")
    async with backend_of(tmp_path) as backend:
        async with running_vm(backend) as vm:
            await vm.scsi.attach(path, mount=mount)
            await said(vm, "echo synced > /mnt/data/file; sync")
            os.kill(process_of(backend, vm), signal.SIGKILL)
            assert (await vm.wait()).exit_type == "UnexpectedExit"
        async with running_vm(backend) as vm, vm.scsi.attach(path, mount=mount):
            assert await said(vm, "cat /mnt/data/file") == "synced\n"


async def test_a_disk_is_in_one_vm_at_a_time_unless_all_only_read_it(tmp_path: Path) -> None:
    path = disk(tmp_path, "disk.img")
    async with backend_of(tmp_path) as backend, running_vm(backend) as first, running_vm(backend) as second:
        async with first.scsi.attach(path):
            with pytest.raises(HostError, match="ERROR_SHARING_VIOLATION"):
                await second.scsi.attach(path)
        async with first.scsi.attach(path, read_only=True), second.scsi.attach(path, read_only=True):
            with pytest.raises(HostError, match="ERROR_SHARING_VIOLATION"):
                await second.scsi.attach(path)


async def test_a_share_is_written_from_both_sides_and_read_only_if_asked(tmp_path: Path) -> None:
    shared = open_to_all(tmp_path / "shared")
    (shared / "host").write_bytes(TEXT)
    async with backend_of(tmp_path) as backend, running_vm(backend) as vm:
        async with vm.plan9.add(shared, "/mnt/rw"), vm.plan9.add(shared, "/mnt/ro", read_only=True):
            assert await said(vm, "cat /mnt/rw/host /mnt/ro/host") == TEXT.decode() * 2
            await said(vm, "echo guest > /mnt/rw/guest; ln -s /etc/passwd /mnt/rw/link")
            refused = await vm.run(["sh", "-c", "echo x > /mnt/ro/no"], text=True)
            assert "Read-only file system" in refused.stderr
        assert (shared / "guest").read_text() == "guest\n"
        assert not (shared / "no").exists()
        assert plugged(backend, vm) == 0
        assert await said(vm, "grep -c 9p /proc/mounts || true") == "0\n"


async def _adapter(backend: QEMUBackend, network: str) -> tuple[str, dict[str, Any]]:
    namespace = await backend.network.create_namespace({})
    endpoint = await backend.network.create_endpoint(network, {})
    await backend.network.add_namespace_endpoint(namespace["ID"], endpoint["ID"])
    return namespace["ID"], endpoint


async def test_an_adapter_reaches_its_gateway_and_nothing_of_the_host(tmp_path: Path) -> None:
    async with backend_of(tmp_path) as backend, running_vm(backend) as vm:
        namespace, endpoint = await _adapter(backend, "restricted")
        joined = await vm.network.setup(namespace)
        gateway = endpoint["Routes"][0]["NextHop"]
        assert "1 packets received" in await said(vm, f"ping -c1 -W60 {gateway}")
        server = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = server.extra(anyio.abc.SocketAttribute.local_port)
        reached = await vm.run(["sh", "-c", f"nc -w3 {gateway} {port} </dev/null"])
        assert reached.exit_code != 0
        await server.aclose()
        await joined.release()
        assert (plugged(backend, vm), backend.network.attachments()) == (0, {})
        assert await said(vm, "ls /sys/class/net") == "lo\n"


async def test_what_the_guest_does_not_release_stays_and_is_released_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = open_to_all(tmp_path / "shared")
    async with backend_of(tmp_path) as backend, running_vm(backend) as vm:
        share = await vm.plan9.add(shared, "/mnt/share")
        # Its file system stays mounted when the agent has unmounted it.
        await said(vm, "mkdir /mnt/again; mount --bind /mnt/share /mnt/again")
        with monkeypatch.context() as patch:
            patch.setattr(monitor, "UNPLUG_SECONDS", 2.0)
            with pytest.raises(HostError, match="has not released it"):
                await share.release()
        assert plugged(backend, vm) == 1
        await said(vm, "umount /mnt/again")
        await share.release()
        assert plugged(backend, vm) == 0
        assert backend._vms[vm.id].devices.inventory().get("Plan9") is None
        assert os.listdir(shared) == []
