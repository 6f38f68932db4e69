"""Prints the table, measured in a few minutes; or, with ``--instructions``, what cachegrind counts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterable

from tests.bench.counted import OPERATIONS
from tests.bench.figures import Figure, render
from tests.bench.instructions import HEADING, NoValgrindError, cachegrind, count_rows
from tests.bench.parts import MORE, PARTS
from tests.bench.vms import LOOPS


def main() -> None:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure uvm.")
    parser.add_argument(
        "only",
        nargs="*",
        metavar="PART",
        help=f"of {', '.join(PARTS)}, all by default; or {', '.join(MORE)}",
    )
    parser.add_argument(
        "--instructions",
        action="store_true",
        help=f"count by valgrind instead, of {', '.join(OPERATIONS)}",
    )
    parser.add_argument("--loop", choices=LOOPS, help="of --instructions; both by default")
    given = parser.parse_args()
    parts: Collection[str] = OPERATIONS if given.instructions else {**PARTS, **MORE}
    names = given.only or list(OPERATIONS if given.instructions else PARTS)
    if unknown := set(names) - set(parts):
        parser.error(f"there is no part {', '.join(sorted(unknown))}, of {', '.join(parts)}")
    if given.instructions:
        _print_instructions(parser, names, [given.loop] if given.loop else LOOPS)
    else:
        _print_times(names)


def _print_instructions(parser: argparse.ArgumentParser, names: Iterable[str], loops: Iterable[str]) -> None:
    try:
        with cachegrind() as run:
            print(HEADING)
            for count in count_rows(names, loops, run):
                print(count, flush=True)
    except NoValgrindError as error:
        parser.error(str(error))


def _print_times(names: Iterable[str]) -> None:
    figures: list[Figure] = []
    for name in names:
        print(f"measuring {name} ...", end="\r", file=sys.stderr, flush=True)
        figures += {**PARTS, **MORE}[name]()
    print(render(figures))


if __name__ == "__main__":
    main()
