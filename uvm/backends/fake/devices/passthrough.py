"""What of the host is passed through to a VM as it is: PCI functions and named pipes."""

from __future__ import annotations

from typing import ClassVar

from attrs import define

from uvm._names import guid_key, pci_key, pipe_key
from uvm.backend import JSON
from uvm.backends.fake.devices.request import DeviceKind, Request
from uvm.backends.fake.host import Host
from uvm.errors import OptionsError
from uvm.hresult import HResult
from uvm.schema.devices import VirtualPciDevice
from uvm.schema.json import to_json
from uvm.schema.requests import MappedPipe, Resource, VirtualPci
from uvm.schema.system import VirtualMachine


@define(eq=False)
class PciDevice:
    """Assigned PCI functions.

    :ivar guid: the VMBus GUID of the device.
    :ivar attached: False once the host has taken it away.
    """

    guid: str
    settings: VirtualPciDevice
    attached: bool = True

    def __str__(self) -> str:
        return f"PCI device {self.guid}"

    def functions(self) -> list[tuple[str, int]]:
        """Return the functions in the form in which the host compares them."""
        return [(pci_key(f.device_instance_path), f.virtual_function) for f in self.settings.functions]


class PciKind(DeviceKind[VirtualPci]):
    """The assigned PCI devices of a VM, by VMBus GUID. A function is assigned to one VM at a time."""

    __slots__ = ("_devices",)

    resources: ClassVar[tuple[type[Resource], ...]] = (VirtualPci,)
    name: ClassVar[str] = "VirtualPci"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._devices: dict[str, PciDevice] = {}

    def load(self, vm: VirtualMachine) -> None:
        """Take over the devices of the document."""
        for guid, device in (vm.devices.virtual_pci if vm.devices is not None else {}).items():
            self.modify(Request(VirtualPci(guid), "Add", to_json(device)))

    @property
    def devices(self) -> dict[str, PciDevice]:
        """The devices by GUID, in lower case."""
        return dict(self._devices)

    def find(self, guid: str) -> PciDevice | None:
        """Return a device; None if there is none."""
        return self._devices.get(guid_key(guid))

    def modify(self, request: Request[VirtualPci]) -> None:
        """Assign or take away a device."""
        request.allow("Add", "Remove")
        guid = request.resource.vmbus_guid
        found = self.find(guid)
        if request.action == "Add":
            self._add(request, guid, found)
            return
        if found is None:
            raise request.missing(f"there is no device {guid}")
        del self._devices[guid_key(guid)]
        self._release(found)

    def close(self) -> None:
        """Return all functions to the host."""
        for device in self._devices.values():
            self._release(device)
        self._devices.clear()

    def inventory(self) -> JSON:
        """Return the devices in the form of the document."""
        return {device.guid: to_json(device.settings) for device in self._devices.values()}

    def _add(self, request: Request[VirtualPci], guid: str, found: PciDevice | None) -> None:
        device = PciDevice(guid, request.parse(VirtualPciDevice))
        if found is not None:
            raise request.taken(f"{found} is there")
        functions = device.functions()
        if not functions or not all(path for path, _ in functions):
            raise request.invalid("a device needs functions, and each its DeviceInstancePath")
        for function in functions:
            if function in self.host.pci:
                raise request.refuse(
                    HResult.ERROR_SHARING_VIOLATION,
                    f"{function[0]} is assigned to VM {self.host.pci[function]}",
                )
        self.host.pci.update(dict.fromkeys(functions, self.vm_id))
        self._devices[guid_key(guid)] = device

    def _release(self, device: PciDevice) -> None:
        device.attached = False
        for function in device.functions():
            self.host.pci.pop(function, None)


class PipeKind(DeviceKind[MappedPipe]):
    """The named pipes of the host that a Windows guest sees under the same names."""

    __slots__ = ("_pipes",)

    resources: ClassVar[tuple[type[Resource], ...]] = (MappedPipe,)
    name: ClassVar[str] = "MappedPipes"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._pipes: dict[str, str] = {}

    @property
    def pipes(self) -> list[str]:
        """The names of the mapped pipes."""
        return list(self._pipes.values())

    def modify(self, request: Request[MappedPipe]) -> None:
        """Map a pipe, or end that. The settings are empty (Microsoft's HcsModifyComputeSystem says so)."""
        request.allow("Add", "Remove")
        pipe = request.resource.host_path
        try:
            key = pipe_key(pipe)
        except OptionsError as e:
            raise request.invalid(str(e)) from None
        if request.settings:
            raise request.invalid("a mapped pipe has no settings")
        if request.action == "Add":
            if key in self._pipes:
                raise request.taken(f"{pipe} is mapped")
            self._pipes[key] = pipe
            return
        if self._pipes.pop(key, None) is None:
            raise request.missing(f"{pipe} is not mapped")

    def close(self) -> None:
        """Forget all pipes."""
        self._pipes.clear()

    def inventory(self) -> JSON:
        """Return the pipes by name."""
        return {pipe: {} for pipe in self._pipes.values()}
