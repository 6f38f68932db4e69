"""Standard streams of processes; for what holds for all streams see ``test_streams``."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import anyio
import anyio.lowlevel
import pytest

from tests.backends.hcs.descriptors import new_sockets
from tests.backends.hcs.pipepairs import make_pipe_pair
from tests.backends.hcs.streampairs import pipes_of
from uvm.backend import ByteStream
from uvm.backends.hcs.transport import Pipes
from uvm.errors import HostError

pytestmark = pytest.mark.anyio

ERROR_OPERATION_ABORTED = 995

windows_only = pytest.mark.skipif(sys.platform != "win32", reason="named pipes are Windows's")


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    sockets = new_sockets()
    with pipes_of(sockets) as made:
        yield made
    sockets.close()


async def test_a_closed_pipe_has_closed_its_handle(pipes: Pipes) -> None:
    ours, theirs = make_pipe_pair()
    stream, peer = pipes.open(ours), pipes.open(theirs)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(expect_end, peer)
        await anyio.wait_all_tasks_blocked()
        await stream.aclose()
    assert not is_open(ours)
    await peer.aclose()
    assert not is_open(theirs)


async def expect_end(stream: ByteStream) -> None:
    with pytest.raises(anyio.EndOfStream):
        await stream.receive()


def is_open(handle: int) -> bool:
    if sys.platform == "win32":
        import _winapi

        try:
            _winapi.GetFileType(handle)
        except OSError:
            return False
        return True
    try:
        os.fstat(handle)
    except OSError:
        return False
    return True


async def test_a_read_continues_after_its_task_is_cancelled(pipes: Pipes) -> None:
    stream, peer = map(pipes.open, make_pipe_pair())
    for patience in range(6):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.receive)
            for _ in range(patience):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    await peer.send(b"abc")
    assert [await stream.receive(1) for _ in range(3)] == [b"a", b"b", b"c"]


async def test_what_was_sent_before_the_end_is_received_after_it(pipes: Pipes) -> None:
    stream, peer = map(pipes.open, make_pipe_pair())
    await peer.send(b"last words")
    await peer.aclose()
    assert [await stream.receive(4) for _ in range(3)] == [b"last", b" wor", b"ds"]
    await expect_end(stream)


async def test_many_pipes_are_served_at_once(pipes: Pipes) -> None:
    pairs = [tuple(map(pipes.open, make_pipe_pair())) for _ in range(100)]
    received = {}

    async def receive(number: int, stream: ByteStream) -> None:
        received[number] = await stream.receive()

    async with anyio.create_task_group() as tasks:
        for number, (stream, _) in enumerate(pairs):
            tasks.start_soon(receive, number, stream)
        await anyio.wait_all_tasks_blocked()
        for number, (_, peer) in enumerate(pairs):
            await peer.send(b"%d" % number)
    assert received == {number: b"%d" % number for number in range(100)}


@windows_only
async def test_an_empty_message_is_the_end_though_the_pipe_stays_open(pipes: Pipes) -> None:
    ours, theirs = make_pipe_pair(messages=True)
    stream = pipes.open(theirs)
    for message in (b"abc", b"def", b""):
        write_message(ours, message)
    received = b""
    while len(received) < 6:
        received += await stream.receive(2)
    assert received == b"abcdef"
    for _ in range(2):
        await expect_end(stream)
    await pipes.open(ours).aclose()


def write_message(handle: int, message: bytes) -> None:
    if sys.platform == "win32":
        import _winapi

        overlapped, _ = _winapi.WriteFile(handle, message, overlapped=True)
        overlapped.GetOverlappedResult(True)


@windows_only
async def test_a_handle_that_is_not_for_overlapped_io_is_refused_and_closed(pipes: Pipes) -> None:
    ours, theirs = make_pipe_pair(overlapped=False)
    with pytest.raises(HostError) as caught:
        pipes.open(theirs)
    assert caught.value.name == "E_INVALIDARG"
    assert not is_open(theirs)
    await pipes.open(ours).aclose()


@windows_only
async def test_windows_completes_every_operation(pipes: Pipes) -> None:
    from uvm.backends.hcs import iocp

    abandoned = len(iocp.abandoned)
    for _ in range(100):
        stream, peer = map(pipes.open, make_pipe_pair())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.receive)
            tasks.start_soon(peer.send, bytes(1 << 20))
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await stream.aclose()
        await peer.aclose()
    pipes.close()
    assert len(iocp.abandoned) == abandoned


@windows_only
async def test_closing_a_port_cancels_its_operations_and_waits_for_them() -> None:
    from uvm.backends.hcs import iocp
    from uvm.backends.winerrors import code_of

    ours, theirs = make_pipe_pair()
    port = iocp.CompletionPort()
    handles = [port.handle(number) for number in (ours, theirs)]
    for handle in handles:
        port.attach(handle)
    operations = [
        port.read(handles[0], 10),
        port.write(handles[0], bytes(1 << 22)),
        port.read(handles[0], 10),
    ]
    abandoned = len(iocp.abandoned)
    port.close()
    assert len(iocp.abandoned) == abandoned
    with anyio.fail_after(60):
        for operation in operations:
            await operation.signal.wait()
            failure = port.failure(operation)
            assert failure is not None
            assert code_of(failure) == ERROR_OPERATION_ABORTED
    for handle in handles:
        port.end(handle)


@windows_only
async def test_a_port_whose_thread_cannot_start_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from uvm.backends.hcs.iocp import CompletionPort

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ours, theirs = make_pipe_pair()
    port = CompletionPort()
    handle = port.handle(ours)
    port.attach(handle)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            port.read(handle, 10)
    operation = port.read(handle, 10)
    write_message(theirs, b"hello")
    with anyio.fail_after(60):
        await operation.signal.wait()
    assert port.data(operation) == b"hello"
    for number in (ours, theirs):
        port.end(port.handle(number))
    port.close()


AT_EXIT = """
import threading
import anyio
from tests.backends.hcs.pipepairs import make_pipe_pair
from tests.backends.hcs.streampairs import pipes_of
from tests.backends.hcs.descriptors import new_sockets

waits = threading.Event()
keep = pipes_of(new_sockets())
pipes = keep.__enter__()

async def main():
    stream, peer = map(pipes.open, make_pipe_pair())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.receive)
        tasks.start_soon(peer.send, bytes(1 << 24))
        tasks.start_soon(peer.receive)
        await anyio.wait_all_tasks_blocked()
        waits.set()

threading.Thread(target=anyio.run, args=(main,), daemon=True).start()
waits.wait()
print("leaving")
"""


def test_the_interpreter_ends_during_a_read_and_a_write() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "leaving"), done.stderr
