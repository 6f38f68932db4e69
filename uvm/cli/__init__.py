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
from uvm.cli.errors import UsageError, in_one_line
from uvm.cli.terminal import Terminal
from uvm.errors import OptionsError, UVMError

__all__ = ["main"]

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = make_parser()
    if COMPLETING in os.environ:
        complete(parser)
    given = parser.parse_args(arguments)
    # What a command needs is loaded when it runs, so that --help is there at once.
    command = import_module(f"uvm.cli.{given.module or given.command}")
    try:
        status: int = command.run(Terminal.of(sys.stdout), given)
    except UsageError as error:
        return _fail(str(error), 2)
    except UVMError as error:
        wrong = isinstance(error, OptionsError)
        return _fail(in_one_line(error), getattr(command, "FAILURE", 2 if wrong else 1))
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    return status


def _fail(message: str, status: int) -> int:
    Terminal.of(sys.stderr).write(line(Span("uvm: error:", "red"), f" {message}"))
    return status
