"""``uvm conform``: what a backend does of what is expected, by levels."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from attrs import evolve

from uvm import LCOWOptions, UtilityVM
from uvm.backend import JSON
from uvm.backends.fake import FakeBackend
from uvm.cli import main
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.testing.backends import SCENARIOS, Control, FakeHost, Level, Rig, Scenario
from uvm.testing.backends.play import Played, play_all, rig_of


def test_a_level_is_played_whole_and_none_above_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "fake", "--level", "host", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = {scenario.name for scenario in SCENARIOS if scenario.level is Level.HOST}
    assert {each["scenario"] for each in found} == wanted
    assert {each["outcome"] for each in found} == {"holds"}


def test_what_is_printed_has_a_heading_and_a_sum_for_each_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "fake", "--level", "host"]) == 0
    printed = capsys.readouterr().out
    assert "host: no VM" in printed
    assert "holds    ids are fresh guids" in printed
    count = sum(scenario.level is Level.HOST for scenario in SCENARIOS)
    assert f"host  {count} holds" in printed


class Stale(FakeBackend):
    """A backend whose new ids are not new."""

    def new_id(self) -> str:
        return "11111111-1111-1111-1111-111111111111"


@asynccontextmanager
async def stale() -> AsyncIterator[Rig]:
    async with Stale() as backend:
        yield Rig(backend)


def test_a_rig_of_ones_own_is_played_and_what_fails_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["conform", "stale", "--level", "host", "--rig", f"{__name__}:stale", "--json"]
    assert main(given) == 1
    found = {each["scenario"]: each for each in json.loads(capsys.readouterr().out)}
    failed = found["ids_are_fresh_guids"]
    assert failed["outcome"] == "fails"
    assert failed["why"].startswith("AssertionError: ")
    skipped = found["files_are_read_whole_or_not_at_all"]
    assert (skipped["outcome"], skipped["why"]) == ("skipped", "files of the host")


RIGS: dict[str, Rig] = {}


@asynccontextmanager
async def no_rig() -> AsyncIterator[str]:
    yield "no rig"


@asynccontextmanager
async def broken() -> AsyncIterator[Rig]:
    yield RIGS["a mistake"]


async def forgetful() -> Rig:
    return Rig(FakeBackend())


@asynccontextmanager
async def of_what(what: str) -> AsyncIterator[Rig]:
    yield Rig(FakeBackend())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no-such-backend",), "no backend is called 'no-such-backend'"),
        (("fake", "--rig", "nothing"), "not MODULE:FUNCTION"),
        (("fake", "--rig", "no_such_module:rig"), "no_such_module"),
        (("fake", "--rig", f"{__name__}:nothing"), "nothing"),
        (("fake", "--rig", f"{__name__}:no_rig"), "is no uvm.testing.backends.Rig but a str"),
        (("fake", "--rig", f"{__name__}:broken"), "a rig cannot be made: KeyError: 'a mistake'"),
        (("fake", "--rig", f"{__name__}:of_what"), "a rig cannot be made: TypeError: of_what() missing 1"),
        (("fake", "--rig", f"{__name__}:forgetful"), "not entered with `async with`: it is a coroutine"),
        (("fake", "--rig", f"{__name__}:SCENARIOS"), "a rig cannot be made: TypeError: 'tuple' object"),
        (("fake", "--rig", "antigravity_that_fails:rig"), "ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_played_is_said_in_one_line(
    arguments: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "antigravity_that_fails.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["conform", *arguments]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert (out, err.count("\n")) == ("", 1)


def test_levels_grow_with_what_a_scenario_needs() -> None:
    by_name = {scenario.name: scenario.level for scenario in SCENARIOS}
    assert by_name["ids_are_fresh_guids"] is Level.HOST
    assert by_name["an_id_can_be_taken_once"] is Level.VM
    assert by_name["a_process_writes_and_exits"] is Level.GUEST
    assert by_name["a_linux_vm_runs_from_creation_to_exit"] is Level.EVERYTHING
    assert {scenario.level for scenario in SCENARIOS} == set(Level)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_guests_of_the_fake_are_played_on_both_loops(loop: str) -> None:
    wanted = [scenario for scenario in SCENARIOS if scenario.name == "a_process_writes_and_exits"]
    assert [*play_all(rig_of("fake"), wanted, loop=loop)] == [Played(wanted[0], "holds")]


def test_a_rig_without_options_of_a_vm_has_the_scenarios_of_vms_skipped() -> None:
    @asynccontextmanager
    async def bare() -> AsyncIterator[Rig]:
        async with FakeBackend() as backend:
            yield Rig(backend, FakeHost(backend))

    wanted = [scenario for scenario in SCENARIOS if scenario.name == "a_process_writes_and_exits"]
    assert [played.outcome for played in play_all(bare, wanted)] == ["skipped"]


async def fail_with_several(rig: Rig) -> None:
    errors = [AssertionError("the first"), ExceptionGroup("within", [HostError("open", HResult.E_FAIL)])]
    error = ExceptionGroup("undoing", errors)
    error.add_note("at call 3")
    raise error


def test_of_several_errors_each_is_said_with_what_was_noted() -> None:
    wanted = Scenario("fails", fail_with_several, frozenset())
    [played] = play_all(rig_of("fake"), [wanted])
    assert played.outcome == "fails"
    assert played.why == (
        "undoing: AssertionError: the first; and within: HostError: open: E_FAIL (0x80004005); at call 3"
    )


def test_systems_of_other_runs_are_named_and_disturb_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "crowded", "--level", "vm", "--rig", f"{__name__}:crowded"]) == 0
    out, err = capsys.readouterr()
    assert "fails" not in out
    assert err == f"uvm: of another run, which is not done or was killed: {EARLIER.own('vm1')}\n"


def test_a_backend_that_cannot_list_its_systems_yet_is_played(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "young", "--level", "host", "--rig", f"{__name__}:young"]) == 1
    out, err = capsys.readouterr()
    assert ("fails" in out, err) == (True, "")


class Young(FakeBackend):
    async def enumerate(self, query: JSON | None = None) -> list[JSON]:
        raise NotImplementedError


@asynccontextmanager
async def young() -> AsyncIterator[Rig]:
    """A rig of a backend that is not all written."""
    async with Young() as backend:
        yield Rig(backend, FakeHost(backend))


EARLIER = Rig(FakeBackend())


@asynccontextmanager
async def crowded() -> AsyncIterator[Rig]:
    """A rig whose host has a VM of an earlier run, and one of a user."""
    async with FakeBackend() as backend:
        # Else the others were leftovers of each scenario.
        host = FakeHost(backend, FakeHost(backend).controls - {Control.AUDIT})
        others = [rig_options(host, EARLIER.own("vm1")), rig_options(host, "vm1")]
        async with AsyncExitStack() as stack:
            for each in others:
                await stack.enter_async_context(UtilityVM.create(each, backend=backend))
            yield Rig(backend, host, host.linux(), host.windows())


def rig_options(host: FakeHost, id: str) -> LCOWOptions:
    return evolve(host.linux(), id=id)


def test_a_loop_that_is_not_installed_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uvm.testing.backends.play.find_spec", lambda name: None)
    assert main(["conform", "fake", "--loop", "trio"]) == 1
    assert capsys.readouterr().err == (
        "uvm: error: play on trio: it is not installed; run: pip install 'utilityvm[trio]'\n"
    )
