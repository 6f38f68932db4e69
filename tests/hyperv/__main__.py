"""Prove uvm on this Windows host: ``make test-hyperv``, or ``python -m tests.hyperv`` where there is no make.

Plays the conformance suite and the devices of VMs on the real Host Compute Service, and writes a report with
nothing private in it: please send it to us. VMs are made and removed; nothing else on the host changes.
Exit status: 1 if a scenario fails; 0 if none does, or NOTHING WAS RUN since the host cannot run VMs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TextIO

import anyio

from tests.hyperv import devicelife
from tests.hyperv.host import DEFAULT_SWITCH, Means, Opened, Wanted, means_of
from tests.hyperv.report import Machine, Scrubber, report, summary, write
from uvm.cli.doctor import Examination, examine
from uvm.cli.errors import printable
from uvm.errors import UVMError
from uvm.testing.backends import SCENARIOS, Level, Scenario
from uvm.testing.backends.play import Played, play_all
from uvm.testing.backends.scenario import scenarios_of

LOUD: Final = "!" * 100
REPORT: Final = "uvm-hyperv-report.json"
#: Where a job of GitHub shows what came of it.
_SUMMARY: Final = "GITHUB_STEP_SUMMARY"

#: All that is played, in this order within each level.
PLAYED: Final[tuple[Scenario, ...]] = (*SCENARIOS, *scenarios_of(devicelife, answers=True))


def arguments_of(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hyperv",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--level", choices=[each.name.lower() for each in Level], default="guest", help="how far (guest)")
    add("-k", metavar="WORD", default="", help="only scenarios with this in their names")
    add("--linux-boot-files", metavar="DIRECTORY", default="", help="a kernel and a root file system")
    add(
        "--windows-layer",
        metavar="DIRECTORY",
        action="append",
        default=[],
        help="a layer of a Windows image; again for those below it",
    )
    add("--network", metavar="ID", default=DEFAULT_SWITCH, help="of endpoints (the Default Switch)")
    add("--guest-programs", action="store_true", help="guests have echo, cat, env, sleep, true and false")
    add("--loop", choices=["asyncio", "trio"], default="asyncio", help="the event loop (asyncio)")
    add("--report", metavar="FILE", type=Path, default=Path(REPORT), help=f"where it goes ({REPORT})")
    return parser.parse_args(given)


def main(
    given: Sequence[str] | None = None,
    *,
    look: Callable[[], Examination] = lambda: examine("hcs"),
    factory: Callable[[], Opened] | None = None,
) -> int:
    """Check, play, report.

    :param look: examines the machine.
    :param factory: makes the backend, by default that of HCS.
    """
    wanted = arguments_of(given)
    # What is printed may be sent to us as well.
    scrub = Scrubber.of_this_machine((wanted.linux_boot_files, *wanted.windows_layer))
    found = look()
    if not found.usable:
        return _nothing(found.problem, scrub)
    try:
        means, machine = anyio.run(_begin, factory or _hcs, _wanted(wanted), found)
    except UVMError as error:
        return _nothing(str(error), scrub)
    for each in means.others:
        print(scrub(f"of another run, which is not done or was killed: {each}"))
    for each in means.lacks:
        print(scrub(f"not played: {each}"))
    played: list[tuple[Played, float]] = []
    try:
        for done, seconds in _play(means, chosen(wanted.level, wanted.k), wanted.loop):
            played.append((done, seconds))
            why = f": {printable(scrub(done.why))}" if done.why else ""
            print(f"  {done.outcome:<8} {done.scenario.name.replace('_', ' ')}{why}", flush=True)
    except UVMError as error:
        return _nothing(str(error), scrub)
    except KeyboardInterrupt:
        print("interrupted: the report has what was played")
    made = report(machine, means, played, scrub)
    write(made, wanted.report)
    _say("\n".join(["", *summary(made)]), scrub)
    print(f"\n{scrub(str(wanted.report))}: read it, and send it to us (docs/try-hyperv.md)")
    return int(any(each.outcome == "fails" for each, _ in played))


def chosen(level: str, word: str) -> list[Scenario]:
    """Return the scenarios up to a level with a word in their names, by levels."""
    found = [each for each in PLAYED if each.level <= Level[level.upper()] and word in each.name]
    return sorted(found, key=lambda each: each.level)


def _wanted(given: argparse.Namespace) -> Wanted:
    return Wanted(given.linux_boot_files, tuple(given.windows_layer), given.network, given.guest_programs)


def _hcs() -> Opened:
    from uvm.backends.hcs.backend import HCSBackend

    return HCSBackend()


async def _begin(factory: Callable[[], Opened], wanted: Wanted, found: Examination) -> tuple[Means, Machine]:
    async with factory() as backend:
        host = await backend.host()
    return await means_of(factory, wanted), Machine(found, host)


def _play(means: Means, scenarios: Sequence[Scenario], loop: str) -> Iterator[tuple[Played, float]]:
    """Play scenarios, and yield what became of each, and its seconds."""
    for scenario in scenarios:
        began = time.monotonic()
        [done] = play_all(partial(means.rig, scenario), [scenario], loop=loop)
        yield done, time.monotonic() - began


def _nothing(why: str, scrub: Scrubber) -> int:
    """Say, so that it is seen, that nothing was played."""
    _say(f"{LOUD}\nNOTHING WAS RUN, no real HCS was tested: {why}\n{LOUD}", scrub, sys.stderr)
    return 0


def _say(text: str, scrub: Scrubber, stream: TextIO | None = None) -> None:
    """Print a text without what is private, and show it in a job of GitHub."""
    text = scrub(text)
    print(text, file=stream or sys.stdout, flush=True)
    if path := os.environ.get(_SUMMARY):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
