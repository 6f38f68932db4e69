"""What keeps a VM from starting: checked before QEMU is started, or looked for after it ended at once."""

from __future__ import annotations

import os
import re
import shutil
from typing import Final

from uvm.backends.checks import require_none
from uvm.backends.qemu.availability import absence, faults
from uvm.backends.qemu.environment import Environment
from uvm.backends.qemu.guestimage.packages import install
from uvm.backends.qemu.saving import Boot
from uvm.backends.qemu.sockets import is_left
from uvm.errors import HostError, NoSpaceError, NotSupportedError
from uvm.hresult import HResult
from uvm.schema.system import VirtualMachine

_QEMU: Final = "qemu-system-x86_64"
#: QEMU speaks of the files that it boots in these words.
_BOOTS: Final = re.compile("kernel|ram ?disk|initrd", re.IGNORECASE)


def program(given: str) -> str:
    """Return QEMU's program: what was given, else that of the path.

    :raises NotSupportedError: there is none.
    """
    if not given:
        require_none("qemu", absence())
        return shutil.which(_QEMU) or _QEMU
    if shutil.which(given) is None:
        raise NotSupportedError(
            f"QEMUBackend(binary={given!r}): there is no such program, or it is not executable; name "
            f"another, or leave it out for the one on the path; install it: {install('qemu')}"
        )
    return given


def check_memory(machine: VirtualMachine, total_mb: int, operation: str) -> None:
    """Check that a VM is not larger than the machine, whatever of its memory it will use.

    :param total_mb: what the machine has.
    :raises NoSpaceError: it is.
    """
    topology = machine.compute_topology
    memory = topology.memory if topology is not None else None
    if memory is not None and memory.size_in_mb > total_mb:
        text = f"the VM is to have {memory.size_in_mb:,} MB of memory, and this machine has {total_mb:,} MB"
        raise NoSpaceError(f"{operation}: {text}; use less memory; nothing was started")


def check_console(machine: VirtualMachine, operation: str) -> None:
    """Check that nothing is at the path of the console, which is removed with the VM. Blocks, not for long.

    :raises HostError: ERROR_ALREADY_EXISTS.
    """
    port = machine.devices.com_ports.get("0") if machine.devices is not None else None
    path = port.named_pipe if port is not None else ""
    if path and os.path.lexists(path) and not is_left(path):
        text = f"{path}, the console, is there already; nothing was started; choose another path"
        raise HostError(operation, HResult.ERROR_ALREADY_EXISTS, text)


def explained(error: HostError, binary: str, boot: Boot) -> HostError:
    """Return the error of a QEMU that ended at once, with what is known to keep it from running. Blocks."""
    reasons = faults(Environment(binary))
    if _BOOTS.search(error.text):
        reasons.append(f"it was to boot {boot.kernel} with {boot.initrd or 'no initramfs'}: are they whole?")
    return HostError(error.operation, error.hresult, "; ".join((error.text, *reasons)))
