"""The end of a ttrpc connection that answers: services, whose calls are carried out at once.

A call is cancelled at its limit of time, or when its connection ends. What a client can cost is bounded:
calls at once, and their size; connections at once; and while it does not read its answers, nothing more is
read of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, Generic, TypeAlias, TypeVar

import anyio
from attrs import frozen

from uvm._guest.stdio import close_quietly
from uvm._log import Log
from uvm._ttrpc.frames import Call, Request, ServerSide
from uvm._ttrpc.protobuf import Message, decode, encode
from uvm.backend import BROKEN_STREAM, ByteStream, Listener
from uvm.errors import RPCCode, RPCError, WireError

Q = TypeVar("Q", bound=Message)

_log = Log("uvm.ttrpc")

_CHUNK_BYTES: Final = 65536
_NANOSECONDS: Final = 1_000_000_000

#: How many calls of one connection are carried out at once.
MAX_CALLS: Final = 64
#: How many connections are served at once; further ones wait.
MAX_CONNECTIONS: Final = 16


@frozen
class Method(Generic[Q]):
    """A method of a service.

    :ivar request: the kind of what it is called with.
    :ivar carry_out: returns its answer; RPCError is its refusal, and any other error one of code UNKNOWN.
    """

    request: type[Q]
    carry_out: Callable[[Q], Awaitable[Message]]


#: The methods of services, by name.
Services: TypeAlias = Mapping[str, Mapping[str, Method[Any]]]


async def serve(
    listener: Listener, services: Services, *, name: str, call_seconds: float, vm_id: str | None = None
) -> None:
    """Serve each connection of a listener until this is cancelled, and close the listener.

    :param name: the server, for the log.
    :param call_seconds: how long a call may take, also if its client allows more.
    :param vm_id: the VM that it serves, for the log.
    :raises anyio.BrokenResourceError: nothing can be accepted any more, or ClosedResourceError likewise.
    """
    free = anyio.Semaphore(MAX_CONNECTIONS)

    async def serve_one(stream: ByteStream) -> None:
        try:
            await serve_stream(stream, services, name=name, call_seconds=call_seconds, vm_id=vm_id)
        finally:
            free.release()

    failure: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:
            try:
                while True:
                    await free.acquire()
                    tasks.start_soon(serve_one, await listener.accept())
            except Exception as error:
                # Kept out of the task group, which would wrap it.
                failure = error
                tasks.cancel_scope.cancel()
    finally:
        await close_quietly(listener, vm_id)
    if failure is not None:
        raise failure


async def serve_stream(
    stream: ByteStream, services: Services, *, name: str, call_seconds: float, vm_id: str | None = None
) -> None:
    """Serve a connection until it ends, and close it; parameters as of :func:`serve`."""
    await _Connection(stream, services, name, call_seconds, vm_id).run()


class _Connection:
    """A client that is served."""

    def __init__(
        self, stream: ByteStream, services: Services, name: str, call_seconds: float, vm_id: str | None
    ) -> None:
        self._stream = stream
        self._services = services
        self._name = name
        self._call_seconds = call_seconds
        self._vm_id = vm_id
        self._side = ServerSide(MAX_CALLS)
        self._sending = anyio.Lock()

    async def run(self) -> None:
        try:
            async with anyio.create_task_group() as self._tasks:
                await self._read()
                self._tasks.cancel_scope.cancel()
        finally:
            await close_quietly(self._stream, self._vm_id)

    async def _read(self) -> None:
        try:
            while True:
                for each in self._side.receive(await self._stream.receive(_CHUNK_BYTES)):
                    if isinstance(each, Call):
                        self._tasks.start_soon(self._answer, each)
                    else:
                        async with self._sending:
                            await self._stream.send(each)
        except anyio.EndOfStream:
            pass
        except Exception as error:
            # A stream of another backend may raise anything.
            _log.info(self._vm_id, "%s: a connection ends: %r", self._name, error)

    async def _answer(self, call: Call) -> None:
        """Carry a call out, and send the answer; it counts until that is being sent."""
        stream_id, request = call
        try:
            made = partial(self._side.respond, stream_id, await self._within_its_time(request))
        except RPCError as refusal:
            made = partial(self._side.refuse, stream_id, refusal.code, refusal.text)
        await self._send(made)

    async def _within_its_time(self, request: Request) -> bytes:
        """Return the payload of the answer; RPCError is a refusal."""
        operation = f"{request.service}.{request.method}"
        asked = request.timeout_nano / _NANOSECONDS or self._call_seconds
        with anyio.move_on_after(min(asked, self._call_seconds)):
            try:
                return await self._carry_out(operation, request)
            except RPCError:
                raise
            except Exception as error:
                _log.info(self._vm_id, "%s: %s failed: %s", self._name, operation, error)
                raise RPCError(operation, RPCCode.UNKNOWN, str(error)) from error
        raise RPCError(operation, RPCCode.DEADLINE_EXCEEDED, "context deadline exceeded")

    async def _carry_out(self, operation: str, request: Request) -> bytes:
        service = self._services.get(request.service)
        if service is None:
            raise RPCError(operation, RPCCode.UNIMPLEMENTED, f"service {request.service}")
        method = service.get(request.method)
        if method is None:
            raise RPCError(operation, RPCCode.UNIMPLEMENTED, f"method {request.method}")
        try:
            asked = decode(method.request, request.payload)
        except WireError as error:
            text = f"ttrpc: error unmarshalling payload: {error}"
            raise RPCError(operation, RPCCode.INTERNAL, text) from error
        return encode(await method.carry_out(asked))

    async def _send(self, made: Callable[[], bytes]) -> None:
        try:
            async with self._sending:
                await self._stream.send(made())
        except BROKEN_STREAM as error:
            said = "%s: a connection broke before an answer was sent: %r"
            _log.info(self._vm_id, said, self._name, error)
            self._tasks.cancel_scope.cancel()
