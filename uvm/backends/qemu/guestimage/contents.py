"""What is in a guest's first root file system, and where.

| path | |
|---|---|
| ``/init`` | starts the service: a script of Python |
| the same paths as on the machine | CPython, modules of C, libraries; a zip with all modules of Python |
| ``/bin`` | busybox with a link for each tool, ``python3`` |
| ``/usr/bin`` | ``crun`` or ``runc`` |
| ``/lib/modules/NAME.ko`` | the kernel's modules, unpacked |
| ``/lib/modules/index.json`` | what is loaded before each of them: an object of lists |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

from uvm.backends.qemu.guestimage.cpio import CpioWriter
from uvm.backends.qemu.guestimage.elf import Elf
from uvm.backends.qemu.guestimage.interpreter import Interpreter
from uvm.backends.qemu.guestimage.kernel import Kernel
from uvm.backends.qemu.guestimage.libraries import Libraries
from uvm.backends.qemu.guestimage.modules import Module

_DIRECTORIES: Final = ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "var", "var/log")

_TEXTS: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}


@frozen
class Contents:
    """All that an image is made of, read and found to fit together.

    :ivar service: the module that is the first process.
    :ivar sources: the modules of Python, by name.
    :ivar binaries: the programs and the modules of C, by their path in the guest.
    :ivar applets: the names of busybox's tools.
    """

    kernel: Kernel
    modules: Mapping[str, Module]
    interpreter: Interpreter
    service: str
    sources: Mapping[str, str]
    binaries: Mapping[str, Elf]
    libraries: Libraries
    applets: Sequence[str]

    def write(self, archive: CpioWriter, zipped: bytes) -> None:
        """Write the root file system.

        :param zipped: the modules of Python, compiled.
        """
        for name in _DIRECTORIES:
            archive.directory(name, 0o1777 if name == "tmp" else 0o755)
        archive.character_device("dev/console", 5, 1)
        archive.character_device("dev/null", 1, 3, 0o666)
        for name, text in _TEXTS.items():
            archive.file(name, text.encode())
        self._write_python(archive, zipped)
        for path, elf in (*self.binaries.items(), *self.libraries.files.items()):
            archive.file(path, elf.loaded(), 0o755)
        for path, target in self.libraries.links.items():
            archive.link(path, target)
        for name in self.applets:
            archive.link(f"bin/{name}", "busybox")
        for module in self.modules.values():
            archive.file(f"lib/modules/{module.name}.ko", module.data)
        archive.file("lib/modules/index.json", json.dumps(module_index(self.modules)).encode())

    def _write_python(self, archive: CpioWriter, zipped: bytes) -> None:
        python = self.interpreter
        archive.link("bin/python3", python.executable)
        archive.file(python.archive, zipped)
        # How CPython knows its library: `os` itself is frozen.
        archive.file(f"{python.library}/os.py", b"")
        archive.directory(python.extensions)
        init = f"#!/bin/python3 -IS\nfrom {self.service} import main\nmain()\n"
        archive.file("init", init.encode(), 0o755)


def module_index(modules: Mapping[str, Module]) -> dict[str, list[str]]:
    """Return what is loaded before each module, in order. What is not in it is built in, or not there."""
    before: dict[str, list[str]] = {}
    # Each comes after what it depends on.
    for name, module in modules.items():
        needed = [each for direct in module.depends for each in (*before.get(direct, ()), direct)]
        before[name] = list(dict.fromkeys(needed))
    return before
