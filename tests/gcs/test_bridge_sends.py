"""What a bridge sends at once, on a stream that need not wait, and what it leaves to its writer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from attrs import Factory, define
from hypothesis import given
from hypothesis import strategies as st

from tests.clocks import jumping_backends
from tests.gcs.support import EagerStream, ScriptedGuest, no_greeting, serving
from uvm._gcs.bridge import Bridge
from uvm._gcs.calls import Call
from uvm._wire.frames import Procedure, parse
from uvm.errors import UnknownOutcomeError, UVMError
from uvm.schema.gcs import HOST_CONTAINER_ID, RequestBase, ResponseBase

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends

MODIFY = Procedure.MODIFY_SETTINGS
GUEST = RequestBase(container_id=HOST_CONTAINER_ID)


async def settle() -> None:
    """Let the others run until nothing more happens by itself."""
    for _ in range(12):
        await anyio.lowlevel.checkpoint()


def eager_guest(capacity: int = 65536) -> ScriptedGuest:
    """Return a guest whose streams take what fits without waiting."""
    return ScriptedGuest(capacity, EagerStream)


def taken_by(bridge: Bridge) -> list[int]:
    """Return how much the stream took at once, each time."""
    assert isinstance(bridge._stream, EagerStream)
    return bridge._stream.taken


async def until_connected(bridge: Bridge) -> None:
    """Wait until the greeting is done."""
    while not bridge.connected:
        await anyio.lowlevel.checkpoint()
    await settle()


async def test_what_few_ask_is_sent_in_the_turn_in_which_they_ask_it() -> None:
    guest = eager_guest()
    async with serving(guest) as bridge:
        await until_connected(bridge)
        for _ in range(2):
            bridge.submit(MODIFY, GUEST, operation="modify")
        assert len(guest.read()) == 2


async def test_a_request_is_sent_before_the_caller_waits_where_no_answer_is_due() -> None:
    guest = eager_guest()
    async with serving(guest) as bridge:
        await until_connected(bridge)
        for _ in range(3):
            call = bridge.submit(MODIFY, GUEST, operation="modify")
            (request,) = guest.read()
            guest.respond(request)
            await call.wait()
        assert len(taken_by(bridge)) == 3


async def test_what_many_ask_at_once_goes_out_together() -> None:
    guest = eager_guest()
    async with serving(guest) as bridge:
        await until_connected(bridge)
        for _ in range(64):
            bridge.submit(MODIFY, GUEST, operation="modify")
        by_themselves = len(guest.read())
        assert by_themselves == len(taken_by(bridge)) < 10
        await settle()
        # The writer sent the others: none of them went out by itself.
        assert len(taken_by(bridge)) == by_themselves
        assert len(guest.read()) == 64 - by_themselves


async def test_a_call_without_a_limit_keeps_none_from_being_sent_at_once() -> None:
    guest = eager_guest()
    async with serving(guest) as bridge:
        await until_connected(bridge)
        bridge.submit(Procedure.WAIT_FOR_PROCESS, GUEST, operation="wait", timeout_seconds=float("inf"))
        bridge.submit(MODIFY, GUEST, operation="modify")
        assert len(guest.read()) == 2


async def test_what_the_stream_does_not_take_at_once_the_writer_sends() -> None:
    guest = eager_guest(capacity=20)
    async with serving(guest) as bridge:
        await until_connected(bridge)
        first = bridge.submit(MODIFY, {"Text": "a" * 100}, operation="first")
        second = bridge.submit(MODIFY, {"Text": "b" * 100}, operation="second")
        assert taken_by(bridge) == [20]
        bodies = [parse((await guest.next()).payload) for _ in (first, second)]
        assert bodies == [{"Text": "a" * 100}, {"Text": "b" * 100}]


async def test_a_guest_that_takes_only_a_part_at_once_has_the_limit_for_the_rest() -> None:
    guest = eager_guest(capacity=20)
    async with serving(guest, rpc_timeout_seconds=5.0) as bridge:
        await until_connected(bridge)
        call = bridge.submit(MODIFY, {"Text": "a" * 100}, operation="modify", timeout_seconds=float("inf"))
        await call.wait()
        assert str(bridge.error).endswith("the guest has taken no bytes for 5 s")
    assert isinstance(call.error, UnknownOutcomeError)


async def test_a_guest_that_took_all_at_once_may_be_idle_for_longer_than_that() -> None:
    guest = eager_guest()
    async with serving(guest, rpc_timeout_seconds=5.0) as bridge:
        await until_connected(bridge)
        bridge.submit(MODIFY, GUEST, operation="modify", timeout_seconds=float("inf"))
        await anyio.sleep(15.0)
        assert not bridge.closed


async def test_a_request_that_is_abandoned_after_a_part_was_sent_is_sent_whole() -> None:
    guest = eager_guest(capacity=20)
    async with serving(guest) as bridge:
        await until_connected(bridge)
        call = bridge.submit(MODIFY, {"Text": "a" * 100}, operation="modify")
        call.abandon()
        assert isinstance(call.error, UnknownOutcomeError)
        assert parse((await guest.next()).payload) == {"Text": "a" * 100}


async def test_a_caller_who_was_cancelled_before_has_nothing_sent() -> None:
    guest = eager_guest()
    async with serving(guest) as bridge:
        await until_connected(bridge)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await bridge.call(MODIFY, GUEST, ResponseBase, operation="modify")
        await settle()
        assert scope.cancelled_caught
        assert not guest.read()


class BreakingStream(EagerStream):
    """Refuses to send, and counts how often it was asked."""

    asked = 0

    def send_nowait(self, item: bytes) -> int:
        """Refuse."""
        self.asked += 1
        raise OSError("the cable is cut")

    async def send(self, item: bytes) -> None:
        """Refuse as well."""
        self.send_nowait(item)


async def test_what_goes_wrong_at_once_ends_the_stream_as_by_the_writer_and_once() -> None:
    guest = ScriptedGuest(host=BreakingStream)
    bridge = Bridge("vm", notify=lambda _: None)
    ended: list[Call] = []
    stream = guest.dial()
    async with anyio.create_task_group() as tasks:
        causes: list[Exception | None] = []

        async def run() -> None:
            causes.append(await bridge.run(stream, no_greeting))

        tasks.start_soon(run)
        await until_connected(bridge)
        call = bridge.submit(MODIFY, GUEST, operation="modify", then=ended.append)
        # Not in the call of a caller, who need not expect it.
        assert not call.done
        await settle()
        assert [str(cause) for cause in causes] == ["the cable is cut"]
        assert not bridge.closed
        assert not ended
        bridge.close()
    assert ended == [call]
    assert isinstance(stream, BreakingStream)
    assert stream.asked == 2


async def test_what_waited_for_the_guest_is_told_of_its_return_before_what_is_queued_goes_out() -> None:
    guest = eager_guest()
    bridge = Bridge("vm", notify=lambda _: None)
    seen: list[int] = []

    def ask_again() -> None:
        bridge.submit(MODIFY, GUEST, operation="again")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bridge.run, guest.dial(), no_greeting)
        await until_connected(bridge)
        guest.hang_up()
        await settle()
        bridge.submit(MODIFY, GUEST, operation="queued")
        bridge.on_resume[1] = lambda: seen.append(len(guest.read()))
        bridge.on_resume[2] = ask_again
        bridge.on_resume[3] = lambda: seen.append(len(guest.read()))
        tasks.start_soon(bridge.run, guest.dial(), no_greeting)
        await until_connected(bridge)
        assert seen == [0, 0]
        assert len(guest.read()) == 2
        bridge.close()


# The same bytes.


def scripts(*steps: str) -> st.SearchStrategy[list[tuple[str, int]]]:
    """Return scripts of such steps, each of which says how many, of whom, or how much."""
    return st.lists(st.tuples(st.sampled_from(steps), st.integers(0, 40)), max_size=25)


#: What is taken in one send counts as sent, and how much that is differs if many ask in one turn: only
#: callers who ask alone leave.
SCRIPTS = scripts("ask", "ask", "wait for", "call", "abandon", "cancel", "read", "read", "answer") | scripts(
    "ask many", "wait for", "call", "read", "read", "answer"
)


@define(eq=False, repr=False)
class Story:
    """A script with one kind of stream, and what came of it.

    :ivar sent: all that the guest has received.
    :ivar ends: how each call ended, by its operation.
    """

    guest: ScriptedGuest
    bridge: Bridge
    tasks: anyio.abc.TaskGroup
    sent: bytearray = Factory(bytearray)
    calls: list[Call] = Factory(list)
    scopes: list[anyio.CancelScope] = Factory(list)
    ends: dict[str, str] = Factory(dict)

    def take(self, step: str, number: int) -> None:
        """Take a step."""
        take: dict[str, Callable[[int], None]] = {
            "ask": partial(self._ask, MODIFY, None),
            "ask many": self._ask_many,
            "wait for": partial(self._ask, Procedure.WAIT_FOR_PROCESS, float("inf")),
            "call": self._call,
            "abandon": self._abandon,
            "cancel": self._cancel,
            "read": self._read,
            "answer": self._answer,
        }
        take[step](number)

    def _ask(self, procedure: Procedure, limit: float | None, number: int) -> None:
        name = f"call {len(self.calls)}"
        body = {"Token": name, "Text": "x" * (3 * number)}
        submit = partial(self.bridge.submit, procedure, body, operation=name)
        self.calls.append(submit(timeout_seconds=limit, then=self._note))

    def _ask_many(self, number: int) -> None:
        """Ask some things in one turn, of different sizes."""
        for size in range(number % 4 + 1):
            self._ask(MODIFY, None, size * number)

    def _note(self, call: Call) -> None:
        self.ends[call.operation] = type(call.error).__name__

    def _call(self, number: int) -> None:
        """Have a task ask, which can be cancelled."""
        self.scopes.append(anyio.CancelScope())
        self.tasks.start_soon(self._call_in, self.scopes[-1], f"task {len(self.scopes)}")

    async def _call_in(self, scope: anyio.CancelScope, name: str) -> None:
        with scope, suppress(UVMError):
            self.ends[name] = "left"
            await self.bridge.call(MODIFY, {"Token": name}, ResponseBase, operation=name)
            self.ends[name] = "answered"

    def _abandon(self, number: int) -> None:
        if self.calls:
            self.calls[number % len(self.calls)].abandon()

    def _cancel(self, number: int) -> None:
        if self.scopes:
            self.scopes[number % len(self.scopes)].cancel()

    def _read(self, number: int) -> None:
        self.sent += self.guest.take(number * 10)

    def _answer(self, number: int) -> None:
        """Answer one request that the guest has read whole."""
        unanswered = self.guest.unread
        if unanswered:
            request = unanswered[number % len(unanswered)]
            unanswered.remove(request)
            self.guest.respond(request)


async def tell(steps: list[tuple[str, int]], guests: list[ScriptedGuest]) -> list[Story]:
    """Play a script with some guests, each step once the others have come to rest."""
    stories = []
    for guest in guests:
        async with serving(guest) as bridge, anyio.create_task_group() as tasks:
            story = Story(guest, bridge, tasks)
            await until_connected(bridge)
            for step in steps:
                story.take(*step)
                await settle()
            # The guest reads what is left.
            while guest.stream.incoming.data:
                story.take("read", 40)
                await settle()
            stories.append(story)
            tasks.cancel_scope.cancel()
    return stories


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(steps=SCRIPTS, capacity=st.sampled_from([30, 100, 1000, 65536]))
def test_the_bytes_on_the_stream_are_those_that_the_writer_alone_would_send(
    backend: str, steps: list[tuple[str, int]], capacity: int
) -> None:
    guests = [ScriptedGuest(capacity), ScriptedGuest(capacity, EagerStream)]

    by_writer, at_once = anyio.run(tell, steps, guests, backend=backend)

    assert bytes(at_once.sent) == bytes(by_writer.sent)
    assert at_once.ends == by_writer.ends
