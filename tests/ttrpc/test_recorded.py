"""What Go's implementation sends and answers, recorded: ours sends, reads and answers the same bytes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from uvm._ncproxy import messages
from uvm._ttrpc.client import connected
from uvm._ttrpc.frames import Answer, Call, ClientSide, FrameDecoder, Request, Response, ServerSide
from uvm._ttrpc.protobuf import AnyMessage, Message, decode, encode
from uvm._ttrpc.server import Method, Services, serve_stream
from uvm.backends.fake.streams import FakeStream, stream_pair
from uvm.errors import RPCError, UnknownOutcomeError

pytestmark = pytest.mark.anyio

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "ttrpc.json").read_text("utf-8"))
CALLS: list[dict[str, Any]] = RECORDED["calls"]

#: The messages of the methods.
KINDS: dict[str, tuple[type[Message], type[Message]]] = {
    "NetworkConfigProxy.RegisterComputeAgent": (messages.RegisterComputeAgent, messages.Empty),
    "NetworkConfigProxy.UnregisterComputeAgent": (messages.UnregisterComputeAgent, messages.Empty),
    "NetworkConfigProxy.ConfigureNetworking": (messages.ConfigureNetworking, messages.Empty),
    "ComputeAgent.AddNIC": (messages.AddNIC, messages.Empty),
    "ComputeAgent.ModifyNIC": (messages.ModifyNIC, messages.Empty),
    "ComputeAgent.DeleteNIC": (messages.DeleteNIC, messages.Empty),
    "ComputeAgent.AssignPCI": (messages.AssignPCI, messages.AssignedPCI),
    "ComputeAgent.RemovePCI": (messages.RemovePCI, messages.Empty),
}
UNKNOWN = (AnyMessage, messages.Empty)


def request_of(call: dict[str, Any]) -> Message:
    """Return the message that a recorded call was made with."""
    given = dict(call["request"])
    if "endpoint" in given:
        value = base64.b64decode(given["endpoint"]["value"])
        given["endpoint"] = encode(AnyMessage(given["endpoint"]["type_url"], value))
    if "iov_policy_settings" in given:
        names = ("IovOffloadWeight", "QueuePairsRequested", "InterruptModeration")
        settings = given["iov_policy_settings"]
        given["iov_policy_settings"] = messages.IovSettings(*(settings[name] for name in names))
    return KINDS.get(call["method"], UNKNOWN)[0](**given)


def enveloped(call: dict[str, Any]) -> Request:
    service, method = call["method"].split(".")
    return Request(service, method, encode(request_of(call)))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: str(call["method"]))
def test_each_kind_of_message_is_recorded_in_the_same_bytes(call: dict[str, Any]) -> None:
    (found,) = FrameDecoder().feed(bytes.fromhex(call["sent"]))
    assert decode(Request, found.payload) == enveloped(call)
    assert encode(enveloped(call)) == found.payload


def test_a_client_sends_what_gos_sends_and_reads_what_gos_server_answers() -> None:
    client = ClientSide()
    sent = {}
    for event in RECORDED["order"]:
        side, number = event.split()
        call = CALLS[int(number) // 2]
        if side == "client":
            stream_id, data = client.request(enveloped(call))
            assert (stream_id, data.hex()) == (int(number), call["sent"])
            sent[stream_id] = call
        else:
            (answer,) = client.receive(bytes.fromhex(call["received"]))
            assert sent.pop(answer.stream_id) is call
            check_answer(answer, call)
    assert not sent


def check_answer(answer: Answer, call: dict[str, Any]) -> None:
    status, expected = answer.response.status, call["answer"]
    if "code" in expected:
        assert status is not None
        assert (status.code, status.message) == (expected["code"], expected["text"])
    else:
        kind = KINDS[call["method"]][1]
        assert decode(kind, answer.response.payload) == kind(**expected)


def test_a_server_reads_what_gos_client_sends_and_answers_what_gos_answers() -> None:
    server = ServerSide(8)
    for event in RECORDED["order"]:
        side, number = event.split()
        call, expected = CALLS[int(number) // 2], CALLS[int(number) // 2]["answer"]
        if side == "client":
            assert list(server.receive(bytes.fromhex(call["sent"]))) == [Call(int(number), enveloped(call))]
        elif "code" in expected:
            assert server.refuse(int(number), expected["code"], expected["text"]).hex() == call["received"]
        else:
            payload = encode(KINDS[call["method"]][1](**expected))
            assert server.respond(int(number), payload).hex() == call["received"]
    assert not server.open


def test_several_calls_were_in_flight_and_answered_in_another_order() -> None:
    *_, last = range(len(RECORDED["order"]) - 7)
    at_once = RECORDED["order"][last:]
    assert [event.split()[0] for event in at_once] == ["client"] * 4 + ["server"] * 4
    asked, answered = ([event.split()[1] for event in half] for half in (at_once[:4], at_once[4:]))
    assert answered == asked[::-1]


# With tasks and streams.


def services() -> Services:
    """Return services that answer as the recorded server did."""
    answers = {encode(enveloped(call)): call["answer"] for call in CALLS}
    found: dict[str, dict[str, Method[Any]]] = {}

    def method(name: str) -> Method[Any]:
        service, bare = name.split(".")
        kind, response = KINDS[name]

        async def carry_out(request: Message) -> Message:
            answer = answers[encode(Request(service, bare, encode(request)))]
            if "code" in answer:
                raise RPCError(name, answer["code"], answer["text"])
            return response(**answer)

        return Method(kind, carry_out)

    for name in KINDS:
        service, bare = name.split(".")
        found.setdefault(service, {})[bare] = method(name)
    return found


async def receive_frame(stream: FakeStream, decoder: FrameDecoder) -> str:
    """Receive one message; return it whole, as hexadecimal digits."""
    received = b""
    while not list(decoder.feed(chunk := await stream.receive())):
        received += chunk
    return (received + chunk).hex()


async def test_the_server_answers_gos_client_byte_for_byte() -> None:
    ours, theirs = stream_pair(lambda _: None)
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            await serve_stream(theirs, services(), name="server", call_seconds=60)

        tasks.start_soon(serve)
        decoder = FrameDecoder()
        for call in CALLS:
            await ours.send(bytes.fromhex(call["sent"]))
            assert await receive_frame(ours, decoder) == call["received"]
        await ours.aclose()


async def test_the_client_understands_gos_server() -> None:
    ours, theirs = stream_pair(lambda _: None)

    async def answer() -> None:
        decoder = FrameDecoder()
        for call in CALLS:
            await receive_frame(theirs, decoder)
            await theirs.send(bytes.fromhex(call["received"]))

    async with connected(ours, "proxy") as client, anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        for call in CALLS:
            kind = KINDS.get(call["method"], UNKNOWN)[1]
            expected = call["answer"]
            service, method = call["method"].split(".")
            making = client.call(service, method, request_of(call), kind, timeout_seconds=60)
            if "code" not in expected:
                assert await making == kind(**expected)
                continue
            with pytest.raises((RPCError, UnknownOutcomeError)) as caught:
                await making
            # What was cut off has an unknown outcome, caused by that.
            refusal = caught.value if isinstance(caught.value, RPCError) else caught.value.__cause__
            assert isinstance(refusal, RPCError)
            assert (refusal.code, refusal.text) == (expected["code"], expected["text"])


def test_the_recorded_responses_are_read_without_loss() -> None:
    for call in CALLS:
        (found,) = FrameDecoder().feed(bytes.fromhex(call["received"]))
        assert encode(decode(Response, found.payload)) == found.payload
