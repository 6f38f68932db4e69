"""Network adapters: virtio-net devices, each connected to an endpoint of the host.

How it works
------------

::

    endpoint --> netdev_add --> device_add              an adapter
                 set_link off --> device_del, its event --> netdev_del --> endpoint free

What an adapter reaches is its endpoint's (:mod:`uvm.backends.qemu.network`). Its link is cut before the guest
is asked to release it: one that refuses to keeps a device, not a network.
"""

from __future__ import annotations

import os
from typing import ClassVar

from attrs import define, field

from uvm._names import guid_key
from uvm.backend import JSON
from uvm.backends.qemu.devices.request import Device, DeviceTable, Pool, gone, unplugged
from uvm.backends.qemu.tap import open_tap
from uvm.backends.requests.adapters import changed, checked
from uvm.backends.requests.request import Request
from uvm.errors import HostError, NoSpaceError
from uvm.schema.devices import Devices, NetworkAdapter
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, VirtualAdapter
from uvm.schema.system import VirtualMachine


@define(eq=False, repr=False)
class Adapter(Device[NetworkAdapter]):
    """An adapter.

    :ivar port: the number of its PCI root port, by which QEMU knows it; -1 if it has none.
    """

    port: int = field(default=-1, init=False)

    @property
    def device(self) -> str:
        """The name of its device in QEMU."""
        return f"nic-{self.port}"

    @property
    def netdev(self) -> str:
        """The name of its connection in QEMU."""
        return f"net-{self.port}"


class AdapterKind(DeviceTable[VirtualAdapter, str, Adapter]):
    """The network adapters of a VM, by id."""

    resources: ClassVar[tuple[type[Resource], ...]] = (VirtualAdapter,)
    name: ClassVar[str] = "NetworkAdapters"

    async def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Attach the adapters of the document."""
        for key, adapter in devices.network_adapters.items():
            await self.modify(Request(VirtualAdapter(key), "Add", to_json(adapter)))

    def key(self, request: Request[VirtualAdapter]) -> str:
        """Return the id of the adapter, in lower case."""
        return guid_key(request.resource.id)

    def make(self, request: Request[VirtualAdapter]) -> Adapter:
        """Return the adapter that a request describes."""
        settings = checked(request)
        return Adapter(request.resource.id, settings)

    async def attach(self, request: Request[VirtualAdapter], device: Adapter) -> None:
        """Connect an adapter to its endpoint.

        :raises NoSpaceError: no PCI root port is free.
        """
        endpoint = device.settings.endpoint_id
        netdev = self.host.endpoints.attach(endpoint, self.machine.id, request.operation)
        try:
            device.port = self._port(request, self.host.ports)
            place = {"Port": device.port, "Endpoint": self.host.endpoints.kept(endpoint)}
            self.note(request, device, place)
            if netdev:
                await self._connect(request, device, netdev)
            await self._plug(request, device, connected=bool(netdev))
        except Exception:
            self._put(device)
            raise

    async def _connect(self, request: Request[VirtualAdapter], device: Adapter, netdev: JSON) -> None:
        options = {"id": device.netdev, **netdev}
        name = options.pop("ifname", "")
        if name:
            fd = open_tap(name, request.operation)
            try:
                await self.machine.ask(request.operation, "getfd", {"fdname": device.netdev}, fds=(fd,))
            finally:
                os.close(fd)
            options["fd"] = device.netdev
        try:
            await self.machine.ask(request.operation, "netdev_add", options)
        except HostError:
            if name:
                # QEMU has not taken the tap device's descriptor, or has closed it.
                await gone(self.machine, request.operation, "closefd", {"fdname": device.netdev})
            raise

    async def _plug(self, request: Request[VirtualAdapter], device: Adapter, *, connected: bool) -> None:
        options = {
            "driver": "virtio-net-pci",
            "id": device.device,
            "bus": f"port{device.port}",
            # No firmware to boot from the network.
            "romfile": "",
        }
        if device.settings.mac_address:
            options["mac"] = device.settings.mac_address.replace("-", ":")
        if connected:
            options["netdev"] = device.netdev
        try:
            await self.machine.ask(request.operation, "device_add", options)
        except HostError:
            await gone(self.machine, request.operation, "netdev_del", {"id": device.netdev})
            raise

    def put_back(self, request: Request[VirtualAdapter], device: Adapter, place: JSON) -> None:
        """Have an adapter that an earlier process has attached, and its endpoint."""
        device.port = place["Port"]
        self.host.ports.take(device.port)
        self.host.endpoints.restore(place["Endpoint"], self.machine.id)

    def update(self, request: Request[VirtualAdapter], device: Adapter) -> None:
        """Refuse to change the SR-IOV settings, which is all that can change: there is no SR-IOV here."""
        changed(request, device.settings)
        raise request.lacking("adapters have no SR-IOV here")

    async def detach(self, request: Request[VirtualAdapter], device: Adapter) -> None:
        """Cut the link of an adapter, and unplug it once the guest has released it."""
        if device.port < 0:
            return
        operation = request.operation
        await gone(self.machine, operation, "set_link", {"name": device.device, "up": False})
        await unplugged(self.machine, operation, device.device)
        await gone(self.machine, operation, "netdev_del", {"id": device.netdev})
        self._put(device)

    def _port(self, request: Request[VirtualAdapter], ports: Pool) -> int:
        port = ports.take()
        if port is None:
            raise NoSpaceError(
                f"{request.operation}: all {ports.count} PCI root ports are in use by shares and adapters; "
                "nothing was attached; release one, or create the backend with more root_ports"
            )
        return port

    def _put(self, device: Adapter) -> None:
        if device.port >= 0:
            self.host.ports.put(device.port)
            device.port = -1
        self.host.endpoints.detach(device.settings.endpoint_id)

    def close(self) -> None:
        """Disconnect the endpoints: the VM has exited."""
        for adapter in self._attached.values():
            self.host.endpoints.detach(adapter.settings.endpoint_id)
        self._attached.clear()
