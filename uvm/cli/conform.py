"""The subcommand ``conform``: the conformance suite on a backend, with what holds and what does not."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from importlib import import_module
from typing import Final

from uvm._drawing.blocks import Span, Style, table
from uvm._repr import described
from uvm.cli.errors import UsageError, printable
from uvm.cli.progress import Progress
from uvm.cli.run import say
from uvm.cli.terminal import Terminal
from uvm.errors import OptionsError
from uvm.testing.backends import SCENARIOS, Level
from uvm.testing.backends.play import MakeRig, Played, other_runs, play_all, rig_of

_STYLES: Final[dict[str, Style]] = {"holds": "green", "fails": "red", "skipped": "dim"}
_TITLES: Final = {
    Level.HOST: "no VM",
    Level.VM: "VMs, without a guest that answers",
    Level.GUEST: "guests that answer",
    Level.EVERYTHING: "calls that fail, hang and are lost",
}


def run(terminal: Terminal, given: Namespace) -> int:
    """Play the scenarios up to a level; return 1 if one fails."""
    highest = Level[given.level.upper()]
    wanted = [scenario for scenario in SCENARIOS if scenario.level <= highest]
    make_rig = _load(given.rig) if given.rig else rig_of(given.backend)
    if others := _other_runs(make_rig, given):
        say(f"of another run, which is not done or was killed: {', '.join(others)}")
    found: list[Played] = []
    for number, scenario in enumerate(sorted(wanted, key=lambda each: each.level), 1):
        with Progress(f"{number} of {len(wanted)}: {scenario.name.replace('_', ' ')}"):
            [played] = play_all(make_rig, [scenario], loop=given.loop)
        if not given.json:
            _show(terminal, played, None if not found else found[-1].scenario.level)
        found.append(played)
    if given.json:
        terminal.write_text(json.dumps([_to_json(each) for each in found], indent=2))
    else:
        _sum_up(terminal, found)
    return int(any(each.outcome == "fails" for each in found))


def _load(name: str) -> MakeRig:
    """Load a function that makes rigs.

    :raises UsageError: there is none of that name.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UsageError(f"--rig {name}: not MODULE:FUNCTION")
    try:
        made: MakeRig = getattr(import_module(module), attribute)
    # A module that is imported may do anything.
    except Exception as error:
        raise UsageError(f"--rig {name}: {described(error)}") from None
    return made


def _other_runs(make_rig: MakeRig, given: Namespace) -> list[str]:
    """Return the systems of other runs.

    :raises UsageError: the function makes no rig.
    """
    try:
        return other_runs(make_rig, loop=given.loop)
    except OptionsError as error:
        raise UsageError(f"--rig {given.rig}: {error}" if given.rig else str(error)) from None


def _show(terminal: Terminal, played: Played, before: Level | None) -> None:
    level = played.scenario.level
    if level != before:
        terminal.write("", Span(f"{level.name.lower()}: {_TITLES[level]}", "bold"))
    outcome = Span(played.outcome, _STYLES[played.outcome])
    said = played.scenario.name.replace("_", " ") + (f": {printable(played.why)}" if played.why else "")
    terminal.write(table((), [(outcome, said)], indent=2, least=(7,)))


def _sum_up(terminal: Terminal, found: list[Played]) -> None:
    rows = []
    for level in sorted({each.scenario.level for each in found}):
        counted = Counter[str](each.outcome for each in found if each.scenario.level == level)
        said = ", ".join(f"{counted[each]} {each}" for each in _STYLES if counted[each])
        rows.append((level.name.lower(), said))
    terminal.write("", table((), rows))


def _to_json(played: Played) -> dict[str, str]:
    scenario = played.scenario
    return {
        "scenario": scenario.name,
        "level": scenario.level.name.lower(),
        "outcome": played.outcome,
        "why": played.why,
    }
