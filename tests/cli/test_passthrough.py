"""Streams, signals and the terminal of this process, passed to a guest that need not answer."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from uvm import FakeBackend, LCOWOptions, UtilityVM
from uvm._guest.process import Process
from uvm.backends.fake import FakeProcess
from uvm.cli import passthrough

if sys.platform == "win32":
    pytest.skip("Windows has no such signals and terminals", allow_module_level=True)

import pty
import termios
import tty

pytestmark = pytest.mark.anyio

#: More than a pipe holds.
MUCH = bytes(1 << 20)
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT]


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where this process's output is read; its input has no end."""
    stdin, typed = os.pipe()
    ours, theirs = os.pipe()
    monkeypatch.setattr(passthrough, "_STDIN", stdin)
    monkeypatch.setattr(passthrough, "_STDOUT", theirs)
    yield ours
    # Threads end what they do when these are closed; what they have is left to the end of this process.
    os.close(typed)
    os.close(ours)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The terminal of this process: the end where it is seen, and that which this process has."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    monkeypatch.setattr(passthrough, "_STDIN", theirs)
    monkeypatch.setattr(passthrough, "_STDOUT", theirs)
    monkeypatch.setattr(passthrough, "has_terminal", lambda: True)
    return ours, theirs


@asynccontextmanager
async def a_process(writes: bytes, *, terminal: bool = False) -> AsyncIterator[tuple[FakeBackend, Process]]:
    """A process that writes, and does not end by itself."""

    async def write_and_wait(process: FakeProcess) -> int:
        await process.stdout.send(writes)
        await anyio.sleep_forever()
        return 0

    async with FakeBackend() as backend, UtilityVM.create(LCOWOptions(), backend=backend) as vm:
        backend.programs["write"] = write_and_wait
        await vm.start()
        async with await vm.open_process(["write"], terminal=terminal, stderr=not terminal) as process:
            yield backend, process


async def read(descriptor: int) -> None:
    """Wait until something was written: then signals are received."""
    assert await anyio.to_thread.run_sync(os.read, descriptor, 1)


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("writes", [b"it runs", MUCH], ids=["read", "blocked"])
async def test_the_same_signal_again_ends_everything_whatever_the_guest_and_the_reader_leave_undone(
    output: int, number: signal.Signals, writes: bytes
) -> None:
    async with a_process(writes) as (backend, process), anyio.create_task_group() as tasks:
        gate = backend.faults.hold(to="guest", operation="signal process")

        async def send_twice() -> None:
            await read(output)
            os.kill(os.getpid(), number)
            await gate.wait()
            os.kill(os.getpid(), number)

        tasks.start_soon(send_twice)
        assert await passthrough.pass_through(process, terminal=False) == 128 + number


async def test_another_signal_is_passed_while_the_guest_has_not_answered_the_first(output: int) -> None:
    async with a_process(b"it runs") as (backend, process), anyio.create_task_group() as tasks:
        gate = backend.faults.hold(to="guest", operation="signal process")

        async def send_two() -> None:
            await read(output)
            os.kill(os.getpid(), signal.SIGINT)
            await gate.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            await gate.wait(2)
            gate.close()

        tasks.start_soon(send_two)
        assert await passthrough.pass_through(process, terminal=False) == 0xFFFFFFFF


async def test_a_hang_up_ends_everything_though_the_guest_answers_no_size(screen: tuple[int, int]) -> None:
    ours, theirs = screen
    before = termios.tcgetattr(theirs)
    async with a_process(b"it runs", terminal=True) as (backend, process), anyio.create_task_group() as tasks:
        gate = backend.faults.hold(to="guest", operation="resize console")

        async def hang_up() -> None:
            await read(ours)
            await gate.wait()
            os.kill(os.getpid(), signal.SIGHUP)

        tasks.start_soon(hang_up)
        assert await passthrough.pass_through(process, terminal=True) == 129
    assert termios.tcgetattr(theirs) == before


async def test_a_terminal_that_is_hung_up_meanwhile_is_no_error(screen: tuple[int, int]) -> None:
    ours, theirs = screen
    before = termios.tcgetattr(theirs)

    async def hang_up(process: FakeProcess) -> int:
        while termios.tcgetattr(theirs) == before:
            await anyio.lowlevel.checkpoint()
        os.close(ours)
        return 7

    async with FakeBackend() as backend, UtilityVM.create(LCOWOptions(), backend=backend) as vm:
        backend.programs["hang up"] = hang_up
        await vm.start()
        async with await vm.open_process(["hang up"], terminal=True, stderr=False) as process:
            assert await passthrough.pass_through(process, terminal=True) == 7


async def test_signals_are_received_before_the_terminal_is_raw_until_it_is_as_it_was(
    screen: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[bool] = []

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def watched(*arguments: Any) -> Any:
            received.append(all(signal.getsignal(each) is not handlers[each] for each in handlers))
            return real(*arguments)

        monkeypatch.setattr(module, name, watched)

    async with FakeBackend() as backend, UtilityVM.create(LCOWOptions(), backend=backend) as vm:
        await vm.start()
        handlers = {each: signal.getsignal(each) for each in (*ENDING, signal.SIGHUP)}
        async with await vm.open_process(["true"], terminal=True, stderr=False) as process:
            watch(tty, "setraw")
            watch(termios, "tcsetattr")
            assert await passthrough.pass_through(process, terminal=True) == 0
    assert received == [True, True]
