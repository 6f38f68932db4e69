"""PCI functions and named pipes of the host that are passed through to a VM."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

from uvm._names import guid_key, pci_key, pipe_key
from uvm.backend import JSON
from uvm.backends.fake.devices.request import Device, DeviceTable
from uvm.backends.requests.request import Request
from uvm.errors import OptionsError
from uvm.hresult import HResult
from uvm.schema.devices import Devices, VirtualPciDevice
from uvm.schema.json import to_json
from uvm.schema.requests import MappedPipe, Resource, VirtualPci
from uvm.schema.system import VirtualMachine

PciDevice: TypeAlias = Device[VirtualPciDevice]


def _functions(device: PciDevice) -> list[tuple[str, int]]:
    """Return the functions of a device in the form in which the host compares them."""
    return [(pci_key(f.device_instance_path), f.virtual_function) for f in device.settings.functions]


class PciKind(DeviceTable[VirtualPci, str, PciDevice]):
    """The assigned PCI devices of a VM, by VMBus GUID. A function is assigned to one VM at a time."""

    resources: ClassVar[tuple[type[Resource], ...]] = (VirtualPci,)
    name: ClassVar[str] = "VirtualPci"
    actions: ClassVar[tuple[str, ...]] = ("Add", "Remove")

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Assign the devices of the document."""
        for guid, device in devices.virtual_pci.items():
            self.modify(Request(VirtualPci(guid), "Add", to_json(device)))

    def find(self, key: str) -> PciDevice | None:
        """Return a device by its VMBus GUID; None if there is none."""
        return super().find(guid_key(key))

    def key(self, request: Request[VirtualPci]) -> str:
        """Return the VMBus GUID of the device, in lower case."""
        return guid_key(request.resource.vmbus_guid)

    def make(self, request: Request[VirtualPci]) -> PciDevice:
        """Return the device that a request describes."""
        device = Device(request.resource.vmbus_guid, request.parse(VirtualPciDevice))
        try:
            functions = _functions(device)
        except OptionsError as e:
            raise request.invalid(str(e)) from None
        if not functions:
            raise request.invalid("a PCI device has functions")
        return device

    def attach(self, request: Request[VirtualPci], device: PciDevice) -> None:
        """Assign the functions of a device to the VM."""
        for function in _functions(device):
            if function in self.host.pci:
                text = f"{function[0]} is assigned to VM {self.host.pci[function]}"
                raise request.refuse(HResult.ERROR_SHARING_VIOLATION, text)
        self.host.pci.update(dict.fromkeys(_functions(device), self.vm_id))

    def detach(self, device: PciDevice) -> None:
        """Return the functions of a device to the host."""
        super().detach(device)
        for function in _functions(device):
            self.host.pci.pop(function, None)


class PipeKind(DeviceTable[MappedPipe, str, Device[None]]):
    """The named pipes of the host that a Windows guest sees under the same names."""

    resources: ClassVar[tuple[type[Resource], ...]] = (MappedPipe,)
    name: ClassVar[str] = "MappedPipes"
    actions: ClassVar[tuple[str, ...]] = ("Add", "Remove")

    @property
    def pipes(self) -> list[str]:
        """The names of the mapped pipes."""
        return list(self.inventory())

    def key(self, request: Request[MappedPipe]) -> str:
        """Return the folded name of the pipe. It has no settings (Microsoft's HcsModifyComputeSystem)."""
        try:
            key = pipe_key(request.resource.host_path)
        except OptionsError as e:
            raise request.invalid(str(e)) from None
        if request.settings:
            raise request.invalid("a mapped pipe has no settings")
        return key

    def make(self, request: Request[MappedPipe]) -> Device[None]:
        """Return the pipe that a request names."""
        return Device(request.resource.host_path, None)

    def inventory(self) -> JSON:
        """Return the pipes by name."""
        return {pipe.name: {} for pipe in self._attached.values()}
