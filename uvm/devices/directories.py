"""Directories of a Windows guest that show a VSMB share at a path of choice.

The key, and the slot, is the path in the guest; a member is what is shown there. A directory lives on its
share and holds a ticket of it. ADD: guest ``MappedDirectory`` Add. REMOVE: guest Remove, which hcsshim never
sends.

Source: hcsshim ``internal/uvm/share.go``.
"""

from __future__ import annotations

from typing import NamedTuple

from uvm.devices.base import GUEST, REMOVE, Device, Entry, Operation, Step
from uvm.devices.slots import Names
from uvm.errors import NoSpaceError, OptionsError
from uvm.schema import guest, requests
from uvm.schema.container import MappedDirectory
from uvm.schema.requests import ModificationRequest

__all__ = ["Directories", "ShownShare", "check_directory"]


class ShownShare(NamedTuple):
    """A share's path in the guest, and whether it may only be read."""

    share_path: str
    read_only: bool


def check_directory(entry: Entry[str, ShownShare, str, ShownShare] | None, member: ShownShare) -> None:
    """Refuse another share at a path that is taken.

    :raises OptionsError: another one is shown there.
    """
    if entry is None:
        return
    # What is there and nobody wants may stay, for instance because its removal was refused.
    others = (*entry.members(), entry.applied or member)
    if any(other != member for other in others):
        raise OptionsError(f"nothing was shared at {entry.key}: another share is shown there")


class Directories(Device[str, ShownShare, str, ShownShare]):
    """The directories of a Windows guest that show shares."""

    def __init__(self) -> None:
        self._names = Names()

    def place(self, key: str, member: ShownShare) -> str:
        """Take the path.

        :raises NoSpaceError: it is withheld.
        """
        if not self._names.take(key):
            raise NoSpaceError(
                f"nothing was shared at {key}: nobody knows whether a share still is shown there"
            )
        return key

    def vacate(self, key: str, slot: str) -> None:
        """Free a path."""
        self._names.give(slot)

    def wanted(self, entry: Entry[str, ShownShare, str, ShownShare]) -> ShownShare | None:
        """Give what is shown, while anybody wants it."""
        if not entry.wanted:
            return None
        return next(entry.members()) if entry.applied is None else entry.applied

    def steps(self, operation: Operation[str, ShownShare, str, ShownShare]) -> tuple[Step, ...]:
        """Show it, or no longer, in the guest."""
        removing = operation.kind == REMOVE
        shown = operation.entry.applied if removing else operation.target
        assert shown is not None
        request = ModificationRequest(
            request_type=requests.REMOVE if removing else requests.ADD,
            resource_type=guest.RESOURCE_MAPPED_DIRECTORY,
            settings=MappedDirectory(
                host_path=shown.share_path, container_path=operation.slot, read_only=shown.read_only
            ),
        )
        return (Step(GUEST, request),)

    def dump(self) -> tuple[str, ...]:
        """Give the paths that are taken."""
        return self._names.dump()

    def load(self, state: tuple[str, ...]) -> None:
        """Take back what :meth:`dump` gave."""
        self._names.load(state)
