"""What this machine can do: one line for each check."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from uvm.cli.diagnosis import Examination, Result, examine
from uvm.cli.terminal import Style, Terminal

_STYLES: Final[dict[str, Style]] = {"ok": "green", "missing": "red"}


def report(terminal: Terminal, backend: str | None, *, as_json: bool) -> int:
    """Check this machine and print what was found; return 0 if the backend can be used, else 1.

    :param backend: the backend that is wanted; by default, the one that would be chosen.
    :raises OptionsError: no backend has that name.
    """
    found = examine(backend)
    if as_json:
        terminal.write(json.dumps(found.to_json(), indent=2))
    else:
        terminal.write(*_lines(terminal, found))
    return 0 if found.usable else 1


def _lines(terminal: Terminal, found: Examination) -> Iterator[str]:
    width = max(len(result.name) for result in found.results)
    for result in found.results:
        yield _line(terminal, result, width)
    yield ""
    name = terminal.paint(found.backend, "bold")
    if found.usable:
        yield f"The backend {name} can be used here."
    elif found.backend:
        yield f"The backend {name} cannot be used here: {found.problem}."
    else:
        yield f"No backend is chosen here: {found.problem}."


def _line(terminal: Terminal, result: Result, width: int) -> str:
    status = terminal.paint(result.status.ljust(8), _STYLES.get(result.status, "yellow"))
    remedy = f"; {result.remedy}" if result.remedy else ""
    return f"{status} {result.name.ljust(width)}  {result.text}{remedy}"
