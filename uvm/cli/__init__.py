"""The command ``uvm``, also ``python -m uvm``: run a command in a VM, or a pod; look at this machine.

Exit status: 0 success, 1 failure, 2 a wrong command line or file, 130 interrupted; ``run``, ``shell`` and
``pod -i`` have that of the command in the guest. ``docs/commands.md`` is the manual.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from uvm._drawing.blocks import Span, line
from uvm.cli.commandline import make_parser
from uvm.cli.completion import COMPLETING, complete
from uvm.cli.errors import OutputError, UsageError, in_one_line
from uvm.cli.terminal import Terminal
from uvm.errors import OptionsError, UVMError

__all__ = ["main"]

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    _open_standard_streams()
    parser = make_parser()
    if COMPLETING in os.environ:
        complete(parser)
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help(sys.stderr)
        return 2
    # What a command needs is loaded when it runs, so that --help is there at once.
    command = import_module(f"uvm.cli.{given.module or given.command}")
    try:
        terminal = Terminal.of(sys.stdout)
        status: int = command.run(terminal, given)
        terminal.check()
    except UsageError as error:
        return _fail(str(error), 2)
    except (UVMError, OutputError) as error:
        wrong = isinstance(error, OptionsError)
        return _fail(in_one_line(error), getattr(command, "FAILURE", 2 if wrong else 1))
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    return status


def _open_standard_streams() -> None:
    """Open the null device where a standard stream is closed, so that no other file has its descriptor."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest descriptor that is closed is the one that is opened. Children inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _fail(message: str, status: int) -> int:
    Terminal.of(sys.stderr).write(line(Span("uvm: error:", "red"), f" {message}"))
    return status
