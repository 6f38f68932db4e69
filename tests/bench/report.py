"""``python -m tests.bench.report [SECTION...]``: measures the figures of the documentation, and writes them.

All of it takes about an hour. Nothing else should use the machine meanwhile.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.bench.counted import OPERATIONS
from tests.bench.figures import HCSSHIM, HEADINGS, Figure
from tests.bench.growth import growth
from tests.bench.instructions import cachegrind, count_rows
from tests.bench.parts import PARTS
from tests.bench.qemu import qemu
from tests.bench.vms import LOOPS
from tests.soak.leaks import play

__all__ = ["MORE", "SECTIONS", "page"]

_DIRECTORY: Final = Path(__file__).parents[2] / "docs" / "figures"
_TIMES: Final = 100_000
_MIB: Final = 1 << 20

Row = tuple[str, ...]


def page(headings: Row, rows: Iterable[Row]) -> str:
    """Return a table for the documentation, and on what it was measured."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{os.cpu_count()} processors, {platform.system()}"
    table = [headings, ("---",) * len(headings), *rows]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in table)
    return f"Measured on {datetime.now(UTC):%Y-%m-%d}: {python}, {machine}.\n\n{lines}"


def _instructions() -> str:
    with cachegrind() as run:
        rows = [count.cells() for count in count_rows(OPERATIONS, LOOPS, run)]
    return page(("thousands of instructions of", "on", "each", "aim"), rows)


def _times() -> str:
    figures = [figure for part in PARTS.values() for figure in part()]
    return f"{_table(figures)}\n{HCSSHIM}\n"


def _table(figures: Iterable[Figure]) -> str:
    return page(HEADINGS, (_with_note(figure) for figure in figures))


def _with_note(figure: Figure) -> Row:
    what, *cells = figure.cells()
    return (f"{what}; {figure.note}" if figure.note else what, *cells)


def _qemu() -> str:
    # hcsshim was not measured.
    return page(HEADINGS[:-1], (_with_note(figure)[:-1] for figure in qemu()))


def _growth() -> str:
    return _table(growth())


def _leaks() -> str:
    grown = [each for loop in LOOPS for each in play(loop, _TIMES)]
    rows = [
        (each.name, each.loop, f"{each.count:,}", f"{each.objects:+,}", f"{each.resident / _MIB:+.2f} MiB")
        for each in grown
    ]
    return page(("operation", "on", "times", "objects", "resident set"), rows)


SECTIONS: Final[dict[str, Callable[[], str]]] = {
    "instructions": _instructions,
    "times": _times,
    "growth": _growth,
    "leaks": _leaks,
}


#: What is measured only if it is named, since it takes more of a machine: ``make bench-qemu``.
MORE: Final[dict[str, Callable[[], str]]] = {"qemu": _qemu}


def main() -> None:
    """Measure the sections that are named, or all, and write each to its file."""
    for name in sys.argv[1:] or SECTIONS:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        (_DIRECTORY / f"{name}.md").write_text({**SECTIONS, **MORE}[name](), encoding="utf-8")


if __name__ == "__main__":
    main()
