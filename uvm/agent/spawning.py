"""Starting a process: its program, its standard streams, its terminal.

:mod:`subprocess` starts it without copying the agent's memory, unless it gets a terminal of its own. It waits
until the program has been loaded, which may block, so this is done in workers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from uvm.agent.refused import Refused, reason

#: Where the programs of the guest itself are found; the ``PATH`` of a request is the process's own.
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Command(NamedTuple):
    """A process to start.

    :ivar env: all of its environment.
    :ivar cwd: its working directory; the agent's if it is empty.
    """

    args: Sequence[str]
    env: Mapping[str, str]
    cwd: str = ""


def spawn(command: Command, streams: tuple[int, int, int], terminal: bool = False) -> int:
    """Start a process, and return its id.

    :param streams: the descriptors of its standard streams, which stay open here.
    :param terminal: those are a terminal, which it gets as its own.
    :raises Refused: it cannot be started; in the words of Go.
    """
    stdin, stdout, stderr = streams

    found = _found(command.args[0])
    try:
        process = subprocess.Popen(
            command.args,
            executable=found,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=command.env,
            cwd=command.cwd or None,
            # A new session, whose leader takes the terminal: system calls only, which take no lock.
            preexec_fn=partial(os.login_tty, 0) if terminal else None,  # noqa: PLW1509
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise _failed(command, found, error) from None
    # The loop reaps it; this object must not.
    process.returncode = 0
    return process.pid


def _found(name: str) -> str:
    """Return the path of a program."""
    if "/" in name:
        return name
    for directory in PATH.split(":"):
        path = f"{directory}/{name}"
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise Refused(f'exec: "{name}": executable file not found in $PATH')


def _failed(command: Command, found: str, error: Exception) -> Refused:
    if not isinstance(error, OSError):
        # A NUL in an argument, or "=" in the name of a variable.
        return Refused(f"fork/exec {found}: invalid argument")
    if command.cwd and error.filename == command.cwd:
        return Refused(f"chdir {command.cwd}: {reason(error)}")
    return Refused(f"fork/exec {found}: {reason(error)}")
