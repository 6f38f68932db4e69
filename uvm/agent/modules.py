"""Kernel modules, loaded when something needs them.

The image has its modules in one directory, as plain files ``NAME.ko``, and beside them ``index.json``: an
object with each module's name, spelled with underscores, and the list of the modules that have to be loaded
before it. What the index does not have is built into the kernel or missing, which shows when it is used; so
needing it does nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from typing import Final

from uvm.agent.syscalls import load_module

#: ``scan=manual``: the kernel would probe all of each controller's LUNs, in 0.4 s; the agent scans the one
#: that it looks for.
_PARAMETERS: Final = {"scsi_mod": "scan=manual"}


class Modules:
    """The kernel modules of an image."""

    def __init__(self, directory: str = "/lib/modules") -> None:
        self._directory = directory
        self._index: dict[str, list[str]] | None = None
        self._loaded: set[str] = set()
        self._lock = threading.Lock()

    def need(self, *names: str) -> None:
        """Load modules with what they depend on, each once, in order.

        :raises OSError: the kernel refuses one.
        """
        with self._lock:
            if self._index is None:
                self._index = self._read()
            for name in names:
                self._need(name, self._index)

    def _need(self, name: str, index: dict[str, list[str]]) -> None:
        if name in index and name not in self._loaded:
            for each in index[name]:
                self._need(each, index)
            self._load(name)
            self._loaded.add(name)

    def _read(self) -> dict[str, list[str]]:
        try:
            with open(os.path.join(self._directory, "index.json"), encoding="utf-8") as file:
                index: dict[str, list[str]] = json.load(file)
        except FileNotFoundError:
            return {}
        return index

    def _load(self, name: str) -> None:
        fd = os.open(os.path.join(self._directory, f"{name}.ko"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            # A modprobe in the guest may have been first.
            with contextlib.suppress(FileExistsError):
                load_module(fd, _PARAMETERS.get(name, ""))
        finally:
            os.close(fd)
