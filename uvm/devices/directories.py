"""Directories of a Windows guest that show a VSMB share at a path of choice.

The key is the folded path in the guest, the slot the path; a member is what is shown there. A directory lives
on its share and holds a ticket of it. ADD: guest ``MappedDirectory`` Add. REMOVE: guest Remove, which hcsshim
never sends.

Source: hcsshim ``internal/uvm/share.go``.
"""

from __future__ import annotations

from attrs import field, frozen

from uvm.devices.base import REMOVE, Operation, Step
from uvm.devices.kinds import FirstComeDevice, NamedByKey
from uvm.schema import guest, requests
from uvm.schema.container import MappedDirectory
from uvm.schema.requests import ModificationRequest


@frozen
class ShownShare:
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

    def steps(self, operation: Operation[str, ShownShare, str, ShownShare]) -> tuple[Step, ...]:
        """Show it, or no longer, in the guest."""
        removing = operation.kind is REMOVE
        shown = operation.entry.applied if removing else operation.target
        assert shown is not None
        request = ModificationRequest(
            request_type=requests.REMOVE if removing else requests.ADD,
            resource_type=guest.RESOURCE_MAPPED_DIRECTORY,
            settings=MappedDirectory(
                host_path=shown.share_path, container_path=operation.slot, read_only=shown.read_only
            ),
        )
        return (Step(request),)
