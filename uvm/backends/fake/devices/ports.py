"""Serial ports, and the table of Hyper-V socket services."""

from __future__ import annotations

from typing import ClassVar, Final
from uuid import UUID

from uvm._names import guid_key
from uvm.backend import JSON
from uvm.backends.fake.devices.request import DeviceKind, Request, number_of
from uvm.backends.fake.host import Host
from uvm.schema.devices import ComPort, HvSocketServiceConfig
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, SerialPort, SocketService
from uvm.schema.system import VirtualMachine

_COM_PORTS: Final = 2


class ComPortKind(DeviceKind[SerialPort]):
    """The two serial ports of a VM."""

    __slots__ = ("_ports",)

    resources: ClassVar[tuple[type[Resource], ...]] = (SerialPort,)
    name: ClassVar[str] = "ComPorts"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._ports: dict[int, ComPort] = {}

    def load(self, vm: VirtualMachine) -> None:
        """Take over the ports of the document."""
        for number, port in (vm.devices.com_ports if vm.devices is not None else {}).items():
            self.modify(Request(SerialPort(number_of(number, "serial port")), "Add", to_json(port)))

    def modify(self, request: Request[SerialPort]) -> None:
        """Connect, change or disconnect a port."""
        number = request.resource.number
        if number >= _COM_PORTS:
            raise request.invalid(f"serial ports are below {_COM_PORTS}")
        if request.action == "Add" and number in self._ports:
            raise request.taken(f"port {number} is connected")
        if request.action != "Add" and number not in self._ports:
            raise request.missing(f"port {number} is not connected")
        if request.action == "Remove":
            del self._ports[number]
        else:
            self._ports[number] = request.parse(ComPort)

    def close(self) -> None:
        """Disconnect the ports."""
        self._ports.clear()

    def inventory(self) -> JSON:
        """Return the ports in the form of the document."""
        return {str(number): to_json(port) for number, port in self._ports.items()}


class SocketKind(DeviceKind[SocketService]):
    """The Hyper-V socket services of a VM, by GUID.

    As hcsshim's ``hvsocket.go`` tells: an Update makes a service that is not there; one that is disabled
    and has no descriptors is removed; removing what is not there is no error.
    """

    __slots__ = ("_services",)

    resources: ClassVar[tuple[type[Resource], ...]] = (SocketService,)
    name: ClassVar[str] = "HvSocket"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._services: dict[str, HvSocketServiceConfig] = {}

    def load(self, vm: VirtualMachine) -> None:
        """Take over the service table of the document."""
        device = vm.devices.hv_socket if vm.devices is not None else None
        config = device.hv_socket_config if device is not None else None
        for guid, service in (config.service_table if config is not None else {}).items():
            self.modify(Request(SocketService(guid), "Update", to_json(service)))

    @property
    def services(self) -> dict[str, HvSocketServiceConfig]:
        """The services by GUID, in lower case."""
        return dict(self._services)

    def modify(self, request: Request[SocketService]) -> None:
        """Set or remove a service."""
        guid = request.resource.service_id
        if not is_guid(guid):
            raise request.invalid(f"{guid!r} is not a GUID")
        key = guid_key(guid)
        if request.action == "Remove":
            self._services.pop(key, None)
            return
        service = request.parse(HvSocketServiceConfig)
        described = service.bind_security_descriptor or service.connect_security_descriptor
        if service.disabled and not described and key in self._services:
            del self._services[key]
        else:
            self._services[key] = service

    def close(self) -> None:
        """Forget the services."""
        self._services.clear()

    def inventory(self) -> JSON:
        """Return the service table."""
        return {guid: to_json(service) for guid, service in self._services.items()}


def is_guid(text: str) -> bool:
    """Return whether a text is a GUID in its usual form, with or without braces."""
    try:
        return str(UUID(text)) == guid_key(text)
    except ValueError:
        return False
