"""The subcommand ``init``: writes the pod files beside this module, which are there to be edited."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Final

from uvm.cli.errors import UsageError
from uvm.cli.terminal import Terminal

_SAMPLES: Final = ("lcow-pod.toml", "wcow-pod.toml")


def run(terminal: Terminal, given: Namespace) -> int:
    """Write the samples into a directory, which is made.

    :raises UsageError: one is there already, or cannot be written.
    """
    written = [given.directory / name for name in _SAMPLES]
    if there := [str(path) for path in written if os.path.lexists(path) and not given.force]:
        verb = "exists" if len(there) == 1 else "exist"
        raise UsageError(f"init: {' and '.join(there)} {verb}; nothing was written; --force overwrites")
    try:
        given.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"init: {error.filename}: {error.strerror}") from None
    for path in written:
        _write(path, (Path(__file__).parent / path.name).read_bytes())
    wrote = (f"wrote {path}" for path in written)
    join = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    terminal.write(*wrote, "", f"Run one, edit it: {join(('uvm', 'pod', str(written[0])))}")
    return 0


def _write(path: Path, data: bytes) -> None:
    """Write a file, all of it or nothing.

    :raises UsageError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"init: {path}: {error.strerror}; it was not written") from None
