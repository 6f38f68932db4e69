"""Run files of recorded cases, print each case that differs, and end with ``N of M equal``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio

from uvm.testing.conformance import CaseResult, check_case, load_cases


async def _run(cases: list[dict[str, Any]]) -> list[CaseResult]:
    return [await check_case(case) for case in cases]


def _read(paths: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Give the cases of all files, and what kept others from being read."""
    cases: list[dict[str, Any]] = []
    unread: list[str] = []
    for path in paths:
        try:
            cases += load_cases(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            unread.append(f"{path}: could not be read: {error}")
    return cases, unread


def main(paths: list[str]) -> int:
    """Run the files; 0 where every case is equal."""
    if not paths:
        print("usage: python -m tests.conformance FILE...", file=sys.stderr)
        return 2
    cases, unread = _read(paths)
    for line in unread:
        print(line, file=sys.stderr)
    results = anyio.run(_run, cases)
    for result in results:
        if result.difference:
            print(f"{result.name}: differs")
            for line in result.difference:
                print(f"  {line}")
    equal = sum(not result.difference for result in results)
    print(f"{equal} of {len(results)} equal")
    return 0 if equal == len(results) and results and not unread else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
