"""Overlapped I/O on Windows handles: one completion port, and one thread that waits for it."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import anyio
from attrs import define, field

from uvm.backends.hcs.dlls import CData
from uvm.backends.hcs.windows.dlls import SystemLibrary, load
from uvm.backends.waker import Signal, Waker
from uvm.backends.winerrors import code_of

_ERROR_MORE_DATA: Final = 234
_ERROR_PIPE_CONNECTED: Final = 535
_ERROR_OPERATION_ABORTED: Final = 995
_ERROR_IO_PENDING: Final = 997
_INFINITE: Final = 0xFFFFFFFF
#: How long closing a port waits for its cancelled operations.
_LINGER_MS: Final = 2000

#: Operations that Windows did not complete in time: their memory is kept, as it may still write into it.
abandoned: list[Operation] = []


class KernelFunctions(Protocol):
    """kernel32.dll (ioapiset.h, fileapi.h, handleapi.h)."""

    def CreateIoCompletionPort(self, file: CData, port: CData, key: int, threads: int, /) -> CData: ...
    def GetQueuedCompletionStatus(
        self, port: CData, count: CData, key: CData, overlapped: CData, timeout_ms: int, /
    ) -> int: ...
    def PostQueuedCompletionStatus(self, port: CData, count: int, key: int, overlapped: CData, /) -> int: ...
    def ReadFile(self, file: CData, buffer: CData, size: int, count: CData, overlapped: CData, /) -> int: ...
    def WriteFile(self, file: CData, data: CData, size: int, count: CData, overlapped: CData, /) -> int: ...
    def ConnectNamedPipe(self, pipe: CData, overlapped: CData, /) -> int: ...
    def CancelIoEx(self, file: CData, overlapped: CData, /) -> int: ...
    def CloseHandle(self, handle: CData, /) -> int: ...


#: Loads kernel32.dll.
kernel: Callable[[], SystemLibrary[KernelFunctions]] = partial(load, "kernel32.dll", "iocp")


@define(eq=False, repr=False)
class Operation:
    """A read, a write or the wait for a client in progress. Windows owns its memory until it completes.

    :ivar handle: what it reads from or writes to.
    :ivar buffer: what is read into or written from.
    :ivar signal: set on completion; a cancelled caller may wait again, in the same event loop.
    :ivar count: how many bytes were read or written.
    :ivar error: the Windows error code of its completion; 0 on success.
    """

    handle: CData
    overlapped: CData
    buffer: CData
    signal: Signal = field(factory=lambda: Signal(Waker()))
    count: int = 0
    error: int = 0


class CompletionPort:
    """Reads from and writes to any number of handles, for tasks of any number of event loops.

    Its thread starts with the first operation and ends with :meth:`close`, or with the interpreter.
    """

    def __init__(self) -> None:
        self._kernel: Final = kernel()
        self._null: Final = self._kernel.ffi.NULL
        self._lock = threading.Lock()
        self._operations: dict[int, Operation] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        invalid = self._kernel.ffi.cast("HANDLE", -1)
        # One thread dequeues from it.
        self._port: Final = self._kernel.functions.CreateIoCompletionPort(invalid, self._null, 0, 1)
        if self._port == self._null:
            raise self._kernel.os_error()

    def handle(self, number: int) -> CData:
        """Return the HANDLE with this number."""
        return self._kernel.ffi.cast("HANDLE", number)

    def attach(self, handle: CData) -> None:
        """Associate a handle with the port; OSError if it does not support overlapped I/O."""
        if self._kernel.functions.CreateIoCompletionPort(handle, self._port, 0, 0) == self._null:
            raise self._kernel.os_error()

    def read(self, handle: CData, size: int) -> Operation:
        """Start a read; OSError if it fails at once."""
        buffer, start = self._kernel.ffi.new("char[]", size), self._kernel.functions.ReadFile
        return self._begin(handle, buffer, partial(start, handle, buffer, size, self._null))

    def write(self, handle: CData, data: bytes) -> Operation:
        """Start a write; OSError if it fails at once."""
        buffer, start = self._kernel.ffi.from_buffer(data), self._kernel.functions.WriteFile
        return self._begin(handle, buffer, partial(start, handle, buffer, len(data), self._null))

    def connect(self, handle: CData) -> Operation:
        """Start to wait for the client of a named pipe; OSError if it fails at once."""
        return self._begin(handle, self._null, partial(self._kernel.functions.ConnectNamedPipe, handle))

    def failure(self, operation: Operation) -> OSError | None:
        """Return the error of a completed operation; None if it succeeded."""
        return self._kernel.os_error(operation.error) if operation.error else None

    def data(self, operation: Operation) -> bytes:
        """Return what an operation has read."""
        return bytes(self._kernel.ffi.buffer(operation.buffer, operation.count))

    def end(self, handle: CData) -> None:
        """Cancel the operations of a handle, and close it. The operations complete with errors."""
        self._kernel.functions.CancelIoEx(handle, self._null)
        self._kernel.functions.CloseHandle(handle)

    def close(self) -> None:
        """Cancel all operations, end the thread once they have completed, and close the port. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            for operation in self._operations.values():
                # One by one: if its handle has been closed, the number may be another file's by now.
                self._kernel.functions.CancelIoEx(operation.handle, operation.overlapped)
        if thread is not None:
            self._kernel.functions.PostQueuedCompletionStatus(self._port, 0, 0, self._null)
            thread.join()
            atexit.unregister(self.close)
        self._kernel.functions.CloseHandle(self._port)

    def _begin(self, handle: CData, buffer: CData, start: Callable[[CData], int]) -> Operation:
        operation = Operation(handle, self._kernel.ffi.new("OVERLAPPED *"), buffer)
        address = self._address(operation.overlapped)
        with self._lock:
            if self._closed:
                raise anyio.ClosedResourceError
            self._run_thread()
            # Registered before the call, because it may complete before the call returns.
            self._operations[address] = operation
        if start(operation.overlapped):
            return operation
        error = self._kernel.os_error()
        if code_of(error) in (_ERROR_IO_PENDING, _ERROR_MORE_DATA):
            return operation
        with self._lock:
            self._operations.pop(address, None)
        if code_of(error) != _ERROR_PIPE_CONNECTED:
            raise error
        # The client came before the call, which then does not complete in the port.
        operation.signal.set()
        return operation

    def _address(self, overlapped: CData) -> int:
        return int(self._kernel.ffi.cast("uintptr_t", overlapped))

    def _run_thread(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name="uvm pipes", daemon=True)
        thread.start()
        self._thread = thread
        # A daemon: the interpreter joins other threads before it runs this.
        atexit.register(self.close)

    # The thread.

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self._abandon()

    def _serve(self) -> None:
        ffi = self._kernel.ffi
        count, key, overlapped = ffi.new("DWORD *"), ffi.new("ULONG_PTR *"), ffi.new("OVERLAPPED **")
        while not self._done():
            overlapped[0] = self._null
            timeout = _LINGER_MS if self._closed else _INFINITE
            good = self._kernel.functions.GetQueuedCompletionStatus(
                self._port, count, key, overlapped, timeout
            )
            code = 0 if good else ffi.getwinerror()[0]
            if overlapped[0] != self._null:
                self._ended(overlapped[0], count[0], code)
            elif not good:
                break

    def _abandon(self) -> None:
        """Abandon the remaining operations: their waiters fail, and no operation starts any more."""
        with self._lock:
            self._closed = True
            left = list(self._operations.values())
            self._operations.clear()
            abandoned.extend(left)
        for operation in left:
            operation.error = _ERROR_OPERATION_ABORTED
            operation.signal.set()

    def _done(self) -> bool:
        with self._lock:
            return self._closed and not self._operations

    def _ended(self, overlapped: CData, count: int, code: int) -> None:
        with self._lock:
            operation = self._operations.pop(self._address(overlapped))
        operation.count = count
        operation.error = 0 if code == _ERROR_MORE_DATA else code
        operation.signal.set()
