"""The connection over Unix sockets, to any process that speaks the protocol."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from uvm._gcs.unix import _Sockets, connect_unix, listen_unix
from uvm._guest.timeouts import GuestTimeouts
from uvm._wire.frames import GuestSide, Procedure, parse
from uvm._wire.ports import LINUX_GCS_PORT, vsock_service_id
from uvm.backend import BROKEN_STREAM
from uvm.errors import BridgeClosedError, HostPathError, NotSupportedError

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="anyio has no Unix sockets on Windows"),
]

CAPABILITIES: dict[str, Any] = {
    "SendHostCreateMessage": True,
    "RuntimeOsType": "linux",
    "GuestDefinedCapabilities": {"SignalProcessSupported": True},
}


class EchoGuest:
    """A guest whose every program writes ``hello`` and exits with 3."""

    def __init__(self, path: Path, version: int = 4, ports: str = "") -> None:
        self.path = path
        self.ports = ports or f"{path}_"
        self.version = version
        self.asked: list[Procedure] = []
        self.served = 0

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        """Answer the requests of one stream, until the host closes it or resets it."""
        self.served += 1
        with suppress(*BROKEN_STREAM):
            await self._serve(stream)

    async def _serve(self, stream: anyio.abc.ByteStream) -> None:
        wire = GuestSide()
        async with stream:
            async for data in stream:
                for request in wire.receive(data):
                    self.asked.append(Procedure(request.procedure))
                    body = await self.answer(Procedure(request.procedure), parse(request.payload))
                    await stream.send(wire.respond(request.id, {"Result": 0} | body))

    async def answer(self, procedure: Procedure, body: dict[str, Any]) -> dict[str, Any]:
        if procedure is Procedure.NEGOTIATE_PROTOCOL:
            return {"Version": self.version, "Capabilities": CAPABILITIES}
        if procedure is Procedure.EXECUTE_PROCESS:
            for name, port in body["Settings"]["VsockStdioRelaySettings"].items():
                stream = await anyio.connect_unix(f"{self.ports}{port}")
                if name == "StdOut":
                    await stream.send(b"hello")
                await stream.aclose()
            return {"ProcessId": 5}
        return {"ExitCode": 3} if procedure is Procedure.WAIT_FOR_PROCESS else {}

    async def dial(self) -> None:
        """Dial the host, as a guest in a VM does."""
        await self.serve(await anyio.connect_unix(f"{self.path}_{LINUX_GCS_PORT}"))


@asynccontextmanager
async def listening(guest: EchoGuest) -> AsyncIterator[anyio.abc.TaskGroup]:
    """A guest that is dialled."""
    async with await anyio.create_unix_listener(guest.path) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, guest.serve)
        yield tasks
        tasks.cancel_scope.cancel()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest.sock"


async def test_a_guest_that_listens_is_connected_to(path: Path) -> None:
    guest = EchoGuest(path)
    async with listening(guest):
        async with connect_unix(path) as connection:
            done = await connection.run(["anything"])
            assert (done.exit_code, done.stdout) == (3, b"hello")
        assert connection.closed
        assert guest.asked[:2] == [Procedure.NEGOTIATE_PROTOCOL, Procedure.CREATE]
        assert [each.name for each in path.parent.iterdir()] == ["guest.sock"]


async def test_a_guest_that_was_set_up_already_is_not_set_up_again(path: Path) -> None:
    guest = EchoGuest(path)
    async with listening(guest), connect_unix(path, cold_start=False):
        assert guest.asked == [Procedure.NEGOTIATE_PROTOCOL]


async def test_a_guest_that_dials_is_waited_for(path: Path) -> None:
    guest = EchoGuest(path)
    async with anyio.create_task_group() as tasks:

        async def start() -> None:
            tasks.start_soon(guest.dial)

        async with listen_unix(path, on_listening=start) as connection:
            assert (await connection.run(["anything"])).stdout == b"hello"
    assert not list(path.parent.iterdir())


async def test_the_user_says_where_the_ports_are(path: Path, tmp_path: Path) -> None:
    ports = tmp_path / "ports"
    ports.mkdir()
    async with listening(EchoGuest(path, ports=f"{ports}/")):
        async with connect_unix(path, listen_at=lambda port: ports / str(port)) as connection:
            assert (await connection.run(["anything"])).stdout == b"hello"
        assert not list(ports.iterdir())


async def test_an_exception_of_the_body_comes_out_as_it_is(path: Path) -> None:
    async with listening(EchoGuest(path)):
        with pytest.raises(KeyError):
            async with connect_unix(path) as connection:
                raise KeyError("mine")
        assert connection.closed


async def test_a_body_that_is_cancelled_leaves_nothing_behind(path: Path) -> None:
    async with listening(EchoGuest(path)):
        with anyio.CancelScope() as scope:
            async with connect_unix(path) as connection:
                await connection.open_process(["sleep"])
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert connection.closed
        assert [each.name for each in path.parent.iterdir()] == ["guest.sock"]


async def test_a_path_at_which_nobody_listens_is_a_clear_error(path: Path) -> None:
    with pytest.raises(HostPathError, match="no guest answers there") as caught:
        async with connect_unix(path):
            pass
    assert caught.value.path == str(path)


async def test_a_path_at_which_no_socket_can_be_made_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(HostPathError, match="no socket can be made"):
        async with listen_unix(tmp_path / "nowhere" / "guest.sock"):
            pass


async def test_a_guest_that_never_dials_is_not_waited_for_without_end(path: Path) -> None:
    with pytest.raises(BridgeClosedError, match=r"within 0\.01 s"):
        async with listen_unix(path, timeouts=GuestTimeouts(boot_seconds=0.01)):
            pass
    assert not list(path.parent.iterdir())


async def test_a_guest_of_another_version_is_not_supported(path: Path) -> None:
    async with listening(EchoGuest(path, version=3)):
        with pytest.raises(NotSupportedError, match="version 3"):
            async with connect_unix(path):
                pass


async def test_a_connection_that_broke_is_made_again_where_there_is_time_for_it(path: Path) -> None:
    guest = EchoGuest(path)
    streams: list[anyio.abc.ByteStream] = []
    serve = guest.serve

    async def keep(stream: anyio.abc.ByteStream) -> None:
        streams.append(stream)
        await serve(stream)

    guest.serve = keep  # type: ignore[method-assign]
    async with listening(guest), connect_unix(path, timeouts=GuestTimeouts(redial_seconds=60)) as connection:
        await streams[0].aclose()
        assert (await connection.run(["anything"])).exit_code == 3
        assert guest.served == 2
        assert guest.asked.count(Procedure.CREATE) == 1


async def test_a_guest_that_starts_again_is_connected_to_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvm._gcs.unix.REDIAL_PAUSE_SECONDS", 0.0)
    started, restart = anyio.Event(), anyio.Event()

    async def live_twice() -> None:
        async with listening(EchoGuest(path)):
            started.set()
            await restart.wait()
        async with listening(EchoGuest(path)):
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(live_twice)
        await started.wait()
        async with connect_unix(path, timeouts=GuestTimeouts(redial_seconds=60)) as connection:
            assert (await connection.run(["anything"])).exit_code == 3
            restart.set()
            await anyio.wait_all_tasks_blocked()
            assert (await connection.run(["anything"])).exit_code == 3
        tasks.cancel_scope.cancel()


async def test_a_second_guest_is_not_listened_to(path: Path) -> None:
    guest = EchoGuest(path)
    async with anyio.create_task_group() as tasks:

        async def start() -> None:
            tasks.start_soon(guest.dial)

        async with listen_unix(path, on_listening=start):
            with pytest.raises(FileNotFoundError):
                await EchoGuest(path).dial()


async def test_sockets_are_removed_also_in_a_cancelled_scope(path: Path) -> None:
    sockets = _Sockets(str(path))
    listener = await sockets.listen(vsock_service_id(7))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await listener.aclose()
    assert not list(path.parent.iterdir())
