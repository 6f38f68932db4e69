"""The command lines of a runtime for OCI containers, crun or runc, and what they say where they fail. Pure.

Both take the same commands and options, save those that are in :class:`Runtime` by name. Whatever comes from
the host stands behind options of its own, or is checked: no id begins with a dash.

Source: crun(1), runc(8), and hcsshim internal/guest/runtime/runc.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Final

#: Where a runtime keeps the states of its containers.
STATES: Final = "/run/uvm/runtime"
#: What crun and runc accept for an id, which neither takes for an option.
_ID: Final = re.compile(r"[\w+.][\w+.-]*", re.ASCII)
#: In order of preference: crun is small and starts fast.
NAMES: Final = ("crun", "runc")
_CGROUPS: Final = {"crun": ("--cgroup-manager=cgroupfs",)}


class Runtime:
    """One runtime.

    :param path: its program.
    :param pivot: whether it may change its root by ``pivot_root``, which an initramfs cannot.
    """

    __slots__ = ("_common", "_pivot", "name")

    name: str

    def __init__(self, path: str, *, pivot: bool, states: str = STATES) -> None:
        self.name = os.path.basename(path)
        self._common = (path, "--root", states, *_CGROUPS.get(self.name, ()))
        self._pivot = pivot

    def _command(self, log: str, *arguments: str) -> list[str]:
        return [*self._common, "--log", log, "--log-format", "json", *arguments]

    def create(self, container_id: str, bundle: str, files: Files) -> list[str]:
        """Return the command that makes a container, whose first process waits to be started."""
        pivot = () if self._pivot else ("--no-pivot",)
        return self._command(files.log, "create", "--bundle", bundle, *pivot, *_places(files), container_id)

    def start(self, container_id: str, files: Files) -> list[str]:
        """Return the command that has the first process go on."""
        return self._command(files.log, "start", container_id)

    def execute(self, container_id: str, files: Files) -> list[str]:
        """Return the command that starts the process that the document describes."""
        places = "--process", files.document, *_places(files)
        return self._command(files.log, "exec", "--detach", *places, container_id)

    def update(self, container_id: str, files: Files) -> list[str]:
        """Return the command that changes resources to what the document says."""
        return self._command(files.log, "update", "--resources", files.document, container_id)

    def delete(self, container_id: str, files: Files) -> list[str]:
        """Return the command that deletes a container, and kills it if it was never started."""
        return self._command(files.log, "delete", "--force", container_id)


class Files:
    """The files of one command, in a directory of its own.

    :ivar pid: the id of the process that it starts.
    :ivar document: what it reads.
    :ivar output: what it writes to its streams, if no container gets them.
    :ivar console: the socket at which it hands over a terminal; empty if there is none.
    """

    __slots__ = ("console", "document", "log", "output", "pid")

    log: str
    pid: str
    document: str
    output: str
    console: str

    def __init__(self, directory: str, *, terminal: bool = False) -> None:
        self.log = f"{directory}/log"
        self.pid = f"{directory}/pid"
        self.document = f"{directory}/document"
        self.output = f"{directory}/output"
        self.console = f"{directory}/console" if terminal else ""


def _places(files: Files) -> tuple[str, ...]:
    console = ("--console-socket", files.console) if files.console else ()
    return ("--pid-file", files.pid, *console)


def is_id(container_id: str) -> bool:
    """Return whether runtimes accept an id."""
    return _ID.fullmatch(container_id) is not None and container_id not in (".", "..")


def failure(log: str, output: str) -> str:
    """Return what a command that failed said last, in one line.

    :param log: the text of its log: an object of JSON in each line.
    :param output: what it wrote to its streams, which is used where the log has nothing.
    """
    said = ""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "panic"):
            said = str(entry.get("msg", ""))
    return said or " ".join(output.split()) or "it did not say why"


def find(directories: Sequence[str]) -> str | None:
    """Return the path of the runtime that is there; None if there is none."""
    found = (f"{directory}/{name}" for name in NAMES for directory in directories)
    return next((path for path in found if os.access(path, os.X_OK)), None)


def can_pivot(mounts: str) -> bool:
    """Return whether ``pivot_root`` works: the root is mounted on something, which an initramfs is not.

    :param mounts: the text of ``/proc/self/mountinfo``.
    """
    roots = [line.split()[:5] for line in mounts.splitlines() if line.split()[4] == "/"]
    return any(number != parent for number, parent, *_ in roots)
