"""The mux: both ends in this process, without a link and over a socket pair."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Final

import anyio

from tests.bench.figures import Figure, time_per_call
from tests.bench.vms import LOOPS
from tests.wire.muxes import Pair, receive

__all__ = ["mux"]

_PIECE: Final = bytes(65536)
_MEBIBYTES: Final = 32
_ROUNDS: Final = 7
_PINGS: Final = 2000


def mux() -> Iterator[Figure]:
    """Pass bytes from one end to the other, and small messages to and fro."""
    yield Figure("the mux, both ends, without a link", "MB/s", [_without_link() for _ in range(_ROUNDS)])
    if sys.platform == "linux":
        for loop in LOOPS:
            rates, pings = anyio.run(_over_sockets, backend=loop)
            yield Figure("the mux over a socket pair, both ends", "MB/s", rates, loop=loop)
            yield Figure.of_seconds("a byte to the other end of it and back", "us", pings, loop=loop)
    yield Figure.of_seconds("a frame of one byte, sent, received, acknowledged", "us", _small_frames())


def _without_link() -> float:
    pair = Pair(1)
    sender, receiver = pair.guest.mux, pair.host.mux
    channel, _ = pair.open()
    received, start = 0, time.perf_counter()
    while received < _MEBIBYTES << 20:
        while sender.send(channel, _PIECE):
            pass
        while buffers := sender.outgoing():
            data = b"".join(buffers)
            sender.written(len(data))
            for event in receive(receiver, data):
                received += len(event[1])  # type: ignore[misc]
                receiver.consumed(event[0], len(event[1]))  # type: ignore[misc, arg-type]
        while buffers := receiver.outgoing():
            data = b"".join(buffers)
            receiver.written(len(data))
            receive(sender, data)
    return received / 1e6 / (time.perf_counter() - start)


def _small_frames() -> list[float]:
    pair = Pair(1)
    channel, host = pair.open()
    sender, receiver = pair.guest.mux, pair.host.mux

    def pass_one() -> None:
        sender.send(channel, b"x")
        data = b"".join(sender.outgoing())
        sender.written(len(data))
        receive(receiver, data)
        receiver.consumed(host, 1)
        if receiver.outgoing():
            pair.step()

    return time_per_call(pass_one)


async def _over_sockets() -> tuple[list[float], list[float]]:
    from tests.backends.qemu.muxes import linked
    from uvm.backends.qemu.muxlink import MuxStream

    async with linked() as links:
        guest, host = await links.connect()

        async def receive(stream: MuxStream, size: int) -> None:
            while size > 0:
                size -= len(await stream.receive())

        async def measure(sender: MuxStream, receiver: MuxStream) -> float:
            start = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive, receiver, _MEBIBYTES << 20)
                for _ in range(_MEBIBYTES << 4):
                    await sender.send(_PIECE)
            return (_MEBIBYTES << 20) / 1e6 / (time.perf_counter() - start)

        async def ping() -> float:
            start = time.perf_counter()
            await host.send(b"x")
            await guest.send(await guest.receive())
            await host.receive()
            return time.perf_counter() - start

        return [await measure(guest, host) for _ in range(_ROUNDS)], [await ping() for _ in range(_PINGS)]
