"""The device tree of one VM: every modify request changes it, and is checked against it first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from uvm._repr import showing
from uvm.backend import JSON
from uvm.backends.fake.devices.adapters import AdapterKind
from uvm.backends.fake.devices.passthrough import PciKind, PipeKind
from uvm.backends.fake.devices.ports import SocketKind
from uvm.backends.fake.devices.request import Device, DeviceKind, DeviceTable
from uvm.backends.fake.devices.scsi import ScsiKind
from uvm.backends.fake.devices.shares import Plan9Kind, VSmbKind
from uvm.backends.fake.devices.topology import TopologyKind
from uvm.backends.fake.devices.vpmem import VPMemKind
from uvm.backends.fake.host import Host
from uvm.backends.requests.request import read_request
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.devices import Devices
from uvm.schema.system import VirtualMachine

K = TypeVar("K", bound=DeviceKind[Any])


@showing("inventory")
class DeviceTree:
    """The devices of one VM, kind by kind.

    :ivar vm_id: the id of the VM.
    :ivar topology: memory and processors.
    :ivar scsi: SCSI controllers and disks.
    :ivar vpmem: VPMEM devices and mappings.
    :ivar vsmb: SMB shares.
    :ivar plan9: 9p shares.
    :ivar adapters: network adapters.
    :ivar pci: assigned PCI devices.
    :ivar pipes: mapped pipes.
    :ivar sockets: Hyper-V socket services.
    """

    def __init__(self, vm_id: str, host: Host, vm: VirtualMachine) -> None:
        """Attach the devices of a document.

        :raises HostError: a device of the document is refused; none of them remains attached.
        """
        self.vm_id: str = vm_id
        self._kinds = {kind: kind(vm_id, host) for kind in _kinds(DeviceKind)}
        self.topology: TopologyKind = self.of(TopologyKind)
        self.scsi: ScsiKind = self.of(ScsiKind)
        self.vpmem: VPMemKind = self.of(VPMemKind)
        self.vsmb: VSmbKind = self.of(VSmbKind)
        self.plan9: Plan9Kind = self.of(Plan9Kind)
        self.adapters: AdapterKind = self.of(AdapterKind)
        self.pci: PciKind = self.of(PciKind)
        self.pipes: PipeKind = self.of(PipeKind)
        self.sockets: SocketKind = self.of(SocketKind)
        try:
            for kind in self._kinds.values():
                kind.load(vm, vm.devices or Devices())
        except HostError:
            self.close()
            raise

    def of(self, kind: type[K]) -> K:
        """Return the devices of a kind."""
        found = self._kinds[kind]
        assert isinstance(found, kind)
        return found

    def modify(self, path: str, request_type: str, settings: Any) -> None:
        """Carry out a request.

        :raises HostError: the request is refused; nothing has changed.
        """
        request = read_request(path, request_type, settings, "the fake does not model it")
        kind = next(kind for kind in self._kinds if type(request.resource) in kind.resources)
        self._kinds[kind].modify(request)

    def twin(self, device: Device[Any], other: DeviceTree) -> Device[Any] | None:
        """Return the device of another tree that is where one of this tree is; None if none is there."""
        for kind, table in self._kinds.items():
            for key, each in table._attached.items() if isinstance(table, DeviceTable) else ():
                if each is device:
                    return other.of(kind).find(key)  # type: ignore[attr-defined,no-any-return]
        return None

    def check_restorable(self, other: DeviceTree) -> None:
        """Refuse a tree, for the guest of this one, that lacks a device of it: E_INVALIDARG."""
        for table in (self.scsi, self.vpmem, self.vsmb):
            for device in table._attached.values():
                if self.twin(device, other) is None:
                    text = f"the template has {device}, and nothing is there in the document"
                    raise HostError(f"create {self.vm_id}", HResult.E_INVALIDARG, text)

    def close(self) -> None:
        """Detach all devices: the VM has exited."""
        for kind in self._kinds.values():
            kind.close()

    def inventory(self) -> JSON:
        """Return what is attached, kind by kind, under HCS's names."""
        return {kind.name: found for kind in self._kinds.values() if (found := kind.inventory())}


def _kinds(base: type[DeviceKind[Any]]) -> Iterator[type[DeviceKind[Any]]]:
    """Yield all device kinds. To add one, write its class."""
    for kind in base.__subclasses__():
        if "resources" in vars(kind):
            yield kind
        yield from _kinds(kind)
