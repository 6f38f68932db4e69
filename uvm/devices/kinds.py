"""What kinds of devices have in common: what is wanted of them, and how they take their slots. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from uvm.devices.base import Device, Entry, K, M, S, W
from uvm.devices.slots import Names
from uvm.errors import NoSpaceError, OptionsError


class PresentOrAbsent(Device[K, M, S, bool]):
    """A device that is attached or not: nothing else about it changes."""

    def wanted(self, entry: Entry[K, M, S, bool]) -> bool | None:
        """Return True while any ticket wants it."""
        return True if entry.holders or entry.waiters else None


class FirstComeDevice(Device[K, M, S, M]):
    """A device that is applied as its first member asks for it."""

    def wanted(self, entry: Entry[K, M, S, M]) -> M | None:
        """Return what is applied, or the first member, while any ticket wants it."""
        if not (entry.holders or entry.waiters):
            return None
        return next(entry.members()) if entry.applied is None else entry.applied

    @staticmethod
    def check_same(entry: Entry[K, M, S, M] | None, member: M, refusal: str) -> None:
        """Refuse a member that differs from what is applied or wanted.

        :param entry: the entry of the key, if any.
        :raises OptionsError: with ``refusal`` as its message.
        """
        # All that came before are the same; what is applied may have no tickets, such as an orphan.
        if entry is not None and (entry.applied or next(entry.members(), member)) != member:
            raise OptionsError(refusal)


class Named(Device[K, M, str, W]):
    """A device whose slots are names that others choose.

    :param fold: returns one spelling for all names of the same slot.
    """

    def __init__(self, fold: Callable[[str], str] = str) -> None:
        self._slots: Names = Names(fold)


class NamedByKey(Named[str, M, W]):
    """A device whose slot is its key, as its first member spells it.

    While the slot is withheld, the key cannot be used.
    """

    #: The refusal of a key whose slot is withheld; ``{}`` is the name.
    withheld: ClassVar[str]

    def spelling(self, key: str, member: M) -> str:
        """Return the name that is sent for a key."""
        return key

    def place(self, key: str, member: M) -> str:
        """Take the key, and return its name.

        :raises NoSpaceError: it is withheld.
        """
        name = self.spelling(key, member)
        if not self._slots.take(key):
            raise NoSpaceError(self.withheld.format(name))
        return name

    def vacate(self, key: str, slot: str) -> None:
        """Free the key."""
        self._slots.free(key)
