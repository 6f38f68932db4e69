"""Directories of the host that the guest sees: over SMB (Windows guests) and over 9p (Linux guests)."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from attrs import define, evolve

from uvm.backend import JSON
from uvm.backends.fake.devices.request import DeviceKind, Request
from uvm.backends.fake.host import Host
from uvm.schema.devices import PLAN9_RESTRICT_FILE_ACCESS, Plan9Share, VirtualSmbShare
from uvm.schema.json import to_json
from uvm.schema.requests import Plan9Shares, Resource, VSMBShares
from uvm.schema.system import VirtualMachine

S = TypeVar("S", VirtualSmbShare, Plan9Share)


@define(eq=False)
class Shared(Generic[S]):
    """A share in force.

    :ivar attached: False once the host has taken it away.
    """

    share: S
    attached: bool = True

    def __str__(self) -> str:
        return f"share {self.share.name} ({self.share.path})"


class _ShareKind(DeviceKind[Resource], Generic[S]):
    """Shares by name, under one resource path; the settings of a request name the share."""

    __slots__ = ("_model", "_present", "_shares")

    def __init__(self, vm_id: str, host: Host, model: type[S]) -> None:
        super().__init__(vm_id, host)
        self._model: type[S] = model
        self._present = False
        self._shares: dict[str, Shared[S]] = {}

    @property
    def shares(self) -> dict[str, S]:
        """The shares by name."""
        return {name: shared.share for name, shared in self._shares.items()}

    def find(self, name: str) -> Shared[S] | None:
        """Return a share by name; None if there is none."""
        return self._shares.get(name)

    def modify(self, request: Request[Resource]) -> None:
        """Add, change or remove a share."""
        share = request.parse(self._model)
        if not self._present:
            raise request.missing(f"the VM has no {self.name} device")
        if not share.name:
            raise request.invalid("Name is missing")
        found = self._shares.get(share.name)
        match request.action:
            case "Add":
                self._add(request, share, found)
            case "Update":
                self._update(request, share, found)
            case _:
                self._remove(request, share, found)

    def close(self) -> None:
        """Take all shares away."""
        for shared in self._shares.values():
            shared.attached = False
        self._shares.clear()

    def inventory(self) -> JSON:
        """Return the shares in the form of the document."""
        return {"Shares": [to_json(shared.share) for shared in self._shares.values()]} if self._shares else {}

    def _restricted(self, share: S) -> bool:
        """Return whether a share shows only its allowed files."""
        raise NotImplementedError

    def _take_over(self, shares: list[S]) -> None:
        self._present = True
        for share in shares:
            self.modify(Request(self.resources[0](), "Add", to_json(share)))

    def _add(self, request: Request[Resource], share: S, found: Shared[S] | None) -> None:
        if found is not None:
            raise request.taken(f"{found} is there")
        if not share.path:
            raise request.invalid("Path is missing")
        self.host.require_directory(share.path, request.operation)
        self._shares[share.name] = Shared(share)

    def _update(self, request: Request[Resource], share: S, found: Shared[S] | None) -> None:
        if found is None:
            raise request.missing(f"there is no share {share.name}")
        old = found.share
        # hcsshim's vsmb.go: an Update can only change the allowed files, and only of a restricted share.
        if not self._restricted(old):
            raise request.invalid(f"{found} does not restrict file access")
        if share != evolve(old, allowed_files=share.allowed_files):
            raise request.invalid(f"only the allowed files of {found} can change")
        if not share.allowed_files:
            raise request.invalid("AllowedFiles may not be empty")
        found.share = share

    def _remove(self, request: Request[Resource], share: S, found: Shared[S] | None) -> None:
        if found is None:
            raise request.missing(f"there is no share {share.name}")
        found.attached = False
        del self._shares[share.name]


class VSmbKind(_ShareKind[VirtualSmbShare]):
    """The SMB server of a VM."""

    __slots__ = ()

    resources: ClassVar[tuple[type[Resource], ...]] = (VSMBShares,)
    name: ClassVar[str] = "VirtualSmb"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host, VirtualSmbShare)

    def load(self, vm: VirtualMachine) -> None:
        """Take over the shares of the document."""
        if vm.devices is not None and vm.devices.virtual_smb is not None:
            self._take_over(vm.devices.virtual_smb.shares)

    def _restricted(self, share: VirtualSmbShare) -> bool:
        return share.options is not None and share.options.restrict_file_access


class Plan9Kind(_ShareKind[Plan9Share]):
    """The 9p server of a VM."""

    __slots__ = ()

    resources: ClassVar[tuple[type[Resource], ...]] = (Plan9Shares,)
    name: ClassVar[str] = "Plan9"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host, Plan9Share)

    def load(self, vm: VirtualMachine) -> None:
        """Take over the shares of the document."""
        if vm.devices is not None and vm.devices.plan9 is not None:
            self._take_over(vm.devices.plan9.shares)

    def _restricted(self, share: Plan9Share) -> bool:
        return bool(share.flags & PLAN9_RESTRICT_FILE_ACCESS)
