"""Network adapters, each connected to an endpoint of the host."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

from uvm._names import guid_key
from uvm.backends.fake.devices.request import Device, DeviceTable
from uvm.backends.requests.adapters import changed, checked
from uvm.backends.requests.request import Request
from uvm.schema.devices import Devices, NetworkAdapter
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, VirtualAdapter
from uvm.schema.system import VirtualMachine

Adapter: TypeAlias = Device[NetworkAdapter]


class AdapterKind(DeviceTable[VirtualAdapter, str, Adapter]):
    """The network adapters of a VM, by id."""

    resources: ClassVar[tuple[type[Resource], ...]] = (VirtualAdapter,)
    name: ClassVar[str] = "NetworkAdapters"

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Attach the adapters of the document."""
        for key, adapter in devices.network_adapters.items():
            self.modify(Request(VirtualAdapter(key), "Add", to_json(adapter)))

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters by id, in lower case."""
        return dict(self._attached)

    def find(self, key: str) -> Adapter | None:
        """Return an adapter by its id; None if there is none."""
        return super().find(guid_key(key))

    def key(self, request: Request[VirtualAdapter]) -> str:
        """Return the id of the adapter, in lower case."""
        return guid_key(request.resource.id)

    def make(self, request: Request[VirtualAdapter]) -> Adapter:
        """Return the adapter that a request describes."""
        settings = checked(request)
        return Device(request.resource.id, settings)

    def attach(self, request: Request[VirtualAdapter], device: Adapter) -> None:
        """Connect an adapter to its endpoint."""
        if self.host.checks.endpoints:
            self.host.network.attach(device.settings.endpoint_id, self.vm_id, request.operation)

    def update(self, request: Request[VirtualAdapter], device: Adapter) -> None:
        """Change the SR-IOV settings of an adapter. Its endpoint cannot change."""
        device.settings = changed(request, device.settings)

    def detach(self, device: Adapter) -> None:
        """Disconnect an adapter from its endpoint."""
        super().detach(device)
        if self.host.checks.endpoints:
            self.host.network.detach(device.settings.endpoint_id)
