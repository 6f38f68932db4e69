"""Calls over a connection: a client and a server, and either against a peer that misbehaves."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio
import anyio.lowlevel
import pytest

from tests.clocks import jumping_backends
from uvm._ttrpc import server
from uvm._ttrpc.client import Client, _nanoseconds, connected
from uvm._ttrpc.frames import MAX_PAYLOAD, FrameDecoder, Kind, Request, Response, Status, frame
from uvm._ttrpc.protobuf import AnyMessage, Message, decode, encode
from uvm._ttrpc.server import MAX_CALLS, MAX_CONNECTIONS, Method, Services, serve_stream
from uvm.backends.fake.streams import FakeListener, FakeStream, stream_pair
from uvm.errors import OptionsError, RPCCode, RPCError, UnknownOutcomeError, UVMError, WireError

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

Handler: TypeAlias = Callable[[AnyMessage], Awaitable[Message]]


async def echo(message: AnyMessage) -> AnyMessage:
    return message


def services(handler: Handler = echo) -> Services:
    return {"Service": {"Method": Method(AnyMessage, handler)}}


@asynccontextmanager
async def talking(handler: Handler = echo, call_seconds: float = 60) -> AsyncIterator[Client]:
    """Serve a client in a task group, which ends with it."""
    ours, theirs = stream_pair(lambda _: None)
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            await serve_stream(
                theirs, services(handler), name="server", call_seconds=call_seconds, vm_id="vm1"
            )

        tasks.start_soon(serve)
        async with connected(ours, "server") as client:
            yield client


async def ask(client: Client, value: bytes = b"", *, seconds: float = 30) -> AnyMessage:
    return await client.call(
        "Service", "Method", AnyMessage(value=value), AnyMessage, timeout_seconds=seconds
    )


async def test_a_call_is_answered() -> None:
    async with talking() as client:
        assert await ask(client, b"abc") == AnyMessage(value=b"abc")


async def test_calls_are_answered_in_any_order() -> None:
    gates = {bytes([n]): anyio.Event() for n in range(5)}
    answered = []

    async def wait(message: AnyMessage) -> AnyMessage:
        await gates[message.value].wait()
        return message

    async def one(value: bytes) -> None:
        answered.append((await ask(client, value)).value)

    async with talking(wait) as client, anyio.create_task_group() as tasks:
        for value in gates:
            tasks.start_soon(one, value)
        await anyio.wait_all_tasks_blocked()
        for gate in reversed(gates.values()):
            gate.set()
            await anyio.wait_all_tasks_blocked()
    assert answered == list(reversed(gates))


async def test_a_payload_as_large_as_allowed_passes_both_directions() -> None:
    async with talking() as client:
        large = bytes(MAX_PAYLOAD - 100)
        assert (await ask(client, large)).value == large


@pytest.mark.parametrize(
    ("service", "method", "text"),
    [("Service", "Other", "method Other"), ("Other", "Method", "service Other")],
)
async def test_what_is_not_served_is_unimplemented(service: str, method: str, text: str) -> None:
    async with talking() as client:
        with pytest.raises(RPCError) as caught:
            await client.call(service, method, AnyMessage(), AnyMessage, timeout_seconds=1)
        assert (caught.value.code, caught.value.text) == (RPCCode.UNIMPLEMENTED, text)
        assert await ask(client, b"still") == AnyMessage(value=b"still")


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (RPCError("x", RPCCode.NOT_FOUND, "no such NIC"), 5, "no such NIC"),
        (RPCError("x", 77, "of its own"), 77, "of its own"),
        (ValueError("it broke"), RPCCode.UNKNOWN, "it broke"),
        (UVMError("\udc80"), RPCCode.UNKNOWN, "?"),
    ],
    ids=repr,
)
async def test_an_error_of_the_service_is_a_refusal(raised: Exception, code: int, text: str) -> None:
    async def fail(_: AnyMessage) -> AnyMessage:
        raise raised

    async with talking(fail) as client:
        with pytest.raises(RPCError, match=r"^Service\.Method: ") as caught:
            await ask(client)
        assert (caught.value.code, caught.value.text) == (code, text)


@pytest.mark.parametrize("code", [RPCCode.CANCELLED, RPCCode.DEADLINE_EXCEEDED])
async def test_a_call_that_the_server_cut_off_has_an_unknown_outcome(code: RPCCode) -> None:
    async def fail(_: AnyMessage) -> AnyMessage:
        raise RPCError("x", code)

    async with talking(fail) as client:
        with pytest.raises(UnknownOutcomeError, match=code.name):
            await ask(client)


async def test_what_a_service_may_take_is_the_less_of_its_own_limit_and_the_callers() -> None:
    cancelled = []

    async def never(message: AnyMessage) -> AnyMessage:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append((message.value, anyio.current_time() - started))
            raise
        return message

    async with talking(never, call_seconds=20) as client:
        started = anyio.current_time()
        with pytest.raises(UnknownOutcomeError, match="DEADLINE_EXCEEDED"):
            await ask(client, b"a", seconds=100)
        started = anyio.current_time()
        with pytest.raises(UnknownOutcomeError):
            await ask(client, b"b", seconds=5)
        await anyio.wait_all_tasks_blocked()
    assert [(value, round(seconds)) for value, seconds in cancelled] == [(b"a", 20), (b"b", 5)]


@pytest.mark.parametrize(
    ("seconds", "sent"), [(1.5, 1_500_000_000), (9.2e9, 9_200_000_000 * 10**9), (1e10, 0), (math.inf, 0)]
)
async def test_a_limit_of_time_is_sent_if_it_has_a_form(seconds: float, sent: int) -> None:
    ours, theirs = stream_pair(lambda _: None)
    async with connected(ours, "server") as client, anyio.create_task_group() as tasks:

        async def lost() -> None:
            with pytest.raises(UnknownOutcomeError):
                await ask(client, seconds=seconds)

        tasks.start_soon(lost)
        [request] = FrameDecoder().feed(await theirs.receive())
        assert decode(Request, request.payload).timeout_nano == sent
        client.close()


@pytest.mark.parametrize("seconds", [1e-12, 0, -1.0])
def test_a_limit_that_is_past_is_not_sent_as_none(seconds: float) -> None:
    assert _nanoseconds(seconds) == 1


async def test_a_caller_who_is_cancelled_leaves_at_once_and_others_go_on() -> None:
    gate = anyio.Event()

    async def wait(message: AnyMessage) -> AnyMessage:
        await gate.wait()
        return message

    async with talking(wait) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client, b"cancelled")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        gate.set()
        assert await ask(client, b"next") == AnyMessage(value=b"next")


async def test_a_call_that_was_not_sent_is_withdrawn_with_its_caller() -> None:
    ours, theirs = stream_pair(lambda _: None)
    async with connected(ours, "server") as client:
        async with anyio.create_task_group() as tasks:
            # It fills what is in transit, so that the other waits behind it.
            tasks.start_soon(ask, client, bytes(MAX_PAYLOAD - 100))
            await anyio.wait_all_tasks_blocked()
            async with anyio.create_task_group() as inner:
                inner.start_soon(ask, client, b"withdrawn")
                await anyio.wait_all_tasks_blocked()
                inner.cancel_scope.cancel()
            tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client, b"last")
            decoder = FrameDecoder()
            found: list[bytes] = []
            while len(found) < 2:
                requests = [decode(Request, each.payload) for each in decoder.feed(await theirs.receive())]
                found += [decode(AnyMessage, each.payload).value for each in requests]
            assert [len(found[0]), found[1]] == [MAX_PAYLOAD - 100, b"last"]
            tasks.cancel_scope.cancel()


async def test_a_server_that_never_answers_is_bounded_by_the_callers_limit() -> None:
    ours, _ = stream_pair(lambda _: None)
    async with connected(ours, "server") as client:
        started = anyio.current_time()
        with pytest.raises(UnknownOutcomeError, match=r"did not answer within 30 s; .* unknown"):
            await ask(client)
        assert round(anyio.current_time() - started) == 30


async def test_a_server_that_never_reads_is_bounded_too_and_what_was_not_sent_is_said() -> None:
    ours, _ = stream_pair(lambda _: None)
    async with connected(ours, "server") as client, anyio.create_task_group() as tasks:

        async def large() -> None:
            with pytest.raises(UnknownOutcomeError):
                await ask(client, bytes(MAX_PAYLOAD - 100), seconds=60)

        tasks.start_soon(large)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RPCError, match="nothing was sent") as caught:
            await ask(client)
        assert caught.value.code == RPCCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("sent", "cause"),
    [
        (b"", None),
        (b"\0\0", WireError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", WireError),
        (struct.pack(">IIBB", 1 << 31, 1, 2, 0), WireError),
        (frame(3, Kind.RESPONSE, b""), WireError),
        (frame(1, Kind.DATA, b""), WireError),
    ],
    ids=["end", "cut off", "HTTP", "too large", "not asked", "data"],
)
async def test_nonsense_ends_the_connection_and_its_calls(sent: bytes, cause: type[Exception] | None) -> None:
    ours, theirs = stream_pair(lambda _: None)
    async with connected(ours, "proxy") as client, anyio.create_task_group() as tasks:

        async def answer() -> None:
            await theirs.receive()
            await theirs.send(sent)
            await theirs.send_eof()

        tasks.start_soon(answer)
        with pytest.raises(UnknownOutcomeError, match="connection to proxy has ended") as caught:
            await ask(client)
        assert type(caught.value.__cause__) is (cause or type(None))
        # And what is asked from now on was not sent.
        with pytest.raises(RPCError, match="nothing was sent"):
            await ask(client)


async def test_an_answer_that_cannot_be_read_has_an_unknown_outcome_and_costs_only_its_call() -> None:
    ours, theirs = stream_pair(lambda _: None)
    async with connected(ours, "proxy") as client, anyio.create_task_group() as tasks:

        async def answer() -> None:
            await theirs.receive()
            await theirs.send(frame(1, Kind.RESPONSE, encode(Response(payload=b"\xff"))))
            await theirs.receive()
            await theirs.send(frame(3, Kind.RESPONSE, encode(Response(Status(0, "fine")))))

        tasks.start_soon(answer)
        with pytest.raises(UnknownOutcomeError, match="cannot be read"):
            await ask(client)
        assert await ask(client) == AnyMessage()


async def test_a_refusal_is_shown_as_one_short_line() -> None:
    ours, theirs = stream_pair(lambda _: None)
    async with connected(ours, "proxy") as client, anyio.create_task_group() as tasks:

        async def answer() -> None:
            await theirs.receive()
            response = Response(Status(9, "bad\r\n\x1b[31m" + "x" * 1_000_000))
            await theirs.send(frame(1, Kind.RESPONSE, encode(response)))

        tasks.start_soon(answer)
        with pytest.raises(RPCError, match="FAILED_PRECONDITION: bad") as caught:
            await ask(client)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 3_000


async def test_a_request_without_a_form_costs_nothing() -> None:
    async with talking() as client:
        with pytest.raises(OptionsError):
            await client.call("\ud800", "Method", AnyMessage(), AnyMessage, timeout_seconds=1)
        with pytest.raises(OptionsError):
            await ask(client, bytes(MAX_PAYLOAD))
        assert await ask(client, b"x") == AnyMessage(value=b"x")


async def test_leaving_ends_calls_and_closes_the_stream() -> None:
    ours, theirs = stream_pair(lambda _: None)
    async with anyio.create_task_group() as tasks, connected(ours, "server") as client:

        async def one() -> None:
            with pytest.raises(UnknownOutcomeError):
                await ask(client)

        tasks.start_soon(one)
        await anyio.wait_all_tasks_blocked()
    await theirs.receive()
    with pytest.raises(anyio.EndOfStream):
        await theirs.receive()


async def test_the_exception_of_the_body_is_raised_as_it_is() -> None:
    ours, _ = stream_pair(lambda _: None)
    with pytest.raises(KeyError, match="mine"):
        async with connected(ours, "server"):
            raise KeyError("mine")


# The server, of a client that misbehaves.


@asynccontextmanager
async def serving(handler: Handler = echo) -> AsyncIterator[FakeStream]:
    """Serve a stream, and yield its other end; at the end the service has ended."""
    ours, theirs = stream_pair(lambda _: None)
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            await serve_stream(theirs, services(handler), name="server", call_seconds=60)

        tasks.start_soon(serve)
        yield ours
        await ours.aclose()


def call(stream_id: int, value: bytes = b"", timeout_nano: int = 0) -> bytes:
    request = Request("Service", "Method", encode(AnyMessage(value=value)), timeout_nano)
    return frame(stream_id, Kind.REQUEST, encode(request))


async def answers(stream: FakeStream, count: int) -> list[tuple[int, int]]:
    """Receive so many answers; return their streams and codes."""
    decoder, found = FrameDecoder(), list[tuple[int, int]]()
    while len(found) < count:
        for each in decoder.feed(await stream.receive()):
            status = decode(Response, each.payload).status
            found.append((each.stream_id, 0 if status is None else status.code))
    return found


async def test_what_is_refused_costs_no_other_call() -> None:
    async with serving() as stream:
        bad = frame(5, Kind.REQUEST, encode(Request("Service", "Method", b"\xff")))
        await stream.send(call(1) + call(2) + call(1) + bad + call(7))
        assert sorted(await answers(stream, 5)) == [(1, 0), (1, 3), (2, 3), (5, RPCCode.INTERNAL), (7, 0)]


async def test_calls_beyond_the_limit_are_refused_at_once() -> None:
    gate = anyio.Event()

    async def wait(message: AnyMessage) -> AnyMessage:
        await gate.wait()
        return message

    async with serving(wait) as stream:
        for n in range(MAX_CALLS + 1):
            await stream.send(call(2 * n + 1))
        assert await answers(stream, 1) == [(2 * MAX_CALLS + 1, RPCCode.RESOURCE_EXHAUSTED)]
        gate.set()
        assert len(await answers(stream, MAX_CALLS)) == MAX_CALLS


async def test_a_client_that_reads_no_answers_is_read_no_more_after_a_while() -> None:
    begun = []

    async def large(message: AnyMessage) -> AnyMessage:
        begun.append(message)
        return AnyMessage(value=bytes(1 << 20))

    async with serving(large) as stream:
        sent = 0
        with anyio.move_on_after(5):
            while True:
                await stream.send(call(2 * sent + 1, bytes(1000)))
                sent += 1
        assert sent > MAX_CALLS
        assert len(begun) == MAX_CALLS + 1


class Waiting:
    """A call that waits until it is cancelled."""

    def __init__(self) -> None:
        self.ended = anyio.Event()

    async def __call__(self, message: AnyMessage) -> AnyMessage:
        try:
            await anyio.sleep_forever()
        finally:
            self.ended.set()
        return message


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.1\r\n\r\n", frame(1, Kind.DATA, b""), b"\xff" * 10])
async def test_nonsense_ends_the_service_and_cancels_its_calls(nonsense: bytes) -> None:
    async with serving(wait := Waiting()) as stream:
        await stream.send(call(1))
        await anyio.wait_all_tasks_blocked()
        await stream.send(nonsense)
        await wait.ended.wait()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_a_client_that_leaves_cancels_its_calls() -> None:
    async with serving(wait := Waiting()) as stream:
        await stream.send(call(1))
        await anyio.wait_all_tasks_blocked()
    assert wait.ended.is_set()


async def test_a_limit_below_zero_is_past_already() -> None:
    async def wait(_: AnyMessage) -> AnyMessage:
        await anyio.sleep(1)
        return AnyMessage()

    async with serving(wait) as stream:
        await stream.send(call(1, timeout_nano=-1))
        assert await answers(stream, 1) == [(1, RPCCode.DEADLINE_EXCEEDED)]


# Many connections.


async def test_each_connection_is_served_until_the_service_is_cancelled() -> None:
    listener = FakeListener("pipe", lambda: None)
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            await server.serve(listener, services(), name="server", call_seconds=60)

        tasks.start_soon(serve)
        ends = [stream_pair(lambda _: None) for _ in range(3)]
        for _, theirs in ends:
            listener.offer(theirs)
        for ours, _ in reversed(ends):
            async with connected(ours, "server") as client:
                assert await ask(client, b"x") == AnyMessage(value=b"x")
        tasks.cancel_scope.cancel()
    with pytest.raises(anyio.ClosedResourceError):
        await listener.accept()


async def test_connections_beyond_the_limit_wait_for_their_turn() -> None:
    listener = FakeListener("pipe", lambda: None)
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            await server.serve(listener, services(), name="server", call_seconds=60)

        tasks.start_soon(serve)
        ends = [stream_pair(lambda _: None) for _ in range(MAX_CONNECTIONS + 1)]
        for ours, theirs in ends:
            listener.offer(theirs)
            await ours.send(call(1))
        last = ends[-1][0]
        await anyio.wait_all_tasks_blocked()
        assert last._incoming.is_quiet
        await ends[0][0].aclose()
        assert await answers(last, 1) == [(1, 0)]
        tasks.cancel_scope.cancel()


async def test_a_listener_that_fails_ends_the_service_with_its_error() -> None:
    listener = FakeListener("pipe", lambda: None)
    ours, theirs = stream_pair(lambda _: None)
    listener.offer(theirs)
    async with anyio.create_task_group() as tasks:

        async def fail() -> None:
            await anyio.wait_all_tasks_blocked()
            listener.end(anyio.BrokenResourceError())

        tasks.start_soon(fail)
        with pytest.raises(anyio.BrokenResourceError):
            await server.serve(listener, services(), name="server", call_seconds=60)
    with pytest.raises(anyio.EndOfStream):
        await ours.receive()


async def test_what_a_service_fails_with_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: AnyMessage) -> AnyMessage:
        raise ValueError("it broke")

    caplog.set_level(logging.INFO, "uvm.ttrpc")
    async with talking(fail) as client:
        with pytest.raises(RPCError):
            await ask(client)
    [record] = caplog.records
    assert record.message == "vm1: server: Service.Method failed: it broke"
    assert vars(record)["vm_id"] == "vm1"
