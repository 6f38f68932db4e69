"""The bridge against a guest that does anything, and callers that come and go.

Hypothesis writes a script: calls are made, cancelled and abandoned, while the guest answers in any order,
refuses, answers nonsense, breaks the protocol, hangs up and dials again. However it goes, each call ends
once, with its own answer or with the error that fits what happened to it, and nobody waits for ever.

Each request holds a token, and each answer the token of what it answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import Factory, define, field
from hypothesis import given
from hypothesis import strategies as st

from tests.gcs.support import (
    PATIENCE_SECONDS,
    EagerStream,
    MemoryStream,
    ScriptedGuest,
    open_calls,
    unanswered_requests,
)
from uvm._gcs.bridge import Bridge
from uvm._gcs.calls import Call
from uvm._wire.frames import Kind, Procedure, Request, encode, parse
from uvm.errors import AnswerLostError, BridgeClosedError, GuestError, UnknownOutcomeError, UVMError
from uvm.hresult import HResult
from uvm.schema.gcs import ResponseBase

#: What a guest may send to be given up.
GARBAGE = [
    b"\x00" * 16,
    b"GET / HTTP/1.1\r\n\r\n",
    encode(Kind.RESPONSE, Procedure.START, 1 << 60, {"Result": 0}),
    encode(Kind.REQUEST, Procedure.START, 0, {}),
    encode(Kind.NOTIFICATION, Procedure.START, 0, {}),
    encode(Kind.NOTIFICATION, Procedure.CREATE, 0, {"ContainerId": []}),
    encode(Kind.NOTIFICATION, Procedure.CREATE, 0, {"ContainerId": "a" * 70_000}),
]

#: The host's end sends only when it can wait, or at once where it can.
STREAMS = st.sampled_from([MemoryStream, EagerStream])

HALF_A_MESSAGE = encode(Kind.NOTIFICATION, Procedure.CREATE, 0, {"ContainerId": "nginx"})[:21]


@define(eq=False, repr=False)
class Caller:
    """Somebody who made a call: what was asked, what became of it, and what the script did to it."""

    token: str
    call: Call | None = None
    scope: anyio.CancelScope = Factory(anyio.CancelScope)
    cancelled: bool = False
    abandoned: bool = False
    survives: bool = False
    #: How many streams the host had seen end when it called.
    drops_before: int = 0
    ends: list[str] = Factory(list)

    def end(self, error: BaseException | None, response: ResponseBase | None = None) -> None:
        """Write down how it ended."""
        if error is None:
            assert response is not None
            assert response.activity_id == self.token, "a call was given the answer to another"
            self.ends.append("answered")
        elif isinstance(error, GuestError):
            assert error.text == self.token, "a call was given the refusal of another"
            self.ends.append("refused")
        else:
            self.ends.append(_end_of(error))


def _end_of(error: BaseException) -> str:
    if isinstance(error, AnswerLostError):
        return "lost by the close"
    if isinstance(error, BridgeClosedError):
        return "closed"
    if isinstance(error, UnknownOutcomeError):
        return "unknown"
    return "withdrawn" if isinstance(error, UVMError) else "cancelled"


@define(eq=False, repr=False)
class World:
    """A bridge, its owner, its guest and its callers."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    tasks: anyio.abc.TaskGroup
    guest: ScriptedGuest
    bridge: Bridge = field(init=False)
    callers: dict[str, Caller] = Factory(dict)
    #: Requests that the guest has read and not answered.
    unanswered: list[Request] = Factory(list)
    answered: list[Request] = Factory(list)
    tokens: set[str] = Factory(set)
    notified: int = 0
    told: int = 0
    drops: int = 0
    nonsense: set[str] = Factory(set)
    serving: bool = False
    _numbers: itertools.count[int] = Factory(itertools.count)

    def __attrs_post_init__(self) -> None:
        self.bridge = Bridge("vm", notify=self._notify)

    def _notify(self, notification: object) -> None:
        self.told += 1

    @property
    def at_rest(self) -> bool:
        """All calls have ended; and all that was said was heard, where no stream has ended.

        Nobody can know whether the answer to a call that survives was lost with a stream: those may wait.
        """
        waiting = [c for c in self.callers.values() if not c.ends and not self._may_wait(c)]
        heard = (unanswered_requests(self.bridge), self.told) == (0, self.notified)
        return not waiting and (heard or self.drops > 0)

    def _may_wait(self, caller: Caller) -> bool:
        return caller.survives and self.drops > caller.drops_before

    # The callers.

    def call(self) -> None:
        """Somebody calls and waits."""
        caller = self._new_caller()
        self.tasks.start_soon(self._wait, caller)

    async def _wait(self, caller: Caller) -> None:
        error: BaseException | None = None
        response: ResponseBase | None = None
        with caller.scope:
            try:
                response = await self.bridge.call(
                    Procedure.MODIFY_SETTINGS,
                    {"Token": caller.token},
                    ResponseBase,
                    operation=caller.token,
                )
            except BaseException as e:
                error = e
                if not isinstance(e, UVMError):
                    raise
            finally:
                caller.end(error, response)

    def submit(self) -> None:
        """Somebody calls and is called back."""
        caller = self._new_caller()
        try:
            caller.survives = self.draw(st.booleans())
            caller.call = self.bridge.submit(
                Procedure.WAIT_FOR_PROCESS,
                {"Token": caller.token},
                operation=caller.token,
                survives=caller.survives,
                starts=not caller.survives and self.draw(st.booleans()),
                then=lambda call: _take_end(caller, call),
            )
        except BridgeClosedError as e:
            caller.end(e)

    def cancel(self) -> None:
        """A caller is cancelled."""
        caller = self._any_caller()
        if caller is not None:
            caller.cancelled = True
            caller.scope.cancel()

    def abandon(self) -> None:
        """A caller abandons its call."""
        caller = self._any_caller()
        if caller is not None and caller.call is not None:
            caller.abandoned = caller.abandoned or not caller.call.done
            caller.call.abandon()

    def _any_caller(self) -> Caller | None:
        return self.draw(st.sampled_from(list(self.callers.values()))) if self.callers else None

    def _new_caller(self) -> Caller:
        caller = Caller(f"call {next(self._numbers)}", drops_before=self.drops)
        self.callers[caller.token] = caller
        return caller

    # The guest.

    def read(self) -> None:
        """The guest takes the requests that are there."""
        for request in self.guest.read() if self.serving else ():
            token = parse(request.payload).get("Token", "greeting")
            assert token == "greeting" or token not in self.tokens, "a request was sent twice"
            self.tokens.add(token)
            self.unanswered.append(request)

    def answer(self) -> None:
        """The guest answers one of its requests, as it should, with a refusal, or with nonsense."""
        self.read()
        if not self.unanswered:
            return
        request = self.unanswered.pop(self.draw(st.integers(0, len(self.unanswered) - 1)))
        token = parse(request.payload).get("Token", "")
        how = self.draw(st.sampled_from(["well", "well", "refused", "nonsense"])) if token else "well"
        if how == "well":
            self._answer_well(request)
        elif how == "refused":
            self._say(lambda: self.guest.refuse(request, HResult.E_FAIL, token))
            self.answered.append(request)
        else:
            self.nonsense.add(token)
            self._say(lambda: self.guest.respond(request, Result=[token]))
            self.answered.append(request)

    def _answer_well(self, request: Request) -> None:
        token = parse(request.payload).get("Token", "")
        self._say(lambda: self.guest.respond(request, ActivityId=token))
        self.answered.append(request)

    def answer_all(self) -> None:
        """The guest answers all that it has, as it should."""
        self.read()
        while self.unanswered:
            self._answer_well(self.unanswered.pop())

    def notify(self) -> None:
        """The guest tells of a container's exit."""
        if self.serving:
            self.notified += 1
            self._say(lambda: self.guest.notify("nginx"))

    def misbehave(self) -> None:
        """The guest breaks the protocol."""
        messages = list(GARBAGE)
        messages += [encode(Kind.RESPONSE, r.procedure, r.id, {"Result": 0}) for r in self.answered]
        messages += [encode(Kind.RESPONSE, r.procedure + 1, r.id, {"Result": 0}) for r in self.unanswered]
        message = self.draw(st.sampled_from(messages))
        self._say(lambda: self.guest.send(message))

    def drop(self) -> None:
        """The stream ends."""
        if not self.serving:
            return
        how = self.draw(st.sampled_from(["hang up", "cut", "half a message"]))
        if how == "half a message":
            self._say(lambda: self.guest.send(HALF_A_MESSAGE))
        if how == "cut":
            self.guest.stream.cut()
        else:
            self.guest.hang_up()

    def _say(self, say: Callable[[], None]) -> None:
        # What is said to a stream that has ended is lost.
        if self.serving:
            with suppress(anyio.BrokenResourceError):
                say()

    # The owner.

    def dial(self) -> None:
        """The guest dials, and the owner serves."""
        if not self.serving:
            self.serving = True
            self.tasks.start_soon(self._serve, self.guest.dial())

    async def _serve(self, stream: MemoryStream) -> None:
        await self.bridge.run(stream, self._greet)
        assert stream.closed
        self.serving = False
        self.drops += 1

    async def _greet(self) -> None:
        await self.bridge.call(
            Procedure.NEGOTIATE_PROTOCOL, {}, ResponseBase, operation="greeting", urgent=True
        )

    def close(self) -> None:
        """The owner closes the bridge."""
        self.bridge.close()

    async def let_others_run(self) -> None:
        """Give everybody else a few turns."""
        for _ in range(self.draw(st.integers(1, 12))):
            await anyio.lowlevel.checkpoint()


def _take_end(caller: Caller, call: Call) -> None:
    try:
        caller.end(None, call.result(ResponseBase))
    except UVMError as e:
        caller.end(e)


STEPS: list[tuple[str, int]] = [
    ("call", 6),
    ("submit", 3),
    ("let_others_run", 8),
    ("answer", 8),
    ("dial", 4),
    ("read", 2),
    ("cancel", 2),
    ("abandon", 1),
    ("notify", 1),
    ("answer_all", 2),
    ("drop", 2),
]
QUIET: st.SearchStrategy[str] = st.sampled_from([name for name, weight in STEPS for _ in range(weight)])
ROUGH = st.one_of(*[QUIET] * 25, st.sampled_from(["misbehave", "close"]))


def scripts(steps: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """Scripts of every length alike; lists alone would mostly be short."""
    return st.integers(0, 80).flatmap(lambda length: st.lists(steps, min_size=length, max_size=length))


async def play(world: World, steps: list[str]) -> None:
    """Carry out a script, and check what holds all the time."""
    for step in steps:
        done = getattr(world, step)()
        if done is not None:
            await done
        assert open_calls(world.bridge) <= len(world.callers) + 1
        assert not (world.bridge.connected and not world.serving)


async def come_to_rest(world: World) -> None:
    """Let the guest answer everything, on a stream that stays; that takes a bounded number of turns."""
    for _ in range(1_000):
        world.dial()
        world.answer_all()
        await anyio.lowlevel.checkpoint()
        if world.at_rest:
            return


def check_ends(world: World) -> None:
    """Every call ended once, in a way that its story explains."""
    for caller in world.callers.values():
        assert len(caller.ends) == 1, f"{caller.token} ended {len(caller.ends)} times: {caller.ends}"
        (end,) = caller.ends
        seen = caller.token in world.tokens
        explained = {
            "answered": seen,
            "refused": seen,
            "unknown": (world.drops > caller.drops_before and not caller.survives)
            or caller.abandoned
            or caller.token in world.nonsense,
            "withdrawn": caller.abandoned and not seen,
            "cancelled": caller.cancelled,
            "lost by the close": world.bridge.closed,
            "closed": world.bridge.closed and not seen,
        }
        assert explained[end], f"{caller.token} ended {end}"
        late = caller.call.late if caller.call is not None else None
        if late is not None:
            assert late.done
            assert end in ("unknown", "lost by the close")
            assert late.body is None or late.body.get("ActivityId", caller.token) == caller.token
    assert world.told <= world.notified


async def run(data: st.DataObject, script: Callable[[World], Awaitable[None]]) -> World:
    """Carry out a script in a world of its own, and close the bridge at the end."""
    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            capacity, host = data.draw(st.sampled_from([7, 65536])), data.draw(STREAMS)
            world = World(data.draw, tasks, ScriptedGuest(capacity, host))
            try:
                await script(world)
            finally:
                world.bridge.close()
    return world


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(steps=scripts(ROUGH), data=st.data())
def test_every_call_ends_once_and_as_it_should_whatever_the_guest_does(
    backend: str, steps: list[str], data: st.DataObject
) -> None:
    async def script(world: World) -> None:
        await play(world, steps)
        world.read()

    world = anyio.run(run, data, script, backend=backend)

    check_ends(world)
    assert open_calls(world.bridge) == 0
    assert not world.serving
    with pytest.raises(BridgeClosedError):
        world.bridge.submit(Procedure.START, {}, operation="late")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(steps=scripts(QUIET), data=st.data())
def test_a_guest_that_keeps_to_the_protocol_answers_all_in_the_end(
    backend: str, steps: list[str], data: st.DataObject
) -> None:
    async def script(world: World) -> None:
        await play(world, steps)
        await come_to_rest(world)
        assert world.at_rest
        assert not world.bridge.closed

    check_ends(anyio.run(run, data, script, backend=backend))
