"""VMs of the in-memory host for tests: with boot files, and started."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from uvm._vm.vm import UtilityVM
from uvm.backends.fake import FakeBackend
from uvm.options import LCOWOptions, VmbFSBootFiles, WCOWOptions

__all__ = ["started", "windows_options"]

_BOOT = r"C:\uvm-boot"


def windows_options(backend: FakeBackend, **options: Any) -> WCOWOptions:
    """Return the options of a Windows VM; unless they name boot files, put some on the host.

    :raises OptionsError: they cannot work.
    """
    if "boot_files" not in options:
        backend.files.add_directory(rf"{_BOOT}\os")
        backend.files.add(rf"{_BOOT}\scratch.vhdx", size=1 << 20)
        options["boot_files"] = VmbFSBootFiles(
            os_files_path=rf"{_BOOT}\os",
            os_relative_boot_directory=r"\EFI\Microsoft\Boot",
            scratch_vhd_path=rf"{_BOOT}\scratch.vhdx",
        )
    return WCOWOptions(**options)


@asynccontextmanager
async def started(options: LCOWOptions | WCOWOptions, backend: FakeBackend) -> AsyncIterator[UtilityVM]:
    """Create a VM, start it, and close it at the end."""
    async with UtilityVM.create(options, backend=backend) as vm:
        await vm.start()
        yield vm
