"""How many instructions an operation takes, which does not depend on what else the machine does.

Cachegrind counts two runs of different length; their difference, over the operations between them, leaves out
the imports, what is set up, and what only the first operations do.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from attrs import frozen

from tests.bench.counted import NO_LOOP, OPERATIONS
from tests.bench.processes import ROOT, bytecode, run_python

__all__ = ["HEADING", "Count", "NoValgrindError", "cachegrind", "count_rows", "references"]

#: Does the operation of a row, on a loop, so many times; returns the instructions of the whole process.
Runner = Callable[[str, str, int], int]

_REFERENCES: Final = re.compile(r"I +refs: +([\d,]+)")
_CACHEGRIND: Final = ("--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")

HEADING: Final = f"{'row':11}{'thousands of instructions':44}{'on':9}{'each':>12}{'aim':>12}"


class NoValgrindError(Exception):
    """There is no valgrind to count with."""


@frozen
class Count:
    """One row: instructions per operation.

    :ivar aim: what the design allows; 0 if it says nothing.
    """

    row: str
    what: str
    loop: str
    instructions: float
    aim: float

    def cells(self) -> tuple[str, str, str, str]:
        """Return what was counted, on which loop, and the thousands of instructions: counted, and allowed."""
        aim = f"{self.aim / 1000:,.0f}" if self.aim else "-"
        return self.what, self.loop, f"{self.instructions / 1000:,.1f}", aim

    def __str__(self) -> str:
        what, loop, each, aim = self.cells()
        return f"{self.row:11}{what:44}{loop:9}{each:>12}{aim:>12}"


def count_rows(names: Iterable[str], loops: Iterable[str], run: Runner) -> Iterator[Count]:
    """Count rows, one after the other, on those of the loops that they are for."""
    wanted = {*loops, NO_LOOP}
    for name in names:
        operation = OPERATIONS[name]
        fewer, more = operation.counts
        for loop, aim in operation.aims.items():
            if loop in wanted:
                instructions = run(name, loop, more) - run(name, loop, fewer)
                yield Count(name, operation.what, loop, instructions / (more - fewer), aim)


@contextmanager
def cachegrind() -> Iterator[Runner]:
    """Return a runner that counts by cachegrind; it has bytecode of its own, which a first run makes.

    :raises NoValgrindError: valgrind is not installed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise NoValgrindError(
            "instructions are counted by valgrind, which is not installed: apt-get install valgrind (Debian, "
            "Ubuntu), dnf install valgrind (Fedora). It runs on Linux only, not on macOS or Windows."
        )
    with bytecode() as made:
        environment = {**made, "PYTHONHASHSEED": "0"}
        warm: set[tuple[str, str]] = set()

        def run(name: str, loop: str, count: int) -> int:
            program = ["-m", "tests.bench.counted", name, loop]
            if (name, loop) not in warm:
                run_python(*program, "1", env=environment)
                warm.add((name, loop))
            command = [valgrind, *_CACHEGRIND, sys.executable, *program, str(count)]
            done = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
            )
            return references(done.stderr)

        yield run


def references(report: str) -> int:
    """Return the number of instructions of a report of cachegrind."""
    found = _REFERENCES.search(report)
    if found is None:
        raise ValueError(f"no instructions in the report of cachegrind: {report[-500:]}")
    return int(found[1].replace(",", ""))
