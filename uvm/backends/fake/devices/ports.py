"""Serial ports, and the table of Hyper-V socket services."""

from __future__ import annotations

from typing import ClassVar, Final, TypeAlias
from uuid import UUID

from uvm._names import guid_key
from uvm.backends.fake.devices.request import Device, DeviceTable
from uvm.backends.requests.request import Request, number_of
from uvm.schema.devices import ComPort, Devices, HvSocketServiceConfig
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, SerialPort, SocketService
from uvm.schema.system import VirtualMachine

_COM_PORTS: Final = 2

_Service: TypeAlias = Device[HvSocketServiceConfig]


class ComPortKind(DeviceTable[SerialPort, int, Device[ComPort]]):
    """The two serial ports of a VM."""

    resources: ClassVar[tuple[type[Resource], ...]] = (SerialPort,)
    name: ClassVar[str] = "ComPorts"

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Connect the ports of the document."""
        for number, port in devices.com_ports.items():
            self.modify(Request(SerialPort(number_of(number, "serial port")), "Add", to_json(port)))

    def key(self, request: Request[SerialPort]) -> int:
        """Return the number of the port."""
        if request.resource.number >= _COM_PORTS:
            raise request.invalid(f"serial ports are below {_COM_PORTS}")
        return request.resource.number

    def make(self, request: Request[SerialPort]) -> Device[ComPort]:
        """Return the port that a request describes."""
        return Device(str(request.resource.number), request.parse(ComPort))

    def update(self, request: Request[SerialPort], device: Device[ComPort]) -> None:
        """Change the settings of a port."""
        device.settings = request.parse(ComPort)


class SocketKind(DeviceTable[SocketService, str, _Service]):
    """The Hyper-V socket services of a VM, by GUID.

    As in hcsshim's ``hvsocket.go``, an Update makes a service that does not exist; one that is disabled and
    has no descriptors is removed; removing what does not exist is no error.
    """

    resources: ClassVar[tuple[type[Resource], ...]] = (SocketService,)
    name: ClassVar[str] = "HvSocket"

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Load the service table of the document."""
        config = devices.hv_socket.hv_socket_config if devices.hv_socket is not None else None
        for guid, service in (config.service_table if config is not None else {}).items():
            self.modify(Request(SocketService(guid), "Update", to_json(service)))

    @property
    def services(self) -> dict[str, HvSocketServiceConfig]:
        """The services by GUID, in lower case."""
        return {key: service.settings for key, service in self._attached.items()}

    def modify(self, request: Request[SocketService]) -> None:
        """Set or remove a service."""
        guid = request.resource.service_id
        if not is_guid(guid):
            raise request.invalid(f"{guid!r} is not a GUID")
        key = guid_key(guid)
        if request.action == "Remove":
            self._attached.pop(key, None)
            return
        service = request.parse(HvSocketServiceConfig)
        described = service.bind_security_descriptor or service.connect_security_descriptor
        if service.disabled and not described and key in self._attached:
            del self._attached[key]
        else:
            self._attached[key] = Device(key, service)


def is_guid(text: str) -> bool:
    """Return whether a text is a GUID in its usual form, with or without braces."""
    try:
        return str(UUID(text)) == guid_key(text)
    except ValueError:
        return False
