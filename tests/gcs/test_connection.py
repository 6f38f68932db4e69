"""The connection to a guest's compute service: its greeting, what it can be asked, and its end."""

from __future__ import annotations

import json
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio.testing

from tests.gcs.guests import LINUX, NULL_ID, WINDOWS, Guest, Redial, Refusal, connected
from tests.gcs.support import MemoryStream
from uvm._gcs.connection import GuestConnection
from uvm._guest.access import GuestFeatures
from uvm._guest.timeouts import GuestTimeouts
from uvm._wire.frames import Procedure
from uvm.backend import Guest as GuestProtocol
from uvm.errors import (
    BridgeClosedError,
    GuestError,
    NotSupportedError,
    OptionsError,
    UnknownOutcomeError,
    VMStateError,
)
from uvm.hresult import HResult
from uvm.schema.guest import TimeZoneInformation

pytestmark = pytest.mark.anyio

NEGOTIATE, CREATE, START = Procedure.NEGOTIATE_PROTOCOL, Procedure.CREATE, Procedure.START
MODIFY, SHUTDOWN = Procedure.MODIFY_SETTINGS, Procedure.SHUTDOWN_GRACEFUL
RESUMING = GuestTimeouts(redial_seconds=60)


@pytest.fixture
def guest() -> Guest:
    return Guest()


# The greeting.


async def test_a_guest_is_asked_for_version_4_first(guest: Guest) -> None:
    async with connected(guest) as connection:
        procedure, body = guest.asked[0]
        assert procedure is NEGOTIATE
        assert (body["MinimumVersion"], body["MaximumVersion"]) == (4, 4)
        assert connection.protocol_version == 4


async def test_a_linux_guest_says_what_it_can_do(guest: Guest) -> None:
    async with connected(guest) as connection:
        as_guest: GuestProtocol = connection
        assert connection.os == "linux"
        assert as_guest.capabilities == LINUX["GuestDefinedCapabilities"]
        assert connection.features == GuestFeatures(
            signal_process=True, delete_container_state=True, dump_stacks=True, namespace_add=True
        )


async def test_a_guest_that_does_not_say_what_it_runs_runs_windows(guest: Guest) -> None:
    guest.capabilities = {
        "GuestDefinedCapabilities": {"LogForwardingSupported": True, "DumpStacksSupported": 1}
    }
    async with connected(guest) as connection:
        assert connection.os == "windows"
        assert connection.features == GuestFeatures(log_forwarding=True)


async def test_a_guest_that_chooses_another_version_is_not_supported(guest: Guest) -> None:
    guest.answers[NEGOTIATE] = lambda _: {"Version": 5, "Capabilities": LINUX}
    with pytest.raises(NotSupportedError, match=r"speaks version 4 .* the guest version 5"):
        await _greet(guest)


async def test_a_guest_that_refuses_our_version_is_not_supported(guest: Guest) -> None:
    guest.answers[NEGOTIATE] = lambda _: Refusal(HResult.ERROR_VMCOMPUTE_UNSUPPORTED_PROTOCOL_VERSION)
    with pytest.raises(NotSupportedError, match="speaks version 4"):
        await _greet(guest)


async def test_a_guest_of_an_unknown_system_is_not_supported(guest: Guest) -> None:
    guest.capabilities = LINUX | {"RuntimeOsType": "plan\x1b9"}
    with pytest.raises(NotSupportedError) as caught:
        await _greet(guest)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        Refusal(HResult.E_FAIL, "no"),
        {"Version": "4"},
        {"Version": 4, "Capabilities": []},
        {"Version": 4, "Capabilities": {"GuestDefinedCapabilities": 5}},
    ],
)
async def test_a_greeting_that_fails_closes_the_connection(guest: Guest, answer: Any) -> None:
    guest.answers[NEGOTIATE] = lambda _: answer
    with pytest.raises(BridgeClosedError) as caught:
        await _greet(guest)
    assert isinstance(caught.value.__cause__, GuestError | UnknownOutcomeError)


async def test_a_guest_that_hangs_up_during_the_greeting_closes_the_connection(guest: Guest) -> None:
    def hang_up(_: Any) -> None:
        guest.script.hang_up()

    guest.answers[NEGOTIATE] = hang_up
    with pytest.raises(BridgeClosedError):
        await _greet(guest)


async def _greet(guest: Guest) -> None:
    """Serve a connection whose greeting fails, and raise what serving it raised."""
    connection = GuestConnection(guest.listen, name="vm")
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guest.serve)
        try:
            await connection.serve(guest.script.dial())
        except Exception as error:
            failure = error
        tasks.cancel_scope.cancel()
    assert connection.closed
    await connection.wait_closed()
    await connection.aclose()
    assert failure is not None
    raise failure


async def test_nothing_is_known_of_a_guest_before_the_greeting(guest: Guest) -> None:
    connection = GuestConnection(guest.listen, name="vm")
    for ask in (
        lambda: connection.os,
        lambda: connection.capabilities,
        lambda: connection.features,
        lambda: connection.protocol_version,
    ):
        with pytest.raises(VMStateError, match="not been connected"):
            ask()
    with pytest.raises(VMStateError):
        await connection.run(["true"])
    with pytest.raises(VMStateError):
        await connection.create_container("c1", {})


# A cold start.


async def test_a_linux_guest_wants_no_set_up(guest: Guest) -> None:
    async with connected(guest) as connection:
        await connection.start_guest()
        assert [procedure for procedure, _ in guest.asked] == [NEGOTIATE]


async def test_a_windows_guest_is_set_up_with_the_time_zone_and_started(guest: Guest) -> None:
    guest.capabilities = WINDOWS
    async with connected(guest) as connection:
        await connection.start_guest(TimeZoneInformation(bias=-60, standard_name="CET"))
        assert [procedure for procedure, _ in guest.asked] == [NEGOTIATE, CREATE, START]
        [create] = guest.bodies(CREATE)
        assert create["ContainerId"] == NULL_ID
        assert json.loads(create["ContainerConfig"]) == {
            "SystemType": "Container",
            "TimeZoneInformation": {"Bias": -60, "StandardName": "CET"},
        }


async def test_a_time_zone_is_for_windows_guests_only(guest: Guest) -> None:
    guest.capabilities = LINUX | {"SendHostCreateMessage": True}
    async with connected(guest) as connection:
        await connection.start_guest(TimeZoneInformation(bias=-60))
        assert json.loads(guest.bodies(CREATE)[0]["ContainerConfig"]) == {"SystemType": "Container"}
        assert not guest.bodies(START)


# What it can be asked.


async def test_a_modify_request_goes_to_the_guest_itself(guest: Guest) -> None:
    request = {"ResourceType": "MappedVirtualDisk", "RequestType": "Add", "Settings": {"Lun": 1}}
    async with connected(guest) as connection:
        await connection.modify(request)
        [body] = guest.bodies(MODIFY)
        assert (body["ContainerId"], body["Request"]) == (NULL_ID, request)


async def test_what_the_guest_refuses_is_the_guests_error(guest: Guest) -> None:
    guest.answers[MODIFY] = lambda _: Refusal(HResult.E_INVALIDARG, "bad LUN")
    async with connected(guest) as connection:
        with pytest.raises(GuestError, match=r"Add MappedVirtualDisk: .*bad LUN"):
            await connection.modify({"ResourceType": "MappedVirtualDisk", "RequestType": "Add"})
        assert not connection.closed


async def test_what_json_has_no_form_for_is_refused_before_anything_is_sent(guest: Guest) -> None:
    async with connected(guest) as connection:
        with pytest.raises(OptionsError):
            await connection.modify({"Settings": {1, 2}})
        assert not guest.bodies(MODIFY)


async def test_services_of_a_windows_guest_are_changed(guest: Guest) -> None:
    guest.capabilities = WINDOWS
    async with connected(guest) as connection:
        await connection.modify_service("LogForwardService", {"RPCType": "StartLogForwarding"})
        [body] = guest.bodies(Procedure.MODIFY_SERVICE_SETTINGS)
        assert body["PropertyType"] == "LogForwardService"
        assert body["Settings"] == {"RPCType": "StartLogForwarding"}


async def test_services_of_a_linux_guest_cannot_be_changed(guest: Guest) -> None:
    async with connected(guest) as connection:
        with pytest.raises(NotSupportedError, match="ModifyServiceSettingsSupported"):
            await connection.modify_service("LogForwardService", {})


async def test_the_stacks_of_the_guests_service_are_dumped(guest: Guest) -> None:
    guest.answers[Procedure.DUMP_STACKS] = lambda _: {"GuestStacks": "goroutine 1"}
    async with connected(guest) as connection:
        assert await connection.dump_stacks() == "goroutine 1"


async def test_stacks_are_not_asked_of_a_guest_that_cannot_dump_them(guest: Guest) -> None:
    guest.capabilities = WINDOWS
    async with connected(guest) as connection:
        with pytest.raises(NotSupportedError, match="DumpStacksSupported"):
            await connection.dump_stacks()


# Its end.


async def test_a_shutdown_succeeds_when_the_guest_answers(guest: Guest) -> None:
    async with connected(guest) as connection:
        await connection.shutdown()
        assert guest.bodies(SHUTDOWN)[0]["ContainerId"] == NULL_ID


async def test_a_shutdown_succeeds_when_the_guest_ends_the_connection(guest: Guest) -> None:
    def hang_up(_: Any) -> None:
        guest.script.hang_up()

    guest.answers[SHUTDOWN] = hang_up
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=RESUMING, redial=redial) as connection:
            await connection.shutdown()
            assert connection.closed, "nobody waits for it to dial again"
            await connection.shutdown()


async def test_a_shutdown_that_is_refused_says_so(guest: Guest) -> None:
    guest.answers[SHUTDOWN] = lambda _: Refusal(HResult.E_ACCESSDENIED)
    async with connected(guest) as connection:
        with pytest.raises(GuestError):
            await connection.shutdown()


async def test_closing_ends_whatever_was_asked(guest: Guest) -> None:
    guest.answers[MODIFY] = lambda _: None

    async def ask(connection: GuestConnection) -> None:
        with pytest.raises(BridgeClosedError, match="enough"):
            await connection.modify({})

    async with connected(guest) as connection:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask, connection)
            await guest.until_asked(MODIFY, 3)
            connection.close(RuntimeError("enough"))
            connection.close()
        await connection.wait_closed()
        with pytest.raises(BridgeClosedError, match="enough"):
            await connection.modify({})


async def test_a_closed_connection_has_given_up_its_stream(guest: Guest) -> None:
    async with connected(guest) as connection:
        await connection.aclose()
        await connection.aclose()
        assert guest.script.stream.incoming.state == "ended"


async def test_a_connection_that_nobody_served_can_be_closed(guest: Guest) -> None:
    connection = GuestConnection(guest.listen, name="vm")
    await connection.aclose()
    with pytest.raises(BridgeClosedError):
        await connection.serve(guest.script.dial())


async def test_to_cancel_the_service_closes_the_connection(guest: Guest) -> None:
    connection = GuestConnection(guest.listen, name="vm")
    async with anyio.create_task_group() as tasks:
        stream = guest.script.dial()
        tasks.start_soon(guest.serve)
        await tasks.start(connection.serve, stream)
        tasks.cancel_scope.cancel()
    assert connection.closed
    await connection.wait_closed()


# A guest that dials again.


async def test_without_time_for_it_a_connection_that_broke_is_closed(guest: Guest) -> None:
    async with (
        anyio.create_task_group() as tasks,
        connected(guest, redial=Redial(guest, tasks)) as connection,
    ):
        guest.script.hang_up()
        await connection.wait_closed()
        with pytest.raises(BridgeClosedError, match="the guest has ended it"):
            await connection.modify({})


async def test_a_guest_that_dials_again_is_greeted_again_and_not_set_up_again(guest: Guest) -> None:
    guest.answers[MODIFY] = lambda _: {}
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=RESUMING, redial=redial) as connection:
            guest.script.hang_up()
            await redial.wait_for_host()
            async with anyio.create_task_group() as callers:
                callers.start_soon(connection.modify, {"RequestType": "Add"})
                await anyio.wait_all_tasks_blocked()
                redial.dial()
            assert [procedure for procedure, _ in guest.asked] == [NEGOTIATE, NEGOTIATE, MODIFY]


async def _never() -> MemoryStream:
    await anyio.sleep_forever()
    raise AssertionError("not reached")


async def test_a_guest_that_does_not_dial_again_in_time_is_gone(guest: Guest) -> None:
    timeouts = GuestTimeouts(redial_seconds=0.01)
    async with connected(guest, timeouts=timeouts, redial=_never) as connection:
        guest.script.hang_up()
        await connection.wait_closed()
        with pytest.raises(BridgeClosedError, match=r"did not dial again within 0\.01 s"):
            await connection.modify({})


async def test_a_guest_that_cannot_dial_again_is_gone(guest: Guest) -> None:
    async def redial() -> Any:
        raise ConnectionRefusedError("nobody is there")

    async with connected(guest, timeouts=RESUMING, redial=redial) as connection:
        guest.script.hang_up()
        await connection.wait_closed()
        with pytest.raises(BridgeClosedError, match="nobody is there"):
            await connection.modify({})


async def test_a_connection_is_closed_while_it_waits_for_the_guest(guest: Guest) -> None:
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=RESUMING, redial=redial) as connection:
            guest.script.hang_up()
            await redial.wait_for_host()
            await connection.aclose()


async def test_another_guest_that_dials_is_not_taken_for_the_old_one(guest: Guest) -> None:
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=RESUMING, redial=redial) as connection:
            guest.capabilities = WINDOWS
            guest.script.hang_up()
            await redial.wait_for_host()
            redial.dial()
            await connection.wait_closed()
            with pytest.raises(BridgeClosedError, match="dialled again as one that runs windows"):
                await connection.modify({})


async def test_a_guest_that_dials_again_and_again_and_never_greets_is_gone(guest: Guest) -> None:
    async def redial() -> MemoryStream:
        stream = guest.script.dial()
        guest.script.hang_up()
        await anyio.lowlevel.checkpoint()
        return stream

    timeouts = GuestTimeouts(redial_seconds=0.05)
    async with connected(guest, timeouts=timeouts, redial=redial) as connection:
        guest.script.hang_up()
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(BridgeClosedError, match="did not dial again within"):
            await connection.modify({})


@pytest.mark.parametrize(
    "anyio_backend", [("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})], ids=["trio"]
)
async def test_a_guest_that_comes_back_each_time_may_go_any_number_of_times(guest: Guest) -> None:
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=GuestTimeouts(redial_seconds=3), redial=redial) as connection:
            for _ in range(4):
                guest.script.hang_up()
                await redial.wait_for_host()
                await anyio.sleep(2)
                redial.dial()
                await connection.modify({})
                assert not connection.closed


async def test_a_cancelled_set_up_of_a_guest_waits_for_no_answer(guest: Guest) -> None:
    guest.capabilities = WINDOWS
    guest.answers[Procedure.CREATE] = lambda _: None
    async with connected(guest) as connection, anyio.create_task_group() as tasks:
        tasks.start_soon(connection.start_guest)
        await guest.until_asked(Procedure.CREATE)
        tasks.cancel_scope.cancel()
    assert tasks.cancel_scope.cancelled_caught
