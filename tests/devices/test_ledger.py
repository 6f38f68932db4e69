"""What the ledger does, one statement each; any sequence of events is tried in ``test_ledger_machines``."""

from __future__ import annotations

import pickle

import pytest

from tests.devices.synthetic import Files, FilesLedger, FilesTicket, Narrowing, Share, Shelf
from tests.devices.world import World
from uvm.devices.base import (
    ADD,
    ENDED,
    HELD,
    LEAVING,
    OK,
    OWED,
    REMOVE,
    UPDATE,
    Outcome,
    Refused,
    TicketState,
    Unknown,
)
from uvm.devices.ledger import Ledger
from uvm.errors import (
    HostPathError,
    NoSpaceError,
    OptionsError,
    UndoFailedError,
    UnknownOutcomeError,
    VMExitedError,
)


def started(world: World, *wishes: tuple[str, str]) -> list[FilesTicket]:
    """Tickets that are held."""
    tickets = [world.acquire(key, member) for key, member in wishes]
    world.finish()
    assert [ticket.state for ticket in tickets if ticket] == [HELD] * len(wishes)
    return [ticket for ticket in tickets if ticket]


def ended(world: World, key: str, how: str, count: int = 0) -> None:
    world.begin(key)
    world.done(key, how, count)
    world.check()


def test_a_waiter_that_gives_up_is_reported_released_at_once() -> None:
    ledger: FilesLedger = Ledger(Shelf())
    ticket, _ = ledger.acquire("p", "a")
    assert ledger.drop(ticket).released == (ticket,)
    assert ledger.drop(ticket).released == ()


def test_a_void_removal_releases_nobody_of_a_device_that_goes_after_all() -> None:
    world = World(Shelf())
    [first] = started(world, ("p", "a"))
    world.drop(first)
    second = world.acquire("p", "a")
    assert second
    world.begin("p")
    assert world.flights["p"].operation.void
    world.drop(second)
    world.done("p", "ok")
    assert world.flights["p"].operation.kind == REMOVE
    ended(world, "p", "refused")
    assert first.state == OWED, "who released it first still answers for it"
    world.wind_up()
    assert not world.ledger


def test_a_void_update_releases_nobody() -> None:
    world = World(Narrowing())
    first, second = started(world, ("p", "a"), ("p", "b"))
    world.drop(second)
    world.drop(first)
    world.begin("p")
    world.done("p", "ok")
    assert not world.host.at[0].value.isdisjoint("b")
    ended(world, "p", "refused")
    assert (first.state, second.state) == (OWED, OWED)


@pytest.mark.parametrize("happened", [0, 1])
def test_nobody_is_granted_what_an_update_of_unknown_outcome_may_have_taken(happened: int) -> None:
    world = World(Narrowing())
    _, second = started(world, ("p", "a"), ("p", "b"))
    world.drop(second)
    ended(world, "p", "unknown", happened)
    assert second.state == ENDED
    third = world.acquire("p", "b")
    assert third
    assert third not in world.ledger.get("p").holders  # type: ignore[union-attr]
    ended(world, "p", "ok")
    assert third.state == HELD
    assert world.host.value(0) == Files("ab")


def test_a_share_that_only_grows_grants_what_it_had_while_its_last_update_is_unknown() -> None:
    world = World(Share())
    started(world, ("p", "a"))
    world.acquire("p", "b")
    ended(world, "p", "unknown")
    third = world.acquire("p", "a")
    assert third
    assert third.state == HELD
    assert not world.flights


@pytest.mark.parametrize("how", ["refused", "unknown"])
def test_a_failed_update_that_nobody_waits_for_any_more_is_followed_by_the_removal(how: str) -> None:
    world = World(Share())
    [first] = started(world, ("p", "a"))
    world.drop(first)
    second = world.acquire("p", "b")
    assert second
    ended(world, "p", "ok")
    assert world.flights["p"].operation.kind == UPDATE
    world.begin("p")
    world.drop(second)
    world.done("p", how)
    assert world.flights["p"].operation.kind == REMOVE
    world.wind_up()
    assert not world.ledger


def half_removed(world: World, *wishes: tuple[str, str]) -> list[FilesTicket]:
    """Tickets that were dropped, of a removal that was refused at its second step."""
    tickets = started(world, *wishes)
    first, *others = tickets
    world.drop(first)
    for ticket in others:
        world.drop(ticket)
    ended(world, "p", "refused", 1)
    return tickets


def test_a_half_removed_device_is_given_to_nobody_and_its_removal_goes_on() -> None:
    world = World(Shelf(parts=3))
    [first] = half_removed(world, ("p", "a"))
    second = world.acquire("p", "a")
    assert second
    ended(world, "p", "refused", 0)
    assert (first.state, second.state) == (OWED, ENDED)
    world.drop(first)
    ended(world, "p", "refused", 1)
    assert first.state == OWED
    world.drop(first)
    assert len(world.ledger.begin(world.flights["p"].operation)) == 1
    ended(world, "p", "ok")
    assert first.state == ENDED
    assert not world.ledger


@pytest.mark.parametrize("device", [Shelf, Narrowing])
@pytest.mark.parametrize(("how", "state"), [("ok", ENDED), ("refused", OWED), ("unknown", ENDED)])
def test_who_drops_again_while_the_removal_goes_on_shares_its_fate(
    how: str, state: TicketState, device: type[Shelf]
) -> None:
    world = World(device(parts=3))
    [first] = half_removed(world, ("p", "a"))
    world.acquire("p", "a")
    world.begin("p")
    world.drop(first)
    assert first.state == LEAVING
    operation, error = world.flights["p"].operation, RuntimeError("busy")
    outcomes: dict[str, Outcome] = {"ok": OK, "refused": Refused(error), "unknown": Unknown(error)}
    change = world.ledger.done(operation, outcomes[how])
    assert first.state == state
    assert change.released == ((first,) if how == "ok" else ())
    assert [cause for ticket, cause in change.failed if ticket is first] == [error] * (how != "ok")


def test_what_was_half_removed_and_then_lost_is_added_anew_from_the_first_step() -> None:
    world = World(Shelf(slots=2, parts=2))
    half_removed(world, ("p", "a"))
    second = world.acquire("p", "a")
    assert second
    ended(world, "p", "unknown", 1)
    assert len(world.ledger.begin(world.flights["p"].operation)) == 2
    world.finish()
    assert second.state == HELD


def test_who_leaves_during_an_update_that_fails_is_released() -> None:
    world = World(Share())
    first, _ = started(world, ("p", "a"), ("p", "a"))
    world.acquire("p", "b")
    world.begin("p")
    world.drop(first)
    assert first.state == LEAVING
    world.done("p", "refused")
    world.check()
    assert first.state == ENDED
    assert not world.flights


def test_who_leaves_a_share_that_only_grows_does_not_wait_for_the_updates_of_others() -> None:
    world = World(Share())
    first, _ = started(world, ("p", "a"), ("p", "a"))
    world.acquire("p", "b")
    world.begin("p")
    world.drop(first)
    world.acquire("p", "c")
    world.done("p", "ok")
    assert world.flights["p"].operation.kind == UPDATE
    assert first.state == ENDED


@pytest.mark.parametrize(("how", "state"), [("refused", OWED), ("unknown", ENDED)])
def test_a_narrowing_update_that_failed_is_not_tried_again_before_somebody_asks(
    how: str, state: TicketState
) -> None:
    world = World(Narrowing())
    first, second = started(world, ("p", "a"), ("p", "b"))
    world.drop(second)
    ended(world, "p", how)
    assert second.state == state
    assert not world.flights
    world.drop(second if state == OWED else first)
    assert world.flights["p"].operation.kind == (UPDATE if state == OWED else REMOVE)


def test_an_owner_whose_device_went_with_another_is_told_so() -> None:
    ledger: FilesLedger = Ledger(Shelf(parts=2))
    first, change = ledger.acquire("p", "a")
    assert change.operation
    ledger.begin(change.operation)
    ledger.done(change.operation, OK)
    removal = ledger.drop(first).operation
    assert removal
    _, last = ledger.begin(removal)
    assert ledger.done(removal, Refused(RuntimeError("busy"), (last,))).failed[0][0] is first
    second, change = ledger.acquire("p", "a")
    assert change.operation
    assert len(ledger.begin(change.operation)) == 1, "it goes on from the step that failed"
    change = ledger.done(change.operation, OK)
    assert change.released == (first,)
    assert change.operation
    assert change.operation.kind == ADD
    ledger.begin(change.operation)
    assert ledger.done(change.operation, OK).granted == (second,)


def test_an_outcome_of_a_void_operation_does_not_matter() -> None:
    world = World(Shelf())
    [first] = started(world, ("p", "a"))
    world.drop(first)
    second = world.acquire("p", "a")
    world.begin("p")
    change = world.ledger.done(world.flights["p"].operation, Unknown(RuntimeError("cancelled")))
    assert change.quarantined == ()
    assert change.granted == (second,)
    assert change.released == (first,)


def test_who_comes_while_its_device_becomes_unknown_gets_another_slot() -> None:
    world = World(Shelf(slots=2))
    parent = object()
    first = world.acquire("p", "a", parent)
    world.finish()
    assert first
    world.drop(first)
    world.begin("p")
    second = world.acquire("p", "a")
    world.done("p", "unknown")
    world.check()
    assert second
    assert second.entry.slot == 1
    [withheld] = world.ledger.quarantined
    assert (withheld.key, withheld.slot, withheld.operation) == ("p", 0, REMOVE)
    assert world.ledger.parents == {}
    assert world.returned == [], "what the withheld device lives on stays held"
    world.finish()
    assert second.state == HELD


def test_who_comes_while_its_device_becomes_unknown_is_told_when_there_is_no_other_slot() -> None:
    world = World(Shelf(slots=1))
    [first] = started(world, ("p", "a"))
    world.drop(first)
    world.begin("p")
    second = world.acquire("p", "a")
    operation = world.flights["p"].operation
    [_, (failed, error)] = world.ledger.done(operation, Unknown(RuntimeError("lost"))).failed
    assert failed is second
    assert isinstance(error, NoSpaceError)
    assert not world.ledger


def test_a_parent_comes_back_when_there_is_no_place_for_those_who_waited_for_the_removal() -> None:
    class Choosy(Shelf):
        def place(self, key: str, member: str) -> int:
            if member == "large":
                raise NoSpaceError("it is too large")
            return super().place(key, member)

    world, parent = World(Choosy()), object()
    first = world.acquire("p", "a", parent)
    assert first
    world.finish()
    world.drop(first)
    world.begin("p")
    second = world.acquire("p", "large")
    world.done("p", "ok")
    world.check()
    assert second
    assert second.state == ENDED
    assert world.returned == [parent]


def test_who_is_releasing_when_the_vm_exits_has_released() -> None:
    world = World(Shelf())
    first, second, third = started(world, ("p", "a"), ("q", "a"), ("r", "a"))
    world.drop(first)
    world.begin("p")
    waiting = world.acquire("p", "a")
    world.drop(second)
    change = world.ledger.gone()
    assert change.released == (first, second)
    assert [ticket for ticket, _ in change.failed] == [waiting]
    assert (first.state, second.state, third.state) == (ENDED, ENDED, ENDED)
    assert world.device.slots.taken == 0


def test_what_is_asked_before_an_update_begins_rides_along() -> None:
    world = World(Share())
    started(world, ("p", "a"))
    second, third = world.acquire("p", "b"), world.acquire("p", "c")
    ended(world, "p", "ok")
    assert second
    assert third
    assert (second.state, third.state) == (HELD, HELD)
    assert not world.flights


@pytest.mark.parametrize(("how", "state"), [("ok", ENDED), ("refused", OWED), ("unknown", OWED)])
def test_a_release_before_an_update_begins_rides_along_and_shares_its_fate(
    how: str, state: TicketState
) -> None:
    world = World(Narrowing())
    [first] = started(world, ("p", "a"))
    second = world.acquire("p", "b")
    world.drop(first)
    world.begin("p")
    third = world.acquire("p", "a")
    world.done("p", how)
    world.check()
    assert first.state == state
    assert second
    assert second.state == (HELD if how == "ok" else ENDED)
    world.finish()
    assert third
    assert third.state == HELD


def test_what_is_asked_after_an_update_began_takes_one_more() -> None:
    world = World(Share())
    started(world, ("p", "a"))
    second = world.acquire("p", "b")
    world.begin("p")
    third, fourth = world.acquire("p", "c"), world.acquire("p", "d")
    world.done("p", "refused")
    assert second
    assert third
    assert fourth
    assert second.state == ENDED
    ended(world, "p", "ok")
    assert (third.state, fourth.state) == (HELD, HELD)
    assert world.host.value(0) == Files("acd")


def test_an_update_of_unknown_outcome_is_stated_again_whole() -> None:
    world = World(Share())
    started(world, ("p", "a"))
    world.acquire("p", "b")
    ended(world, "p", "unknown", 1)
    assert [entry.doubtful for entry in world.ledger] == [True]
    world.acquire("p", "c")
    ended(world, "p", "ok")
    assert [(entry.doubtful, entry.applied) for entry in world.ledger] == [(False, Files("ac"))]
    assert world.host.value(0) == Files("ac")


def test_adopted_devices_are_held_and_are_removed_like_others() -> None:
    world = World(Narrowing(parts=2))
    first = world.adopt("p", "a")
    world.check()
    assert first
    assert first.state == HELD
    assert not world.flights
    second = world.acquire("p", "a")
    assert second
    assert second.state == HELD, "what is there already is granted at once"
    world.drop(first)
    assert first.state == ENDED
    world.drop(second)
    assert world.flights["p"].operation.kind == REMOVE
    world.finish()
    assert not world.host.at


def test_nothing_is_adopted_twice_nor_without_a_slot_nor_after_the_vm_has_gone() -> None:
    ledger: FilesLedger = Ledger(Shelf(slots=1))
    ledger.adopt("p", "a", Files())
    with pytest.raises(OptionsError, match="p"):
        ledger.adopt("p", "a", Files())
    with pytest.raises(NoSpaceError):
        ledger.adopt("q", "a", Files())
    assert [entry.key for entry in ledger] == ["p"]
    ledger.gone()
    with pytest.raises(VMExitedError):
        ledger.adopt("p", "a", Files())


def test_only_a_quiet_snapshot_is_restored() -> None:
    world = World(Shelf())
    world.acquire("p", "a")
    snapshot = world.ledger.dump()
    with pytest.raises(OptionsError, match="p"):
        Ledger(Shelf()).restore(snapshot)


def test_a_snapshot_is_not_restored_over_what_is_there() -> None:
    world = World(Shelf())
    empty = world.ledger.dump()
    started(world, ("p", "a"))
    with pytest.raises(OptionsError, match="p"):
        world.ledger.restore(empty)


def test_a_snapshot_is_not_restored_over_what_is_withheld() -> None:
    world = World(Shelf())
    empty = world.ledger.dump()
    world.acquire("p", "a")
    ended(world, "p", "unknown")
    assert len(world.ledger) == 0
    with pytest.raises(OptionsError, match="withheld"):
        world.ledger.restore(empty)


def test_a_snapshot_with_a_withheld_slot_can_be_stored_elsewhere() -> None:
    ledger: FilesLedger = Ledger(Shelf())
    _, change = ledger.acquire("p", "a")
    assert change.operation is not None
    ledger.begin(change.operation)
    lost = UndoFailedError.of(HostPathError("C:\\a", "is missing"), UnknownOutcomeError("no answer"))
    ledger.done(change.operation, Unknown(lost))
    stored = pickle.loads(pickle.dumps(ledger.dump()))
    assert stored == ledger.dump()
    restored: FilesLedger = Ledger(Shelf())
    restored.restore(stored)
    assert [(held.key, str(held.cause)) for held in restored.quarantined] == [("p", str(lost))]


def test_a_restored_ledger_is_not_open_to_a_vm_that_has_gone() -> None:
    world = World(Shelf())
    snapshot = world.ledger.dump()
    world.gone()
    with pytest.raises(VMExitedError):
        world.ledger.restore(snapshot)


def test_a_second_end_of_an_operation_is_ignored() -> None:
    world = World(Shelf())
    [first] = started(world, ("p", "a"))
    [addition] = world.past
    world.done_again(addition)
    world.drop(first)
    world.done_again(addition)
    world.finish()
    world.done_again(addition)
    assert not world.ledger


def test_a_parent_comes_back_when_what_lived_on_it_is_gone_and_at_once_when_it_is_not_needed() -> None:
    world, one, other = World(Shelf()), object(), object()
    first = world.acquire("p", "a", one)
    second = world.acquire("p", "a", other)
    assert first
    assert second
    assert world.returned == [other]
    world.finish()
    world.drop(first)
    world.drop(second)
    assert world.returned == [other]
    world.finish()
    assert world.returned == [other, one]
