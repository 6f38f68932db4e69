"""The streams, the terminal and the signals of this process, passed to and from a process of a guest.

Files of this process are read and written in threads, since none of them need be a file that an event loop
can wait for. A reader that has gone is the guest's to notice: its stream is closed, as a pipe would be.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
from anyio.lowlevel import EventLoopToken
from anyio.streams.memory import MemoryObjectSendStream

from uvm._guest.process import Process
from uvm._guest.stdio import ProcessInput, ProcessOutput
from uvm.backend import BROKEN_STREAM
from uvm.errors import GuestError, VMExitedError

_STDIN, _STDOUT, _STDERR = range(3)
_CHUNK_BYTES = 65536
#: As of a shell's command that SIGINT has ended.
_INTERRUPTED = 130
#: How long the output of a process that has exited may be silent: its children may hold the stream open.
_SILENT_SECONDS = 1.0


def has_terminal() -> bool:
    """Return whether this process is used at a terminal that a guest's can be joined to."""
    return sys.platform != "win32" and os.isatty(_STDIN) and os.isatty(_STDOUT)


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Have each key reach the guest, whose own terminal edits lines and makes signals of keys."""
    if sys.platform == "win32":
        raise AssertionError("a terminal of Windows is not joined to a guest's")
    import termios
    import tty

    before = termios.tcgetattr(_STDIN)
    tty.setraw(_STDIN)
    try:
        yield
    finally:
        termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)


async def pass_through(process: Process, *, terminal: bool) -> int:
    """Pass everything on until a process has exited and its output has ended; return its exit code.

    :param terminal: the process has a terminal, the size of which follows that of ours.
    :return: 130 if the process was left running, since we were interrupted again.
    :raises VMExitedError: the VM exited first.
    """
    exited, code = anyio.Event(), _INTERRUPTED
    if terminal:
        await _resize(process)
    async with anyio.create_task_group() as others:
        others.start_soon(_feed, process.stdin)
        if sys.platform != "win32":
            others.start_soon(_pass_signals, process, terminal, others.cancel_scope)
        async with anyio.create_task_group() as outputs:
            outputs.start_soon(_drain, process.stdout, _STDOUT, exited)
            if not terminal:
                outputs.start_soon(_drain, process.stderr, _STDERR, exited)
            code = await process.wait()
            exited.set()
        others.cancel_scope.cancel()
    return code


async def _feed(stdin: ProcessInput) -> None:
    """Send what this process reads, and its end."""
    # The thread is a daemon: nothing ends its read, and the interpreter does not wait for it.
    ahead, read = anyio.create_memory_object_stream[bytes]()
    threading.Thread(target=_read, args=(ahead, anyio.lowlevel.current_token()), daemon=True).start()
    # A process may close its standard input, or exit, before ours has ended; then `ahead` is closed here.
    with ahead, read, suppress(GuestError, VMExitedError, *BROKEN_STREAM):
        async for data in read:
            await stdin.send(data)
        await stdin.send_eof()


def _read(ahead: MemoryObjectSendStream[bytes], token: EventLoopToken) -> None:
    """Read until the end of our standard input, or of those who receive it."""
    with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.RunFinishedError):
        while data := os.read(_STDIN, _CHUNK_BYTES):
            anyio.from_thread.run(ahead.send, data, token=token)
    with suppress(anyio.RunFinishedError):
        anyio.from_thread.run_sync(ahead.close, token=token)


async def _drain(output: ProcessOutput, descriptor: int, exited: anyio.Event) -> None:
    """Write what a process writes, until its end."""
    async with output:
        try:
            while data := await _receive(output, exited):
                await anyio.to_thread.run_sync(_write, descriptor, data)
        except OSError:
            return


async def _receive(output: ProcessOutput, exited: anyio.Event) -> bytes:
    """Receive what comes next; nothing at the end, or once a process that has exited is silent."""
    received = b""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def limit() -> None:
                await exited.wait()
                scope.deadline = anyio.current_time() + _SILENT_SECONDS

            tasks.start_soon(limit)
            with suppress(anyio.EndOfStream):
                received = await output.receive()
            tasks.cancel_scope.cancel()
    return received


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


async def _resize(process: Process) -> None:
    """Have a process's terminal be as large as ours, if ours has a size."""
    with suppress(GuestError, OSError):
        columns, lines = os.get_terminal_size(_STDOUT)
        if lines and columns:
            await process.resize(lines, columns)


async def _pass_signals(process: Process, terminal: bool, everything: anyio.CancelScope) -> None:
    """Pass signals to a process; an interruption after another ends everything."""
    assert sys.platform != "win32"
    interrupted = False
    with anyio.open_signal_receiver(
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH
    ) as received:
        async for each in received:
            if each is signal.SIGWINCH:
                if terminal:
                    await _resize(process)
            elif each is signal.SIGINT and interrupted:
                everything.cancel()
            else:
                interrupted |= each is signal.SIGINT
                # A process that has exited is waited for already.
                with suppress(GuestError):
                    await process.signal(each.value)
