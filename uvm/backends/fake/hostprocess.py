"""A handle on a process that HCS started in a fake VM."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel

from uvm.backend import JSON
from uvm.backends.fake.calls import To, copy_json
from uvm.backends.fake.hosted import HostedProcess
from uvm.backends.fake.streams import FakeStream
from uvm.errors import GuestError, HostError
from uvm.hresult import HResult

if TYPE_CHECKING:
    from uvm.backends.fake.backend import FakeBackend

T = TypeVar("T")


class FakeHostProcess:
    """A handle on a process (:class:`~uvm.backend.HostProcess`).

    Every call but :attr:`pid` and the streams is refused with E_HANDLE once the handle is closed. As over any
    connection, a Linux guest finds no process outside of its containers when it is asked to signal one, or to
    resize its terminal: 0xC037010E.

    :param opened: it was opened by its id, and has no streams.
    """

    __slots__ = ("_backend", "_closed", "_hosted", "_opened", "_waiting")

    def __init__(self, backend: FakeBackend, hosted: HostedProcess, *, opened: bool = False) -> None:
        self._backend = backend
        self._hosted = hosted
        self._opened = opened
        self._closed = False
        self._waiting: list[anyio.CancelScope] = []
        hosted.opened()
        backend.process_opened(self)

    def __str__(self) -> str:
        return str(self._hosted)

    @property
    def pid(self) -> int:
        """The process's id in the guest."""
        return self._hosted.pid

    @property
    def stdin(self) -> FakeStream | None:
        """Where its input goes."""
        return self._stream("stdin")

    @property
    def stdout(self) -> FakeStream | None:
        """Where its output comes from."""
        return self._stream("stdout")

    @property
    def stderr(self) -> FakeStream | None:
        """Where its error output comes from; None with a console, where all is in :attr:`stdout`."""
        return self._stream("stderr")

    def _stream(self, name: str) -> FakeStream | None:
        return None if self._opened else self._hosted.streams.get(name)

    async def wait(self) -> int:
        """Wait for its end, and give the exit code.

        :raises HostError: E_HANDLE where this handle is closed meanwhile; HCS_E_SYSTEM_ALREADY_STOPPED where
            the VM exits before the exit of the process is known.
        """
        self._require_open("wait for process")
        with anyio.CancelScope() as scope:
            self._waiting.append(scope)
            try:
                return await self._hosted.wait()
            finally:
                self._waiting.remove(scope)
        raise self._closed_error("wait for process")

    async def signal(self, options: JSON) -> None:
        """Have the guest signal it; HCS_E_PROCESS_ALREADY_STOPPED where it has exited."""
        document = self._copy("signal process", options)
        await self._guest_call("signal process", document, lambda: self._hosted.signal(document))

    async def terminate(self) -> None:
        """Have the guest kill it; HCS_E_PROCESS_ALREADY_STOPPED where it has exited."""
        await self._guest_call("terminate process", None, lambda: self._hosted.signal(None))

    async def modify(self, request: JSON) -> None:
        """Have the guest resize its console, or close host ends of its streams.

        :raises HostError: HCS_E_PROCESS_ALREADY_STOPPED where it has exited; ERROR_NOT_FOUND for a stream
            that it does not have; HCS_E_INVALID_JSON.
        """
        document = self._copy("modify process", request)
        await self._guest_call("modify process", document, lambda: self._hosted.modify(document))

    async def properties(self) -> JSON:
        """Give its ``ProcessStatus``."""
        return await self._call("query", "process properties", None, self._hosted.status)

    async def close(self) -> None:
        """Close the handle and its streams, at once, whatever is cancelled. Closing it again is refused."""
        log = self._backend.request_log
        call = log.begin("lifecycle", self._hosted.vm.id, "close process", None, str(self.pid))
        try:
            self._require_open("close process")
        except HostError as e:
            log.finish(call, e, applied=False)
            raise
        self._closed = True
        if not self._opened:
            self._hosted.close_streams()
        for scope in self._waiting:
            scope.cancel()
        self._hosted.closed()
        self._backend.process_closed(self)
        log.finish(call, None, applied=True)
        await anyio.lowlevel.checkpoint()

    async def _guest_call(self, operation: str, document: JSON | None, change: Callable[[], None]) -> None:
        try:
            await self._call("guest", operation, document, change)
        except GuestError as e:
            # What a fault has the guest say.
            raise HostError(f"{operation} {self.pid}: {e.operation}", e.hresult, e.text) from None

    async def _call(self, to: To, operation: str, document: Any, change: Callable[[], T]) -> T:
        def checked() -> T:
            self._require_open(operation)
            return change()

        vm = self._hosted.vm
        call = self._backend.request_log.begin(to, vm.id, operation, document, str(self.pid))
        return await self._backend.exchange.carry_out(call, checked, vm)

    def _copy(self, operation: str, document: JSON) -> JSON:
        try:
            copied: JSON = copy_json(document)
        except ValueError as e:
            raise HostError(f"{operation} {self.pid}", HResult.HCS_E_INVALID_JSON, str(e)) from None
        return copied

    def _require_open(self, operation: str) -> None:
        if self._closed:
            raise self._closed_error(operation)

    def _closed_error(self, operation: str) -> HostError:
        return HostError(
            f"{operation} {self.pid} of {self._hosted.vm.id}", HResult.E_HANDLE, "the handle was closed"
        )
