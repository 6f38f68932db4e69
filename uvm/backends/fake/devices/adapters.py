"""Network adapters, each connected to an endpoint of the host."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from attrs import define, evolve

from uvm._names import guid_key
from uvm.backend import JSON
from uvm.backends.fake.devices.request import DeviceKind, Request
from uvm.backends.fake.host import Host
from uvm.schema.devices import NetworkAdapter
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, VirtualAdapter
from uvm.schema.system import VirtualMachine

_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}([-:][0-9A-Fa-f]{2}){5}")


@define(eq=False)
class Adapter:
    """An adapter.

    :ivar attached: False once the host has taken it away.
    """

    id: str
    settings: NetworkAdapter
    attached: bool = True

    def __str__(self) -> str:
        return f"adapter {self.id}"


class AdapterKind(DeviceKind[VirtualAdapter]):
    """The network adapters of a VM, by id."""

    __slots__ = ("_adapters",)

    resources: ClassVar[tuple[type[Resource], ...]] = (VirtualAdapter,)
    name: ClassVar[str] = "NetworkAdapters"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._adapters: dict[str, Adapter] = {}

    def load(self, vm: VirtualMachine) -> None:
        """Take over the adapters of the document."""
        for key, adapter in (vm.devices.network_adapters if vm.devices is not None else {}).items():
            self.modify(Request(VirtualAdapter(key), "Add", to_json(adapter)))

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters by id, in lower case."""
        return dict(self._adapters)

    def find(self, adapter_id: str) -> Adapter | None:
        """Return an adapter; None if there is none."""
        return self._adapters.get(guid_key(adapter_id))

    def modify(self, request: Request[VirtualAdapter]) -> None:
        """Add, change or remove an adapter. What it is connected to cannot change."""
        adapter_id = request.resource.id
        found = self.find(adapter_id)
        if request.action == "Add":
            self._add(request, adapter_id, found)
            return
        if found is None:
            raise request.missing(f"there is no adapter {adapter_id}")
        if request.action == "Remove":
            del self._adapters[guid_key(adapter_id)]
            self._release(found)
            return
        settings = request.parse(NetworkAdapter)
        if settings != evolve(found.settings, iov_settings=settings.iov_settings):
            raise request.invalid("only the SR-IOV settings of an adapter can change")
        found.settings = settings

    def close(self) -> None:
        """Disconnect all adapters."""
        for adapter in self._adapters.values():
            self._release(adapter)
        self._adapters.clear()

    def inventory(self) -> JSON:
        """Return the adapters in the form of the document."""
        return {adapter.id: to_json(adapter.settings) for adapter in self._adapters.values()}

    def _add(self, request: Request[VirtualAdapter], adapter_id: str, found: Adapter | None) -> None:
        settings = request.parse(NetworkAdapter)
        if found is not None:
            raise request.taken(f"{found} is there")
        if settings.mac_address and _MAC.fullmatch(settings.mac_address) is None:
            raise request.invalid(f"MacAddress is {settings.mac_address!r}")
        if self.host.checks.endpoints:
            self.host.network.attach(settings.endpoint_id, self.vm_id, request.operation)
        self._adapters[guid_key(adapter_id)] = Adapter(adapter_id, settings)

    def _release(self, adapter: Adapter) -> None:
        adapter.attached = False
        if self.host.checks.endpoints:
            self.host.network.detach(adapter.settings.endpoint_id)
