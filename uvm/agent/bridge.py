"""The connection to the host over which it sends its requests.

The guest dials the host, and dials again when the connection is lost, as soon as the host listens. An answer
goes out on whichever connection there is by then: a host that continues after a loss still waits for it.
While there is none, answers and notifications wait, as many as there were requests and exits.

Bytes that are no message of the protocol end the connection, as they do in hcsshim's guest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from uvm._errorroot import WireError
from uvm._wire.frames import GuestSide, Kind, Procedure, encode
from uvm.agent.connection import Receiver
from uvm.agent.logs import Log
from uvm.agent.loop import Loop
from uvm.agent.port import MuxConnection, Port
from uvm.agent.refused import coded
from uvm.agent.requests import JSON, Request
from uvm.agent.service import Service, unknown_message
from uvm.hresult import HResult

VERSION: Final = 4

CAPABILITIES: Final[JSON] = {
    "SupportedSchemaVersions": [{"Major": 2, "Minor": 1}],
    "RuntimeOsType": "Linux",
    "GuestDefinedCapabilities": {
        "NamespaceAddRequestSupported": True,
        "SignalProcessSupported": True,
        "DumpStacksSupported": True,
        "DeleteContainerStateSupported": True,
    },
}

#: What wait at most for a host that does not come back.
_MOST_WAITING: Final = 4096
#: How long to wait before dialing a host again that refused, in seconds.
_PAUSE: Final = 0.1


class Bridge(Receiver):
    """The guest's end.

    :param number: the port that the host listens at.
    :ivar connection: the connection; None while there is none.
    """

    def __init__(self, loop: Loop, port: Port, number: int, service: Service, log: Log) -> None:
        self._loop, self._port, self._number, self._service, self._log = loop, port, number, service, log
        self.connection: MuxConnection | None = None
        self._side: GuestSide | None = None
        self._negotiated = False
        self._waiting: list[Callable[[GuestSide], bytes]] = []
        self._ending = False

    def dial(self) -> None:
        """Dial the host if it listens, and there is no connection."""
        if self.connection is None and not self._ending and self._port.is_listening(self._number):
            self.connection = self._port.dial(self._number, self, lasting=False)

    def forget(self) -> None:
        """Forget what waits for the host: another one has come in its place, which asked for nothing."""
        self._waiting.clear()

    def opened(self) -> None:
        """Serve a new connection, which begins with the negotiation."""
        self._negotiated = False
        side = self._side = GuestSide()
        waiting, self._waiting = self._waiting, []
        for make in waiting:
            self.send(make(side))

    def received(self, data: bytes) -> None:
        """Carry out the requests in what came."""
        side, connection = self._side, self.connection
        assert side is not None
        assert connection is not None
        connection.consumed(len(data))
        try:
            for procedure, request_id, payload in side.receive(data):
                self._handle(Request(procedure, request_id, payload, self._reply(side)))
        except WireError as error:
            self._log.error(f"bridge: {error}")
            connection.close()
            self.closed()

    def ended(self) -> None:
        """Close the connection as the host has, which ends or saves the VM, or goes; dial again."""
        if self.connection is not None:
            self.connection.close()
            self._log.info("the host has closed the bridge connection")
            self._dial_again()

    def closed(self) -> None:
        """Dial again: the connection was lost, or refused."""
        if self._side is not None:
            self._log.warning("bridge connection lost, will reconnect")
        self._dial_again()

    def _dial_again(self) -> None:
        self.connection = self._side = None
        self._loop.later(_PAUSE, self.dial)

    def close(self) -> None:
        """Close the connection, and dial no more."""
        self._ending = True
        if self.connection is not None:
            self.connection.send_eof()

    def notify(self, body: Mapping[str, Any]) -> None:
        """Report the exit of a container, now or as soon as there is a connection."""
        self._send_or_keep(lambda side: side.notify(body))

    def _handle(self, request: Request) -> None:
        negotiates = request.procedure == Procedure.NEGOTIATE_PROTOCOL
        if negotiates is self._negotiated:
            request.refuse(unknown_message(request.procedure))
        elif negotiates:
            self._negotiate(request)
        else:
            self._service.handle(request)

    def _negotiate(self, request: Request) -> None:
        try:
            values = request.read()
            lowest, highest = (values.number(f"{name}imumVersion", 0xFFFFFFFF) for name in ("Min", "Max"))
            if not lowest <= VERSION <= highest:
                raise coded(HResult.ERROR_VMCOMPUTE_UNSUPPORTED_PROTOCOL_VERSION)
        except Exception as error:
            request.refuse(self._service.refusal(error))
            return
        self._negotiated = True
        request.answer({"Version": VERSION, "Capabilities": CAPABILITIES})

    def _reply(self, asked: GuestSide) -> Callable[[Request, JSON], None]:
        def reply(request: Request, body: JSON) -> None:
            def make(side: GuestSide) -> bytes:
                if side is asked:
                    return side.respond(request.id, body)
                return encode(Kind.RESPONSE, request.procedure, request.id, body)

            self._send_or_keep(make)

        return reply

    def _send_or_keep(self, make: Callable[[GuestSide], bytes]) -> None:
        if self._side is not None:
            self.send(make(self._side))
        elif len(self._waiting) < _MOST_WAITING:
            self._waiting.append(make)

    def send(self, frame: bytes) -> None:
        """Send a message on the connection there is."""
        assert self.connection is not None
        self.connection.send(frame)
