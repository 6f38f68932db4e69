"""The device tree of one VM: every modify request goes to the kind of device that it is about."""

from __future__ import annotations

from typing import Any, Final

from uvm._repr import showing
from uvm.backend import JSON
from uvm.backends.qemu.devices.adapters import AdapterKind
from uvm.backends.qemu.devices.journal import Journal
from uvm.backends.qemu.devices.plan9 import Plan9Kind
from uvm.backends.qemu.devices.refused import RefusedKind
from uvm.backends.qemu.devices.request import DeviceKind, Host
from uvm.backends.qemu.devices.scsi import ScsiKind
from uvm.backends.qemu.devices.topology import TopologyKind
from uvm.backends.qemu.devices.vpmem import VPMemKind
from uvm.backends.requests.request import Request, read_request
from uvm.schema.devices import Devices
from uvm.schema.requests import ModifySettingRequest, Resource, parse_resource_path
from uvm.schema.system import VirtualMachine

#: Where QEMU has the devices that have names.
_PLUGGED: Final = "/machine/peripheral"


@showing("count")
class DeviceTree:
    """The devices of one VM, kind by kind.

    :ivar topology: memory and processors.
    :ivar scsi: SCSI controllers and disks.
    :ivar vpmem: VPMEM devices and mappings.
    :ivar plan9: 9p shares.
    :ivar adapters: network adapters.
    """

    def __init__(self, host: Host) -> None:
        self.topology: TopologyKind = TopologyKind(host)
        self.scsi: ScsiKind = ScsiKind(host)
        self.vpmem: VPMemKind = VPMemKind(host)
        self.plan9: Plan9Kind = Plan9Kind(host)
        self.adapters: AdapterKind = AdapterKind(host)
        self._kinds: tuple[DeviceKind[Any], ...] = (
            self.topology,
            self.scsi,
            self.vpmem,
            self.plan9,
            self.adapters,
            RefusedKind(host),
        )

    @property
    def count(self) -> int:
        """How many disks, VPMEM devices and mappings, shares and adapters are attached."""
        return sum(kind.count for kind in (self.scsi, self.vpmem, self.plan9, self.adapters))

    async def load(self, vm: VirtualMachine) -> None:
        """Attach the devices of the VM's document, before it starts.

        :raises HostError: a device is refused; those before it are attached.
        """
        self.configure(vm)
        for kind in self._kinds:
            await kind.load(vm, vm.devices or Devices())

    def configure(self, vm: VirtualMachine) -> None:
        """Take from the VM's document which devices there can be."""
        for kind in self._kinds:
            kind.configure(vm, vm.devices or Devices())

    async def restore(self, vm: VirtualMachine, journal: Journal, operation: str) -> None:
        """Have the devices that an earlier process has attached; what it was about to attach is removed.

        :raises HostError: QEMU does not say what it has.
        """
        self.configure(vm)
        await self.topology.adopt(operation)
        machine = self.topology.machine
        there = {each["name"] for each in await machine.ask(operation, "qom-list", {"path": _PLUGGED})}
        fdsets: dict[str, list[int]] = {}
        for each in await machine.ask(operation, "query-fdsets"):
            for fd in each["fds"]:
                fdsets.setdefault(str(fd.get("opaque")), []).append(each["fdset-id"])
        for name, entry in [*journal.entries()]:
            resource = parse_resource_path(entry["Path"])
            assert resource is not None, "it was noted for one"
            kind, settings = self._kind_of(resource), entry["Settings"]
            place = {**entry["Place"], "FDSets": fdsets.get(name, [])}
            kind.restore(Request(resource, "Add", settings), place)
            if name not in there:
                await kind.modify(Request(resource, "Remove", settings))

    async def modify(self, request: ModifySettingRequest) -> None:
        """Carry out a request, without what it asks of the guest.

        :raises HostError: the request is refused; nothing has changed.
        :raises NoSpaceError: nothing is free for the device; nothing has changed.
        """
        lacking = "QEMU has nothing of that kind"
        read = read_request(request.resource_path, request.request_type, request.settings, lacking)
        await self._kind_of(read.resource).modify(read)

    def _kind_of(self, resource: Resource) -> DeviceKind[Any]:
        return next(kind for kind in self._kinds if type(resource) in kind.resources)

    def close(self) -> None:
        """Release what is held on the host: the VM has exited."""
        for kind in self._kinds:
            kind.close()

    def inventory(self) -> JSON:
        """Return what is attached, kind by kind, under HCS's names."""
        return {kind.name: found for kind in self._kinds if (found := kind.inventory())}
