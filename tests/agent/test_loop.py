"""The agent's loop: descriptors, timers, signals and workers, each in the loop's thread."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from uvm.agent.loop import READ, WRITE, Loop
from uvm.agent.workers import MOST


@pytest.fixture
def errors() -> list[BaseException]:
    return []


@pytest.fixture
def loop(errors: list[BaseException]) -> Loop:
    return Loop(errors.append)


def test_timers_come_in_order_and_not_if_they_were_cancelled(loop: Loop) -> None:
    came: list[str] = []
    loop.later(0.002, lambda: came.append("last"))
    loop.later(0.003, loop.stop)
    loop.later(0.001, lambda: came.append("first"))
    loop.later(0.0015, lambda: came.append("cancelled")).cancel()
    loop.run()
    assert came == ["first", "last"]


def test_a_descriptor_is_watched_until_it_is_not(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        came: list[int] = []

        def ready(events: int) -> None:
            came.append(events)
            if events & WRITE:
                loop.change(ours.fileno(), READ)
                theirs.send(b"x")
            else:
                loop.unwatch(ours.fileno())
                loop.later(0.001, loop.stop)

        loop.watch(ours.fileno(), WRITE, ready)
        loop.run()
    assert came == [WRITE, READ]


def test_work_is_done_at_the_same_time_elsewhere_and_its_results_come_here(loop: Loop) -> None:
    together = threading.Barrier(MOST)
    seen: list[tuple[bool, bool]] = []

    def work() -> bool:
        together.wait(30)
        return threading.current_thread() is threading.main_thread()

    def then(in_main: bool, error: BaseException | None) -> None:
        assert error is None
        seen.append((in_main, threading.current_thread() is threading.main_thread()))
        if len(seen) == MOST:
            loop.stop()

    for _ in range(MOST):
        loop.work(work, then)
    loop.run()
    assert set(seen) == {(False, True)}


def test_errors_of_work_are_passed_on(loop: Loop, errors: list[BaseException]) -> None:
    came: list[BaseException | None] = []

    def then(result: object, error: BaseException | None) -> None:
        came.append(error)
        loop.stop()

    loop.work(lambda: 1 // 0, then)
    loop.run()
    assert isinstance(came[0], ZeroDivisionError)
    assert not errors


def test_signals_come_once_however_often_they_were_sent(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    came: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: came.append("usr1"))
    try:
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGUSR1)
        loop.later(0.001, loop.stop)
        loop.run()
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, before)
    assert came == ["usr1"]


def test_callbacks_that_raise_are_reported_and_the_loop_goes_on(
    loop: Loop, errors: list[BaseException]
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("bug")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop.watch(ours.fileno(), WRITE, fail)
        loop.post(fail)
        loop.later(0, fail)
        loop.later(0.01, loop.stop)
        loop.run()
    # Once each: a descriptor whose callback raises is watched no more.
    assert [str(error) for error in errors] == ["bug"] * 3


def test_before_each_wait_is_the_time_to_send(loop: Loop) -> None:
    waits: list[int] = []
    loop.before_waiting(lambda: waits.append(1))
    loop.post(lambda: loop.post(loop.stop))
    loop.run()
    assert len(waits) == 2
