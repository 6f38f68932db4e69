"""The subcommand ``completion``, and the completion itself: argcomplete's, which the extra ``cli`` installs.

The script of a shell runs ``uvm`` with :data:`COMPLETING` set; the parser then answers what can come next.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Any, Final

from uvm.cli.errors import UsageError
from uvm.cli.terminal import Terminal

#: The variable by which a shell asks for completions.
COMPLETING: Final = "_ARGCOMPLETE"


def run(terminal: Terminal, given: argparse.Namespace) -> int:
    """Print the script of a shell.

    :raises UsageError: argcomplete is not installed.
    """
    terminal.write_text(_argcomplete().shellcode(["uvm"], shell=given.shell))
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, and exit: with nothing if argcomplete is not installed any more."""
    for each in _parsers(parser):
        for action in each._actions:
            if "--backend" in action.option_strings or action.dest == "backend":
                action.completer = _backends  # type: ignore[attr-defined]
    try:
        _argcomplete().autocomplete(parser)
    except UsageError:
        sys.exit(1)


def _parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return a parser and those of its subcommands."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [each for name in action.choices for each in _parsers(action.choices[name])]
    return found


def _backends(**_: Any) -> list[str]:
    from uvm.backends import backend_names

    return backend_names()


def _argcomplete() -> Any:
    try:
        return import_module("argcomplete")
    except ImportError:
        raise UsageError(
            "completion: argcomplete is not installed; run: pip install 'utilityvm[cli]'"
        ) from None
