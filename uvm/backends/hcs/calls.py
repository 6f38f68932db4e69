"""Calls of computecore.dll as coroutines, and its callbacks.

Theory of operation
-------------------

A call that takes an operation returns at once. Its completion arrives as a callback in a thread of HCS's own.
The context of each callback is a number, never a pointer. The callback looks the number up: if a task still
waits, it is woken through a :class:`~uvm.backends.waker.Waker`. The callback does nothing else, and
closes nothing.

::

    HcsCreateOperation(number) -> the call -> [refused] -> HcsCloseOperation
                                     |
                                     +--> callback: wake -> HcsGetOperationResult -> HcsCloseOperation
                                     |
                                     +--> cancelled: HcsCloseOperation; HCS finishes, and drops the result

The task that creates an operation closes it, in one ``finally``. ``HcsCancelOperation`` is not used, because
Windows does not implement it. Events of systems and processes arrive likewise, under numbers of their
own, until the handle is closed, which waits for callbacks in progress.

The callbacks exist once per loaded DLL and are never freed, because HCS may call them at any time. Before the
interpreter ends, all operations and handles are closed, so that no callback enters a half-finalised
interpreter; a loop that still runs by then, in a daemon thread, cannot start calls any more.
"""

from __future__ import annotations

import atexit
import itertools
import threading
from collections.abc import Callable
from typing import Any

import anyio

from uvm.backends.hcs.dlls import CData, ComputeCore, Library, OperationHandle
from uvm.backends.hcs.handles import END_SECONDS, Handle, close_all
from uvm.backends.hcs.text import check, take
from uvm.backends.waker import Signal, Waker
from uvm.errors import HostError
from uvm.hresult import HResult

#: The one event (``HCS_EVENT_TYPE``) of both systems and processes: HCS itself stops.
SERVICE_DISCONNECT = 0x02000000
#: Without it HCS would report operations as events, and refuse operations that have callbacks.
_EVENT_OPTION_NONE = 0

#: Passes a call and its operation to HCS; returns the HRESULT.
Submit = Callable[[OperationHandle], int]
#: Fetches the result of a completed operation: the HRESULT and the document.
Fetch = Callable[[OperationHandle], tuple[int, str]]
#: Receives an event in the event loop: its type (``HCS_EVENT_TYPE``) and its document.
EventHandler = Callable[[int, str], None]


class ComputeService:
    """computecore.dll, for any number of event loops. One for each :class:`Library`: see :meth:`of`."""

    def __init__(self, library: Library[ComputeCore]) -> None:
        self.library = library
        self._numbers = itertools.count(1)
        self._ended = False
        self._begins = threading.Lock()
        self._under_way: dict[int, tuple[Handle[OperationHandle], Signal]] = {}
        self._handlers: dict[int, tuple[Waker, EventHandler]] = {}
        self._completed = library.ffi.callback("HCS_OPERATION_COMPLETION", self._on_completion)
        self._happened = library.ffi.callback("HCS_EVENT_CALLBACK", self._on_event)

    @classmethod
    def of(cls, library: Library[ComputeCore]) -> ComputeService:
        """Return the service of a library."""
        found = _services.get(library)
        # Two threads may arrive here at once; the callbacks of a service that is not kept would be freed.
        return _services.setdefault(library, cls(library)) if found is None else found

    @property
    def operations(self) -> int:
        """The number of operations in progress."""
        return len(self._under_way)

    async def operate(
        self,
        operation: str,
        submit: Submit,
        fetch: Fetch | None = None,
        linger_seconds: float = 0.0,
    ) -> str:
        """Make one call and return its result document.

        :param operation: the operation's name in errors.
        :param fetch: fetches the result, if it is more than a document.
        :param linger_seconds: how long a cancelled caller waits for the completion, so that what the call
            made can be undone.
        :raises HostError: HCS refused.
        """
        number = next(self._numbers)
        handle, ended = self._begin(operation, number)
        try:
            with handle.lent("make the call") as follower:
                self._submit(operation, submit, follower)
            await _wait(ended, linger_seconds)
            with handle.lent("fetch the result of") as follower:
                hresult, document = (fetch or self._result)(follower)
            check(operation, hresult, document)
            return document
        finally:
            # In this order, so that the end of the interpreter misses none.
            handle.retire()
            handle.close()
            self._under_way.pop(number, None)

    def watch(self, register: Callable[[int, CData, CData], int], handler: EventHandler, waker: Waker) -> int:
        """Register for the events of one system or process.

        :param register: ``HcsSetComputeSystemCallback`` or ``HcsSetProcessCallback`` for a handle; takes the
            options, the context and the callback.
        :returns: the number of the registration, for :meth:`forget`.
        :raises HostError: HCS refused.
        """
        number = next(self._numbers)
        if self._ended:
            raise _ending("register for events")
        self._handlers[number] = (waker, handler)
        hresult = register(_EVENT_OPTION_NONE, self.library.ffi.cast("void *", number), self._happened)
        if hresult < 0:
            del self._handlers[number]
        check("register for events", hresult)
        return number

    def forget(self, number: int) -> None:
        """Drop a registration, after its handle was closed."""
        self._handlers.pop(number, None)

    def end(self) -> None:
        """Close every operation, so that no callback arrives any more. For the end of the interpreter."""
        with self._begins:
            self._ended = True
        for handle, _ in list(self._under_way.values()):
            handle.retire()
            handle.close(END_SECONDS)

    def _begin(self, operation: str, number: int) -> tuple[Handle[OperationHandle], Signal]:
        functions, ffi = self.library.functions, self.library.ffi
        with self._begins:
            if self._ended:
                raise _ending(operation)
            value = functions.HcsCreateOperation(ffi.cast("void *", number), self._completed)
            if value == ffi.NULL:
                raise HostError(operation, HResult.E_OUTOFMEMORY, "HcsCreateOperation returned no operation")
            # Registered before the call, because it may complete before the call returns.
            begun = Handle(operation, value, functions.HcsCloseOperation), Signal(Waker())
            self._under_way[number] = begun
        return begun

    def _submit(self, operation: str, submit: Submit, handle: OperationHandle) -> None:
        hresult = submit(handle)
        if hresult < 0:
            # HCS may have left an error document; the HRESULT that comes with it does not matter.
            check(operation, hresult, self._result(handle)[1])

    def _result(self, handle: OperationHandle) -> tuple[int, str]:
        document = self.library.ffi.new("PWSTR *")
        hresult = self.library.functions.HcsGetOperationResult(handle, document)
        return hresult, take(self.library, document[0])

    def _on_completion(self, operation: CData, context: CData) -> None:
        found = self._under_way.get(int(self.library.ffi.cast("uintptr_t", context)))
        if found is not None:
            found[1].set()

    def _on_event(self, event: CData, context: CData) -> None:
        found = self._handlers.get(int(self.library.ffi.cast("uintptr_t", context)))
        if found is None:
            return
        waker, handler = found
        # The document belongs to HCS, and is freed when this returns.
        data = event.EventData
        text = self.library.ffi.string(data) if data != self.library.ffi.NULL else ""
        waker.call_soon(handler, event.Type, text)


def _ending(operation: str) -> HostError:
    return HostError(
        operation, HResult.ERROR_SHUTDOWN_IN_PROGRESS, "the interpreter is ending; nothing was sent"
    )


async def _wait(signal: Signal, linger_seconds: float) -> None:
    try:
        await signal.wait()
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(linger_seconds, shield=True):
            await signal.wait()
        raise


#: Never freed: HCS holds pointers to the callbacks in them.
_services: dict[Library[Any], ComputeService] = {}


@atexit.register
def _end() -> None:
    for service in list(_services.values()):
        service.end()
    close_all()
