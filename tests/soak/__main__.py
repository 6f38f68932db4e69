"""Plays rounds for a given time and prints what was done and found; exits with 1 if anything was found."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from functools import partial
from random import SystemRandom
from statistics import median
from typing import Final

import anyio
from attrs import define, field

from tests.bench.memory import resident_bytes
from tests.soak.engine import Tally, play_round
from tests.soak.leaks import play

_OUTCOMES: Final = ("ok", "refused", "denied", "unknown", "cancelled", "exited")
#: A round lasts milliseconds; one that is not over by then never will be.
_ROUND_SECONDS: Final = 60.0
#: Fewer rounds than that are all warm-up.
_ROUNDS_TO_JUDGE: Final = 200
_MIB: Final = 1 << 20
_GROWTH_BYTES: Final = 4 * _MIB


@define
class Report:
    """What one event loop's part of the soak gave.

    :ivar resident: bytes of resident memory after each round.
    :ivar found: what was found, with the seed that shows it.
    """

    loop: str
    seed: int
    tally: Tally = field(factory=Tally)
    resident: list[int] = field(factory=list)
    found: str = ""

    def growth_bytes(self) -> int | None:
        """How much more memory the last third took than the second; None where the run was too short."""
        third = len(self.resident) // 3
        if len(self.resident) < _ROUNDS_TO_JUDGE:
            return None
        return int(median(self.resident[-third:]) - median(self.resident[third:-third]))

    def leaks_memory(self) -> bool:
        """Tell whether memory was not flat."""
        return (self.growth_bytes() or 0) > _GROWTH_BYTES


async def _soak(report: Report, seconds: float, rounds: int | None) -> None:
    end = time.monotonic() + seconds
    seed = report.seed
    while time.monotonic() < end and (rounds is None or report.tally.rounds < rounds):
        try:
            with anyio.fail_after(_ROUND_SECONDS):
                await play_round(seed, report.tally)
        except Exception:
            report.found = f"{_again(report, seed)}\n{traceback.format_exc()}"
            return
        report.resident.append(resident_bytes())
        seed += 1


def _again(report: Report, seed: int) -> str:
    return f"found with: python -m tests.soak --seed {seed} --rounds 1 --backend {report.loop}"


def _print(report: Report) -> None:
    tally = report.tally
    done = f"{tally.operations.total():,} operations on {tally.vms:,} VMs in {tally.rounds:,} rounds"
    print(f"{report.loop}: {done}; seed {report.seed}, digest {tally.digest}")
    print(_row("operation", _OUTCOMES))
    for kind in sorted({kind for kind, _ in tally.operations}):
        counts = [tally.operations[kind, outcome] for outcome in _OUTCOMES]
        print(_row(kind, [f"{count:,}" if count else "-" for count in counts]))
    calls = ", ".join(f"{count:,} {outcome}" for outcome, count in tally.calls.most_common())
    print(f"  calls of hosts and guests: {tally.calls.total():,}: {calls}")
    print(f"  slots withheld: {tally.withheld:,}")
    print(f"  memory: {_memory(report)}")
    print(f"  leaked or wrong: {report.found or 'nothing'}")


def _row(kind: str, cells: Sequence[str]) -> str:
    return f"  {kind:22}" + "".join(f"{cell:>11}" for cell in cells)


def _memory(report: Report) -> str:
    growth = report.growth_bytes()
    if not any(report.resident):
        return "not known on this system"
    if growth is None:
        return f"not judged in fewer than {_ROUNDS_TO_JUDGE} rounds"
    verdict = "GROWING" if report.leaks_memory() else "flat"
    return f"{report.resident[-1] / _MIB:.1f} MiB, {growth / _MIB:+.2f} MiB since warm-up: {verdict}"


def main() -> int:
    """Soak on the event loops that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long, over all event loops (60)")
    parser.add_argument("--seed", type=int, help="of the first round; each next round has the next one")
    parser.add_argument("--rounds", type=int, help="at most, for each event loop")
    parser.add_argument("--backend", choices=("asyncio", "trio"), help="the event loop; both by default")
    parser.add_argument("--leaks", action="store_true", help="each operation --count times instead")
    parser.add_argument("--count", type=int, default=100_000, help="of --leaks (100000)")
    given = parser.parse_args()
    logging.getLogger("uvm").setLevel(logging.CRITICAL)
    loops = [given.backend] if given.backend else ["asyncio", "trio"]
    if given.leaks:
        return _repeat(loops, given.count)
    seed = SystemRandom().randrange(10**9) if given.seed is None else given.seed
    reports = [Report(loop, seed) for loop in loops]
    for report in reports:
        anyio.run(partial(_soak, report, given.seconds / len(loops), given.rounds), backend=report.loop)
        _print(report)
    return int(any(report.found or report.leaks_memory() for report in reports))


def _repeat(loops: Iterable[str], count: int) -> int:
    leaks = 0
    for loop in loops:
        for growth in play(loop, count):
            print(growth, flush=True)
            leaks += growth.leaks
    return int(leaks > 0)


if __name__ == "__main__":
    sys.exit(main())
