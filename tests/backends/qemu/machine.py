"""A VM as its devices see it: QEMU's answers are scripted, and what it was asked is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio.lowlevel
from attrs import define, field

from uvm.backend import JSON, HostInfo
from uvm.backends.qemu.devices.request import Host
from uvm.backends.qemu.devices.tree import DeviceTree
from uvm.backends.qemu.monitor import Monitor
from uvm.backends.qemu.network import QEMUNetwork
from uvm.backends.qemu.qmp import QMPError
from uvm.backends.requests.access import AccessTable
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.json import from_json
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS, ModifySettingRequest, scsi_attachment_path
from uvm.schema.system import VirtualMachine

PLAN9 = "VirtualMachine/Devices/Plan9/Shares"
VPMEM = "VirtualMachine/Devices/VirtualPMem/Devices"
ADAPTERS = "VirtualMachine/Devices/NetworkAdapters"


@define
class ScriptedMachine(Monitor):
    """A VM whose QEMU answers as it is told.

    :ivar asked: the commands, with their arguments.
    :ivar opened: what the descriptors that it was handed are open on.
    :ivar refusals: what QEMU says to a command instead of carrying it out.
    :ivar kept: the devices that the guest does not release.
    """

    id: str = "vm1"
    asked: list[tuple[str, JSON]] = field(factory=list)
    opened: list[str] = field(factory=list)
    refusals: dict[str, QMPError] = field(factory=dict)
    kept: set[str] = field(factory=set)
    links: list[str] = field(factory=list)
    gate: anyio.Event | None = None
    watched: Path | None = None

    async def ask(
        self,
        operation: str,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        fds: Sequence[int] = (),
    ) -> Any:
        """Answer a command."""
        await anyio.lowlevel.checkpoint()
        self.asked.append((command, dict(arguments or {})))
        if self.gate is not None:
            await self.gate.wait()
        if command == "device_add" and self.watched is not None:
            self.links += [str(each.resolve()) for each in sorted(self.watched.glob("*share*"))]
        if command in self.refusals:
            error = self.refusals[command]
            raise HostError(f"{operation} {self.id}", HResult.E_FAIL, str(error)) from error
        if command == "add-fd":
            self.opened += [_path_of(fd) for fd in fds]
            return {"fdset-id": len(self.opened), "fd": fds[0]}
        return {}

    async def unplug(self, operation: str, device: str, seconds: float = 0) -> None:
        """Unplug a device, unless the guest keeps it."""
        await self.ask(operation, "device_del", {"id": device})
        if device in self.kept:
            raise HostError(f"{operation} {self.id}", HResult.E_FAIL, "the guest does not release it")

    def refuse(self, command: str, text: str = "no", kind: str = "GenericError") -> None:
        """Have QEMU refuse a command."""
        self.refusals[command] = QMPError(command, kind, text)

    @property
    def commands(self) -> list[str]:
        """The names of the commands."""
        return [name for name, _ in self.asked]

    def last(self, command: str) -> JSON:
        """Return the arguments of the last such command."""
        return next(arguments for name, arguments in reversed(self.asked) if name == command)


def _path_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").resolve())


@define
class Grants(AccessTable):
    """Access to what it names."""

    granted_paths: set[str] = field(factory=set)
    every: bool = True

    def allows(self, path: str, vm_id: str, *, writable: bool) -> bool:
        """Return whether a VM may open a path."""
        return self.every or path in self.granted_paths


@define
class Rig:
    """A device tree, on a scripted QEMU."""

    machine: ScriptedMachine
    tree: DeviceTree
    network: QEMUNetwork
    grants: Grants
    host: Host

    async def modify(self, path: str, action: str = "Add", **settings: Any) -> None:
        """Have the tree carry out a request."""
        request = ModifySettingRequest(resource_path=path, request_type=action, settings=settings or None)
        await self.tree.modify(request)

    async def attach(self, path: str, controller: int = 0, lun: int = 0, **settings: Any) -> None:
        """Attach a disk."""
        slot = scsi_attachment_path(controller, lun)
        await self.modify(slot, Type=settings.pop("Type", "VirtualDisk"), Path=path, **settings)

    async def detach(self, controller: int = 0, lun: int = 0) -> None:
        """Detach a disk."""
        await self.modify(scsi_attachment_path(controller, lun), "Remove")


async def rig(directory: Path, *, root_ports: int = 8, share_slots: int = 8, **changes: Any) -> Rig:
    """Return the tree of a VM with everything, and nothing attached."""
    machine, network, grants = ScriptedMachine(watched=directory), QEMUNetwork(), Grants()
    host = Host(
        machine,
        HostInfo(paths="posix", memory_mb=4096),
        grants,
        network,
        str(directory),
        root_ports=root_ports,
        share_slots=share_slots,
        **changes,
    )
    tree = DeviceTree(host)
    document = {
        "ComputeTopology": {"Memory": {"SizeInMB": 1024}, "Processor": {"Count": 2}},
        "Devices": {
            "Scsi": {guid: {} for guid in SCSI_CONTROLLER_GUIDS},
            "VirtualPMem": {"MaximumCount": 64, "MaximumSizeBytes": 1 << 30},
            "Plan9": {},
        },
    }
    await tree.load(from_json(VirtualMachine, document))
    return Rig(machine, tree, network, grants, host)
