"""The command ``uvm``, also ``python -m uvm``: run a pod file, replay a recording, look at this machine.

Exit status: 0 success, 1 failure, 2 a wrong command line or file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from uvm import __version__
from uvm.cli.errors import UsageError, in_one_line
from uvm.cli.terminal import Terminal
from uvm.errors import UVMError

__all__ = ["main"]

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = _parser().parse_args(arguments)
    try:
        # What a command needs is loaded when it runs, so that --help is there at once.
        command = import_module(f"uvm.cli.{given.command}")
        status: int = command.run(Terminal.of(sys.stdout), given)
    except UsageError as error:
        return _fail(str(error), 2)
    except UVMError as error:
        return _fail(in_one_line(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    return status


def _fail(message: str, status: int) -> int:
    terminal = Terminal.of(sys.stderr)
    terminal.write(f"{terminal.paint('uvm: error:', 'red')} {message}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="uvm",
        description="Utility VMs, on an in-memory host: run a pod, or compare with recordings of hcsshim.",
        epilog="Exit status: 0 success, 1 failure, 2 a wrong command line or file. "
        "NO_COLOR=1 switches colours off; COLUMNS sets the width.",
    )
    parser.add_argument("--version", action="version", version=f"uvm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)

    pod = commands.add_parser(
        "pod",
        help="run the pod that a TOML file describes",
        description="Create a VM, attach all that the file describes, show it, and detach it all again, "
        "printing each request. Edit the file as you like: docs/pods.md describes it, and docs/examples has "
        "one for each guest.",
    )
    pod.add_argument("file", type=Path, metavar="FILE", help="for instance docs/examples/lcow-pod.toml")
    pod.add_argument(
        "--backend",
        metavar="NAME",
        help="run on this backend instead of the in-memory one (fake); the table [host] of the file "
        "has no effect there",
    )

    replay = commands.add_parser(
        "replay",
        help="replay a recorded hcsshim script and compare the requests",
        description="Carry out a script of device operations on the in-memory host, and show each request "
        "beside the one that hcsshim was recorded to send. Exit status 1 if any differs.",
    )
    replay.add_argument("file", type=Path, metavar="FILE", help="for instance tests/data/traces.json")
    replay.add_argument("--script", metavar="NAME", help="which script; without it, they are listed")

    doctor = commands.add_parser(
        "doctor",
        help="check what this machine can do and what is missing",
        description="Check this machine for what HCS needs, and for optional features. "
        "Exit status 1 if the backend that is asked for, or would be chosen, cannot be used.",
    )
    doctor.add_argument("--backend", metavar="NAME", help="the backend that is wanted, for instance hcs")
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    return parser
