"""What this machine can do: one line for each check."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from typing import Final

from uvm.cli.diagnosis import Examination, examine
from uvm.cli.terminal import Style, Terminal

_STYLES: Final[dict[str, Style]] = {"ok": "green", "missing": "red"}


def run(terminal: Terminal, given: Namespace) -> int:
    """Check this machine and print the findings; return 0 if the backend can be used, else 1.

    :raises OptionsError: no backend has that name.
    """
    found = examine(given.backend)
    if given.json:
        terminal.write(json.dumps(found.to_json(), indent=2))
    else:
        terminal.write(*_lines(terminal, found))
    return 0 if found.usable else 1


def _lines(terminal: Terminal, found: Examination) -> Iterator[str]:
    width = max(map(len, found.findings))
    for name, finding in found.findings.items():
        status = terminal.paint(finding.status.ljust(8), _STYLES.get(finding.status, "yellow"))
        yield f"{status} {name.ljust(width)}  {finding}"
    yield ""
    name = terminal.paint(found.backend, "bold")
    if found.usable:
        yield f"The backend {name} can be used here."
    elif found.backend:
        yield f"The backend {name} cannot be used here: {found.problem}."
    else:
        yield f"No backend is chosen here: {found.problem}."
