"""Synthetic devices for the tests of the ledger, and the host that they live on.

:class:`Host` knows nothing of the ledger: it is changed by steps, and refuses what makes no sense.
"""

from __future__ import annotations

from attrs import define, field

from uvm.devices.base import (
    ADD,
    UPDATE,
    Change,
    Device,
    Entry,
    Operation,
    Step,
    Ticket,
)
from uvm.devices.ledger import Ledger
from uvm.devices.slots import Slots
from uvm.schema.requests import ModifySettingRequest

Files = frozenset[str]
FilesLedger = Ledger[str, str, int, Files, object]
FilesOperation = Operation[str, str, int, Files]
FilesTicket = Ticket[str, str, int, Files]
FilesChange = Change[str, str, int, Files, object]


def _request(verb: str, slot: int, part: int, value: Files | None) -> Step:
    """A step that asks the host for one part of a device, or for all of its value.

    A device is removed from its first part on, and an add is undone from its last part on.
    """
    undo = _request("undo", slot, part, None) if verb == "add" else None
    return Step(ModifySettingRequest(resource_path=f"{slot}/{part}", request_type=verb, settings=value), undo)


class Shelf(Device[str, str, int, Files]):
    """Devices in a few slots, each in so many parts. All that is wanted of one is that it is there."""

    retain = False

    def __init__(self, slots: int = 3, parts: int = 1) -> None:
        self.slots = Slots(slots)
        self.parts = parts

    def place(self, key: str, member: str) -> int:
        return self.slots.take()

    def vacate(self, key: str, slot: int) -> None:
        self.slots.free(slot)

    def wanted(self, entry: Entry[str, str, int, Files]) -> Files | None:
        return Files() if entry.wanted else None

    def steps(self, operation: FilesOperation) -> tuple[Step, ...]:
        slot, value = operation.slot, operation.target
        if operation.kind is UPDATE:
            return (_request("update", slot, 0, value),)
        verb = "add" if operation.kind is ADD else "remove"
        return tuple(_request(verb, slot, part, value) for part in range(self.parts))

    def dump(self) -> int:
        return self.slots.dump()

    def load(self, state: int) -> None:
        self.slots.load(state)

    def suffices(self, value: Files, member: str) -> bool:
        """Whether a device of that value serves that member; stated apart from :meth:`covers`."""
        return True

    def settled(self, value: Files | None, members: Files) -> bool:
        """Whether it may rest like this, when those members are held and nothing went wrong."""
        return (value is not None) == bool(members)


class Share(Shelf):
    """Members are files of a share; a file that was shared stays so, for as long as the share is there."""

    def __init__(self, slots: int = 3, parts: int = 1, *, retain: bool = False) -> None:
        super().__init__(slots, parts)
        self.retain = retain

    def wanted(self, entry: Entry[str, str, int, Files]) -> Files | None:
        if not entry.wanted:
            return entry.applied if self.retain else None
        return (entry.applied or Files()) | Files(entry.members())

    def covers(self, applied: Files, member: str) -> bool:
        return member in applied

    def suffices(self, value: Files, member: str) -> bool:
        return member in value

    def settled(self, value: Files | None, members: Files) -> bool:
        if value is None or not members:
            return not members and (value is None or self.retain)
        return members <= value


class Narrowing(Share):
    """A share that takes out each file with the last who holds it."""

    narrows = True

    def wanted(self, entry: Entry[str, str, int, Files]) -> Files | None:
        return Files(entry.members()) or None

    def settled(self, value: Files | None, members: Files) -> bool:
        return (value or Files()) == members


@define
class Placed:
    """What really is at a slot: so many parts of a device."""

    parts: int
    value: Files


@define
class Host:
    """Carries out steps, and refuses to do what makes no sense."""

    parts: int
    at: dict[int, Placed] = field(factory=dict)

    def carry_out(self, step: Step) -> None:
        request, value = step.request, step.request.settings
        assert isinstance(request, ModifySettingRequest)
        slot, part = map(int, request.resource_path.split("/"))
        if request.request_type == "add":
            assert value is not None
            present = self.at.setdefault(slot, Placed(0, value))
            assert present.parts == part, f"part {part} was added to {present}"
            present.parts += 1
        elif request.request_type == "update":
            assert value is not None
            assert self.at[slot].parts == self.parts
            self.at[slot].value = value
        else:
            undone = request.request_type == "undo"
            next_part = self.at[slot].parts - 1 if undone else self.parts - self.at[slot].parts
            assert next_part == part, f"part {part} was removed from {self.at[slot]}"
            self.at[slot].parts -= 1
            if not self.at[slot].parts:
                del self.at[slot]

    def value(self, slot: int) -> Files | None:
        """The value of what is wholly there; None for nothing, or only part of it."""
        placed = self.at.get(slot)
        return placed.value if placed is not None and placed.parts == self.parts else None
