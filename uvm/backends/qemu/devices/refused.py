"""What HCS takes and QEMU does not have: refused, with the codes that HCS has for what a VM lacks."""

from __future__ import annotations

from typing import ClassVar, Final

from uvm._names import pipe_key
from uvm.backends.qemu.devices.request import DeviceKind
from uvm.backends.requests.request import Request
from uvm.errors import OptionsError
from uvm.schema.devices import ComPort, HvSocketServiceConfig, VirtualPciDevice, VirtualSmbShare
from uvm.schema.requests import MappedPipe, Resource, SerialPort, SocketService, VirtualPci, VSMBShares

_COM_PORTS: Final = 2


class RefusedKind(DeviceKind[Resource]):
    """The devices that a VM never has. A request that is no proper one is refused as such."""

    resources: ClassVar[tuple[type[Resource], ...]] = (
        VSMBShares,
        VirtualPci,
        MappedPipe,
        SerialPort,
        SocketService,
    )
    name: ClassVar[str] = "Refused"

    async def modify(self, request: Request[Resource]) -> None:
        """Refuse a request."""
        match request.resource:
            case VSMBShares():
                request.parse(VirtualSmbShare)
                raise request.missing("the VM has no VirtualSmb device, which only Windows guests use")
            case VirtualPci():
                request.allow("Add", "Remove")
                self._must_be_there(request)
                request.parse(VirtualPciDevice)
                raise request.lacking("assigned PCI devices need VFIO, which this backend does not use")
            case MappedPipe(path):
                request.allow("Add", "Remove")
                try:
                    pipe_key(path)
                except OptionsError as error:
                    raise request.invalid(str(error)) from None
                self._must_be_there(request)
                raise request.lacking("named pipes are Windows's")
            case SerialPort(number):
                if number >= _COM_PORTS:
                    raise request.invalid(f"serial ports are below {_COM_PORTS}")
                self._must_be_there(request)
                request.parse(ComPort)
                raise request.lacking("serial ports are those that the VM is created with")
            case _:
                if request.action != "Remove":
                    request.parse(HvSocketServiceConfig)
        # The guest reaches what listens at a port, whatever a table says: as in a VM of HCS's without one.

    def _must_be_there(self, request: Request[Resource]) -> None:
        if request.action != "Add":
            raise request.missing("nothing is attached there")
