"""The host as the devices of the fake see it, and how strictly the fake checks requests."""

from __future__ import annotations

from typing import Final, Literal

from attrs import Factory, define, evolve, field, frozen

from uvm._checks import Checked, choice, flag, go
from uvm._repr import call_of, showing
from uvm.backend import HostInfo
from uvm.backends.fake.cpugroups import CpuGroups
from uvm.backends.fake.files import FakeFiles, OpenDisk
from uvm.backends.fake.network import FakeNetwork
from uvm.backends.requests.access import AccessTable
from uvm.errors import HostError
from uvm.hresult import HResult

_FLAG: Final = go(None, flag)


@frozen
class Checks(Checked):
    """The checks beyond the shape of a request and the state of the VM.

    :ivar access: the disks that a VM needs access to: ``"writable"`` ones (the default; hcsshim grants none
        to read-only layers: they were unpacked with access of the VM group), ``"all"``, or ``"none"``.
    :ivar host_files: disks and shared directories exist and are of the right kind.
    :ivar endpoints: adapters connect to endpoints that exist, each to one adapter.
    :ivar cpu_groups: VMs are moved into CPU groups that exist.
    :ivar guest: the guest refuses what a correct caller never asks: to unmount what is not mounted, to
        eject a disk that is mounted, to combine layers that do not exist. The first two would succeed in a
        real Linux guest, and a mount would dangle.
    :ivar requests: modify requests that cannot be carried out are refused. Otherwise they are accepted, and
        change nothing.
    """

    access: Literal["writable", "all", "none"] = field(
        default="writable", metadata=go(None, choice("writable", "all", "none"))
    )
    host_files: bool = field(default=True, metadata=_FLAG)
    endpoints: bool = field(default=True, metadata=_FLAG)
    cpu_groups: bool = field(default=True, metadata=_FLAG)
    guest: bool = field(default=True, metadata=_FLAG)
    requests: bool = field(default=True, metadata=_FLAG)

    __repr__ = call_of

    @classmethod
    def lenient(cls) -> Checks:
        """Check only the shape of requests and the state of the VM: for replaying recorded requests."""
        return cls(access="none", host_files=False, endpoints=False, cpu_groups=False, guest=False)

    @classmethod
    def accepting(cls) -> Checks:
        """Check only the state of the VM, and accept every request: for recording what is sent."""
        return evolve(cls.lenient(), requests=False)


@showing("info")
@define(repr=False)
class Host:
    """What the VMs of a backend share.

    :ivar pci: the VM that each assigned PCI function (instance path, function) is assigned to.
    :ivar cpu_groups: the CPU groups.
    """

    info: HostInfo
    files: FakeFiles
    access: AccessTable
    network: FakeNetwork
    checks: Checks
    pci: dict[tuple[str, int], str] = Factory(dict)
    cpu_groups: CpuGroups = Factory(lambda host: CpuGroups(host.info.processors), takes_self=True)

    def open_file(self, path: str, vm_id: str, *, writable: bool, operation: str) -> OpenDisk:
        """Open a disk or image for a VM.

        :raises HostError: ERROR_FILE_NOT_FOUND, E_ACCESSDENIED (a directory, or no access) or
            ERROR_SHARING_VIOLATION.
        """
        found = self.files.look(path)
        if self.checks.host_files:
            if found is None:
                raise HostError(operation, HResult.ERROR_FILE_NOT_FOUND, path)
            if found.is_dir:
                raise HostError(operation, HResult.E_ACCESSDENIED, f"{path} is a directory")
        needed = self.checks.access == "all" or (self.checks.access == "writable" and writable)
        if needed and not self.access.allows(path, vm_id, writable=writable):
            raise HostError(operation, HResult.E_ACCESSDENIED, f"VM {vm_id} has no access to {path}")
        return self.files.open_disk(path, writable=writable, operation=operation)

    def require_directory(self, path: str, operation: str) -> None:
        """Check that a directory to share exists: ERROR_PATH_NOT_FOUND, or ERROR_DIRECTORY for a file."""
        if not self.checks.host_files:
            return
        found = self.files.look(path)
        if found is None:
            raise HostError(operation, HResult.ERROR_PATH_NOT_FOUND, path)
        if not found.is_dir and not self.files.permissive:
            raise HostError(operation, HResult.ERROR_DIRECTORY, f"{path} is a file")
