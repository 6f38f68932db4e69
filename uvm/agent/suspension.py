"""The suspension of all workloads, for a VM that is saved as a template, and their resumption in its clones.

Each clone starts from the same memory: the same random numbers would be drawn, at the time of the template.
So the workloads are frozen before the memory is saved, and go on once the host of the clone has sent random
bytes and the time, and the guest has an identity of its own; the agent alone runs in between. What the
kernel has yet to do of its boot is waited for, since each clone would do it again. hcsshim's guest has
nothing of the kind.
"""

from __future__ import annotations

import binascii
import os
import time
from collections.abc import Callable
from typing import Any, Final

from uvm.agent.entropy import seed
from uvm.agent.refused import Refused
from uvm.agent.settings import Settings

#: How long the kernel is given to become quiet, and over which time it has to be idle, in seconds.
_QUIET_SECONDS: Final = 2.0
_IDLE_SECONDS: Final = 0.1
_IDLE_SHARE: Final = 0.9
#: The latest time, in nanoseconds, that a clock can be set to: the kernel's own is 64 bits, signed.
_LATEST: Final = 1 << 62


def wait_until_quiet(
    idle: Callable[[], float] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Wait until the processors are idle, or for as long as that may take.

    :param idle: returns for how many seconds the processors have been idle, together.
    """
    idle = idle or _idle
    wanted = _IDLE_SHARE * _IDLE_SECONDS * (os.cpu_count() or 1)
    before, until = idle(), clock() + _QUIET_SECONDS
    while clock() < until:
        sleep(_IDLE_SECONDS)
        now = idle()
        if now - before >= wanted:
            return
        before = now


def _idle() -> float:
    with open("/proc/uptime", encoding="ascii") as file:
        return float(file.read().split()[1])


class Suspension:
    """The workloads, frozen or not.

    :param freeze: freezes them, or raises TimeoutError and has them go on.
    :param thaw: has them go on.
    :param renew: makes the identity of the guest another.
    :param settle: waits until the kernel is quiet.
    """

    def __init__(
        self,
        freeze: Callable[[], object],
        thaw: Callable[[], object],
        renew: Callable[[], object],
        settle: Callable[[], object] = wait_until_quiet,
    ) -> None:
        self._freeze, self._thaw, self._renew, self._settle = freeze, thaw, renew, settle
        #: By the type of the resource, and that of the request.
        self.handlers: dict[tuple[str, str], Callable[[Any], None]] = {
            ("Suspension", "Add"): self.suspend,
            ("Suspension", "Remove"): self.resume,
        }

    def suspend(self, settings: Any) -> None:
        """Freeze the workloads, and wait until the kernel is quiet."""
        try:
            self._freeze()
        except TimeoutError as error:
            raise Refused(f"suspend: {error}; all processes go on") from error

        self._settle()

    def resume(self, settings: Any) -> None:
        """Seed the kernel's random numbers, set the clock, renew the identity, have the workloads go on."""
        values = Settings(settings)
        try:
            entropy = binascii.a2b_base64(values.text("Entropy"), strict_mode=True)
        except ValueError as error:
            raise Refused(f"Entropy is no base64: {error}") from None
        now = values.number("UnixNanoseconds", _LATEST)
        if not entropy or not now:
            raise Refused("what is resumed needs random bytes and the time")
        seed(entropy)
        time.clock_settime_ns(time.CLOCK_REALTIME, now)
        # Of random numbers that no other clone has.
        self._renew()
        self._thaw()
