"""The agent and the library's own connection to guests, over the mux, on both event loops."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from uvm._gcs.connection import GuestConnection
from uvm._wire.ports import LINUX_ENTROPY_PORT, LINUX_GCS_PORT, LINUX_LOG_PORT, vsock_port
from uvm.backend import Listener
from uvm.backends.qemu.muxlink import MuxLink
from uvm.errors import BridgeClosedError, GuestError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

PATIENCE_SECONDS = 60


def start_agent() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start an agent, and return its link and its process."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-S", "-m", "uvm.agent", "--fd", str(theirs.fileno())]
        return ours, subprocess.Popen(command, pass_fds=[theirs.fileno()])


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[GuestConnection, MuxLink]]:
    """Run an agent, and yield a connection to it, and the link below that."""
    ours, process = start_agent()
    with process:
        link = MuxLink("vm1", ours)

        async def listen(service_id: str) -> Listener:
            port = vsock_port(service_id)
            assert port is not None
            return link.listen(port)

        connection = GuestConnection(listen, name="vm")
        with anyio.fail_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(link.serve)
                listener = link.listen(LINUX_GCS_PORT)
                stream = await listener.accept()
                await listener.aclose()
                await tasks.start(connection.serve, stream)
                yield connection, link
                connection.close()
                link.close()
        process.wait(PATIENCE_SECONDS)


async def test_commands_run_with_their_input_and_output() -> None:
    async with connected() as (guest, _):
        done = await guest.run(["sh", "-c", "cat; echo err >&2; exit 3"], input=b"in" * 500_000)
        assert (done.exit_code, done.stdout, done.stderr) == (3, b"in" * 500_000, b"err\n")
        done = await guest.run(["sh", "-c", "pwd; echo $A"], cwd="/usr", env={"A": "b"})
        assert done.stdout == b"/usr\nb\n"


async def test_many_commands_run_at_once() -> None:
    outputs: dict[int, bytes] = {}

    async def run(number: int) -> None:
        outputs[number] = (await guest.run(["cat"], input=str(number).encode())).stdout

    async with connected() as (guest, _):
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(run, number)
        assert outputs == {number: str(number).encode() for number in range(50)}


async def test_terminals_signals_and_kills() -> None:
    async with connected() as (guest, _):
        script = "trap 'stty size; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
        async with guest.open_process(["bash", "-c", script], terminal=True, size=(20, 60)) as process:
            output = b""
            while b"ready" not in output:
                output += await process.stdout.receive()
            await process.resize(25, 90)
            assert await process.signal("TERM")
            assert await process.wait() == 5
            assert not await process.kill()
        async with guest.open_process(["sleep", "1000"]) as process:
            assert await process.kill()
            assert await process.wait() == 0xFFFFFFFF


async def test_what_is_refused_has_the_guest_s_code_and_words() -> None:
    async with connected() as (guest, _):
        with pytest.raises(GuestError, match="executable file not found"):
            await guest.run(["nothing-there"])
        with pytest.raises(GuestError, match="invalid ResourceType 'Nothing'") as refused:
            await guest.modify({"ResourceType": "Nothing", "Settings": {}})
        assert refused.value.hresult == HResult.E_FAIL
        assert "MainThread" in await guest.dump_stacks()


async def test_the_end_of_the_agent_ends_the_connection() -> None:
    async with connected() as (guest, _):
        await guest.shutdown()
        await guest.wait_closed()
        with pytest.raises(BridgeClosedError):
            await guest.run(["true"])


async def test_the_host_is_sent_the_log_and_its_random_bytes_are_read() -> None:
    async with connected() as (_, link):
        random = await link.listen(LINUX_ENTROPY_PORT).accept()
        await random.send(bytes(512))
        await random.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await random.receive()
        log = await link.listen(LINUX_LOG_PORT).accept()
        assert b'"msg": "GCS started"' in await log.receive()
