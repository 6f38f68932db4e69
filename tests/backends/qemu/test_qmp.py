"""QMP, against a scripted monitor on the other end of a socket pair."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from uvm.backends.qemu import qmp
from uvm.backends.qemu.qmp import QMP, QMPClosedError, QMPError

pytestmark = pytest.mark.anyio

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}


class Monitor:
    """QEMU's end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.rest = b""
        self.fds: list[int] = []

    async def say(self, *messages: Any) -> None:
        for message in messages:
            await self.write(json.dumps(message).encode() + b"\r\n")

    async def write(self, data: bytes) -> None:
        while data:
            await anyio.wait_writable(self.socket)
            data = data[self.socket.send(data) :]

    async def hear(self) -> Any:
        while b"\n" not in self.rest:
            await anyio.wait_readable(self.socket)
            data, fds, *_ = socket.recv_fds(self.socket, 65536, 8)
            self.rest += data
            self.fds += fds
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    async def answer(self, heard: Any, value: Any = None) -> None:
        await self.say({"return": value, "id": heard["id"]})

    async def greet(self) -> None:
        await self.say(GREETING)
        heard = await self.hear()
        assert heard["execute"] == "qmp_capabilities"
        await self.answer(heard, {})


@asynccontextmanager
async def connected(events: list[Any] | None = None) -> AsyncIterator[tuple[QMP, Monitor]]:
    ours, theirs = socket.socketpair()
    monitor = Monitor(theirs)
    seen = [] if events is None else events
    connection = QMP(ours, lambda name, data: seen.append((name, data)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(monitor.greet)
        await tasks.start(connection.serve)
        try:
            yield connection, monitor
        finally:
            connection.close()
            anyio.notify_closing(theirs)
            theirs.close()


async def test_a_command_returns_what_qemu_returns() -> None:
    async with connected() as (connection, monitor), anyio.create_task_group() as tasks:
        assert connection.version["version"]["qemu"]["major"] == 7

        async def answer() -> None:
            heard = await monitor.hear()
            assert (heard["execute"], heard["arguments"]) == ("query", {"a": 1})
            await monitor.answer(heard, {"status": "running"})

        tasks.start_soon(answer)
        assert await connection.execute("query", {"a": 1}) == {"status": "running"}


async def test_a_refusal_has_its_class_and_description() -> None:
    async with connected() as (connection, monitor), anyio.create_task_group() as tasks:

        async def refuse() -> None:
            heard = await monitor.hear()
            await monitor.say({"id": heard["id"], "error": {"class": "DeviceNotFound", "desc": "no d1"}})

        tasks.start_soon(refuse)
        with pytest.raises(QMPError, match="device_del: no d1") as caught:
            await connection.execute("device_del", {"id": "d1"})
        assert caught.value.kind == "DeviceNotFound"


async def test_answers_in_any_order_reach_their_callers() -> None:
    got: dict[str, Any] = {}
    async with connected() as (connection, monitor), anyio.create_task_group() as tasks:

        async def ask(name: str) -> None:
            got[name] = await connection.execute(name)

        for name in ("first", "second", "third"):
            tasks.start_soon(ask, name)
        heard = [await monitor.hear() for _ in range(3)]
        for each in reversed(heard):
            await monitor.answer(each, each["execute"])
    assert got == {name: name for name in ("first", "second", "third")}


async def test_events_are_passed_on_in_order_between_answers() -> None:
    events: list[Any] = []
    async with connected(events) as (connection, monitor), anyio.create_task_group() as tasks:

        async def answer() -> None:
            heard = await monitor.hear()
            await monitor.say(
                {"event": "STOP", "timestamp": {}}, {"event": "SHUTDOWN", "data": {"guest": True}}
            )
            await monitor.answer(heard)

        tasks.start_soon(answer)
        await connection.execute("stop")
    assert events == [("STOP", {}), ("SHUTDOWN", {"guest": True})]


async def test_a_cancelled_caller_leaves_the_connection_usable() -> None:
    async with connected() as (connection, monitor), anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:

            async def cancel() -> None:
                heard.append(await monitor.hear())
                scope.cancel()

            heard: list[Any] = []
            tasks.start_soon(cancel)
            await connection.execute("slow")
        assert scope.cancelled_caught

        async def answer() -> None:
            await monitor.answer(heard[0], "late")
            await monitor.answer(await monitor.hear(), "next")

        tasks.start_soon(answer)
        assert await connection.execute("next") == "next"


async def test_a_command_that_was_not_begun_is_withdrawn_when_its_caller_leaves() -> None:
    async with connected() as (connection, monitor), anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await connection.execute("never")

        async def answer() -> None:
            heard = await monitor.hear()
            assert heard["execute"] == "next"
            await monitor.answer(heard, 1)

        tasks.start_soon(answer)
        assert await connection.execute("next") == 1


async def test_a_command_longer_than_the_sockets_buffer_arrives_whole() -> None:
    text = "x" * (1 << 20)
    async with connected() as (connection, monitor), anyio.create_task_group() as tasks:

        async def answer() -> None:
            heard = await monitor.hear()
            await monitor.answer(heard, heard["arguments"]["text"])

        tasks.start_soon(answer)
        assert await connection.execute("echo", {"text": text}) == text


async def test_file_descriptors_go_with_their_command() -> None:
    read, write = os.pipe()
    async with connected() as (connection, monitor), anyio.create_task_group() as tasks:

        async def answer() -> None:
            await monitor.answer(await monitor.hear())

        tasks.start_soon(answer)
        await connection.execute("getfd", {"fdname": "pipe"}, fds=[write])
        [received] = monitor.fds
        os.write(received, b"over")
        assert os.read(read, 8) == b"over"
    for fd in (read, write, received):
        os.close(fd)


async def test_the_end_of_qemu_ends_what_waits_and_says_that_it_was_sent() -> None:
    async with connected() as (connection, monitor), anyio.create_task_group() as tasks:

        async def die() -> None:
            await monitor.hear()
            monitor.socket.shutdown(socket.SHUT_RDWR)

        tasks.start_soon(die)
        with pytest.raises(QMPClosedError) as caught:
            await connection.execute("stop")
        assert caught.value.sent
        with pytest.raises(QMPClosedError) as caught:
            await connection.execute("cont")
        assert not caught.value.sent


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"\xff", b'{"a":' * 100_000], ids=["cut", "list", "bytes", "deep"]
)
async def test_what_is_no_message_ends_the_connection(line: bytes) -> None:
    async with connected() as (connection, monitor), anyio.create_task_group() as tasks:
        tasks.start_soon(monitor.write, line + b"\n")
        with pytest.raises(QMPClosedError):
            await connection.execute("query-status")


async def test_a_line_without_end_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "MAX_LINE_BYTES", 1 << 16)
    async with connected() as (connection, monitor), anyio.create_task_group() as tasks:
        tasks.start_soon(monitor.write, b"x" * (1 << 17))
        with pytest.raises(QMPClosedError):
            await connection.execute("query-status")


async def test_an_unknown_answer_is_dropped() -> None:
    async with connected() as (connection, monitor), anyio.create_task_group() as tasks:

        async def answer() -> None:
            heard = await monitor.hear()
            await monitor.say({"return": 1, "id": 999}, {"return": 2, "id": "x"}, {"return": 3})
            await monitor.answer(heard, 4)
            await monitor.answer(heard, 5)

        tasks.start_soon(answer)
        assert await connection.execute("query-status") == 4


async def test_a_qemu_that_never_greets_ends_when_it_dies() -> None:
    ours, theirs = socket.socketpair()
    connection = QMP(ours, lambda name, data: None)
    async with anyio.create_task_group() as tasks:
        theirs.close()
        await tasks.start(connection.serve)
    assert connection.closed
