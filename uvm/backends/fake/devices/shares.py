"""Directories of the host that the guest sees: over SMB (Windows guests) and over 9p (Linux guests)."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from uvm.backend import JSON
from uvm.backends.fake.devices.request import Device, DeviceTable
from uvm.backends.fake.host import Host
from uvm.backends.requests.request import Request
from uvm.schema.devices import PLAN9_RESTRICT_FILE_ACCESS, Devices, Plan9Share, VirtualSmbShare
from uvm.schema.json import to_json
from uvm.schema.requests import Plan9Shares, Resource, VSMBShares
from uvm.schema.system import VirtualMachine

S = TypeVar("S", VirtualSmbShare, Plan9Share)


class _ShareKind(DeviceTable[Resource, str, Device[S]], Generic[S]):
    """Shares by name, under one resource path; the settings of a request name the share."""

    model: type[S]

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._present = False

    @property
    def shares(self) -> dict[str, S]:
        """The shares by name."""
        return {name: shared.settings for name, shared in self._attached.items()}

    def key(self, request: Request[Resource]) -> str:
        """Return the name of the share."""
        share = request.parse(self.model)
        if not self._present:
            raise request.missing(f"the VM has no {self.name} device")
        if not share.name:
            raise request.invalid("Name is missing")
        return share.name

    def make(self, request: Request[Resource]) -> Device[S]:
        """Return the share that a request describes."""
        share = request.parse(self.model)
        if not share.path:
            raise request.invalid("Path is missing")
        return Device(f"share {share.name} ({share.path})", share)

    def attach(self, request: Request[Resource], device: Device[S]) -> None:
        """Check the directory of a share."""
        self.host.require_directory(device.settings.path, request.operation)

    def update(self, request: Request[Resource], device: Device[S]) -> None:
        """Change the allowed files of a share.

        Source: hcsshim's vsmb.go. All else, and the files of a share that is not restricted, cannot change.
        """
        share = request.parse(self.model)
        if not self._restricted(device.settings):
            raise request.invalid(f"{device} does not restrict file access")
        if share != device.settings.replaced(allowed_files=share.allowed_files):
            raise request.invalid(f"only the allowed files of {device} can change")
        if not share.allowed_files:
            raise request.invalid("AllowedFiles may not be empty")
        device.settings = share

    def inventory(self) -> JSON:
        """Return the shares in the form of the document."""
        return {"Shares": [to_json(share) for share in self.shares.values()]} if self._attached else {}

    def _restricted(self, share: S) -> bool:
        """Return whether a share shows only its allowed files."""
        raise NotImplementedError

    def _add_all(self, shares: list[S]) -> None:
        self._present = True
        for share in shares:
            self.modify(Request(self.resources[0](), "Add", to_json(share)))


class VSmbKind(_ShareKind[VirtualSmbShare]):
    """The SMB server of a VM."""

    resources: ClassVar[tuple[type[Resource], ...]] = (VSMBShares,)
    name: ClassVar[str] = "VirtualSmb"
    model = VirtualSmbShare

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Add the shares of the document."""
        if devices.virtual_smb is not None:
            self._add_all(devices.virtual_smb.shares)

    def _restricted(self, share: VirtualSmbShare) -> bool:
        return share.options is not None and share.options.restrict_file_access


class Plan9Kind(_ShareKind[Plan9Share]):
    """The 9p server of a VM."""

    resources: ClassVar[tuple[type[Resource], ...]] = (Plan9Shares,)
    name: ClassVar[str] = "Plan9"
    model = Plan9Share

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Add the shares of the document."""
        if devices.plan9 is not None:
            self._add_all(devices.plan9.shares)

    def _restricted(self, share: Plan9Share) -> bool:
        return bool(share.flags & PLAN9_RESTRICT_FILE_ACCESS)
