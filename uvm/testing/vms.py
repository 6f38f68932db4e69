"""VMs of the in-memory host for tests: what they boot from, and started."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import anyio

from uvm._async import enters
from uvm._vm.keeper import keeper_of, open_vm
from uvm._vm.vm import UtilityVM
from uvm.backends.fake import FakeBackend
from uvm.options import LCOWOptions, VmbFSBootFiles, WCOWOptions

__all__ = ["WINDOWS_BOOT_FILES", "put_boot_files", "started", "windows_options"]

#: What the Windows VMs of tests boot from: see :func:`put_boot_files`.
WINDOWS_BOOT_FILES: Final = VmbFSBootFiles(
    os_files_path=r"C:\uvm-boot\os",
    os_relative_boot_directory=r"\EFI\Microsoft\Boot",
    scratch_vhd_path=r"C:\uvm-boot\scratch.vhdx",
)


def put_boot_files(backend: FakeBackend) -> None:
    """Put the boot files of Windows VMs on a host, which has those of Linux VMs already."""
    backend.files.add_directory(WINDOWS_BOOT_FILES.os_files_path)
    backend.files.add(WINDOWS_BOOT_FILES.scratch_vhd_path, size=1 << 20)


def windows_options(**options: Any) -> WCOWOptions:
    """Return the options of a Windows VM that boots from :data:`WINDOWS_BOOT_FILES`, or from others given.

    :raises OptionsError: they cannot work.
    """
    return WCOWOptions(**{"boot_files": WINDOWS_BOOT_FILES, **options})


@enters()
async def started(options: LCOWOptions | WCOWOptions, backend: FakeBackend) -> AsyncIterator[UtilityVM]:
    """Create a VM, start it, and close it at the end, which may be in another task: fixtures are left so.

    It is left when the VM has gone, also if its caller is cancelled: a test looks at the host afterwards.
    """
    keeper = keeper_of(options, backend, {})
    try:
        async with await open_vm(keeper) as vm:
            yield vm
    finally:
        with anyio.CancelScope(shield=True):
            await keeper.ended.wait()
