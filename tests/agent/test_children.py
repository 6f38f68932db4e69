"""The exits of the agent's children are passed on, whatever fails beside them."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from uvm.agent.children import Children
from uvm.agent.loop import Loop


class Signalled(Loop):
    """A loop that gets its signals from here; its process has other children."""

    def on_signal(self, number: int, callback: Callable[[], object]) -> None:
        self.signal = callback


def test_neither_an_observer_nor_a_starter_that_fails_loses_an_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    exits, errors = list[int](), list[BaseException]()
    loop = Signalled(errors.append)
    children = Children(loop)

    def observe() -> None:
        raise OSError("no descriptor is left")

    def take(code: int) -> None:
        exits.append(code)
        raise ValueError("bug")

    children.on_failure = observe
    for pid in (7, 8):
        children.start(lambda pid=pid: pid, take)  # type: ignore[misc]
    ended = iter([(7, 3 << 8), (8, 4 << 8), (0, 0)])
    monkeypatch.setattr(os, "waitpid", lambda pid, options: next(ended))
    loop.signal()
    assert exits == [3, 4]
    assert [type(error) for error in errors] == [OSError, ValueError] * 2
