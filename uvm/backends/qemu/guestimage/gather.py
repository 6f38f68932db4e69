"""Read all that an image is made of, and find what does not fit before anything is written."""

from __future__ import annotations

import subprocess

from uvm.backends.qemu.guestimage.contents import Contents
from uvm.backends.qemu.guestimage.imports import program
from uvm.backends.qemu.guestimage.interpreter import Interpreter, ask
from uvm.backends.qemu.guestimage.kernel import KernelError, read_kernel
from uvm.backends.qemu.guestimage.libraries import Libraries
from uvm.backends.qemu.guestimage.modules import WANTED, ModuleError, Modules
from uvm.backends.qemu.guestimage.packages import install
from uvm.backends.qemu.guestimage.selection import Selection
from uvm.backends.qemu.guestimage.sources import Sources
from uvm.errors import NotSupportedError, OptionsError


def gather(selection: Selection, sources: Sources) -> Contents:
    """Read what was selected.

    :param sources: reads it, and keeps note of what was read.
    :raises OptionsError: there is no such service.
    :raises NotSupportedError: a part is damaged, of another architecture or release, or lacks something.
    """
    try:
        kernel = read_kernel(sources.read(selection.kernel))
        if (kernel.release, kernel.machine) != (selection.release, selection.machine):
            raise KernelError(
                f"it is {kernel.release} of {kernel.machine}, not {selection.release} of {selection.machine}"
            )
        modules = Modules(selection.modules, kernel.release, sources.read).closure(WANTED)
    except (KernelError, ModuleError, OSError) as e:
        raise NotSupportedError(f"the kernel {selection.kernel} cannot be used: {e}") from e
    try:
        own = program([selection.service], selection.roots)
    except FileNotFoundError as e:
        raise OptionsError(f"service={selection.service!r} cannot be used: {e}") from e
    interpreter = ask(selection.python, own.imported)
    python = {**interpreter.sources, **own.files}
    for path in python.values():
        sources.read(path)
    libraries = Libraries(selection.machine, sources.read)
    return Contents(
        kernel=kernel,
        modules=modules,
        interpreter=interpreter,
        service=selection.service,
        sources=python,
        binaries={place: libraries.add(path) for place, path in _placed(selection, interpreter).items()},
        libraries=libraries,
        applets=_applets(selection.busybox),
    )


def _placed(selection: Selection, interpreter: Interpreter) -> dict[str, str]:
    """Return the binaries by their paths in the guest."""
    placed = {path: path for path in (interpreter.executable, *interpreter.binaries.values())}
    placed["/bin/busybox"] = selection.busybox
    if selection.runtime:
        placed[f"/usr/bin/{_runtime_name(selection.runtime)}"] = selection.runtime
    if selection.guest_binary:
        placed["/bin/gcs"] = selection.guest_binary
    return placed


def _runtime_name(runtime: str) -> str:
    """Return what a runtime is, whatever its file is called."""
    name = _said(runtime, "--version").partition(" ")[0]
    if name not in ("crun", "runc"):
        raise NotSupportedError(f"{runtime} is neither crun nor runc: its version begins with {name!r}")
    return name


def _applets(busybox: str) -> list[str]:
    found = {*_said(busybox, "--list").split()} - {"busybox"}
    if "sh" not in found:
        raise NotSupportedError(f"{busybox} is no busybox with a shell; install one: {install('busybox')}")
    return sorted(found)


def _said(program: str, argument: str) -> str:
    try:
        return subprocess.run([program, argument], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as e:
        raise NotSupportedError(f"{program} does not run on this machine: {e}") from e
