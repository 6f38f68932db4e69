"""A caller may leave any call at once, whatever the guest does; what was begun is finished or undone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from tests.clocks import jumping_backends
from tests.gcs.guests import WINDOWS, Guest, Redial, Refusal, connected, undone
from tests.gcs.support import open_calls, unanswered_requests
from uvm._gcs.connection import GuestConnection
from uvm._guest.specs import linux_container
from uvm._guest.timeouts import GuestTimeouts
from uvm._wire.frames import Procedure
from uvm.errors import UnknownOutcomeError, VMStateError
from uvm.hresult import HResult
from uvm.schema.gcs import LinuxHostedSystem

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends

#: How many turns of the loop a caller may take to leave.
TURNS = 10
LIMITS = GuestTimeouts(rpc_seconds=4, container_seconds=4, redial_seconds=60)


def document() -> LinuxHostedSystem:
    spec = {"process": {"args": ["sh"], "cwd": "/"}, "root": {"path": "rootfs"}, "linux": {}}
    return linux_container(spec, bundle_path="/run/gcs/c/1")


async def open_process(connection: GuestConnection) -> object:
    return await connection.open_process(["sleep", "1000"])


async def create_container(connection: GuestConnection) -> object:
    return await connection.create_container("c1", document())


Operation = Callable[[GuestConnection], Awaitable[object]]

STARTS = pytest.mark.parametrize(
    ("procedure", "start", "end"),
    [
        (Procedure.EXECUTE_PROCESS, open_process, Procedure.SIGNAL_PROCESS),
        (Procedure.CREATE, create_container, Procedure.SHUTDOWN_FORCED),
    ],
    ids=["process", "container"],
)


async def leaves(
    connection: GuestConnection, operation: Operation, ready: Callable[[], Awaitable[object]]
) -> None:
    """Cancel the caller of an operation once all is ready, and hold it to leave within a few turns."""
    left = anyio.Event()

    async def call() -> None:
        try:
            await operation(connection)
        finally:
            left.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await ready()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(TURNS):
                await anyio.lowlevel.checkpoint()
            assert left.is_set()


def nothing_is_left(guest: Guest, connection: GuestConnection, unanswered: int = 0) -> None:
    assert not connection._link.late_starts
    assert all(each.closed == 1 for each in guest.listeners)
    assert open_calls(connection._bridge) == 0
    assert unanswered_requests(connection._bridge) == unanswered
    assert not connection._containers._taken


@STARTS
@pytest.mark.parametrize("answer", ["well", "refused"])
async def test_what_is_started_late_is_undone(
    procedure: Procedure, start: Operation, end: Procedure, answer: str
) -> None:
    guest = Guest()
    guest.answers[procedure] = lambda _: None
    async with connected(guest, timeouts=LIMITS) as connection:
        await leaves(connection, start, lambda: guest.until_asked(procedure))
        assert len(connection._link.late_starts) == 1
        assert all(not each.closed for each in guest.listeners), "the guest may dial still"
        guest.answer_held(procedure, {"ProcessId": 9} if answer == "well" else Refusal(HResult.E_FAIL))
        if answer == "well":
            await guest.until_asked(end)
            if guest.held[Procedure.WAIT_FOR_PROCESS]:
                guest.exit()
        await undone(connection)
        assert len(guest.bodies(end)) == (answer == "well")
        nothing_is_left(guest, connection)
        assert not connection.closed


@STARTS
async def test_a_start_that_is_never_answered_ends_for_its_caller_alone(
    procedure: Procedure, start: Operation, end: Procedure
) -> None:
    guest = Guest()
    guest.answers[procedure] = lambda _: None
    async with connected(guest, timeouts=LIMITS) as connection:
        with pytest.raises(UnknownOutcomeError, match="no answer within 4 s"):
            await start(connection)
        await anyio.sleep(9)
        assert not connection.closed
        assert len(connection._link.late_starts) == 1
        guest.answer_held(procedure, Refusal(HResult.E_FAIL))
        await undone(connection)
        assert not guest.bodies(end)
        nothing_is_left(guest, connection)


@STARTS
async def test_a_start_that_is_late_ends_with_the_connection(
    procedure: Procedure, start: Operation, end: Procedure
) -> None:
    guest = Guest()
    guest.answers[procedure] = lambda _: None
    async with connected(guest, timeouts=LIMITS) as connection:
        await leaves(connection, start, lambda: guest.until_asked(procedure))
        connection.close()
        await undone(connection)
        nothing_is_left(guest, connection, unanswered=1)


@STARTS
@pytest.mark.parametrize("answer", ["well", "refused", "never"])
async def test_a_start_that_is_late_when_the_guest_dials_again_is_undone(
    procedure: Procedure, start: Operation, end: Procedure, answer: str
) -> None:
    guest = Guest()
    guest.answers[procedure] = lambda _: None
    guest.answers[Procedure.SHUTDOWN_FORCED] = lambda _: Refusal(HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND)
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=LIMITS, redial=redial) as connection:
            await leaves(connection, start, lambda: guest.until_asked(procedure))
            guest.script.hang_up()
            await redial.wait_for_host()
            redial.dial()
            await connection.dump_stacks()
            guest.asked.clear()
            if answer == "well":
                guest.answer_held(procedure, {"ProcessId": 9})
                await guest.until_asked(end)
                if guest.held[Procedure.WAIT_FOR_PROCESS]:
                    guest.exit()
            elif answer == "refused":
                guest.answer_held(procedure, Refusal(HResult.E_FAIL))
            else:
                await anyio.sleep(5)
            await undone(connection)
            nothing_is_left(guest, connection, unanswered=answer == "never")
            assert not connection.closed


@STARTS
async def test_a_start_that_was_not_sent_never_is(
    procedure: Procedure, start: Operation, end: Procedure
) -> None:
    guest = Guest()
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=LIMITS, redial=redial) as connection:
            guest.script.hang_up()
            await redial.wait_for_host()
            await leaves(connection, start, anyio.wait_all_tasks_blocked)
            await undone(connection)
            nothing_is_left(guest, connection)
            redial.dial()
            await connection.dump_stacks()
            assert not guest.bodies(procedure)


@STARTS
async def test_late_starts_are_bounded_and_all_else_goes_on(
    procedure: Procedure, start: Operation, end: Procedure
) -> None:
    guest = Guest()
    guest.answers[procedure] = lambda _: None
    limits = GuestTimeouts(max_late_starts=2)
    async with connected(guest, timeouts=limits) as connection:
        await leaves(connection, open_process, anyio.lowlevel.checkpoint)
        await undone(connection)
        await leaves(connection, start, lambda: guest.until_asked(procedure))
        guest.answers[Procedure.EXECUTE_PROCESS] = lambda _: None
        asked = len(guest.bodies(Procedure.EXECUTE_PROCESS)) + 1
        await leaves(connection, open_process, lambda: guest.until_asked(Procedure.EXECUTE_PROCESS, asked))
        for each in (open_process, create_container):
            with pytest.raises(VMStateError, match="owes the answers to 2 starts whose callers"):
                await each(connection)
        await connection.dump_stacks()

        guest.answer_held(procedure, Refusal(HResult.E_FAIL))
        while len(connection._link.late_starts) == 2:
            await anyio.lowlevel.checkpoint()
        del guest.answers[Procedure.EXECUTE_PROCESS]
        guest.answers[Procedure.EXECUTE_PROCESS] = guest.start_process
        await open_process(connection)


async def modify(connection: GuestConnection) -> None:
    await connection.modify({"ResourceType": "Layer", "RequestType": "Add"})


async def modify_service(connection: GuestConnection) -> None:
    await connection.modify_service("LogForwardService", {})


async def dump_stacks(connection: GuestConnection) -> None:
    await connection.dump_stacks()


async def shutdown(connection: GuestConnection) -> None:
    await connection.shutdown()


async def start_guest(connection: GuestConnection) -> None:
    await connection.start_guest()


@pytest.mark.parametrize(
    ("procedure", "operation", "os"),
    [
        (Procedure.MODIFY_SETTINGS, modify, "linux"),
        (Procedure.MODIFY_SERVICE_SETTINGS, modify_service, "windows"),
        (Procedure.DUMP_STACKS, dump_stacks, "linux"),
        (Procedure.SHUTDOWN_GRACEFUL, shutdown, "linux"),
        (Procedure.CREATE, start_guest, "windows"),
    ],
)
async def test_a_caller_leaves_whatever_else_was_asked(
    procedure: Procedure, operation: Operation, os: str
) -> None:
    guest = Guest(WINDOWS) if os == "windows" else Guest()
    guest.answers[procedure] = lambda _: None
    async with connected(guest) as connection:
        await leaves(connection, operation, lambda: guest.until_asked(procedure))
        nothing_is_left(guest, connection, unanswered=1)
        guest.answer_held(procedure, {})
        while unanswered_requests(connection._bridge):
            await anyio.lowlevel.checkpoint()
        assert not connection.closed
