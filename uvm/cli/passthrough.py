"""The streams, the terminal and the signals of this process, passed to and from a process of a guest.

Files of this process are read and written in threads, since none of them need be a file that an event loop
can wait for; the threads are daemons, since nothing ends a read or a write that blocks. A reader that has
gone is the guest's to notice: its stream is closed, as a pipe would be.

A guest need not answer. What is passed to it is sent in tasks of its own, so that a signal that comes again,
or a hang-up, always ends everything. Signals are received for longer than the terminal is raw.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from queue import SimpleQueue

import anyio
import anyio.from_thread
import anyio.lowlevel
from anyio.abc import TaskGroup
from anyio.lowlevel import EventLoopToken
from anyio.streams.memory import MemoryObjectSendStream
from attrs import define, field

from uvm._guest.process import Process
from uvm._guest.stdio import ProcessInput, ProcessOutput
from uvm.backend import BROKEN_STREAM
from uvm.cli.errors import OutputError
from uvm.cli.terminal import READER_GONE
from uvm.errors import GuestError, UVMError, VMExitedError

_STDIN, _STDOUT, _STDERR = range(3)
_CHUNK_BYTES = 65536
#: That, and the number of a signal, is the exit status of a shell's command that the signal has ended.
_SIGNALED = 128
#: The errors of a write that no reader will receive: EIO is that of a terminal that was hung up.
_NO_READER = (*READER_GONE, errno.EIO)
#: How long the output of a process that has exited may be silent: its children may hold the stream open.
_SILENT_SECONDS = 1.0


def has_terminal() -> bool:
    """Return whether this process is used at a terminal that a guest's can be joined to."""
    return sys.platform != "win32" and os.isatty(_STDIN) and os.isatty(_STDOUT)


@contextmanager
def _raw_terminal() -> Iterator[None]:
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
        # Not once all output is read, which may be never; a terminal that was hung up has no modes.
        with suppress(termios.error):
            termios.tcsetattr(_STDIN, termios.TCSANOW, before)


async def pass_through(process: Process, *, terminal: bool) -> int:
    """Pass everything on until a process has exited and its output has ended; return its exit code.

    Our terminal, if we have one, is raw meanwhile, if the process has a terminal.

    :param terminal: the process has a terminal, the size of which follows that of ours.
    :return: 128 and the number of a signal if the process was left running: SIGHUP was received, or another
        again.
    :raises OutputError: what it wrote cannot be written.
    :raises VMExitedError: the VM exited first.
    """
    with _signals() as received, _raw_terminal() if terminal and has_terminal() else nullcontext():
        return await _pass_everything(process, received, terminal)


async def _pass_everything(
    process: Process, received: AsyncIterator[signal.Signals] | None, terminal: bool
) -> int:
    exited, code = anyio.Event(), 0

    async with anyio.create_task_group() as others:

        async def end_on_signals(received: AsyncIterator[signal.Signals]) -> None:
            nonlocal code
            code = _SIGNALED + await _pass_signals(received, process, terminal, others)
            others.cancel_scope.cancel()

        others.start_soon(_feed, process.stdin)
        if received is not None:
            others.start_soon(end_on_signals, received)
        if terminal:
            others.start_soon(_resize, process)
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
    """Write what a process writes, until its end.

    :raises OutputError: it cannot be written, though its reader is there.
    """
    async with output:
        with _Writer(descriptor) as writer:
            while data := await _receive(output, exited):
                try:
                    await writer.write(data)
                except OSError as error:
                    if error.errno in _NO_READER:
                        return
                    raise OutputError.of("output of the command", error) from None


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


@define(eq=False)
class _Write:
    """A write that a thread carries out.

    :ivar error: why it failed.
    """

    data: bytes
    done: anyio.Event = field(factory=anyio.Event)
    error: OSError | None = None


class _Writer:
    """A thread that writes to a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._writes: SimpleQueue[_Write | None] = SimpleQueue()
        arguments = (self._writes, descriptor, anyio.lowlevel.current_token())
        threading.Thread(target=_carry_out, args=arguments, daemon=True).start()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._writes.put(None)

    async def write(self, data: bytes) -> None:
        """Write everything.

        :raises OSError: it cannot be written.
        """
        write = _Write(data)
        self._writes.put(write)
        await write.done.wait()
        if write.error is not None:
            raise write.error


def _carry_out(writes: SimpleQueue[_Write | None], descriptor: int, token: EventLoopToken) -> None:
    """Carry out writes until None."""
    while write := writes.get():
        try:
            _write(descriptor, write.data)
        except OSError as error:
            write.error = error
        with suppress(anyio.RunFinishedError):
            anyio.from_thread.run_sync(write.done.set, token=token)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


async def _resize(process: Process) -> None:
    """Have a process's terminal be as large as ours, if ours has a size."""
    with suppress(UVMError, OSError):
        columns, lines = os.get_terminal_size(_STDOUT)
        if lines and columns:
            await process.resize(lines, columns)


@contextmanager
def _signals() -> Iterator[AsyncIterator[signal.Signals] | None]:
    """Receive signals instead of being ended by them; on Windows, None."""
    if sys.platform == "win32":
        yield None
        return
    wanted = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGWINCH]
    # What nohup has started outlives its terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*wanted) as received:
        yield received


async def _pass_signals(
    received: AsyncIterator[signal.Signals], process: Process, terminal: bool, tasks: TaskGroup
) -> int:
    """Pass signals to a process, in tasks; return the one that ends everything."""
    assert sys.platform != "win32"
    passed: set[signal.Signals] = set()
    async for each in received:
        if each is signal.SIGWINCH:
            if terminal:
                tasks.start_soon(_resize, process)
        elif each is signal.SIGHUP or each in passed:
            return each
        else:
            passed.add(each)
            tasks.start_soon(_pass_signal, process, each)
    raise AssertionError("a receiver of signals has no end")


async def _pass_signal(process: Process, number: int) -> None:
    # A process that has exited, and a VM, are waited for already.
    with suppress(UVMError):
        await process.signal(number)
