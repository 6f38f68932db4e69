"""The library on HCS, whose C API is the tests' double and whose host is the fake: what the way there costs.

``python -m tests.bench.hcs LOOP COUNT`` says in JSON by how much so many calls make the process grow.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from tests.backends.fake.support import host_files, lcow
from tests.backends.hcs.double.build import NoCompilerError
from tests.backends.hcs.double.control import the_double
from tests.backends.hcs.harness import Host, hosted
from tests.backends.hcs.resources import Resources
from tests.bench.figures import Figure
from tests.bench.memory import resident_bytes
from tests.bench.vms import LOOPS, OPTIONS, boot_files
from uvm import FakeBackend, UtilityVM
from uvm.backend import System
from uvm.backends.fake import Latency
from uvm.schema.requests import MemorySize

__all__ = ["calls", "growth_over", "in_flight", "lives", "possible"]

_CALLS: Final = 4000
#: Samples are means over so many calls each.
_CALLS_PER_SAMPLE: Final = 100
_IN_FLIGHT: Final = 1000
_LATENCY_MS: Final = 1000.0
_ROUNDS: Final = 5
_LIVES: Final = 100
#: As many calls as the fake's request log keeps, so that it does not count as growth.
_FIRST: Final = 10_000
_RESIZE: Final[dict[str, Any]] = {
    "ResourcePath": MemorySize.PATH,
    "RequestType": "Update",
    "Settings": 1024,
}


def possible() -> bool:
    """Say whether there is a compiler for the double, and on stderr where there is none."""
    try:
        the_double()
    except NoCompilerError as e:
        print(f"no figures of hcs: {e}", file=sys.stderr)
        return False
    return True


@asynccontextmanager
async def _systems(fake: FakeBackend) -> AsyncIterator[tuple[Host, System, System]]:
    """Start a system through the C API; gives a second handle on it, of the fake itself."""
    async with hosted(fake) as host, host.backend() as backend:
        system = await backend.create("measured", lcow())
        await system.start()
        direct = await fake.open("measured")
        yield host, system, direct
        await direct.close()
        await system.close()


def calls() -> Iterator[Figure]:
    """Modify a system, over the C API and on the fake alone."""
    if not possible():
        return
    for loop in LOOPS:
        over_hcs, alone = anyio.run(_calls, backend=loop)
        what = "one modify through cffi and the C double to the fake, and back"
        yield Figure.of_seconds(what, "us", over_hcs, loop=loop)
        yield Figure.of_seconds("the same modify on the fake alone", "us", alone, loop=loop)


async def _calls() -> tuple[list[float], list[float]]:
    async with _systems(FakeBackend(files=host_files())) as (_, system, direct):
        await _modify(system)
        return await _modify(system), await _modify(direct)


async def _modify(system: System) -> list[float]:
    took = []
    for _ in range(_CALLS // _CALLS_PER_SAMPLE):
        start = time.perf_counter()
        for _ in range(_CALLS_PER_SAMPLE):
            await system.modify(_RESIZE)
        took.append((time.perf_counter() - start) / _CALLS_PER_SAMPLE)
    return took


def in_flight() -> Iterator[Figure]:
    """Have many modifies under way at once, on a host that takes its time for each."""
    if not possible():
        return
    for loop in LOOPS:
        took, threads = anyio.run(_many_at_once, backend=loop)
        yield Figure.of_seconds(
            f"{_IN_FLIGHT:,} HCS operations in flight, host at {_LATENCY_MS:,g} ms (floor that)",
            "ms",
            took,
            loop=loop,
            note=f"threads that they take besides the loop's and the double's: {threads}",
        )


async def _many_at_once() -> tuple[list[float], int]:
    fake = FakeBackend(files=host_files(), latency=Latency(host_ms=_LATENCY_MS))
    took, threads = [], 0
    async with _systems(fake) as (host, system, _):
        backend = host.backend()
        # The pool's threads, from the start of the system, are not of these operations.
        before = threading.active_count()
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for _ in range(_IN_FLIGHT):
                    tasks.start_soon(system.modify, _RESIZE)
                await anyio.wait_all_tasks_blocked()
                assert backend._host.service.operations == _IN_FLIGHT
                threads = max(threads, threading.active_count() - before)
            took.append(time.perf_counter() - start)
    return took, threads


def lives() -> Iterator[Figure]:
    """Create a VM, start it and close it, over the C API."""
    if not possible():
        return
    for loop in LOOPS:
        took = anyio.run(_lives, backend=loop)
        yield Figure.of_seconds("one VM on HCS over the double: create, start, close", "ms", took, loop=loop)


async def _lives() -> list[float]:
    took = []
    async with hosted(FakeBackend(files=boot_files())) as host, host.backend() as backend:
        for _ in range(_LIVES):
            start = time.perf_counter()
            async with UtilityVM.create(OPTIONS, backend=backend) as vm:
                await vm.start()
            took.append(time.perf_counter() - start)
    # The first makes the functions that read and write documents.
    return took[1:]


async def growth_over(count: int) -> dict[str, int]:
    """Modify and query in turns, so many times, and give by how much what is open and in memory grew."""
    async with _systems(FakeBackend(files=host_files())) as (host, system, _):
        await _modify_and_query(system, _FIRST)
        before, resident = await _settled(host)
        await _modify_and_query(system, count)
        after, resident_after = await _settled(host)
    return {
        "handles and operations": after.objects - before.objects,
        "strings": after.strings - before.strings,
        "descriptors": after.descriptors - before.descriptors,
        "threads": after.threads - before.threads,
        "KiB resident": (resident_after - resident) // 1024,
    }


async def _modify_and_query(system: System, count: int) -> None:
    for n in range(count):
        if n % 2:
            await system.properties("Statistics")
        else:
            await system.modify(_RESIZE)


async def _settled(host: Host) -> tuple[Resources, int]:
    await anyio.wait_all_tasks_blocked()
    host.double.drain()
    gc.collect()
    return Resources.of(host.double), resident_bytes()


if __name__ == "__main__":
    loop, operations = sys.argv[1:]
    print(json.dumps(anyio.run(growth_over, int(operations), backend=loop)))
