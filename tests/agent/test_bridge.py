"""The connection over which the host asks: its beginning, its loss, its end, and what breaks its rules."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from typing import Any

import pytest

from tests.agent.rawhost import LIMIT_SECONDS, RawHost
from uvm._wire.channels import Channel
from uvm._wire.frames import HostSide, Procedure
from uvm._wire.mux import Mux
from uvm._wire.ports import LINUX_ENTROPY_PORT, LINUX_GCS_PORT, LINUX_LOG_PORT
from uvm.hresult import HResult


def code(answer: dict[str, Any]) -> int:
    return int(answer["Result"]) & 0xFFFFFFFF


def versions(lowest: int, highest: int) -> dict[str, int]:
    return {"MinimumVersion": lowest, "MaximumVersion": highest}


def test_a_connection_begins_with_its_negotiation_and_has_one(host: RawHost) -> None:
    answer = host.ask(Procedure.NEGOTIATE_PROTOCOL, versions(4, 4))
    assert code(answer) == HResult.E_NOTIMPL
    assert answer["ErrorMessage"].endswith("header type: ComputeSystemNegotiateProtocolV1")


def test_nothing_is_served_before_the_negotiation_and_other_versions_are_refused() -> None:
    with RawHost() as host:
        host.service = host.channel(LINUX_GCS_PORT)
        assert code(host.ask(Procedure.DUMP_STACKS)) == HResult.E_NOTIMPL
        refused = host.ask(Procedure.NEGOTIATE_PROTOCOL, versions(5, 6))
        assert code(refused) == HResult.ERROR_VMCOMPUTE_UNSUPPORTED_PROTOCOL_VERSION
        answer = host.ask(Procedure.NEGOTIATE_PROTOCOL, versions(3, 6))
        assert (answer["Version"], answer["Capabilities"]["RuntimeOsType"]) == (4, "Linux")


def test_requests_are_answered_while_others_wait(host: RawHost) -> None:
    started = host.execute("cat", ports={"StdIn": (port := host.listen())})
    wait = host.begin(Procedure.WAIT_FOR_PROCESS, {"ProcessId": started["ProcessId"], "TimeoutInMs": 1 << 31})
    assert "test_bridge" not in host.ask(Procedure.DUMP_STACKS)["GuestStacks"]
    host.mux.send_eof(host.channel(port))
    assert host.answer(wait)["ExitCode"] == 0


def test_stacks_are_those_of_all_threads(host: RawHost) -> None:
    host.run("true")
    stacks = host.ask(Procedure.DUMP_STACKS)["GuestStacks"]
    assert stacks.startswith("thread MainThread:\n")
    assert "thread worker 1:\n" in stacks


def test_properties_of_the_guest_itself_are_refused(host: RawHost) -> None:
    answer = host.ask(Procedure.GET_PROPERTIES, {"Query": ""})
    assert answer["ErrorMessage"] == "getPropertiesV2 is not supported against the UVM"


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("<IIQ", 0x10100C01, 15, 7),
        struct.pack("<IIQ", 0x10100C01, 0xFFFFFFFF, 7),
        struct.pack("<IIQ", 0x20100C01, 16, 7),
        b"\0" * 16,
    ],
)
def test_bytes_that_are_no_request_end_the_connection_and_the_agent_dials_again(
    host: RawHost, frame: bytes
) -> None:
    host.write(host.service, frame)
    host.read_all(host.service)
    host.side = HostSide()
    assert host.connect()["Version"] == 4


def test_an_answer_comes_on_the_next_connection_if_the_first_is_lost(host: RawHost) -> None:
    started = host.execute("cat", ports={"StdIn": (port := host.listen())})
    wait = host.begin(Procedure.WAIT_FOR_PROCESS, {"ProcessId": started["ProcessId"], "TimeoutInMs": 1 << 31})
    stdin = host.channel(port)
    # What was asked has arrived: it is answered in order.
    host.ask(Procedure.DUMP_STACKS)
    host.mux.reset(host.service)
    host.side.restart()
    host.mux.send_eof(stdin)
    host.connect()
    assert host.answer(wait)["ExitCode"] == 0


def test_another_host_that_takes_the_place_of_the_first_finds_a_new_connection(host: RawHost) -> None:
    host.begin(Procedure.WAIT_FOR_PROCESS, {"ProcessId": 1})
    host.execute("cat", ports={"StdIn": host.listen()})
    host.mux = Mux(guest=False)
    host.mux.connect(os.urandom(16))
    host.mux.listen(LINUX_GCS_PORT)
    host.side = HostSide()
    host.channels.clear()
    host.answers.clear()
    assert host.connect()["Version"] == 4
    assert host.run("true") == 0


def test_a_host_that_comes_back_goes_on_with_what_it_had(host: RawHost) -> None:
    port = host.listen()
    started = host.execute("cat", ports={"StdIn": port})
    host.mux.connect(os.urandom(16))
    host.mux.send_eof(host.channel(port))
    assert host.exit_code(started["ProcessId"]) == 0
    assert host.greeted == [False, True]


def test_half_a_frame_of_the_mux_does_no_harm_to_the_host_that_connects_next(host: RawHost) -> None:
    host.socket.setblocking(True)
    host.socket.sendall(struct.pack("<III", 2, 1, 60_000))
    host.socket.setblocking(False)
    host.mux.connect(os.urandom(16))
    assert host.run("true") == 0


def test_the_log_is_lines_of_json() -> None:
    with RawHost(LINUX_LOG_PORT) as host:
        host.connect()
        log = host.channel(LINUX_LOG_PORT)
        while b"\n" not in host.received[log.id]:
            host.step()
        line = json.loads(host.received[log.id].splitlines()[0])
        assert (line["level"], line["msg"]) == ("info", "GCS started")
        assert line["time"].endswith("Z")


def logged(host: RawHost, log: Channel, words: str) -> str:
    """Wait for the agent to log a line with some words, and return its level."""
    while True:
        for line in host.received[log.id].splitlines(keepends=True):
            if line.endswith(b"\n") and words in json.loads(line)["msg"]:
                return str(json.loads(line)["level"])
        host.step()


def test_a_connection_that_the_host_closes_is_not_logged_as_lost_and_one_that_breaks_is() -> None:
    with RawHost(LINUX_LOG_PORT) as host:
        host.connect()
        log = host.channel(LINUX_LOG_PORT)
        host.mux.send_eof(host.service)
        assert logged(host, log, "bridge connection") == "info"
        host.side.restart()
        host.connect()
        assert b"lost" not in host.received[log.id]
        host.mux.reset(host.service)
        assert logged(host, log, "bridge connection lost") == "warning"


def test_random_bytes_of_the_host_are_read_to_their_end() -> None:
    with RawHost(LINUX_ENTROPY_PORT) as host:
        channel = host.channel(LINUX_ENTROPY_PORT)
        host.write(channel, os.urandom(2000))
        host.mux.send_eof(channel)
        host.read_all(channel)


@pytest.mark.parametrize("procedure", [Procedure.SHUTDOWN_GRACEFUL, Procedure.SHUTDOWN_FORCED])
def test_a_shutdown_closes_the_connection_without_an_answer_and_ends_all(
    host: RawHost, procedure: Procedure
) -> None:
    process = os.pidfd_open(host.execute("sleep", "1000")["ProcessId"])
    host.begin(procedure)
    host.read_all(host.service)
    assert host.process.wait(LIMIT_SECONDS) == 0
    assert select.select([process], [], [], LIMIT_SECONDS)[0]
    os.close(process)


def test_the_agent_ends_with_its_host(host: RawHost) -> None:
    process = os.pidfd_open(host.execute("sleep", "1000")["ProcessId"])
    host.socket.shutdown(socket.SHUT_RDWR)
    assert host.process.wait(LIMIT_SECONDS) == 0
    assert select.select([process], [], [], LIMIT_SECONDS)[0]
    os.close(process)
