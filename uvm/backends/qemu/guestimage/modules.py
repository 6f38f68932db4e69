"""The modules of a kernel: those that a guest may need, what they depend on, unpacked.

A module is named as the kernel names it, with underscores. What each depends on is in the files themselves
(``depends=`` and ``softdep=pre:``): an unpacked package has no ``modules.dep``. A soft dependency may be an
alias, as ``crc32c`` is of several.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Final

from attrs import field, frozen

from uvm.backends.qemu.guestimage.compression import unpack
from uvm.backends.qemu.guestimage.elf import ElfError, modinfo

#: What a guest may need, of what the kernel has. Not crc32c_intel: it refuses processors without SSE 4.2.
WANTED: Final = (
    *("virtio_pci", "virtio_console", "virtio_rng", "virtio_scsi", "virtio_net", "virtio_balloon"),
    *("virtio_mem", "pvpanic_pci", "sd_mod", "loop", "dm_mod", "dm_verity", "crc32c_generic", "ext4", "xfs"),
    *("erofs", "squashfs", "overlay", "fuse", "virtiofs", "9p", "9pnet_virtio", "veth", "bridge", "vsock"),
    *("vsock_loopback",),
)

_NAME = re.compile(r"(.+)\.ko(\.\w+)?")


class ModuleError(ValueError):
    """A module is damaged, or of another kernel."""


@frozen
class Module:
    """A kernel module.

    :ivar depends: the modules that are loaded before it, in order.
    """

    name: str
    data: bytes = field(repr=False)
    depends: tuple[str, ...]


def normal(name: str) -> str:
    """Return a module's name as the kernel has it."""
    return name.replace("-", "_")


@frozen
class Modules:
    """The modules of one kernel.

    :ivar directory: ``/lib/modules`` and the release.
    :ivar read: reads a file.
    """

    directory: str
    release: str
    read: Callable[[str], bytes]

    def closure(self, names: Iterable[str]) -> dict[str, Module]:
        """Return the modules with all that they depend on, each after what it depends on.

        A module that the kernel has built in, or does not have, is left out.

        :raises ModuleError: one is damaged, or of another kernel.
        :raises NotSupportedError: unpacking one takes a program that is not installed.
        """
        paths = self._paths()
        found: dict[str, Module] = {}
        aliases: dict[str, list[str]] = {}
        todo = [normal(name) for name in names]
        while todo:
            name = todo.pop(0)
            if name in paths and name not in found:
                found[name] = module = self._module(name, paths[name])
                todo += module.depends
                for alias in modinfo(module.data, "alias"):
                    aliases.setdefault(normal(alias), []).append(name)
        return _in_order({name: _resolved(each, aliases, found) for name, each in found.items()})

    def _paths(self) -> dict[str, str]:
        found = {}
        for directory, below, files in os.walk(self.directory):
            below.sort()
            for file in files:
                if match := _NAME.fullmatch(file):
                    found[normal(match[1])] = f"{directory}/{file}"
        return found

    def _module(self, name: str, path: str) -> Module:
        try:
            data = unpack(self.read(path))
            magic = "".join(modinfo(data, "vermagic")).partition(" ")[0]
            hard = [each for line in modinfo(data, "depends") for each in line.split(",") if each]
            soft = [each for line in modinfo(data, "softdep") for each in _before(line)]
        except (ElfError, ValueError) as e:
            raise ModuleError(f"the kernel module {path} cannot be read: {e}") from e
        if magic != self.release:
            raise ModuleError(f"the kernel module {path} is of Linux {magic or '?'}, not of {self.release}")
        return Module(name, data, tuple(dict.fromkeys(normal(each) for each in (*hard, *soft))))


def _before(softdep: str) -> list[str]:
    """Return what a ``softdep`` line wants loaded before: ``pre: a b post: c`` has a and b."""
    return softdep.partition("pre:")[2].partition("post:")[0].split()


def _resolved(module: Module, aliases: dict[str, list[str]], found: dict[str, Module]) -> Module:
    meant = [[each] if each in found else aliases.get(each, []) for each in module.depends]
    names = dict.fromkeys(name for several in meant for name in several if name != module.name)
    return Module(module.name, module.data, tuple(names))


def _in_order(modules: dict[str, Module]) -> dict[str, Module]:
    ordered: dict[str, Module] = {}
    entered: set[str] = set()

    def visit(name: str) -> None:
        if name not in entered:
            entered.add(name)
            for each in modules[name].depends:
                visit(each)
            ordered[name] = modules[name]

    for name in modules:
        visit(name)
    return ordered
