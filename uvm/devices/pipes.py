"""Named pipes of the host, mapped into a guest.

The key is that of the host path, the slot the path. ADD: host Add. REMOVE: host Remove. Neither has settings.
hcsshim sends an Add each time that a pipe is asked for; here the first makes it and the last removes it.

Source: hcsshim ``internal/uvm/pipes.go``.
"""

from __future__ import annotations

from uvm.devices.base import Operation, Step, on_host
from uvm.devices.kinds import NamedByKey, PresentOrAbsent
from uvm.schema.requests import MappedPipe


class Pipes(NamedByKey[str, bool], PresentOrAbsent[str, str, str]):
    """The named pipes that are mapped into a guest. A member is the path that is sent."""

    withheld = "{} was not mapped: whether it still is mapped is unknown"

    def spelling(self, key: str, member: str) -> str:
        """Return the path of the pipe."""
        return member

    def describe(self, key: str, slot: str, value: str | bool) -> tuple[str, str]:
        """Return what it is, and where."""
        return "pipe", slot

    def steps(self, operation: Operation[str, str, str, bool]) -> tuple[Step, ...]:
        """Map the pipe, or unmap it, on the host."""
        return (on_host(operation.kind.value, MappedPipe(operation.slot).path),)
