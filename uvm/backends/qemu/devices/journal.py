"""What is attached to a VM that survives its process, for the next one that has it.

How it works
------------

QEMU knows which devices it has, and not what they mean: the path of a disk, the endpoint of an adapter. That
is a file for each device, written before QEMU is asked for it and removed once it has gone::

    entry    the resource's path, the settings of the request, where the device is in QEMU

A process that died in between has left an entry too many, never a device without one: the next process asks
QEMU which of them are there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from uvm._repr import showing
from uvm.backend import JSON
from uvm.errors import HostPathError

_SUFFIX: Final = ".json"


@showing("_directory")
class Journal:
    """The entries of one VM's devices, by the names that QEMU knows these by.

    :param directory: the directory of the files; it is made with the first.
    """

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)

    def note(self, name: str, entry: JSON) -> None:
        """Write an entry, in place of an earlier one."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        written = self._directory / f"{name}.new"
        written.write_text(json.dumps(entry), "utf-8")
        written.replace(self._directory / f"{name}{_SUFFIX}")

    def forget(self, name: str) -> None:
        """Remove an entry, if it is there."""
        (self._directory / f"{name}{_SUFFIX}").unlink(missing_ok=True)

    def entries(self) -> Iterator[tuple[str, JSON]]:
        """Yield the names and the entries.

        :raises HostPathError: one is none.
        """
        names = os.listdir(self._directory) if self._directory.is_dir() else []
        for name in sorted(names):
            if name.endswith(_SUFFIX):
                path = self._directory / name
                try:
                    entry = json.loads(path.read_text("utf-8"))
                except (OSError, ValueError) as error:
                    raise HostPathError(str(path), f"no entry of a device: {error}") from error
                yield name.removesuffix(_SUFFIX), entry
