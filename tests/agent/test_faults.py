"""The agent that is broken on demand: it does what the tests of real VMs need it for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests.agent.rawhost import LIMIT_SECONDS, RawHost
from uvm._wire.channels import MuxError
from uvm._wire.frames import Procedure
from uvm.errors import WireError


@pytest.fixture
def hostile() -> Iterator[RawHost]:
    with RawHost(arguments=("-m", "tests.agent.faults")) as host:
        host.connect()
        yield host


def ask_for(host: RawHost, fault: str) -> None:
    """Ask for a fault, which is not answered."""
    settings = {"ProcessParameters": f'{{"CommandArgs": ["fault", "{fault}"]}}'}
    host.begin(Procedure.EXECUTE_PROCESS, {"Settings": settings})
    host.flush()


def go_on(host: RawHost) -> NoReturn:
    """Go on until an error."""
    while True:
        host.step()


def test_it_runs_processes_as_any_other(hostile: RawHost) -> None:
    assert hostile.run("sh", "-c", "exit 3") == 3
    answer = hostile.execute("fault", "unknown")
    assert "there is no such fault; there are exit, panic" in answer["ErrorMessage"]


def test_it_exits(hostile: RawHost) -> None:
    ask_for(hostile, "exit")
    assert hostile.process.wait(LIMIT_SECONDS) == 1


@pytest.mark.parametrize("fault", ["garbage", "overrun"])
def test_it_breaks_the_rules_of_the_mux(hostile: RawHost, fault: str) -> None:
    ask_for(hostile, fault)
    with pytest.raises(MuxError):
        go_on(hostile)


def test_it_answers_what_was_not_asked(hostile: RawHost) -> None:
    ask_for(hostile, "lie")
    with pytest.raises(WireError, match="which is not open"):
        go_on(hostile)


def test_it_notifies_without_end(hostile: RawHost) -> None:
    ask_for(hostile, "flood")
    while len(hostile.notifications) < 1000:
        hostile.step()
    hostile.process.kill()


def test_it_opens_connections_without_end(hostile: RawHost) -> None:
    ask_for(hostile, "open")
    before = hostile.mux._last_id
    while hostile.mux._last_id < before + 1000:
        hostile.step()
    hostile.process.kill()


def test_it_hangs(hostile: RawHost) -> None:
    ask_for(hostile, "hang")
    hostile.begin(Procedure.DUMP_STACKS)
    hostile.flush()
    hostile.process.kill()
    with pytest.raises((EOFError, ConnectionError)):
        go_on(hostile)
    assert not hostile.answers
