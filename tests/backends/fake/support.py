"""What the tests of the fake share: a host with some files, documents of VMs, and how a refusal is stated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from uvm._async import BareTaskGroup
from uvm._gcs.connection import GuestConnection
from uvm._wire.ports import LINUX_GCS_PORT, WINDOWS_GCS_SERVICE, WINDOWS_SIDECAR_SERVICE, vsock_service_id
from uvm.backends.fake import FakeBackend, FakeFiles, FakeSystem, FakeVM
from uvm.backends.fake.exchange import Exchange
from uvm.errors import GuestError, HostError
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS

# Programs that are started many times use this too, and pytest takes long to load.
if TYPE_CHECKING:
    import pytest

JSON = dict[str, Any]

DISK = r"C:\disks\a.vhdx"
OTHER_DISK = r"C:\disks\b.vhdx"
LAYER = r"C:\layers\base.vhd"
OTHER_LAYER = r"C:\layers\top.vhd"
SHARED = r"C:\shared"
SERVICE = "11111111-2222-3333-4444-555555555555"
MIB = 1 << 20

#: The backends of running VMs, by what all handles of a backend share.
_BACKENDS: WeakKeyDictionary[Exchange, FakeBackend] = WeakKeyDictionary()


def lcow(**devices: Any) -> JSON:
    """A document of a Linux VM with one controller, two VPMEM devices of 16 MiB, and a 9p server."""
    return {
        "Owner": "tests",
        "SchemaVersion": {"Major": 2, "Minor": 1},
        "VirtualMachine": {
            "Chipset": {"LinuxKernelDirect": {"KernelFilePath": r"C:\boot\vmlinux"}},
            "ComputeTopology": {
                "Memory": {"SizeInMB": 1024, "AllowOvercommit": True},
                "Processor": {"Count": 2},
            },
            "Devices": {
                "Scsi": {SCSI_CONTROLLER_GUIDS[0]: {}},
                "VirtualPMem": {"MaximumCount": 2, "MaximumSizeBytes": 16 * MIB},
                "Plan9": {},
                **devices,
            },
        },
        "ShouldTerminateOnLastHandleClosed": True,
    }


def wcow(**devices: Any) -> JSON:
    """A document of a Windows VM with one controller and an SMB server."""
    return {
        "Owner": "tests",
        "SchemaVersion": {"Major": 2, "Minor": 1},
        "VirtualMachine": {
            "ComputeTopology": {
                "Memory": {"SizeInMB": 1024, "AllowOvercommit": True},
                "Processor": {"Count": 2},
            },
            "Devices": {"Scsi": {SCSI_CONTROLLER_GUIDS[0]: {}}, "VirtualSmb": {}, **devices},
            "RegistryChanges": {},
        },
        "ShouldTerminateOnLastHandleClosed": True,
    }


def host_files() -> FakeFiles:
    """The files that the documents and the requests of the tests name."""
    files = FakeFiles()
    files.add(r"C:\boot\vmlinux", size=MIB)
    for path in (DISK, OTHER_DISK, LAYER, OTHER_LAYER):
        files.add(path, size=MIB)
    files.add_directory(SHARED)
    return files


@asynccontextmanager
async def running(
    document: JSON | None = None, backend: FakeBackend | None = None, system_id: str = "vm1"
) -> AsyncIterator[FakeSystem]:
    """A started VM that may open the disks of the tests, Linux by default."""
    backend = backend or FakeBackend(files=host_files())
    _BACKENDS[backend._exchange] = backend
    for path in (DISK, OTHER_DISK):
        await backend.grant_access(path, system_id)
    system = await backend.create(system_id, document or lcow())
    await system.start()
    yield system
    backend.faults.clear()
    if backend.vms.get(system_id) is system.vm and not system.vm.exit_status:
        await system.terminate()


@asynccontextmanager
async def guest_of(system: FakeSystem) -> AsyncIterator[GuestConnection]:
    """A connection to the guest, which runs meanwhile; the body may end both, and the VM."""
    service = vsock_service_id(LINUX_GCS_PORT)
    if system.vm.os == "windows":
        service = WINDOWS_SIDECAR_SERVICE if system.vm.isolated else WINDOWS_GCS_SERVICE
    listener = await system.listen(service)
    connection = GuestConnection(system.listen, name=system.id)

    async def close(failure: BaseException | None) -> BaseException | None:
        connection.close()
        tasks.cancel_scope.cancel()
        return failure

    async with BareTaskGroup(close) as tasks:
        tasks.start_soon(system.wait)
        try:
            stream = await listener.accept()
        finally:
            # Another connection may follow while this one is still in its block.
            await listener.aclose()
        await tasks.start(connection.serve, stream)
        await connection.start_guest()
        yield connection


def backend_of(system: FakeSystem) -> FakeBackend:
    """The backend that a handle belongs to."""
    return _BACKENDS[system._host.exchange]


@contextmanager
def expect_refusal(code: int) -> Iterator[pytest.ExceptionInfo[HostError]]:
    """The host refuses what is in the block, with this result code."""
    import pytest

    with pytest.raises(HostError) as caught:
        yield caught
    assert f"0x{caught.value.hresult:08X}" == f"0x{code:08X}", str(caught.value)


@contextmanager
def expect_guest_refusal(code: int) -> Iterator[pytest.ExceptionInfo[GuestError]]:
    """The guest refuses what is in the block, with this result code."""
    import pytest

    with pytest.raises(GuestError) as caught:
        yield caught
    assert f"0x{caught.value.hresult:08X}" == f"0x{code:08X}", str(caught.value)


def add(path: str, settings: Any = None) -> JSON:
    """A request that adds."""
    return _request(path, "Add", settings)


def update(path: str, settings: Any = None) -> JSON:
    """A request that updates."""
    return _request(path, "Update", settings)


def remove(path: str, settings: Any = None) -> JSON:
    """A request that removes."""
    return _request(path, "Remove", settings)


def _request(path: str, request_type: str, settings: Any) -> JSON:
    request = {"ResourcePath": path, "RequestType": request_type}
    return request if settings is None else {**request, "Settings": settings}


def slot(lun: int, controller: int = 0) -> str:
    """The path of a disk."""
    return f"VirtualMachine/Devices/Scsi/{SCSI_CONTROLLER_GUIDS[controller]}/Attachments/{lun}"


def disk(path: str = DISK, **fields: Any) -> JSON:
    """The settings of a virtual disk."""
    return {"Type": "VirtualDisk", "Path": path, **fields}


def pmem(number: int, offset: int | None = None) -> str:
    """The path of a VPMEM device, or of a mapping on it."""
    device = f"VirtualMachine/Devices/VirtualPMem/Devices/{number}"
    return device if offset is None else f"{device}/Mappings/{offset}"


def image(path: str = LAYER, **fields: Any) -> JSON:
    """The settings of a VPMEM device."""
    return {"HostPath": path, "ReadOnly": True, "ImageFormat": "Vhd1", **fields}


def mapping(path: str = LAYER) -> JSON:
    """The settings of a VPMEM mapping."""
    return {"HostPath": path, "ImageFormat": "Vhd1"}


def to_guest(resource: str, request_type: str, **settings: Any) -> JSON:
    """A request to the guest."""
    return {"ResourceType": resource, "RequestType": request_type, "Settings": settings}


def vm_of(system: FakeSystem) -> FakeVM:
    """The VM behind a handle, asked anew, so that type checkers do not remember its state."""
    return system.vm
