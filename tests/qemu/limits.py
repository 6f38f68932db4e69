"""How long tests of real VMs wait: so many times as long as a boot takes here, which is measured first.

A boot takes three seconds of a processor without KVM, and ten times as long on a machine with much else to
do. No limit is there to measure anything: each is for what hangs.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio

from tests.qemu.setup import ENABLED
from uvm._guest.timeouts import GuestTimeouts

#: How long a boot took.
BOOT_SECONDS: Final = float(os.environ.get(ENABLED) or 3)
#: For what takes a boot or less, while another VM boots and the machine does other work.
PATIENCE_SECONDS: Final = max(120.0, 40 * BOOT_SECONDS)
#: Those of guests whose silence is no test's subject.
PATIENT: Final = GuestTimeouts(
    boot_seconds=PATIENCE_SECONDS,
    close_seconds=PATIENCE_SECONDS,
    # A guest that misbehaves is waited for so long each time.
    vm_exit_seconds=max(2.0, BOOT_SECONDS),
    grace_seconds=max(1.0, BOOT_SECONDS),
)


def be_patient(put: Callable[[object, str, object], object] = setattr) -> None:
    """Have callers that name no times wait as :data:`PATIENT` has it, and nothing killed for want of time.

    :param put: sets an attribute of a module.
    """
    # Linux's alone can be imported.
    from uvm._vm import vm
    from uvm.backends.qemu import backend, lifetime, monitor, runtime, system

    put(vm, "_DEFAULT_TIMEOUTS", PATIENT)
    put(backend, "_END_SECONDS", PATIENCE_SECONDS)
    # A guest that is not up yet does not panic, and is waited for so long.
    put(lifetime, "CRASH_SECONDS", max(lifetime.CRASH_SECONDS, 4 * BOOT_SECONDS))
    put(lifetime, "QUIT_SECONDS", PATIENCE_SECONDS)
    put(monitor, "UNPLUG_SECONDS", PATIENCE_SECONDS)
    put(runtime, "_KILL_SECONDS", PATIENCE_SECONDS)
    put(system, "CLOSE_SECONDS", PATIENCE_SECONDS)


def measured_boot_seconds() -> float:
    """Return how long a VM takes from its creation until its guest is greeted."""
    from tests.qemu.vms import backend_of, running_vm

    async def boot() -> float:
        async with backend_of(Path(directory)) as backend:
            began = time.monotonic()
            async with running_vm(backend):
                return time.monotonic() - began
        raise AssertionError("a VM swallows nothing")

    with tempfile.TemporaryDirectory() as directory:
        return anyio.run(boot)
