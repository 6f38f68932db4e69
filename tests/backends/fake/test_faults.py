"""Faults: which calls they choose, and what becomes of those."""

from __future__ import annotations

import math
from typing import Any, get_args

import anyio
import pytest

from tests.backends.fake.support import (
    DISK,
    OTHER_DISK,
    add,
    backend_of,
    disk,
    expect_guest_refusal,
    expect_refusal,
    guest_of,
    host_files,
    lcow,
    remove,
    running,
    slot,
    to_guest,
    vm_of,
)
from tests.session import play
from uvm.backends.fake import Call, FakeBackend, FakeSystem, Faults
from uvm.backends.fake.calls import To
from uvm.backends.fake.filters import OPERATIONS
from uvm.errors import (
    AnswerLostError,
    BridgeClosedError,
    HostError,
    OptionsError,
    UnknownOutcomeError,
    VMExitedError,
)
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

MOUNT = to_guest("MappedVirtualDisk", "Add", MountPath="/m")


async def outcomes(system: FakeSystem, count: int) -> str:
    """Ask for that many properties; a letter for each: o for ok, r for refused."""
    letters = ""
    for _ in range(count):
        try:
            await system.properties()
        except HostError:
            letters += "r"
        else:
            letters += "o"
    return letters


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "rrrrrrr"),
        ({"nth": 3}, "oorooo" + "o"),
        ({"every": 3}, "oorooro"),
        ({"first": 2}, "rrooooo"),
        ({"probability": 0.0}, "ooooooo"),
        ({"probability": 1.0}, "rrrrrrr"),
    ],
)
async def test_a_rule_chooses_among_the_calls_that_fit(chosen: Any, expected: str) -> None:
    async with running() as system:
        rule = backend_of(system).faults.refuse(to="query", **chosen)
        assert await outcomes(system, 7) == expected
        assert (rule.seen, rule.fired) == (7, expected.count("r"))


async def test_chance_follows_from_the_seed() -> None:
    async def drawn(seed: int) -> str:
        async with running(backend=FakeBackend(files=host_files(), seed=seed)) as system:
            backend_of(system).faults.refuse(to="query", probability=0.5)
            return await outcomes(system, 40)

    assert await drawn(1) == await drawn(1)
    assert await drawn(1) != await drawn(2)


@pytest.mark.parametrize(
    "matching",
    [
        {"to": "guest"},
        {"vm": "vm2"},
        {"operation": "start"},
        {"request_type": "Remove"},
        {"resource": "*VirtualPMem*"},
        {"where": lambda call: call.to == "host" and call.document["Settings"]["Path"] == OTHER_DISK},
    ],
)
async def test_a_rule_leaves_other_calls_alone(matching: Any) -> None:
    async with running() as system:
        rule = backend_of(system).faults.refuse(**matching)
        await system.modify(add(slot(0), disk()))
        assert rule.seen == 0


@pytest.mark.parametrize(
    "matching",
    [
        {"to": "host"},
        {"vm": "vm1"},
        {"operation": "modify"},
        {"request_type": "Add"},
        {"resource": "*/Scsi/*/Attachments/?"},
        {"where": lambda call: call.document["Settings"]["Path"] == DISK},
    ],
)
async def test_a_refused_call_changes_nothing(matching: Any) -> None:
    async with running() as system:
        backend_of(system).faults.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES, text="no luck", **matching)
        with expect_refusal(HResult.ERROR_NO_SYSTEM_RESOURCES) as caught:
            await system.modify(add(slot(0), disk()))
        assert "no luck" in str(caught.value)
        assert system.vm.tree.scsi.disks == {}


async def test_the_guest_refuses_in_its_own_name() -> None:
    async with running() as system:
        backend_of(system).faults.refuse(
            HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED, to="guest", resource="MappedVirtualDisk"
        )
        await system.modify(add(slot(0), disk()))
        async with guest_of(system) as guest:
            with expect_guest_refusal(HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED):
                await guest.modify(MOUNT)


async def test_any_exception_can_be_the_refusal() -> None:
    async with running() as system:
        backend_of(system).faults.refuse(BridgeClosedError("cut"), to="host")
        with pytest.raises(BridgeClosedError, match="cut"):
            await system.modify(add(slot(0), disk()))


async def test_an_exception_that_no_guest_can_answer_breaks_its_connection() -> None:
    async with running() as system:
        backend_of(system).faults.refuse(OSError("cut"), to="guest", operation="modify")
        await system.modify(add(slot(0), disk()))
        async with guest_of(system) as guest:
            with pytest.raises(AnswerLostError):
                await guest.modify(MOUNT)
            assert guest.closed
        assert system.vm.guest.mounts == {}


@pytest.mark.parametrize("fault", ["refuse", "lose"])
async def test_a_guest_that_cannot_connect_ends_and_its_vm_with_it(fault: str) -> None:
    async with running() as system:
        rule = getattr(backend_of(system).faults, fault)(to="guest", operation="connect")
        with pytest.raises(VMExitedError):
            async with guest_of(system):
                pytest.fail("it has come")
        assert (rule.fired, system.vm.state) == (1, "Stopped")
        assert (await system.wait()).exit_type == "UnexpectedExit"


async def test_a_guest_whose_connecting_hangs_does_not_come() -> None:
    async with running() as system:
        rule = backend_of(system).faults.hang(to="guest", operation="connect")
        async with anyio.create_task_group() as tasks:

            async def meet() -> None:
                with pytest.raises(VMExitedError):
                    async with guest_of(system):
                        pytest.fail("it has come")

            tasks.start_soon(meet)
            await anyio.wait_all_tasks_blocked()
            assert (rule.fired, system.vm.service.connected) == (1, False)
            await system.terminate()


async def test_a_guest_that_is_held_up_comes_late() -> None:
    async with running() as system:
        async with anyio.create_task_group() as tasks:
            met = anyio.Event()

            async def meet() -> None:
                async with guest_of(system):
                    met.set()

            with backend_of(system).faults.hold(to="guest", operation="connect") as gate:
                tasks.start_soon(meet)
                (parked,) = await gate.wait()
                assert not met.is_set()
                parked.proceed()
        assert met.is_set()


async def test_the_undo_can_be_refused_too() -> None:
    async with running() as system:
        backend_of(system).faults.refuse(to="host", request_type="Remove", first=1)
        await system.modify(add(slot(0), disk()))
        with expect_refusal(HResult.E_FAIL):
            await system.modify(remove(slot(0)))
        await system.modify(remove(slot(0)))


@pytest.mark.parametrize("applied", [True, False])
async def test_an_answer_gets_lost_with_the_change_made_or_not(applied: bool) -> None:
    async with running() as system:
        backend_of(system).faults.lose(to="host", applied=applied)
        with pytest.raises(UnknownOutcomeError, match="the answer was lost"):
            await system.modify(add(slot(0), disk()))
        assert (system.vm.tree.scsi.disks != {}) == applied
        entry = list(backend_of(system).request_log)[-1]
        assert (entry.outcome, entry.applied) == ("lost", applied)


async def test_a_refusal_gets_lost_like_any_answer() -> None:
    async with running() as system:
        backend_of(system).faults.lose(to="host")
        with pytest.raises(UnknownOutcomeError) as caught:
            await system.modify(remove(slot(0)))
        assert isinstance(caught.value.__cause__, HostError)
        assert caught.value.__cause__.hresult == HResult.ERROR_NOT_FOUND


async def test_a_system_whose_creation_was_not_answered_can_be_opened_and_ended() -> None:
    backend = FakeBackend(files=host_files())
    backend.faults.lose(operation="create")
    with pytest.raises(UnknownOutcomeError):
        await backend.create("vm1", lcow())
    system = await backend.open("vm1")
    await system.terminate()
    await system.close()
    assert backend.leftovers() == []


@pytest.mark.parametrize("applied", [True, False])
async def test_a_call_hangs_until_it_is_cancelled(applied: bool) -> None:
    async with running() as system:
        backend_of(system).faults.hang(to="host", applied=applied)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.modify, add(slot(0), disk()))
            await anyio.wait_all_tasks_blocked()
            assert list(backend_of(system).request_log)[-1].outcome == "pending"
            tasks.cancel_scope.cancel()
        assert (system.vm.tree.scsi.disks != {}) == applied
        entry = list(backend_of(system).request_log)[-1]
        assert (entry.outcome, entry.applied) == ("cancelled", applied)


async def test_a_call_that_hangs_ends_with_the_vm() -> None:
    async with running() as system:
        backend_of(system).faults.hang(to="host")
        async with anyio.create_task_group() as tasks:

            async def hangs_before_the_change() -> None:
                with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
                    await system.modify(add(slot(0), disk()))

            tasks.start_soon(hangs_before_the_change)
            await anyio.wait_all_tasks_blocked()
            await system.terminate()


async def test_a_change_whose_answer_hangs_is_unknown_when_the_vm_exits() -> None:
    async with running() as system:
        backend_of(system).faults.hang(to="host", applied=True)
        async with anyio.create_task_group() as tasks:

            async def hangs_after_the_change() -> None:
                with pytest.raises(UnknownOutcomeError, match="the VM exited"):
                    await system.modify(add(slot(0), disk()))

            tasks.start_soon(hangs_after_the_change)
            await anyio.wait_all_tasks_blocked()
            assert list(system.vm.tree.scsi.disks) == [(0, 0)]
            await system.terminate()


async def test_a_grant_that_hangs_ends_when_cancelled() -> None:
    backend = FakeBackend(files=host_files())
    backend.faults.hang(to="grant")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.grant_access, DISK, "vm1")
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert backend.access.granted(DISK) == {}


@pytest.mark.parametrize("applied", [True, False])
async def test_a_delayed_call_gets_through(applied: bool) -> None:
    async with running() as system:
        backend_of(system).faults.delay(0.001, to="host", applied=applied)
        await system.modify(add(slot(0), disk()))
        assert list(system.vm.tree.scsi.disks) == [(0, 0)]


async def test_a_call_cancelled_in_its_delay_has_changed_something_or_not() -> None:
    async with running() as system:
        backend_of(system).faults.delay(3600, to="host", applied=True, nth=1)
        backend_of(system).faults.delay(3600, to="host", nth=2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.modify, add(slot(0), disk()))
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(system.modify, add(slot(1), disk(OTHER_DISK)))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert list(system.vm.tree.scsi.disks) == [(0, 0)]


async def test_the_vm_crashes_before_the_change() -> None:
    async with running() as system:
        backend_of(system).faults.crash(to="host")
        with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
            await system.modify(add(slot(0), disk()))
        assert (await system.wait()).exit_type == "UnexpectedExit"


async def test_the_vm_crashes_after_the_change() -> None:
    async with running() as system:
        backend_of(system).faults.crash(when="after", to="host")
        with pytest.raises(UnknownOutcomeError, match="the VM crashed"):
            await system.modify(add(slot(0), disk()))
        entry = list(backend_of(system).request_log)[-1]
        assert (entry.outcome, entry.applied) == ("lost", True)
        assert vm_of(system).state == "Stopped"


async def test_a_call_that_concerns_no_vm_crashes_none() -> None:
    backend = FakeBackend(files=host_files())
    backend.faults.crash()
    await backend.grant_access(DISK, "vm1")
    assert backend.access.granted(DISK) == {"vm1": "all"}


async def test_rules_apply_in_the_order_in_which_they_were_made() -> None:
    async with running() as system:
        faults = backend_of(system).faults
        faults.lose(to="host", applied=True)
        second = faults.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES, to="host")
        with pytest.raises(UnknownOutcomeError) as caught:
            await system.modify(add(slot(0), disk()))
        assert isinstance(caught.value.__cause__, HostError)
        assert second.fired == 1


async def test_a_rule_that_was_removed_does_nothing() -> None:
    async with running() as system:
        rule = backend_of(system).faults.refuse(to="query")
        rule.remove()
        rule.remove()
        backend_of(system).faults.refuse(to="query")
        backend_of(system).faults.clear()
        assert await outcomes(system, 2) == "oo"


@pytest.mark.parametrize(
    "matching", [{"nth": 1, "first": 1}, {"nth": 0}, {"every": 0}, {"first": 0}, {"probability": 1.5}]
)
def test_a_choice_that_makes_no_sense_is_refused(matching: Any) -> None:
    with pytest.raises(ValueError, match=r"give one of|count from 1|between 0 and 1"):
        FakeBackend().faults.refuse(**matching)


_NEVER: list[dict[str, Any]] = [
    {"to": "gest"},
    {"to": ()},
    {"to": ("host", "gest")},
    {"to": 1},
    {"operation": "modfy"},
    {"operation": ""},
    {"to": "guest", "operation": "listen"},
    {"to": "grant", "operation": "modify"},
    {"operation": "notification"},
    {"request_type": "add"},
    {"to": "grant", "request_type": "Add"},
    {"operation": "terminate", "request_type": "Remove"},
    {"vm": 1},
    {"resource": b"x"},
    {"where": True},
    {"nth": 0},
    {"nth": True},
    {"every": 1.5},
    {"first": "1"},
    {"probability": "often"},
]


@pytest.mark.parametrize("matching", _NEVER, ids=str)
def test_a_rule_that_can_never_fire_is_refused(matching: dict[str, Any]) -> None:
    faults = Faults()
    for make in (faults.refuse, faults.hang, faults.lose, faults.crash, faults.hold):
        with pytest.raises(OptionsError):
            make(**matching)
    assert faults.rules == ()


@pytest.mark.parametrize("matching", [m for m in _NEVER if not m.keys() & {"where", "nth", "every", "first"}])
def test_a_request_log_is_not_asked_for_what_it_can_never_hold(matching: dict[str, Any]) -> None:
    log = FakeBackend().request_log
    with pytest.raises((OptionsError, TypeError)):
        log.entries(**matching)


def test_a_misspelt_filter_gets_a_suggestion() -> None:
    faults = Faults()
    with pytest.raises(OptionsError, match="no call has the operation 'close'"):
        faults.refuse(operation="close")
    with pytest.raises(OptionsError, match="did you mean modify"):
        faults.refuse(operation="modfy")
    with pytest.raises(OptionsError, match="did you mean operation"):
        faults.refuse(operatoin="modify")  # type: ignore[call-arg]
    with pytest.raises(OptionsError, match="did you mean E_FAIL"):
        faults.refuse("E_FAILL")


def test_a_rule_of_several_targets_is_about_calls_to_each() -> None:
    rule = Faults().refuse(to=("host", "guest"), request_type="Add")
    calls = {to: Call(1, to, "vm1", "modify", request_type="Add") for to in get_args(To)}
    assert {to for to, call in calls.items() if rule.matcher.fits(call)} == {"host", "guest"}


@pytest.mark.parametrize("code", ["E_FAIL", HResult.E_FAIL, 0x80004005, 0x80004005 - 2**32])
async def test_a_code_may_be_a_name_or_a_number(code: int | str) -> None:
    backend = FakeBackend()
    backend.faults.refuse(code, to="query")
    with pytest.raises(HostError) as caught:
        await backend.enumerate()
    assert caught.value.hresult == HResult.E_FAIL


@pytest.mark.parametrize("code", ["", "0x80004005", "no", 0, 2**32, True, None, 1.5, HostError, b"E_FAIL"])
def test_a_code_that_is_none_is_refused(code: Any) -> None:
    with pytest.raises(OptionsError, match="a refusal has a result code"):
        Faults().refuse(code)


@pytest.mark.parametrize(
    ("rule", "arguments"),
    [
        ("refuse", {"text": 5}),
        ("delay", {"seconds": "1"}),
        ("delay", {"seconds": -1}),
        ("delay", {"seconds": math.nan}),
        ("delay", {"seconds": 1, "applied": "no"}),
        ("hang", {"applied": 1}),
        ("lose", {"applied": None}),
        ("crash", {"when": "during"}),
    ],
)
def test_what_a_fault_does_is_checked_when_it_is_made(rule: str, arguments: dict[str, Any]) -> None:
    faults = Faults()
    with pytest.raises(OptionsError, match="must be"):
        getattr(faults, rule)(**arguments)
    assert faults.rules == ()


async def test_an_exception_is_raised_as_a_copy_for_each_call() -> None:
    backend, error = FakeBackend(), OSError(5, "gone")
    backend.faults.refuse(error, to="query")
    caught = []
    for _ in range(2):
        with pytest.raises(OSError, match="gone") as info:
            await backend.enumerate()
        caught.append(info.value)
    assert caught[0] is not caught[1]
    assert [each.__cause__ for each in caught] == [error, error]


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_filters_know_the_operations_of_all_calls(os: str) -> None:
    seen: set[tuple[To, str]] = set()

    def look(**held: Any) -> None:
        seen.update((entry.to, entry.call.operation) for entry in held["backend"].request_log)

    await play(look, os)
    assert len(seen) > 10
    assert {(to, operation) for to, operation in seen if operation not in OPERATIONS[to]} == set()
