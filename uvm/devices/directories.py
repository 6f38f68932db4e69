"""Directories of a Windows guest that show a VSMB share at a path of choice.

The key is the folded path in the guest, the slot the path; a member is what is shown there. A directory
depends on its share and holds a ticket of it. ADD: guest ``MappedDirectory`` Add. REMOVE: guest Remove, which
hcsshim never sends.

Source: hcsshim ``internal/uvm/share.go``.
"""

from __future__ import annotations

from attrs import field, frozen

from uvm._repr import Value
from uvm.devices.base import Operation, Step, in_guest
from uvm.devices.kinds import FirstComeDevice, NamedByKey
from uvm.schema import guest
from uvm.schema.container import MappedDirectory


@frozen(repr=False)
class ShownShare(Value):
    """A share that is shown at a path of the guest; equal to the same share with paths spelled otherwise."""

    share_path: str
    read_only: bool
    host_path: str = field(eq=False)
    guest_path: str = field(eq=False)


class Directories(NamedByKey[ShownShare, ShownShare], FirstComeDevice[str, ShownShare, str]):
    """The directories of a Windows guest that show shares."""

    withheld = "nothing was shared at {}: whether another share is still shown there is unknown"

    def spelling(self, key: str, member: ShownShare) -> str:
        """Return the path at which the share is shown."""
        return member.guest_path

    def describe(self, key: str, slot: str, value: ShownShare) -> tuple[str, str]:
        """Return what it is, and where."""
        return f"directory {value.host_path}", slot

    def steps(self, operation: Operation[str, ShownShare, str, ShownShare]) -> tuple[Step, ...]:
        """Show the share in the guest, or no longer."""
        shown = operation.value
        directory = MappedDirectory(
            host_path=shown.share_path, container_path=operation.slot, read_only=shown.read_only
        )
        return (in_guest(operation.kind.value, guest.RESOURCE_MAPPED_DIRECTORY, directory),)
