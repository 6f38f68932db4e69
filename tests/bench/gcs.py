"""The connection to a guest: messages as bytes, requests and their answers, processes and their output.

The guest is the fake's, which runs on the same event loop and does its part of each message there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from struct import Struct
from typing import Any, Final

import anyio

from tests.bench.figures import Figure, time_per_call
from tests.bench.vms import LOOPS, OPTIONS, boot_files
from uvm import FakeBackend, UtilityVM
from uvm._wire.frames import HostSide, Kind, Procedure
from uvm.schema.gcs import HOST_CONTAINER_ID, ContainerModifySettingsRequest
from uvm.schema.json import dumps

__all__ = ["ask_and_read", "calls", "codec", "many_processes", "mount_and_unmount"]

_DISK: Final = "C:\\disks\\measured.vhdx"
_HEADER: Final = Struct("<IIQ")
_ANSWER: Final = b'{"Result":0,"ActivityId":"00000000-0000-0000-0000-000000000000"}'

_CALLS: Final = 10_000
_IN_FLIGHT: Final = 64
#: Rates are over so many calls each, so that the table can show how they spread.
_CALLS_PER_SAMPLE: Final = 500
_PROCESSES: Final = 200
_ROUNDS: Final = 10


def _mount_request(kind: str, path: str) -> dict[str, Any]:
    settings = {"MountPath": path, "Lun": 0, "Controller": 0, "Filesystem": "ext4"}
    return {"ResourceType": "MappedVirtualDisk", "RequestType": kind, "Settings": settings}


def ask_and_read() -> Callable[[], int]:
    """Return what writes a modify request and reads its answer: the host's part, without the guest's."""
    host = HostSide()
    request = _mount_request("Add", "/run/mounts/scsi/m0")
    answer_type = Kind.RESPONSE | Procedure.MODIFY_SETTINGS
    size = _HEADER.size + len(_ANSWER)

    def do() -> int:
        body = ContainerModifySettingsRequest(container_id=HOST_CONTAINER_ID, request=request)
        request_id, _ = host.request(Procedure.MODIFY_SETTINGS, dumps(body))
        return sum(1 for _ in host.receive(_HEADER.pack(answer_type, size, request_id) + _ANSWER))

    assert do() == 1
    return do


def codec() -> Iterator[Figure]:
    """Write a modify request and read its answer."""
    yield Figure.of_seconds(
        "modify request written, its answer read (the host's part)",
        "us",
        time_per_call(ask_and_read()),
        budget="15 us",
    )


@asynccontextmanager
async def _guest() -> AsyncIterator[UtilityVM]:
    """Give a VM with a disk, on a host and with a guest that take no time."""
    files = boot_files()
    files.add(_DISK, size=1 << 20)
    async with UtilityVM.create(OPTIONS, backend=FakeBackend(files=files)) as vm:
        await vm.start()
        async with vm.scsi.attach(_DISK):
            yield vm


def calls() -> Iterator[Figure]:
    """Have the guest mount and unmount a disk, over and over: one call at a time, then many at once."""
    for loop in LOOPS:
        seconds = anyio.run(_one_by_one, backend=loop)
        yield _rate("modify requests to the guest, one after the other", seconds, loop, in_flight=1)
        slowest = statistics.quantiles(seconds, n=100)[98] * 1e6
        yield Figure("the slowest hundredth of them takes at least", "us", [slowest], loop=loop)
        many = anyio.run(_many_at_once, backend=loop)
        yield _rate(f"modify requests to the guest, {_IN_FLIGHT} in flight", many, loop, _IN_FLIGHT)


def _rate(what: str, seconds: list[float], loop: str, in_flight: int) -> Figure:
    """Make a row of calls per second, out of what each call took."""
    batches = [seconds[i : i + _CALLS_PER_SAMPLE] for i in range(0, len(seconds), _CALLS_PER_SAMPLE)]
    return Figure(what, "/s", [len(batch) * in_flight / sum(batch) for batch in batches], loop=loop)


async def _one_by_one() -> list[float]:
    async with _guest() as vm:
        return await _mount_and_unmount(vm, "/mnt/measured", _CALLS)


async def mount_and_unmount(count: int) -> None:
    """Have the guest mount a disk and unmount it, so many times."""
    async with _guest() as vm:
        await _mount_and_unmount(vm, "/mnt/measured", 2 * count)


async def _many_at_once() -> list[float]:
    """Each of the tasks waits for its answer before it asks again."""
    took: list[float] = []
    async with _guest() as vm:

        async def ask(number: int) -> None:
            took.extend(await _mount_and_unmount(vm, f"/mnt/{number}", _CALLS // _IN_FLIGHT * 4))

        async with anyio.create_task_group() as tasks:
            for number in range(_IN_FLIGHT):
                tasks.start_soon(ask, number)
    return took


async def _mount_and_unmount(vm: UtilityVM, path: str, count: int) -> list[float]:
    modify: Callable[[Any], Any] = vm.guest.modify
    requests = (_mount_request("Add", path), _mount_request("Remove", path))
    took = []
    for n in range(count):
        start = time.perf_counter()
        await modify(requests[n % 2])
        took.append(time.perf_counter() - start)
    return took


def many_processes() -> Iterator[Figure]:
    """Run many processes at once, each to its end, with what it wrote."""
    for loop in LOOPS:
        yield Figure.of_seconds(
            f"{_PROCESSES} processes at once, run to their ends",
            "ms",
            anyio.run(_many_processes, backend=loop),
            loop=loop,
        )


async def _many_processes() -> list[float]:
    took = []
    async with _guest() as vm:
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for number in range(_PROCESSES):
                    tasks.start_soon(_echo, vm, f"process {number}")
            took.append(time.perf_counter() - start)
    return took


async def _echo(vm: UtilityVM, text: str) -> None:
    assert (await vm.run(["echo", text])).stdout == f"{text}\n".encode()
