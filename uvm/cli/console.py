"""The terminal as rich sees it. Only where rich is installed."""

from __future__ import annotations

import sys

from rich.console import Console


class TerminalConsole(Console):
    """A console that leaves a pipe without a reader to the command, which has to clean up."""

    def on_broken_pipe(self) -> None:
        """Raise what the write failed with; rich would end the program."""
        failure = sys.exception()
        assert failure is not None
        raise failure
