"""The end of a ttrpc connection that asks: calls over a stream, any number of them at once.

A task reads, and another writes what is queued, so that a caller who is cancelled leaves no half message
behind: a request that is not being written yet is withdrawn, and the answer to another is dropped. Each call
has a limit of time, which is sent with it; the connection stays usable after calls that were late.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import anyio
from attrs import define, field

from uvm._async import BareTaskGroup, Flag, Line
from uvm._guest.stdio import close_quietly
from uvm._log import Log
from uvm._ttrpc.frames import ClientSide, Request, Response
from uvm._ttrpc.protobuf import Message, decode, encode
from uvm.backend import BROKEN_STREAM, ByteStream
from uvm.errors import RPCCode, RPCError, UnknownOutcomeError, WireError
from uvm.schema.secrets import printable

R = TypeVar("R", bound=Message)

_log = Log("uvm.ttrpc")

_CHUNK_BYTES: Final = 65536
_NANOSECONDS: Final = 1_000_000_000
#: Some 292 years, which a float holds exactly.
_MAX_NANOSECONDS: Final = (1 << 63) - 1024
#: Codes of calls that ended before they were done, or after.
_CUT_OFF: Final = frozenset({RPCCode.CANCELLED, RPCCode.DEADLINE_EXCEEDED})


@define(eq=False)
class _Call:
    """A call that was not answered.

    :ivar data: its request, until that is being written.
    """

    data: bytes
    ended: Flag = field(factory=Flag, init=False)
    response: Response | None = field(default=None, init=False)


class Client:
    """Calls over one connection. :func:`connected` makes one.

    :param name: the server, for messages.
    :param vm_id: the VM that it is asked for, for the log.
    """

    def __init__(self, stream: ByteStream, name: str, vm_id: str | None = None) -> None:
        self._stream = stream
        self._name = name
        self._vm_id = vm_id
        self._side = ClientSide()
        self._calls: dict[int, _Call] = {}
        self._outbox: dict[int, _Call] = {}
        self._queued = Line()
        self._scope = anyio.CancelScope()
        self._ended = False
        self._cause: Exception | None = None

    async def call(
        self, service: str, method: str, request: Message, response: type[R], *, timeout_seconds: float
    ) -> R:
        """Make a call, and return its answer.

        A caller who is cancelled leaves at once.

        :param response: the kind of the answer.
        :param timeout_seconds: how long the server may take.
        :raises RPCError: the server refused, or the connection ended before the request was sent.
        :raises UnknownOutcomeError: the answer did not come in time, was lost, or cannot be read.
        :raises OptionsError: the request cannot be sent.
        """
        operation = f"{service}.{method}"
        wanted = Request(service, method, encode(request), _nanoseconds(timeout_seconds))
        stream_id, data = self._side.request(wanted)
        call = self._calls[stream_id] = self._outbox[stream_id] = _Call(data)
        self._queued.wake()
        try:
            if not self._ended:
                with anyio.move_on_after(timeout_seconds):
                    await call.ended.wait()
        finally:
            sent = self._outbox.pop(stream_id, None) is None
            self._side.abandon(stream_id)
            del self._calls[stream_id]
        if call.response is None:
            raise self._unanswered(operation, sent, timeout_seconds)
        return _read(operation, call.response, response)

    def close(self) -> None:
        """Close the connection; calls that were not answered end."""
        self._end(None)

    def _unanswered(self, operation: str, sent: bool, timeout_seconds: float) -> Exception:
        """Return the error of a call without an answer."""
        why = f"{self._name} did not answer within {timeout_seconds:g} s"
        if self._ended:
            why = f"the connection to {self._name} has ended"
            why += f": {printable(str(self._cause) or repr(self._cause))}" if self._cause else ""
        error: Exception
        if sent:
            error = UnknownOutcomeError(f"{operation}: {why}; whether it was done is unknown")
        else:
            error = RPCError(operation, RPCCode.UNAVAILABLE, f"{why}; nothing was sent")
        error.__cause__ = self._cause
        return error

    async def serve(self) -> None:
        """Read and write until the connection ends."""
        try:
            async with anyio.create_task_group() as tasks:
                with self._scope:
                    tasks.start_soon(self._write)
                    await self._read()
                tasks.cancel_scope.cancel()
        finally:
            self._end(None)
            await close_quietly(self._stream, self._vm_id)

    async def _read(self) -> None:
        try:
            while True:
                for stream_id, response in self._side.receive(await self._stream.receive(_CHUNK_BYTES)):
                    # One whose caller has left was abandoned.
                    self._calls[stream_id].response = response
                    self._calls[stream_id].ended.set()
        except anyio.EndOfStream:
            self._end(self._truncation())
        except Exception as error:
            # A stream of another backend may raise anything.
            self._end(error)

    def _truncation(self) -> WireError | None:
        try:
            self._side.end()
        except WireError as error:
            return error
        return None

    async def _write(self) -> None:
        try:
            while not self._ended:
                while self._outbox:
                    stream_id = next(iter(self._outbox))
                    await self._stream.send(self._outbox.pop(stream_id).data)
                await self._queued.wait()
        except BROKEN_STREAM as error:
            self._end(error)

    def _end(self, cause: Exception | None) -> None:
        if self._ended:
            return
        _log.debug(self._vm_id, "the connection to %s ends: %r", self._name, cause)
        self._ended, self._cause = True, cause
        self._scope.cancel()
        for call in self._calls.values():
            call.ended.set()


def _nanoseconds(timeout_seconds: float) -> int:
    """Return a limit of time as it is sent: never as 0, which is none, save one that has no form."""
    nanoseconds = timeout_seconds * _NANOSECONDS
    return max(1, int(nanoseconds)) if nanoseconds <= _MAX_NANOSECONDS else 0


def _read(operation: str, response: Response, kind: type[R]) -> R:
    """Return the answer in a response.

    :raises RPCError: it is a refusal.
    :raises UnknownOutcomeError: it cannot be read, or says that the call was cut off.
    """
    if response.status is not None and response.status.code:
        refusal = RPCError(operation, response.status.code, printable(response.status.message))
        if refusal.code in _CUT_OFF:
            raise UnknownOutcomeError(f"{refusal}; whether it was done is unknown") from refusal
        raise refusal
    try:
        return decode(kind, response.payload)
    except WireError as error:
        raise UnknownOutcomeError(f"{operation}: the answer cannot be read: {error}") from error


@asynccontextmanager
async def connected(stream: ByteStream, name: str, vm_id: str | None = None) -> AsyncIterator[Client]:
    """Make calls over a stream, which is closed at the end; parameters as of :class:`Client`."""
    client = Client(stream, name, vm_id)

    async def close(failure: BaseException | None) -> BaseException | None:
        client.close()
        return failure

    async with BareTaskGroup(close) as tasks:
        tasks.start_soon(client.serve)
        yield client
