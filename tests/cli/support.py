"""What the tests of the command share: running it, and drawing on paper."""

from __future__ import annotations

import io
from pathlib import Path

from attrs import frozen

from uvm.cli.terminal import Terminal

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "uvm" / "cli" / "samples"
LCOW, WCOW = EXAMPLES / "lcow-pod.toml", EXAMPLES / "wcow-pod.toml"
TRACES = ROOT / "tests" / "data" / "traces.json"


class Screen(io.StringIO):
    """A stream that says that it is a terminal, or not."""

    def __init__(self, *, tty: bool = False) -> None:
        super().__init__()
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


@frozen
class Ran:
    """What a run of the command gave."""

    status: int
    output: str
    error: str

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


def paper() -> Terminal:
    """A terminal that plain text is written to."""
    return Terminal(io.StringIO())
