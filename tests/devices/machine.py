"""What the tests of all devices share: a host and guest that check, and a machine that tries everything.

:class:`DeviceMachine` puts any sequence of events and outcomes into a ledger of one device, and carries the
steps out on a :class:`Model`. What holds after each event are its invariants.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from uvm.devices.base import (
    ADD,
    ENDED,
    HELD,
    OK,
    OWED,
    REMOVE,
    WAITING,
    Change,
    Device,
    Entry,
    Kind,
    Ok,
    Operation,
    Outcome,
    Refused,
    Step,
    Ticket,
    TicketState,
    Unknown,
)
from uvm.devices.ledger import Ledger
from uvm.errors import HostError, NoSpaceError, OptionsError, UnknownOutcomeError
from uvm.hresult import HResult
from uvm.schema import requests
from uvm.schema.guest import (
    LCOWMappedDirectory,
    LCOWMappedVirtualDisk,
    LCOWMappedVPCIDevice,
    LCOWMappedVPMemDevice,
    LCOWNetworkAdapter,
    SCSIDevice,
    WCOWMappedVirtualDisk,
)
from uvm.schema.json import to_json
from uvm.schema.network import HostComputeNamespace
from uvm.schema.requests import (
    ModificationRequest,
    NetworkModifyRequest,
    RS4NetworkModifyRequest,
    VirtualPci,
    scsi_attachment_path,
)

Name = tuple[Hashable, ...]

K = TypeVar("K", bound=Hashable)
M = TypeVar("M")
S = TypeVar("S")
W = TypeVar("W")


def ledger_of(device: Device[K, M, S, W]) -> Ledger[K, M, S, W, object]:
    """A ledger of a device, whose entries live on nothing in particular."""
    return Ledger(device)


def host_name(request: requests.ModifySettingRequest) -> Name:
    """What a request to the host is about; shares have one path for all, and their names tell them apart."""
    resource = requests.parse_resource_path(request.resource_path)
    assert resource is not None, f"the host does not know {request.resource_path}"
    shares = isinstance(resource, requests.VSMBShares | requests.Plan9Shares)
    return ("host", resource.path, *([request.settings.name] if shares else []))


def guest_name(request: ModificationRequest) -> Name:
    """What a request to the guest is about."""
    match request.settings:
        case SCSIDevice(controller=controller, lun=lun):
            return ("guest", "ejected", scsi_attachment_path(controller, lun))
        case LCOWMappedVirtualDisk(mount_path=path) | WCOWMappedVirtualDisk(container_path=path):
            return ("guest", "mount", path)
        case LCOWMappedVPMemDevice(mount_path=path) | LCOWMappedDirectory(mount_path=path):
            return ("guest", "mount", path)
        case LCOWMappedVPCIDevice(vmbus_guid=guid):
            return ("guest", "pci", VirtualPci(guid).path)
        case LCOWNetworkAdapter(id=nic) | NetworkModifyRequest(adapter_id=nic):
            return ("guest", "nic", nic)
        case RS4NetworkModifyRequest(adapter_instance_id=nic):
            return ("guest", "nic", nic)
        case HostComputeNamespace(id=namespace):
            return ("guest", "namespace", namespace)
    raise AssertionError(f"the guest does not know {request}")


class Model:
    """A host and a guest that know only what they were told, and take no nonsense."""

    def __init__(self) -> None:
        self.tree: dict[Name, Any] = {}

    def carry_out(self, step: Step) -> None:
        """Do what a step says; adding what is there and removing what is not fails the test."""
        if isinstance(step.request, ModificationRequest):
            self._guest(step.request)
        else:
            self._host(step.request)

    def _host(self, request: requests.ModifySettingRequest) -> None:
        name = host_name(request)
        if request.request_type == requests.ADD:
            assert name not in self.tree, f"{name} is there already"
            self.tree[name] = to_json(request).get("Settings")
            return
        assert name in self.tree, f"{name} is not there"
        if request.request_type == requests.UPDATE:
            self.tree[name] = to_json(request)["Settings"]
            return
        assert request.request_type == requests.REMOVE
        del self.tree[name]
        # What the guest knows of these goes with the device itself.
        self.tree.pop(("guest", "ejected", request.resource_path), None)
        self.tree.pop(("guest", "pci", request.resource_path), None)

    def _guest(self, request: ModificationRequest) -> None:
        name = guest_name(request)
        inner = getattr(request.settings, "request_type", request.request_type)
        if isinstance(request.settings, SCSIDevice):
            assert ("host", name[2]) in self.tree, "a disk is ejected that is not attached"
            assert name not in self.tree, "a disk is ejected twice"
            self.tree[name] = True
        elif inner == requests.PRE_ADD:
            assert name not in self.tree
            self.tree[name] = requests.PRE_ADD
        elif inner == requests.ADD:
            windows = isinstance(request.settings, NetworkModifyRequest | RS4NetworkModifyRequest)
            assert self.tree.get(name) == (requests.PRE_ADD if windows else None), f"{name} is there already"
            self.tree[name] = to_json(request)["Settings"]
        else:
            assert inner == requests.REMOVE
            assert name in self.tree, f"{name} is not there"
            del self.tree[name]

    def names(self, steps: tuple[Step, ...]) -> Iterator[Name]:
        """What steps are about."""
        for step in steps:
            request = step.request
            yield guest_name(request) if isinstance(request, ModificationRequest) else host_name(request)


def fails() -> HostError:
    return HostError("modify", HResult.E_FAIL)


class DeviceMachine(RuleBasedStateMachine):
    """Any sequence of events, with any outcome, on a ledger of one device."""

    def make_device(self) -> Device[Any, Any, Any, Any]:
        """Make the device under test."""
        raise NotImplementedError

    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        """Draw the key and the member of an acquire."""
        raise NotImplementedError

    def is_retained(self, entry: Entry[Any, Any, Any, Any]) -> bool:
        """Whether an entry that nobody wants may stay."""
        return False

    def taken(self, dump: Any) -> Any:
        """The part of the allocator's state that goes back to what it was."""
        return dump

    def check_slots(self, slots: list[Any]) -> None:
        """Check the slots of all entries and of all that is quarantined."""
        assert len(set(slots)) == len(slots), "a slot was given twice"

    @initialize()
    def start(self) -> None:
        self.ledger = ledger_of(self.make_device())
        self.initial = self.taken(self.ledger.device.dump())
        self.model = Model()
        self.pending: list[Operation[Any, Any, Any, Any]] = []
        self.begun: list[tuple[Operation[Any, Any, Any, Any], tuple[Step, ...], Hashable]] = []
        self.tickets: dict[Ticket[Any, Any, Any, Any], TicketState] = {}
        self.withheld: set[Name] = set()

    # Events.

    def heed(self, change: Change[Any, Any, Any, Any, object]) -> None:
        """Take note of what an event brought about."""
        for ticket in change.granted:
            assert self.tickets[ticket] == WAITING
            self.tickets[ticket] = HELD
        for ticket in change.released:
            self.tickets[ticket] = ENDED
        for ticket, error in change.failed:
            assert isinstance(error, Exception)
            self.tickets[ticket] = ticket.state
            assert ticket.state in (OWED, ENDED)
        if change.operation is not None:
            self.pending.append(change.operation)

    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        key, member = self.draw_request(data)
        before = self.ledger.dump()
        try:
            names = (data.draw(st.sampled_from(["one name", "another"])), self.own_name(key, member))
            ticket, change = self.ledger.acquire(key, member, names=names)
        except (NoSpaceError, OptionsError):
            assert self.ledger.dump() == before
            return
        self.tickets[ticket] = WAITING
        self.heed(change)

    def own_name(self, key: Hashable, member: Any) -> Hashable:
        """What a member of a key is called, and nothing else."""
        return key

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.live()), label="ticket")
        self.drop_ticket(ticket)

    def live(self) -> list[Ticket[Any, Any, Any, Any]]:
        return [t for t, state in self.tickets.items() if state in (WAITING, HELD, OWED)]

    def drop_ticket(self, ticket: Ticket[Any, Any, Any, Any]) -> None:
        change = self.ledger.drop(ticket)
        self.tickets[ticket] = ticket.state
        self.heed(change)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.begin_operation(data.draw(st.sampled_from(self.pending), label="operation"))

    def begin_operation(self, operation: Operation[Any, Any, Any, Any]) -> bool:
        """Begin an operation unless its gate is taken, as the driver does."""
        gate = self.ledger.device.gate(operation)
        if gate is not None and any(gate == held for _, _, held in self.begun):
            return False
        self.pending.remove(operation)
        steps = self.ledger.begin(operation)
        assert self.withheld.isdisjoint(self.model.names(steps)), "something quarantined was handed out"
        self.begun.append((operation, steps, gate))
        return True

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        operation, steps, _ = running = data.draw(st.sampled_from(self.begun), label="operation")
        self.begun.remove(running)
        how = data.draw(st.sampled_from(["ok", "refused", "unknown"] if steps else ["ok"]), label="outcome")
        if how == "ok":
            self.finish(operation, steps, len(steps), OK)
            return
        failing = data.draw(st.integers(0, len(steps) - 1), label="failing step")
        if how == "refused":
            remaining = steps[failing:] if failing else ()
            if operation.kind != REMOVE:
                undo = [step.undo for step in reversed(steps[:failing]) if step.undo is not None]
                remaining = tuple(undo[data.draw(st.integers(0, len(undo)), label="steps undone") :])
            self.finish(operation, steps, failing, Refused(fails(), remaining))
        else:
            reached = failing + data.draw(st.booleans(), label="done nevertheless")
            self.finish(operation, steps, reached, Unknown(UnknownOutcomeError("nobody knows")))

    def finish(
        self,
        operation: Operation[Any, Any, Any, Any],
        steps: tuple[Step, ...],
        reached: int,
        outcome: Outcome,
    ) -> None:
        """Carry out the first steps, undo them where they were refused, and tell the ledger."""
        for step in steps[:reached]:
            self.model.carry_out(step)
        if isinstance(outcome, Refused) and operation.kind != REMOVE:
            for step in reversed(steps[:reached]):
                assert step.undo is not None, f"{step} cannot be undone"
                if step.undo not in outcome.remaining:
                    self.model.carry_out(step.undo)
        touched = self.names_at(operation)
        change = self.ledger.done(operation, outcome)
        if change.quarantined:
            assert isinstance(outcome, Unknown)
            self.withheld |= touched
        if isinstance(outcome, Ok) and operation.kind == ADD and not operation.void:
            waiting = {ticket for ticket, state in self.tickets.items() if state == WAITING}
            assert waiting & set(operation.serves) <= set(change.granted)
        self.heed(change)

    def names_at(self, operation: Operation[Any, Any, Any, Any]) -> set[Name]:
        """Everything that an operation, and those on the same entry before it, may have left somewhere."""
        entry, value = operation.entry, operation.entry.applied or operation.target
        if value is None:
            return set()
        entry = Entry(entry.key, entry.slot, applied=value)
        steps = self.steps_of(ADD, entry, value) + self.steps_of(REMOVE, entry, None)
        return set(self.model.names(steps))

    def steps_of(self, kind: Kind, entry: Entry[Any, Any, Any, Any], target: Any) -> tuple[Step, ...]:
        # On a device of its own, since steps may leave a trace in the device.
        device = self.make_device()
        device.load(self.ledger.device.dump())
        return device.steps(Operation(kind, entry, target))

    def done_of(self, entry: Entry[Any, Any, Any, Any], steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """The steps that made what an entry says is applied; `steps` are those of its ADD."""
        removal = self.steps_of(REMOVE, entry, None)
        done = len(removal) - len(entry.remaining)
        if not entry.remaining:
            return steps
        if done and entry.remaining == removal[done:]:
            return *steps, *removal[:done]
        return tuple(step for step in steps if step.undo in entry.remaining)

    # What holds after every event.

    @invariant()
    def what_is_applied_is_what_the_host_and_the_guest_have(self) -> None:
        if not hasattr(self, "ledger"):
            return
        expected = Model()
        doubtful: set[Name] = set()
        for entry in self.ledger:
            if entry.applied is None:
                continue
            steps = self.steps_of(ADD, entry, entry.applied)
            for step in self.done_of(entry, steps):
                expected.carry_out(step)
            if entry.doubtful:
                doubtful.update(expected.names(steps))
        known = {name: value for name, value in self.model.tree.items() if name not in self.withheld}
        assert known.keys() == expected.tree.keys()
        assert {n: v for n, v in known.items() if n not in doubtful} == {
            n: v for n, v in expected.tree.items() if n not in doubtful
        }

    @invariant()
    def every_ticket_is_accounted_for(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert {t: t.state for t in self.tickets} == self.tickets
        found = [
            ticket
            for entry in self.ledger
            for ticket in (
                *entry.holders,
                *entry.waiters,
                *entry.owed,
                *entry.leaving,
                *(entry.operation.releasers if entry.operation else ()),
            )
        ]
        assert len(found) == len(set(found))
        assert set(found) == {t for t, state in self.tickets.items() if state != ENDED}

    @invariant()
    def what_is_held_is_found_by_every_name_that_it_was_taken_by(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for ticket in self.tickets:
            if ticket.state == HELD:
                for name in ticket.names:
                    assert (ticket.entry, ticket.names[-1]) in self.ledger.named(name)
        named = [entry for names in self.ledger._named.values() for entry, _ in names]
        assert {entry.key for entry in named} <= {e.key for e in self.ledger if e.applied is not None}

    @invariant()
    def what_is_at_rest_has_an_owner(self) -> None:
        if hasattr(self, "ledger"):
            at_rest = [e for e in self.ledger if e.applied is not None and e.operation is None]
            assert [e for e in at_rest if not (e.holders or e.owed or self.is_retained(e))] == []

    @invariant()
    def no_slot_is_given_twice(self) -> None:
        if hasattr(self, "ledger"):
            self.check_slots([e.slot for e in self.ledger] + [q.slot for q in self.ledger.quarantined])

    @invariant()
    def every_operation_is_known(self) -> None:
        if hasattr(self, "ledger"):
            known = {*self.pending, *(operation for operation, _, _ in self.begun)}
            assert {e.operation for e in self.ledger if e.operation is not None} == known

    # Values, and the end.

    @precondition(lambda self: not self.pending and not self.begun)
    @rule()
    def save_and_restore(self) -> None:
        state = self.ledger.dump()
        ledger = ledger_of(self.make_device())
        tickets = ledger.restore(state)
        assert ledger.dump() == state
        self.ledger = ledger
        self.tickets = {ticket: ticket.state for ticket in tickets}

    def become_quiet(self) -> None:
        """Let go of everything, and let everything succeed."""
        while self.live() or self.pending or self.begun:
            for ticket in self.live():
                self.drop_ticket(ticket)
            for operation in [*self.pending]:
                self.begin_operation(operation)
            for operation, steps, _ in [*self.begun]:
                self.finish(operation, steps, len(steps), OK)
            self.begun.clear()
            self.what_is_applied_is_what_the_host_and_the_guest_have()

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.become_quiet()
        assert [e.key for e in self.ledger if not self.is_retained(e)] == []
        self.every_ticket_is_accounted_for()
        assert self.live() == []
        self.ledger.gone()
        assert self.taken(self.ledger.device.dump()) == self.initial, "a slot was lost"


def run(
    operation: Operation[Any, Any, Any, Any] | None, ledger: Ledger[Any, Any, Any, Any, Any]
) -> list[Any]:
    """Carry an operation out with success, and what follows it; give the requests as the scripts do."""
    sent: list[Any] = []
    while operation is not None:
        sent += [
            {
                "to": "guest" if isinstance(step.request, ModificationRequest) else "host",
                "doc": to_json(step.request),
            }
            for step in ledger.begin(operation)
        ]
        operation = ledger.done(operation, OK).operation
    return sent


def add(
    ledger: Ledger[Any, Any, Any, Any, Any], key: Any, member: Any = None
) -> tuple[Ticket[Any, Any, Any, Any], list[Any]]:
    """Acquire, carry out, and give the ticket and the requests."""
    ticket, change = ledger.acquire(key, member)
    return ticket, run(change.operation, ledger)


def release(ledger: Ledger[Any, Any, Any, Any, Any], ticket: Ticket[Any, Any, Any, Any]) -> list[Any]:
    """Drop, carry out, and give the requests."""
    return run(ledger.drop(ticket).operation, ledger)
