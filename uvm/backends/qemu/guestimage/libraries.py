"""The shared libraries of binaries, found as glibc's loader finds them, by reading the files.

The loader of a guest has no ``ld.so.cache``, and for the first process no ``/proc``, by which it finds what
``$ORIGIN`` stands for: libraries elsewhere are linked into the directories in which every loader looks.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable
from typing import Final

from attrs import define, field

from uvm.backends.qemu.guestimage.elf import Elf, ElfError
from uvm.errors import NotSupportedError

#: Opened by glibc itself when a thread ends.
_OPENED_LATER: Final = ("libgcc_s.so.1",)


def _everywhere(machine: str) -> tuple[str, ...]:
    """Return the directories in which loaders look by themselves: Debian's, then those of others."""
    return tuple(
        f"{prefix}/{each}" for each in (f"lib/{machine}-linux-gnu", "lib64", "lib") for prefix in ("", "/usr")
    )


def configured(file: str = "/etc/ld.so.conf") -> list[str]:
    """Return the directories that a configuration of the loader names."""
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as text:
            lines = [line.partition("#")[0].strip() for line in text]
    except OSError:
        return []
    found = []
    for line in filter(None, lines):
        if line.startswith("include "):
            pattern = os.path.join(os.path.dirname(file), line.split(None, 1)[1])
            found += [each for name in sorted(glob.glob(pattern)) for each in configured(name)]
        else:
            found.append(line)
    return found


@define
class Libraries:
    """What binaries need of the machine.

    :ivar read: reads a file.
    :ivar files: the libraries and loaders, by the path under which they are found.
    :ivar links: further paths of libraries, and what they stand for.
    """

    machine: str
    read: Callable[[str], bytes]
    files: dict[str, Elf] = field(init=False, factory=dict)
    links: dict[str, str] = field(init=False, factory=dict)
    _names: set[str] = field(init=False, factory=set)

    def add(self, path: str) -> Elf:
        """Read a binary, and find what it needs.

        :raises NotSupportedError: it is no binary of this architecture, or a library of its is not there.
        """
        try:
            binary = Elf(self.read(path))
            if binary.machine != self.machine:
                raise ElfError(f"it is a binary of {binary.machine}, not of {self.machine}")
            if binary.interpreter:
                self._add_loader(binary.interpreter)
            self._add_needed(path, binary)
        except ElfError as e:
            raise NotSupportedError(f"the binary {path} cannot be taken into the guest image: {e}") from e
        return binary

    def _add_loader(self, path: str) -> None:
        if path not in self.files:
            self.files[path] = Elf(self.read(path))
            for name in _OPENED_LATER:
                self._add_named(name, [])

    def _add_needed(self, path: str, binary: Elf) -> None:
        origin = os.path.dirname(path)
        first = [each.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for each in binary.search_path]
        for name in binary.needed:
            if not self._add_named(name, [os.path.normpath(each) for each in first]):
                raise ElfError(f"the library {name}, which it needs, is not installed")

    def _add_named(self, name: str, first: Iterable[str]) -> bool:
        if name in self._names:
            return True
        usual = _everywhere(self.machine)
        for directory in (*first, *configured(), *usual):
            path = os.path.join(directory, name)
            if (library := self._library(path)) is not None:
                self._names.add(name)
                self.files.setdefault(path, library)
                if directory not in usual:
                    self.links |= {f"/{each}/{name}": path for each in ("lib", "lib64")}
                self._add_needed(path, library)
                return True
        return False

    def _library(self, path: str) -> Elf | None:
        try:
            library = Elf(self.read(path))
        except (OSError, ElfError):
            return None
        return library if library.machine == self.machine else None
