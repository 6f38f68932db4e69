"""The bridge, in conversations with a guest: read them from the top."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import define, field

from tests.clocks import jumping_backends
from tests.gcs.support import (
    PATIENCE_SECONDS,
    MemoryStream,
    ScriptedGuest,
    no_greeting,
    open_calls,
    serving,
    unanswered_requests,
)
from uvm._gcs.bridge import Bridge
from uvm._gcs.calls import Call
from uvm._guest.clock import GuestClock
from uvm._wire.frames import HEADER_SIZE, Kind, Procedure, encode, parse
from uvm.errors import (
    AnswerLostError,
    BridgeClosedError,
    GuestError,
    OptionsError,
    UnknownOutcomeError,
    UVMError,
    VMStateError,
    WireError,
)
from uvm.hresult import HResult
from uvm.schema.gcs import (
    HOST_CONTAINER_ID,
    ContainerCreateRequest,
    ContainerNotification,
    DumpStacksResponse,
    ExecuteProcessRequest,
    ExecuteProcessSettings,
    RequestBase,
    ResponseBase,
    WaitForProcessRequest,
    WaitForProcessResponse,
)
from uvm.schema.json import dumps
from uvm.schema.secrets import scrub

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends

MODIFY = Procedure.MODIFY_SETTINGS
GUEST = RequestBase(container_id=HOST_CONTAINER_ID)


@define
class Caller:
    """A task that makes a call: what became of it, and the way to cancel it."""

    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    response: ResponseBase | None = None
    error: UVMError | None = None
    left: anyio.Event = field(factory=anyio.Event)

    async def call(self, bridge: Bridge, operation: str = "modify", **options: Any) -> None:
        """Make the call."""
        try:
            with self.scope:
                self.response = await bridge.call(MODIFY, GUEST, ResponseBase, operation=operation, **options)
        except UVMError as e:
            self.error = e
        finally:
            self.left.set()


# Answers.


async def test_a_call_gives_the_response_of_the_guest() -> None:
    guest = ScriptedGuest()
    async with serving(guest) as bridge, anyio.create_task_group() as tasks:

        async def dump() -> None:
            response = await bridge.call(
                Procedure.DUMP_STACKS, GUEST, DumpStacksResponse, operation="dump stacks"
            )
            stacks.append(response.guest_stacks)

        stacks: list[str] = []
        tasks.start_soon(dump)
        request = await guest.next()
        guest.respond(request, GuestStacks="goroutine 1 [running]")

    assert (request.procedure, parse(request.payload)["ContainerId"]) == (
        Procedure.DUMP_STACKS,
        HOST_CONTAINER_ID,
    )
    assert stacks == ["goroutine 1 [running]"]


async def test_calls_are_answered_in_any_order() -> None:
    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        calls = [bridge.submit(MODIFY, GUEST, operation=f"call {n}") for n in range(64)]
        requests = [await guest.next() for _ in calls]
        for request in reversed(requests):
            guest.respond(request, ActivityId=f"answer to {request.id}")
        for call in calls:
            await call.wait()

    assert [call.result(ResponseBase).activity_id for call in calls] == [f"answer to {n}" for n in range(64)]


async def test_a_refusal_is_a_guest_error_and_the_next_call_goes_on() -> None:
    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        refused, taken = (
            bridge.submit(MODIFY, GUEST, operation=name) for name in ("start nginx", "start redis")
        )
        guest.refuse(await guest.next(), HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND, "no such container")
        guest.respond(await guest.next())
        await taken.wait()

    with pytest.raises(
        GuestError,
        match=r"start nginx: the guest answered ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND.*: no such container",
    ):
        refused.result(ResponseBase)
    assert taken.result(ResponseBase).result == 0


async def test_what_the_guest_says_of_its_error_is_escaped_and_bounded() -> None:
    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        call = bridge.submit(MODIFY, GUEST, operation="modify")
        guest.refuse(await guest.next(), HResult.E_FAIL, "\x1b[2J\n\u202e" + "a" * 10_000)
        await call.wait()

    with pytest.raises(GuestError) as caught:
        call.result(ResponseBase)
    assert caught.value.text.startswith("\\x1b[2J\\n\\u202eaaa")
    assert caught.value.text.endswith("aaa... (10,006 characters)")
    assert len(caught.value.text) < 2100


async def test_an_answer_that_cannot_be_read_is_an_unknown_outcome_of_that_call_only() -> None:
    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        call = bridge.submit(MODIFY, GUEST, operation="modify")
        guest.respond(await guest.next(), Result="fine")
        await call.wait()

        with pytest.raises(
            UnknownOutcomeError,
            match=r"modify: .* cannot be read: ResponseBase.Result: Expected `int`, got `str`$",
        ):
            call.result(ResponseBase)
        assert not bridge.closed


async def test_a_request_that_json_has_no_form_for_is_refused_before_anything_is_sent() -> None:
    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        for request in ({"Size": math.nan}, {"Settings": object()}):
            with pytest.raises(OptionsError, match="modify: the request cannot be written as JSON"):
                bridge.submit(MODIFY, request, operation="modify")

        assert (open_calls(bridge), unanswered_requests(bridge)) == (0, 0)


async def test_a_request_says_what_held_when_it_was_submitted() -> None:
    guest = ScriptedGuest()
    settings = {"Lun": 1}
    async with serving(guest) as bridge:
        bridge.submit(MODIFY, {"Settings": settings}, operation="modify")
        settings["Lun"] = 2

        assert parse((await guest.next()).payload) == {"Settings": {"Lun": 1}}


async def test_a_call_tells_its_end_once() -> None:
    guest = ScriptedGuest()
    ended: list[Call] = []
    async with serving(guest) as bridge:
        call = bridge.submit(MODIFY, GUEST, operation="modify", then=ended.append)
        guest.respond(await guest.next())
        await call.wait()
        call.abandon()
        bridge.close()

    assert ended == [call]


async def test_an_end_that_cannot_be_told_hurts_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Call) -> None:
        raise LookupError("nobody here")

    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        first = bridge.submit(MODIFY, GUEST, operation="first", then=fail)
        second = bridge.submit(MODIFY, GUEST, operation="second")
        for _ in range(2):
            guest.respond(await guest.next())
        await second.wait()

        assert first.done
        assert not bridge.closed
    assert "first: the function to be called at the end failed" in caplog.text


# Notifications.


async def test_notifications_come_in_order_between_the_answers() -> None:
    guest = ScriptedGuest()
    told: list[str] = []

    def notify(notification: ContainerNotification) -> None:
        told.append(f"{notification.container_id} {notification.type}")

    async with serving(guest, notify=notify) as bridge:
        call = bridge.submit(MODIFY, GUEST, operation="modify", then=lambda _: told.append("answered"))
        request = await guest.next()
        guest.notify("nginx")
        guest.respond(request)
        guest.notify("redis", Type="UnexpectedExit")
        last = bridge.submit(MODIFY, GUEST, operation="modify")
        guest.respond(await guest.next())
        await call.wait()
        await last.wait()

    assert told == ["nginx GracefulExit", "answered", "redis UnexpectedExit"]


@pytest.mark.parametrize("error", [WireError, OSError, anyio.ClosedResourceError])
async def test_whoever_refuses_a_notification_closes_the_bridge(error: type[Exception]) -> None:
    def refuse(notification: ContainerNotification) -> None:
        raise error(f"{notification.container_id} is no container")

    guest = ScriptedGuest()
    bridge = Bridge("vm", notify=refuse)
    stream = guest.dial()
    guest.notify("ghost")

    cause = await bridge.run(stream, no_greeting)

    assert str(cause) == "ghost is no container"
    assert str(bridge.error) == "vm: the connection to the guest is closed: ghost is no container"


# The greeting.


async def test_before_the_greeting_is_done_only_its_own_calls_go_out() -> None:
    guest = ScriptedGuest()
    bridge = Bridge("vm", notify=lambda _: None)
    early = bridge.submit(MODIFY, GUEST, operation="early")

    async def negotiate() -> None:
        assert not bridge.connected
        await bridge.call(
            Procedure.NEGOTIATE_PROTOCOL, GUEST, ResponseBase, operation="negotiate", urgent=True
        )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bridge.run, guest.dial(), negotiate)
        greeting = await guest.next()
        assert greeting.procedure == Procedure.NEGOTIATE_PROTOCOL
        assert not early.sent
        guest.respond(greeting)
        guest.respond(await guest.next())
        await early.wait()
        assert bridge.connected
        bridge.close()

    assert early.result(ResponseBase).result == 0


async def test_a_greeting_that_fails_closes_the_bridge() -> None:
    async def negotiate() -> None:
        raise OptionsError("the guest speaks version 3")

    stream = ScriptedGuest().dial()
    bridge = Bridge("vm", notify=lambda _: None)
    call = bridge.submit(MODIFY, GUEST, operation="modify")

    cause = await bridge.run(stream, negotiate)

    assert isinstance(cause, OptionsError)
    assert bridge.closed
    assert stream.closed
    assert (type(call.error), call.error and call.error.__cause__) == (BridgeClosedError, cause)


# A guest that breaks the protocol.


def misbehaviours() -> dict[str, Callable[[ScriptedGuest, int], bytes]]:
    """What closes the bridge when a guest sends it, given the id of the last request, an answered one."""
    answer = {"Result": 0}
    return {
        "an answer to nobody": lambda _, last: encode(Kind.RESPONSE, MODIFY, last + 7, answer),
        "a second answer": lambda _, last: encode(Kind.RESPONSE, MODIFY, last, answer),
        "an answer as another procedure": lambda _, last: encode(
            Kind.RESPONSE, Procedure.CREATE, last - 1, answer
        ),
        "a request": lambda _, last: encode(Kind.REQUEST, MODIFY, last, answer),
        "an unknown notification": lambda *_: encode(Kind.NOTIFICATION, Procedure.START, 0, answer),
        "a notification of a wrong type": lambda *_: encode(
            Kind.NOTIFICATION, 0x00100101, 0, {"ContainerId": 4}
        ),
        "no JSON": lambda _, last: encode(Kind.RESPONSE, MODIFY, last - 1, {"a": 1})[:-1] + b"?",
        "no message": lambda *_: b"HTTP/1.1 400 Bad Request\r\n",
        "too large a message": lambda *_: encode(
            Kind.NOTIFICATION, 0x00100101, 0, {"ContainerId": "a" * 70_000}
        ),
    }


@pytest.mark.parametrize("misbehaviour", misbehaviours())
async def test_a_guest_that_breaks_the_protocol_closes_the_bridge_for_all(misbehaviour: str) -> None:
    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        waiting = [bridge.submit(MODIFY, GUEST, operation=f"call {n}") for n in range(3)]
        requests = [await guest.next() for _ in waiting]
        guest.respond(requests[-1])
        guest.send(misbehaviours()[misbehaviour](guest, requests[-1].id))
        for call in waiting:
            await call.wait()

        assert waiting[-1].error is None
        lost = [call.error for call in waiting[:-1]]
        assert [type(error) for error in lost] == [AnswerLostError] * 2
        assert len({str(error) for error in lost}) == 1
        assert all(isinstance(error and error.__cause__, WireError) for error in lost)
        assert lost[0] is not lost[1]
        assert bridge.closed
    assert (open_calls(bridge), guest.stream.incoming.state) == (0, "ended")


async def test_an_answer_to_a_request_that_was_not_sent_yet_breaks_the_protocol() -> None:
    guest = ScriptedGuest()
    bridge = Bridge("vm", notify=lambda _: None)
    call = bridge.submit(MODIFY, GUEST, operation="modify")
    stream = guest.dial()
    guest.send(encode(Kind.RESPONSE, MODIFY, 0, {"Result": 0}))

    cause = await bridge.run(stream, anyio.sleep_forever)

    assert str(cause) == "modify settings was answered before it was sent"
    assert type(call.error) is BridgeClosedError


async def test_what_came_before_the_broken_message_counts() -> None:
    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        call = bridge.submit(MODIFY, GUEST, operation="modify")
        request = await guest.next()
        guest.send(encode(Kind.RESPONSE, MODIFY, request.id, {"Result": 0}) + b"\xff" * HEADER_SIZE)
        await call.wait()

        assert call.result(ResponseBase).result == 0


async def test_a_guest_that_owes_too_many_answers_is_asked_nothing_but_ends_and_keeps_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("uvm._gcs.bridge._MAX_UNWANTED", 3)
    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        owed = []
        for _ in range(3):
            call = bridge.submit(MODIFY, GUEST, operation="modify")
            owed.append(await guest.next())
            call.abandon()
        with pytest.raises(VMStateError, match="disk 3: the guest of vm owes 3 answers"):
            await bridge.call(MODIFY, GUEST, ResponseBase, operation="add disk 3")

        async with anyio.create_task_group() as tasks:
            kill = partial(bridge.call, Procedure.SIGNAL_PROCESS, GUEST, ResponseBase, operation="kill")
            tasks.start_soon(kill)
            guest.respond(await guest.next())
        guest.respond(owed[0])
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as tasks:
            caller = Caller()
            tasks.start_soon(caller.call, bridge)
            guest.respond(await guest.next())
        assert caller.response is not None
        assert not bridge.closed


class OddStream(MemoryStream):
    """A stream that raises what no stream should."""

    def __init__(self, host: MemoryStream, fails: str) -> None:
        super().__init__(host.incoming, host.outgoing)
        self.fails = fails

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if self.fails == "receive":
            raise ZeroDivisionError(self.fails)
        return await super().receive(max_bytes)

    async def send(self, item: bytes) -> None:
        if self.fails == "send":
            raise ZeroDivisionError(self.fails)
        await super().send(item)

    async def aclose(self) -> None:
        await super().aclose()
        if self.fails == "aclose":
            raise ZeroDivisionError(self.fails)


@pytest.mark.parametrize("fails", ["receive", "send", "aclose"])
async def test_whatever_a_stream_raises_ends_the_connection_and_not_its_owner(fails: str) -> None:
    guest = ScriptedGuest()
    bridge = Bridge("vm", notify=lambda _: None)
    call = bridge.submit(MODIFY, GUEST, operation="modify")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bridge.run, OddStream(guest.dial(), fails), no_greeting)
        if fails == "aclose":
            guest.respond(await guest.next())
            await call.wait()
            bridge.close()
        await call.wait()

    assert bridge.closed
    assert fails == "aclose" or isinstance(call.error, BridgeClosedError)


# Deadlines. One passes as soon as nothing else can happen.


class TestDeadlines:
    """Limits of calls."""

    async def test_a_silent_guest_is_given_up(self) -> None:
        async with serving(ScriptedGuest(), rpc_timeout_seconds=0.01) as bridge:
            with pytest.raises(AnswerLostError) as caught:
                await bridge.call(MODIFY, GUEST, ResponseBase, operation="add disk 3")

            assert str(caught.value.__cause__) == "the guest has answered nothing for 0.01 s"
            assert bridge.closed

    async def test_a_guest_is_asked_for_a_sign_before_it_is_given_up_and_any_answer_is_one(self) -> None:
        guest = ScriptedGuest()
        async with serving(guest, rpc_timeout_seconds=1) as bridge, anyio.create_task_group() as tasks:
            caller = Caller()
            tasks.start_soon(caller.call, bridge)
            await guest.next()
            begin = anyio.current_time()
            for n in range(1, 6):
                sign = await guest.next()
                assert sign.procedure == Procedure.GET_PROPERTIES
                assert parse(sign.payload)["ContainerId"] == HOST_CONTAINER_ID
                assert anyio.current_time() - begin == pytest.approx(0.5 * n)
                guest.refuse(sign, HResult.E_FAIL, "getPropertiesV2 is not supported against the UVM")
            await caller.left.wait()

            assert str(caller.error) == "modify: no answer within 1 s"
            assert type(caller.error) is UnknownOutcomeError
            assert not bridge.closed

    async def test_a_guest_that_sends_anything_at_all_is_not_silent(self) -> None:
        guest = ScriptedGuest()
        async with serving(guest, rpc_timeout_seconds=1) as bridge:
            owed = bridge.submit(MODIFY, GUEST, operation="owed", timeout_seconds=0.1)
            await guest.next()
            for _ in range(20):
                await anyio.sleep(0.4)
                guest.notify("nginx")
            assert isinstance(owed.error, UnknownOutcomeError)
            assert not bridge.closed
            assert not guest.read(), "it is asked for no sign"

    async def test_a_guest_that_owes_an_answer_to_nobody_is_given_up_once_it_is_silent(self) -> None:
        guest = ScriptedGuest()
        async with serving(guest, rpc_timeout_seconds=1) as bridge:
            owed = bridge.submit(MODIFY, GUEST, operation="owed")
            await guest.next()
            owed.abandon()
            idle = bridge.submit(MODIFY, GUEST, operation="wait", timeout_seconds=math.inf)
            begin = anyio.current_time()
            await idle.wait()
            assert isinstance(idle.error, AnswerLostError)
            assert anyio.current_time() - begin == pytest.approx(1)

    async def test_nobody_is_given_up_where_only_waits_without_a_limit_are_open(self) -> None:
        guest = ScriptedGuest()
        async with serving(guest, rpc_timeout_seconds=1) as bridge:
            wait = bridge.submit(MODIFY, GUEST, operation="wait", timeout_seconds=math.inf)
            abandoned = bridge.submit(MODIFY, GUEST, operation="wait", timeout_seconds=math.inf)
            for _ in range(2):
                await guest.next()
            abandoned.abandon()
            await anyio.sleep(5)
            assert not wait.done
            assert not bridge.closed
            assert not guest.read(), "it is asked for no sign"

    async def test_silence_counts_from_when_an_answer_is_due(self) -> None:
        guest = ScriptedGuest()
        async with serving(guest, rpc_timeout_seconds=1) as bridge:
            for _ in range(3):
                await anyio.sleep(5)
                call = bridge.submit(MODIFY, GUEST, operation="modify")
                request = await guest.next()
                await anyio.sleep(0.4)
                guest.respond(request)
                await call.wait()
                assert call.error is None

    async def test_a_paused_guest_is_not_silent(self) -> None:
        guest, clock = ScriptedGuest(), GuestClock()
        async with serving(guest, rpc_timeout_seconds=1, clock=clock) as bridge:
            call = bridge.submit(MODIFY, GUEST, operation="modify")
            request = await guest.next()
            clock.pause()
            await anyio.sleep(5)
            assert not call.done
            clock.resume()
            await anyio.sleep(0.4)
            guest.respond(request)
            await call.wait()
            assert call.error is None

    async def test_a_later_call_may_have_an_earlier_deadline(self) -> None:
        async with serving(ScriptedGuest()) as bridge:
            slow = bridge.submit(MODIFY, GUEST, operation="slow", timeout_seconds=1000)
            endless = bridge.submit(MODIFY, GUEST, operation="endless", timeout_seconds=math.inf)
            with pytest.raises(UnknownOutcomeError, match=r"quick: no answer within 0\.01 s"):
                await bridge.call(MODIFY, GUEST, ResponseBase, operation="quick", timeout_seconds=0.01)
            assert not slow.done
            assert not endless.done

    async def test_a_call_that_was_answered_or_abandoned_has_no_deadline_any_more(self) -> None:
        guest = ScriptedGuest()
        async with serving(guest) as bridge:
            answered = bridge.submit(MODIFY, GUEST, operation="answered", timeout_seconds=0.01)
            guest.respond(await guest.next())
            await answered.wait()
            abandoned = bridge.submit(MODIFY, GUEST, operation="abandoned", timeout_seconds=0.01)
            await guest.next()
            abandoned.abandon()
            with pytest.raises(UnknownOutcomeError, match="last: no answer"):
                await bridge.call(MODIFY, GUEST, ResponseBase, operation="last", timeout_seconds=0.02)
            assert answered.error is None

    async def test_the_time_counts_from_when_the_request_is_sent(self) -> None:
        guest = ScriptedGuest()
        bridge = Bridge("vm", notify=lambda _: None, rpc_timeout_seconds=0.01)
        queued = bridge.submit(MODIFY, GUEST, operation="queued")

        async def take_long() -> None:
            await anyio.sleep(0.02)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bridge.run, guest.dial(), take_long)
            guest.respond(await guest.next())
            await queued.wait()
            bridge.close()

        assert queued.result(ResponseBase).result == 0

    async def test_a_guest_that_takes_no_bytes_is_given_up_also_where_it_answers_unread_requests(
        self,
    ) -> None:
        guest = ScriptedGuest(capacity=64)
        async with serving(guest, rpc_timeout_seconds=0.01) as bridge:
            sent = bridge.submit(MODIFY, GUEST, operation="sent")
            while not sent.sent:
                await anyio.lowlevel.checkpoint()
            guest.send(encode(Kind.RESPONSE, MODIFY, sent.id, {"Result": 0}))
            await sent.wait()
            with pytest.raises(BridgeClosedError, match=r"taken no bytes for 0\.01 s"):
                await bridge.call(MODIFY, GUEST, ResponseBase, operation="behind it")

    async def test_an_answer_that_was_lost_has_no_deadline_to_miss(self) -> None:
        guest = ScriptedGuest()
        bridge = Bridge("vm", notify=lambda _: None, rpc_timeout_seconds=0.01)
        lost = bridge.submit(MODIFY, GUEST, operation="lost")

        async def take_long() -> None:
            await anyio.sleep(0.02)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bridge.run, guest.dial(), no_greeting)
            await guest.next()
            guest.hang_up()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bridge.run, guest.dial(), take_long)
            await lost.wait()
            assert not bridge.closed
            bridge.close()

        assert type(lost.error) is UnknownOutcomeError


# Cancellation.


async def test_a_cancelled_caller_withdraws_a_request_that_was_not_sent() -> None:
    bridge = Bridge("vm", notify=lambda _: None)
    caller = Caller()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller.call, bridge)
        await anyio.wait_all_tasks_blocked()
        assert open_calls(bridge) == 1
        caller.scope.cancel()
    assert (open_calls(bridge), unanswered_requests(bridge)) == (0, 0)

    guest = ScriptedGuest()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bridge.run, guest.dial(), no_greeting)
        bridge.submit(MODIFY, {"this": "is the first"}, operation="modify")
        assert parse((await guest.next()).payload) == {"this": "is the first"}
        bridge.close()


async def test_a_cancelled_caller_leaves_at_once_and_the_late_answer_is_dropped() -> None:
    guest = ScriptedGuest()
    async with serving(guest) as bridge, anyio.create_task_group() as tasks:
        caller = Caller()
        tasks.start_soon(caller.call, bridge)
        request = await guest.next()
        caller.scope.cancel()
        await caller.left.wait()
        assert (open_calls(bridge), unanswered_requests(bridge)) == (0, 1)

        guest.respond(request)
        following = bridge.submit(MODIFY, GUEST, operation="modify")
        guest.respond(await guest.next())
        await following.wait()

        assert following.error is None
        assert unanswered_requests(bridge) == 0


class TestLate:
    """The answer to a call that starts something comes late."""

    @pytest.mark.parametrize("how", ["abandoned", "not answered in time"])
    async def test_it_ends_the_late_call(self, how: str) -> None:
        guest = ScriptedGuest()
        async with serving(guest) as bridge:
            call = bridge.submit(MODIFY, GUEST, operation="start", timeout_seconds=1, starts=True)
            request = await guest.next()
            if how == "abandoned":
                call.abandon()
            await call.wait()
            late = call.late
            assert late is not None
            assert isinstance(call.error, UnknownOutcomeError)
            await anyio.sleep(5)
            assert not late.done, "it is owed without a limit"
            guest.respond(request, ActivityId="late")
            await late.wait()

            assert late.result(ResponseBase).activity_id == "late"
            assert isinstance(call.error, UnknownOutcomeError)
            assert (open_calls(bridge), unanswered_requests(bridge)) == (0, 0)

    async def test_what_was_not_sent_has_none(self) -> None:
        bridge = Bridge("vm", notify=lambda _: None)
        call = bridge.submit(MODIFY, GUEST, operation="start", starts=True)
        call.abandon()

        assert call.late is None
        assert (open_calls(bridge), unanswered_requests(bridge)) == (0, 0)

    async def test_it_is_lost_with_the_connection(self) -> None:
        guest = ScriptedGuest()
        async with serving(guest) as bridge:
            call = bridge.submit(MODIFY, GUEST, operation="start", starts=True)
            await guest.next()
            call.abandon()
        assert call.late is not None
        assert isinstance(call.late.error, AnswerLostError)
        assert open_calls(bridge) == 0

    async def test_over_another_stream_it_is_waited_for_no_longer_than_for_a_call(self) -> None:
        async with resumable() as (guest, bridge, drop_and_redial):
            calls = [
                bridge.submit(MODIFY, GUEST, operation="start", timeout_seconds=10, starts=True)
                for _ in range(3)
            ]
            requests = [await guest.next() for _ in calls]
            calls[0].abandon()
            await drop_and_redial()
            assert [type(call.error) for call in calls] == [UnknownOutcomeError] * 3
            late = [call.late for call in calls if call.late is not None]
            guest.respond(requests[0])
            guest.respond(requests[1])
            for each in late:
                await each.wait()

            assert [each.error is None for each in late] == [True, True, False]
            assert str(late[2].error) == "start: no answer within 10 s"
            assert open_calls(bridge) == 0


async def test_a_cancelled_caller_leaves_no_half_request_behind() -> None:
    """The stream takes a few bytes at a time, and callers go while their requests are on the way."""
    guest = ScriptedGuest(capacity=5)
    async with serving(guest) as bridge, anyio.create_task_group() as tasks:
        callers = [Caller() for _ in range(5)]
        for caller in callers:
            tasks.start_soon(caller.call, bridge)
        await anyio.wait_all_tasks_blocked()
        assert guest.stream.incoming.data
        for caller in callers:
            caller.scope.cancel()
        for caller in callers:
            await caller.left.wait()
        last = bridge.submit(MODIFY, {"Last": True}, operation="modify")

        while parse((request := await guest.next()).payload) != {"Last": True}:
            pass
        guest.respond(request)
        await last.wait()

        assert last.error is None


async def test_an_abandoned_call_ends_and_says_so() -> None:
    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        sent = bridge.submit(MODIFY, GUEST, operation="modify")
        await guest.next()
        sent.abandon()
        unsent = bridge.submit(MODIFY, GUEST, operation="modify")
        unsent.abandon()

    with pytest.raises(UnknownOutcomeError, match="modify: abandoned before the answer came"):
        sent.result(ResponseBase)
    with pytest.raises(UVMError, match="modify: withdrawn before it was sent"):
        unsent.result(ResponseBase)


# Close.


async def test_the_close_ends_all_calls_and_says_which_had_been_sent() -> None:
    cause = OptionsError("the VM was terminated")
    guest = ScriptedGuest()
    bridge = Bridge("vm", notify=lambda _: None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bridge.run, guest.dial(), no_greeting)
        sent = bridge.submit(MODIFY, GUEST, operation="sent")
        await guest.next()
        unsent = bridge.submit(MODIFY, GUEST, operation="unsent")
        bridge.close(cause)
        bridge.close(OptionsError("a second cause changes nothing"))

    with pytest.raises(AnswerLostError) as lost:
        sent.result(ResponseBase)
    with pytest.raises(BridgeClosedError) as closed:
        unsent.result(ResponseBase)
    assert not isinstance(closed.value, UnknownOutcomeError)
    assert (
        str(lost.value)
        == str(closed.value)
        == "vm: the connection to the guest is closed: the VM was terminated"
    )
    assert lost.value.__cause__ is closed.value.__cause__ is cause


async def test_a_closed_bridge_refuses_calls_each_with_a_fresh_exception() -> None:
    bridge = Bridge("vm", notify=lambda _: None)
    bridge.close()

    with pytest.raises(BridgeClosedError, match=r"^vm: the connection to the guest is closed$") as first:
        bridge.submit(MODIFY, GUEST, operation="modify")
    with pytest.raises(BridgeClosedError) as second:
        await bridge.call(MODIFY, GUEST, ResponseBase, operation="modify")
    assert first.value is not second.value


async def test_a_closed_bridge_serves_no_stream() -> None:
    bridge = Bridge("vm", notify=lambda _: None)
    bridge.close()
    stream = ScriptedGuest().dial()

    assert isinstance(await bridge.run(stream, no_greeting), BridgeClosedError)
    assert stream.closed


@pytest.mark.parametrize("when", ["before it begins", "while it greets", "while it is connected"])
async def test_cancelling_the_service_of_a_stream_closes_the_bridge(when: str) -> None:
    guest = ScriptedGuest()
    stream = guest.dial()
    bridge = Bridge("vm", notify=lambda _: None)
    call = bridge.submit(MODIFY, GUEST, operation="modify")

    async def negotiate() -> None:
        if when == "while it greets":
            await bridge.call(
                Procedure.NEGOTIATE_PROTOCOL, GUEST, ResponseBase, operation="negotiate", urgent=True
            )

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            if when == "before it begins":
                tasks.cancel_scope.cancel()
            tasks.start_soon(bridge.run, stream, negotiate)
            if when != "before it begins":
                await guest.next()
            tasks.cancel_scope.cancel()

    assert bridge.closed
    assert stream.closed
    assert isinstance(call.error, BridgeClosedError)


async def test_a_bridge_serves_one_stream_at_a_time() -> None:
    async with serving(ScriptedGuest()) as bridge:
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="serves a stream already"):
            await bridge.run(ScriptedGuest().dial(), no_greeting)


# Drops and resumes.


async def drop(guest: ScriptedGuest, how: str) -> None:
    """End a stream from the guest's side."""
    match how:
        case "closed":
            guest.hang_up()
        case "cut":
            guest.stream.cut()
        case "in the middle of a message":
            guest.send(encode(Kind.RESPONSE, MODIFY, 0, {})[:-1])
            guest.hang_up()


@pytest.mark.parametrize(
    ("how", "cause"),
    [("closed", None), ("cut", anyio.BrokenResourceError), ("in the middle of a message", WireError)],
)
async def test_a_stream_that_ends_leaves_the_bridge_open_for_its_owner_to_decide(
    how: str, cause: type[Exception] | None
) -> None:
    guest = ScriptedGuest()
    stream = guest.dial()
    bridge = Bridge("vm", notify=lambda _: None)
    await drop(guest, how)

    ended = await bridge.run(stream, no_greeting)

    assert ended is None if cause is None else isinstance(ended, cause)
    assert (bridge.closed, bridge.connected, stream.closed) == (False, False, True)


async def test_a_greeting_whose_stream_ends_is_cancelled_and_closes_nothing() -> None:
    guest = ScriptedGuest()
    bridge = Bridge("vm", notify=lambda _: None)

    async def negotiate() -> None:
        await bridge.call(
            Procedure.NEGOTIATE_PROTOCOL, GUEST, ResponseBase, operation="negotiate", urgent=True
        )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bridge.run, guest.dial(), negotiate)
        await guest.next()
        guest.hang_up()

    assert not bridge.closed
    assert open_calls(bridge) == 0


class TestResume:
    """A guest that dials again."""

    async def test_calls_that_were_not_sent_go_out_on_the_next_stream(self) -> None:
        async with resumable() as (guest, bridge, drop_and_redial):
            guest.hang_up()
            await anyio.wait_all_tasks_blocked()
            call = bridge.submit(MODIFY, {"Asked": "while down"}, operation="modify")
            await drop_and_redial()
            request = await guest.next()
            guest.respond(request)
            await call.wait()

            assert parse(request.payload) == {"Asked": "while down"}
            assert call.error is None

    async def test_a_call_whose_answer_was_lost_ends_with_an_unknown_outcome(self) -> None:
        async with resumable() as (guest, bridge, drop_and_redial):
            call = bridge.submit(MODIFY, GUEST, operation="add disk 3")
            request = await guest.next()
            await drop_and_redial()
            await call.wait()
            with pytest.raises(
                UnknownOutcomeError, match="add disk 3: the connection to the guest broke before"
            ):
                call.result(ResponseBase)

            # A late answer is dropped, and does no harm.
            guest.respond(request)
            following = bridge.submit(MODIFY, GUEST, operation="modify")
            guest.respond(await guest.next())
            await following.wait()
            assert following.error is None

    async def test_a_wait_for_a_process_goes_on_and_takes_the_late_answer(self) -> None:
        async with resumable() as (guest, bridge, drop_and_redial):
            call = bridge.submit(
                Procedure.WAIT_FOR_PROCESS,
                WaitForProcessRequest(container_id=HOST_CONTAINER_ID, process_id=7),
                operation="wait for process 7",
                timeout_seconds=math.inf,
                survives=True,
            )
            request = await guest.next()
            await drop_and_redial()
            assert not call.done
            guest.respond(request, ExitCode=3)
            await call.wait()

            assert call.result(WaitForProcessResponse).exit_code == 3

    async def test_an_answer_that_comes_during_the_greeting_is_not_lost(self) -> None:
        guest = ScriptedGuest()
        bridge = Bridge("vm", notify=lambda _: None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bridge.run, guest.dial(), no_greeting)
            call = bridge.submit(MODIFY, GUEST, operation="modify")
            request = await guest.next()
            guest.hang_up()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bridge.run, guest.dial(), call.wait)
            guest.respond(request)
            await call.wait()
            bridge.close()

        assert call.result(ResponseBase).result == 0

    async def test_those_who_asked_are_told_of_a_resume_once_what_was_lost_has_ended(self) -> None:
        seen: list[bool] = []
        async with resumable() as (guest, bridge, drop_and_redial):
            call = bridge.submit(MODIFY, GUEST, operation="modify")
            await guest.next()
            bridge.on_resume["seen"] = lambda: seen.append(call.done and bridge.connected)
            await drop_and_redial()

        assert seen == [True]


@asynccontextmanager
async def resumable() -> AsyncIterator[tuple[ScriptedGuest, Bridge, Callable[[], Awaitable[None]]]]:
    """A connected bridge, its guest, and what drops the stream and goes on with another."""
    guest = ScriptedGuest()
    bridge = Bridge("vm", notify=lambda _: None)

    async def serve() -> None:
        tasks.start_soon(bridge.run, guest.dial(), no_greeting)
        await anyio.wait_all_tasks_blocked()
        assert bridge.connected

    async def drop_and_redial() -> None:
        guest.hang_up()
        await anyio.wait_all_tasks_blocked()
        assert not bridge.connected
        await serve()

    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            await serve()
            yield guest, bridge, drop_and_redial
            bridge.close()


# Tracing.


async def test_messages_are_traced_without_the_secrets_in_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="uvm.gcs")
    specification = {"OciSpecification": {"process": {"args": ["nginx"], "env": ["TOKEN=hunter2"]}}}
    parameters = {"CommandLine": "env", "Environment": {"TOKEN": "hunter2"}}
    requests = {
        Procedure.CREATE: ContainerCreateRequest(container_id="nginx", container_config=dumps(specification)),
        Procedure.EXECUTE_PROCESS: ExecuteProcessRequest(
            container_id="nginx", settings=ExecuteProcessSettings(process_parameters=dumps(parameters))
        ),
        MODIFY: {"Request": {"Settings": {"EncodedSecurityPolicy": "hunter2", "PolicyType": "rego"}}},
    }
    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        for procedure, body in requests.items():
            call = bridge.submit(procedure, body, operation="trace")
            request = await guest.next()
            assert b"hunter2" in request.payload
            guest.respond(request, ActivityId="traced")
            await call.wait()

    sent, *_ = [each.getMessage() for each in caplog.records]
    assert sent.startswith("vm: -> 0 create, ")
    assert f" {HEADER_SIZE + len(dumps(requests[Procedure.CREATE]))} bytes: " in sent
    assert r"\"args\":[\"nginx\"]" in sent
    assert "vm: <- 2 modify settings: " in caplog.text
    assert '"PolicyType":"rego"' in caplog.text
    assert caplog.text.count("(hidden)") == 3
    assert "hunter2" not in caplog.text


async def test_what_the_guest_says_is_traced_escaped_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="uvm.gcs")
    guest = ScriptedGuest()
    async with serving(guest) as bridge:
        call = bridge.submit(MODIFY, GUEST, operation="modify")
        records = [{"Message": "\x1b[2J\x7f" + "a" * 10_000}]
        guest.refuse(await guest.next(), HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND, "", ErrorRecords=records)
        await call.wait()
        with pytest.raises(GuestError):
            call.result(ResponseBase)

    _, received, with_error, _ = caplog.messages
    assert "modify: ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND: error records" in with_error
    for message in (received, with_error):
        assert message.isprintable()
        assert "\\u001b[2J\\x7faaa" in message
        assert len(message) < 2200


@pytest.mark.parametrize("config", ["{", "[" * 100_000, '"text"', ""])
def test_a_document_that_cannot_be_read_is_hidden_whole(config: str) -> None:
    assert scrub({"ContainerConfig": config}) == {"ContainerConfig": "(hidden)" if config else ""}


def test_what_nests_too_deeply_is_hidden() -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]

    assert "(hidden)" in dumps(scrub(deep))
