"""Ctrl-C, wherever it comes: KeyboardInterrupt is raised, and nothing is left."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from linecache import getline
from types import FrameType
from typing import Any

import anyio
import pytest

import uvm
import uvm._sync
import uvm.sync
from tests.sync.conftest import end_of_loops
from uvm._sync.loop import Waiting
from uvm.backends.fake import FakeProcess

pytestmark = pytest.mark.usefixtures("loop")

_OURS = os.path.dirname(uvm._sync.__file__)


class Interrupts:
    """Raises KeyboardInterrupt at one of the lines of uvm.sync that this thread passes.

    :param at: which.
    """

    def __init__(self, at: int) -> None:
        self.left = at

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self)

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if os.path.dirname(frame.f_code.co_filename) != _OURS or frame.f_code.co_name == "__del__":
            return None
        line = getline(frame.f_code.co_filename, frame.f_lineno).strip()
        # Python looks for signals after calls: not before the first in a `try`, nor as a lock is released.
        if event == "line" and line not in ("try:", "with _lock:"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def live(backend: uvm.FakeBackend) -> None:
    with uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend) as vm, vm.scsi.attach(r"C:\vm\scratch.vhdx"):
        pass


@pytest.fixture
def _frozen() -> None:
    """Have garbage collected without a look at what was there before, in the tests to come too."""
    gc.freeze()


@pytest.mark.usefixtures("_frozen")
def test_an_interrupt_at_any_line_leaves_nothing(backend: uvm.FakeBackend, loop: str) -> None:
    live(backend)
    # Each loop has half of the lines.
    at = 1 if loop == "asyncio" else 2
    while True:
        interrupts = Interrupts(at)
        with suppress(KeyboardInterrupt), interrupts:
            live(backend)
        end_of_loops()
        assert (backend.leftovers(), backend.vms) == ([], {}), f"interrupted at line {at} of uvm.sync"
        if interrupts.left > 0:
            break
        at += 2
    assert at > 100


def interrupt_main() -> None:
    if sys.platform == "win32":
        import _thread

        _thread.interrupt_main()
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


class DeafLock:
    """A lock that is never free, and which no signal wakes: it came just as the wait began."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def acquire(self, *, timeout: float) -> bool:
        self.waits.append(timeout)
        if len(self.waits) == 2:
            raise KeyboardInterrupt
        return False


def test_a_wait_of_the_main_thread_looks_for_an_interrupt_that_did_not_wake_it() -> None:
    waiting, lock = Waiting(), DeafLock()
    waiting._lock = lock  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        waiting.wait()
    assert max(lock.waits) < 1


@pytest.fixture
def _heeded() -> Iterator[None]:
    """Have the signal raise: in a process that was started in the background it may be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeded")
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="no main thread")
def test_a_real_signal_ends_a_call_and_what_it_had_begun(backend: uvm.FakeBackend) -> None:
    begun = threading.Event()

    @backend.programs.register("wait")
    async def wait(process: FakeProcess) -> None:
        begun.set()
        await anyio.sleep_forever()

    def interrupt() -> None:
        assert begun.wait(60)
        interrupt_main()

    with uvm.sync.create_vm(uvm.LCOWOptions(), backend=backend) as vm:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            vm.run(["wait"])
        thread.join()
        vm.settled()
        assert vm.run(["echo", "x"]).stdout == b"x\n"
    assert backend.leftovers() == []
