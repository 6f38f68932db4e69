"""The ledger under any sequence of events and outcomes, against an account of its own.

See :class:`tests.devices.world.World` for what is held to what.
"""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from tests.devices.synthetic import FilesTicket, Narrowing, Share, Shelf
from tests.devices.world import World
from uvm.devices.base import ENDED, HELD, LEAVING, OWED, WAITING

KEYS = st.integers(0, 3)
MEMBERS = st.sampled_from("abc")
OUTCOMES = st.sampled_from(["ok", "ok", "refused", "unknown"])
COUNTS = st.integers(0, 3)


class LedgerMachine(RuleBasedStateMachine):
    """Any number of parties, a few keys, and sometimes fewer slots."""

    device: ClassVar[type[Shelf]]
    options: ClassVar[dict[str, Any]] = {}

    @initialize(
        parts=st.integers(1, 3),
        slots=st.integers(1, 3),
        keys=st.sampled_from([1, 2, 4]),
        lifetime=st.integers(1, 30),
    )
    def set_up(self, parts: int, slots: int, keys: int, lifetime: int) -> None:
        self.world = World(self.device(slots, parts, **self.options))
        self.keys = ["p", "q", "r", "s"][:keys]
        self.lifetime = lifetime

    @rule(key=KEYS, member=MEMBERS, parent=st.booleans())
    def acquire(self, key: int, member: str, parent: bool) -> None:
        self.world.acquire(self.keys[key % len(self.keys)], member, object() if parent else None)

    @precondition(lambda self: not self.world.past and not self.world.closed)
    @rule(key=KEYS, member=MEMBERS)
    def adopt(self, key: int, member: str) -> None:
        self.world.adopt(self.keys[key % len(self.keys)], member)

    @precondition(lambda self: self.world.in_state(WAITING, HELD, OWED))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.world.drop(data.draw(st.sampled_from(self.world.in_state(WAITING, HELD, OWED))))

    @precondition(lambda self: self.world.in_flight(begun=False))
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.world.begin(data.draw(st.sampled_from(self.world.in_flight(begun=False))))

    @precondition(lambda self: self.world.in_flight(begun=True))
    @rule(data=st.data(), how=OUTCOMES, count=COUNTS)
    def done(self, data: st.DataObject, how: str, count: int) -> None:
        self.world.done(data.draw(st.sampled_from(self.world.in_flight(begun=True))), how, count)

    @precondition(lambda self: self.world.in_flight(begun=False))
    @rule(data=st.data(), how=OUTCOMES, count=COUNTS)
    def carry_out(self, data: st.DataObject, how: str, count: int) -> None:
        """Begin and end at once, which is what mostly happens."""
        key = data.draw(st.sampled_from(self.world.in_flight(begun=False)))
        self.world.begin(key)
        self.world.done(key, how, count)

    @precondition(lambda self: len(self.world.flights) > 1)
    @rule()
    def finish(self) -> None:
        self.world.finish()

    @rule(data=st.data())
    def come_late(self, data: st.DataObject) -> None:
        """Drop what was dropped, and tell of operations that are over."""
        if dropped := self.world.in_state(LEAVING, ENDED):
            self.world.drop(data.draw(st.sampled_from(dropped)))
        if self.world.past:
            self.world.done_again(data.draw(st.sampled_from(self.world.past)))
        if not self.world.flights and not self.world.closed:
            self.world.restore()

    @precondition(lambda self: len(self.world.past) >= self.lifetime)
    @rule()
    def gone(self) -> None:
        self.world.gone()

    @invariant()
    def all_is_accounted_for(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.wind_up()


class ShelfMachine(LedgerMachine):
    device = Shelf


class ShareMachine(LedgerMachine):
    device = Share


class RetainedShareMachine(LedgerMachine):
    device = Share
    options: ClassVar = {"retain": True}


class NarrowingMachine(LedgerMachine):
    device = Narrowing


class StackedMachine(RuleBasedStateMachine):
    """Mounts on disks: each mount keeps a ticket of its disk."""

    disks: Bundle[FilesTicket] = Bundle("disks")
    mounts: Bundle[FilesTicket] = Bundle("mounts")

    @initialize(parts=st.integers(1, 2), lifetime=st.integers(1, 30))
    def set_up(self, parts: int, lifetime: int) -> None:
        self.lifetime = lifetime
        self.below = World(Shelf(parts=parts))
        self.above = World(Narrowing(parts=parts), below=self.below)
        self.renewed: dict[FilesTicket, FilesTicket] = {}

    @rule(target=disks, key=KEYS)
    def attach(self, key: int) -> Any:
        ticket = self.below.acquire("pqrs"[key], "a")
        return multiple() if ticket is None else ticket

    @rule(target=mounts, disk=consumes(disks), where=st.sampled_from("xy"), member=MEMBERS)
    def mount(self, disk: FilesTicket, where: str, member: str) -> Any:
        disk = self.latest(disk)
        if disk.state != HELD:
            self.below.drop(disk)
            return multiple()
        ticket = self.above.acquire(f"{disk.entry.slot}{where}", member, disk)
        if ticket is None:
            self.below.drop(disk)
            return multiple()
        return ticket

    @rule(disk=disks)
    def detach(self, disk: FilesTicket) -> None:
        self.below.drop(self.latest(disk))

    @rule(mount=mounts)
    def unmount(self, mount: FilesTicket) -> None:
        self.above.drop(self.latest(mount))

    @precondition(lambda self: self.below.flights or self.above.flights)
    @rule(data=st.data(), how=OUTCOMES, count=COUNTS)
    def go_on(self, data: st.DataObject, how: str, count: int) -> None:
        worlds = [(world, key) for world in (self.below, self.above) for key in world.flights]
        world, key = data.draw(st.sampled_from(worlds))
        if world.flights[key].begun:
            world.done(key, how, count)
        else:
            world.begin(key)

    @precondition(lambda self: not self.below.flights and not self.above.flights and not self.below.closed)
    @rule()
    def restore(self) -> None:
        new = self.below.restore()
        self.renewed |= new
        self.renewed |= self.above.restore({id(before): after for before, after in new.items()})

    @precondition(lambda self: len(self.above.past) >= self.lifetime)
    @rule()
    def gone(self) -> None:
        self.above.gone()
        self.below.gone()

    @invariant()
    def all_is_accounted_for(self) -> None:
        if hasattr(self, "below"):
            self.above.check()
            self.below.check()

    @invariant()
    def what_is_mounted_is_attached(self) -> None:
        if hasattr(self, "below"):
            keys = [entry.key for entry in self.above.ledger]
            keys += [withheld.key for withheld in self.above.ledger.quarantined]
            assert all(self.below.host.value(int(key[0])) is not None for key in keys)

    def teardown(self) -> None:
        if not hasattr(self, "below"):
            return
        self.above.wind_up()
        assert self.above.kept == []
        withheld = {self.latest(disk) for disk in self.above.lost}
        self.below.wind_up(keep=withheld)

    def latest(self, ticket: FilesTicket) -> FilesTicket:
        while ticket in self.renewed:
            ticket = self.renewed[ticket]
        return ticket


TestShelf = ShelfMachine.TestCase
TestShare = ShareMachine.TestCase
TestRetainedShare = RetainedShareMachine.TestCase
TestNarrowing = NarrowingMachine.TestCase
TestStacked = StackedMachine.TestCase
