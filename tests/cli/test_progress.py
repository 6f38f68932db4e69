"""What takes long is said on the terminal while it lasts, and nowhere else."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from tests.cli.conftest import Run
from tests.cli.support import LCOW, Screen
from uvm.backend import JSON
from uvm.backends.fake import FakeBackend, FakeSystem
from uvm.cli import progress
from uvm.cli.progress import Progress
from uvm.testing.backends import Rig

PATIENCE_SECONDS = 10.0


class Terminal(Screen):
    """A terminal that says when there is something on it."""

    def __init__(self) -> None:
        super().__init__(tty=True)
        self.used = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        self.used.set()
        return count

    async def wait_used(self) -> None:
        """Wait in a thread, so that the event loop goes on."""
        assert await anyio.to_thread.run_sync(partial(self.used.wait, PATIENCE_SECONDS))

    def lines(self) -> list[str]:
        """What was on it, one after the other; each replaces the one before."""
        return [each.rstrip() for each in self.getvalue().split("\r")]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The error stream is a terminal, on which all that takes any time is said."""
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0)
    monkeypatch.setattr(progress, "AGAIN_SECONDS", 0)
    monkeypatch.setenv("COLUMNS", "80")
    made = Terminal()
    # The one of sys is pytest's.
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=made))
    return made


def test_what_takes_long_is_shown_and_nothing_of_it_stays(terminal: Terminal) -> None:
    with Progress("the VM boots"):
        assert terminal.used.wait(PATIENCE_SECONDS)
    before, first, *others, blank, end = terminal.lines()
    shown = [first, *others]
    assert [each for each in shown if not re.fullmatch(r"the VM boots, \d+ s", each)] == []
    assert (before, blank, end) == ("", "", "")
    assert terminal.getvalue().endswith(f"\r{' ' * len(shown[-1])}\r")


def test_it_can_be_ended_early_and_more_than_once(terminal: Terminal) -> None:
    with Progress("the VM boots") as shown:
        assert terminal.used.wait(PATIENCE_SECONDS)
        shown.end()
        so_far = terminal.getvalue()
        shown.end()
    assert terminal.getvalue() == so_far


def test_what_is_no_terminal_stays_empty_and_what_is_quick_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "FIRST_SECONDS", PATIENCE_SECONDS)
    for stream in (Screen(), Terminal()):
        with Progress("the VM boots", stream):
            pass
        assert stream.getvalue() == ""


def test_a_line_is_no_longer_than_the_terminal_is_wide_and_controls_nothing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    with Progress("a\x1b[2J long name of what is being done"):
        assert terminal.used.wait(PATIENCE_SECONDS)
    assert terminal.lines()[1] == "a [2J long name of"
    assert max(map(len, terminal.lines())) < 20


def test_what_the_library_does_meanwhile_is_in_the_line_and_its_warnings_stay(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler(terminal))
    qemu, level = logging.getLogger("uvm.qemu"), logging.getLogger("uvm.qemu").level
    handlers = [*logging.getLogger("uvm").handlers]
    with Progress("the VM boots"):
        qemu.info("building the guest image")
        logging.getLogger("uvm.guest").info("what a guest says")
        qemu.warning("guests are emulated")
        while "building the guest image, " not in terminal.getvalue():
            terminal.used.clear()
            assert terminal.used.wait(PATIENCE_SECONDS)
    assert any(line.startswith("the VM boots, building the guest image, ") for line in terminal.lines())
    assert "guests are emulated\n" in terminal.getvalue()
    assert "what a guest says" not in terminal.getvalue()
    assert (qemu.level, logging.getLogger("uvm").handlers) == (level, handlers)


# The commands.


def shown_on() -> Terminal:
    stream = vars(progress)["sys"].stderr
    assert isinstance(stream, Terminal)
    return stream


class Slow(FakeBackend):
    """A host that creates a VM once that is said to take long."""

    async def create(self, system_id: str, document: JSON) -> FakeSystem:
        await shown_on().wait_used()
        return await super().create(system_id, document)


@asynccontextmanager
async def slow() -> AsyncIterator[Rig]:
    async with FakeBackend() as backend:
        yield Rig(backend)
        await shown_on().wait_used()


@pytest.mark.parametrize(
    ("command", "module", "said"),
    [
        (("run", "true"), "run", "the VM boots, "),
        (("pod", "-i", str(LCOW), "--backend", "slow"), "podhost", "the pod comes up, "),
        (("pod", str(LCOW), "--backend", "slow", "--json"), "podhost", "Create the VM, start it"),
    ],
    ids=["run", "pod -i", "pod --json"],
)
def test_a_boot_is_shown(
    command: tuple[str, ...],
    module: str,
    said: str,
    terminal: Terminal,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"uvm.cli.{module}.open_backend", lambda name: Slow())
    run(*command)
    assert terminal.lines()[1].startswith(said)


def test_the_scenario_that_is_played_is_shown(
    terminal: Terminal, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvm.cli.conform.other_runs", lambda *_, **__: [])
    wanted: dict[str, Any] = {"--level": "host", "--rig": f"{__name__}:slow"}
    assert run("conform", "fake", "--json", *(each for pair in wanted.items() for each in pair)).status == 0
    assert terminal.lines()[1].startswith("1 of ")
