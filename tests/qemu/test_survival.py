"""A real VM that survives the process that created it, and is found, used, changed and ended by the next."""

from __future__ import annotations

import subprocess
from pathlib import Path

import anyio
import pytest

from tests.qemu.images import ext4
from tests.qemu.patient import PATIENT_PYTHON
from tests.qemu.vms import backend_of, leaving_nothing, open_to_all
from uvm.backend import JSON, System
from uvm.backends.qemu.runtime import ProcessName
from uvm.schema.requests import scsi_attachment_path

pytestmark = pytest.mark.anyio

#: Has a VM that survives it, with a disk and a share, to which the host is connected; waits to be killed.
HOLDS = """
import anyio, sys
from pathlib import Path
from tests.qemu.vms import backend_of, process_of, running_vm
from uvm.devices.scsi import Mount

async def main():
    directory = Path(sys.argv[1])
    options = {"survive_process": True, "external_guest_connection": False}
    async with backend_of(directory) as backend:
        async with running_vm(backend, id="vm1", **options) as vm:
            disk = await vm.scsi.attach(directory / "first.img", mount=Mount(filesystem="ext4"))
            await vm.plan9.add(directory / "shared", "/run/share")
            # Its output is of no use to the next process, at whatever port that has the streams of its own.
            await backend._vms["vm1"].host_connection("test").start(
                {"CommandArgs": ["sh", "-c", "echo of another process; sleep 1000"], "CreateStdOutPipe": True}
            )
            print(process_of(backend, vm), disk.guest_path, flush=True)
            await anyio.sleep_forever()

anyio.run(main)
"""

#: Creates a VM that would survive it, and waits to be killed before that is done.
CREATES = """
import anyio, sys
from pathlib import Path
from tests.qemu.vms import backend_of, running_vm
from uvm.backends.qemu.devices.tree import DeviceTree

async def main():
    async with backend_of(Path(sys.argv[1])) as backend:
        async def load(*of):
            print(backend._vms["vm1"].pid, flush=True)
            await anyio.sleep_forever()

        DeviceTree.load = load
        async with running_vm(backend, id="vm1", survive_process=True):
            pass

anyio.run(main)
"""

FIRST, SECOND = scsi_attachment_path(0, 0), scsi_attachment_path(0, 1)


async def test_a_vm_survives_a_kill_of_its_process_and_is_used_and_ended_by_the_next(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text(f"of the {name} disk")
        ext4(tmp_path / f"{name}.img", source=tmp_path / name)
    (open_to_all(tmp_path / "shared") / "text").write_text("of the share")
    with leaving_nothing(tmp_path) as pids:
        qemu, mounted = _left_by_a_killed_process(tmp_path)
        pids.append(qemu)
        async with backend_of(tmp_path) as backend:
            [found] = await backend.enumerate()
            assert (found["Id"], found["State"]) == ("vm1", "Running")
            system = await backend.open("vm1")
            await system.pause()
            assert (await system.properties("Memory"))["State"] == "Paused"
            await system.resume()
            assert await _read(system, f"{mounted}/text") == b"of the first disk"
            assert await _read(system, "/run/share/text") == b"of the share"
            await system.modify(_disk(FIRST, "Remove", mounted))
            await backend.grant_access(str(tmp_path / "second.img"), "vm1", "all")
            path = str(tmp_path / "second.img")
            await system.modify(_disk(SECOND, "Add", "/run/second", Type="VirtualDisk", Path=path))
            await system.close()
        # It has survived the second process as well.
        assert ProcessName.of(qemu) is not None
        async with backend_of(tmp_path) as backend:
            system = await backend.open("vm1")
            assert await _read(system, "/run/second/text") == b"of the second disk"
            await system.modify(_disk(SECOND, "Remove", "/run/second"))
            await system.crash()
            assert (await system.wait()).exit_type == "UnexpectedExit"
            await system.close()


async def test_a_vm_whose_process_is_killed_while_it_creates_it_is_ended_by_the_next(tmp_path: Path) -> None:
    with leaving_nothing(tmp_path) as pids:
        [qemu] = _printed_by_a_killed_process(CREATES, tmp_path)
        pids.append(int(qemu))
        assert ProcessName.of(pids[0]) is not None
        async with backend_of(tmp_path) as backend:
            assert await backend.enumerate() == []


def _disk(path: str, action: str, mounted: str, **settings: str) -> JSON:
    """The request for a disk, which the guest mounts or unmounts too."""
    lun = int(path.rpartition("/")[2])
    mount = {"MountPath": mounted, "Lun": lun, "Controller": 0, "Filesystem": "ext4"}
    relayed = {"ResourceType": "MappedVirtualDisk", "RequestType": action, "Settings": mount}
    return {"ResourcePath": path, "RequestType": action, "Settings": settings, "GuestRequest": relayed}


async def _read(system: System, path: str) -> bytes:
    """Return what a process of the guest shows of a file."""
    process = await system.create_process({"CommandArgs": ["cat", path], "CreateStdOutPipe": True})
    assert process.stdout is not None
    read = bytearray()
    try:
        while True:
            read += await process.stdout.receive()
    except anyio.EndOfStream:
        pass
    assert await process.wait() == 0
    await process.close()
    return bytes(read)


def _left_by_a_killed_process(tmp_path: Path) -> tuple[int, str]:
    """Return the process of QEMU, and where the guest has the disk."""
    qemu, mounted = _printed_by_a_killed_process(HOLDS, tmp_path)
    return int(qemu), mounted


def _printed_by_a_killed_process(program: str, tmp_path: Path) -> list[str]:
    """Return the words of the first line that a program prints, which is killed then."""
    command = [*PATIENT_PYTHON, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        process.kill()
    return words
