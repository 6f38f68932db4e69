"""The machine that runs this, for the checks of :mod:`.availability`."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from typing import Final

from uvm.backends.qemu.accel import Accelerator, kvm_problem, recall
from uvm.backends.qemu.guestimage.cache import default_cache
from uvm.backends.qemu.guestimage.selection import ImageOptions, Selection, has_shares, select
from uvm.backends.qemu.room import available_mb
from uvm.errors import NotSupportedError

_QEMU: Final = "qemu-system-x86_64"
_SECONDS: Final = 20


class Environment:
    """What the checks ask of this machine.

    :param binary: QEMU's program.
    :ivar system: the operating system. Only on ``linux`` is anything else asked.
    :ivar machine: the processor's architecture, as ``uname -m`` has it.
    """

    system: str = sys.platform
    machine: str = platform.machine()

    def __init__(self, binary: str = _QEMU) -> None:
        self._binary = binary

    def has_program(self, name: str) -> bool:
        """Return whether a program is on the path."""
        return shutil.which(name) is not None

    def qemu_version(self) -> tuple[int, int] | None:
        """Return the version of QEMU; None if it does not say one."""
        found = re.search(r"version (\d+)\.(\d+)", self._said("--version"))
        return (int(found[1]), int(found[2])) if found else None

    def qemu_devices(self) -> set[str]:
        """Return the names of the devices that QEMU has."""
        return set(re.findall(r'^name "([^"]+)"', self._said("-device", "help"), re.M))

    def selected(self) -> Selection:
        """Return what a guest image would be made of.

        :raises NotSupportedError: something is missing.
        """
        return select(ImageOptions(), default_cache().downloads)

    def check_directories(self) -> None:
        """Make the directories of VMs and of guest images.

        :raises UVMError: they cannot be made, or others may use them.
        """
        # Linux's alone can be imported.
        from uvm.backends.qemu.runtime import RuntimeDirectory, default_runtime_directory

        RuntimeDirectory(default_runtime_directory())
        default_cache().prepare()

    def kernel_without_shares(self) -> str:
        """Return the path of the kernel of the guest image if guests have no Plan9 shares with it."""
        selected = self.selected()
        return "" if has_shares(selected) else selected.kernel

    def acceleration(self) -> Accelerator | None:
        """Return how guests run; None if that is found out when the first VM is created."""
        problem = kvm_problem()
        return Accelerator("tcg", problem) if problem else recall(shutil.which(self._binary) or self._binary)

    def available_memory_mb(self) -> int:
        """Return how much memory VMs can be given."""
        return available_mb()

    def _said(self, *arguments: str) -> str:
        """Return what QEMU prints."""
        command = [self._binary, *arguments]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as e:
            raise NotSupportedError(f"{' '.join(command)} failed: {e}") from e
        return done.stdout
