"""What one more costs among many, against among few. Nothing should grow: the ratio is 1, save for noise.

``python -m tests.bench.growth ROW LOOP N`` prints the processor time of one operation among N, in seconds.
Each is measured in a process of its own, since what another left to the garbage collector would count.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from attrs import evolve, frozen

from tests.bench.disks import attach, host, release
from tests.bench.figures import Figure
from tests.bench.processes import run_python
from tests.bench.vms import LOOPS, OPTIONS, boot_files, create_and_close
from uvm import FakeBackend, UtilityVM

__all__ = ["ROWS", "Row", "figure_of", "growth"]

_TURNS: Final = 3
_OPTIONS: Final = evolve(OPTIONS, scsi_controllers=4)

#: How often what is done one after the other is done.
_TIMES: Final = 500
_REQUESTS: Final = 20_000

#: Runs something on an event loop with so many, and returns the seconds of one operation.
Runner = Callable[[str, str, int], float]


@frozen
class Row:
    """What may grow.

    :ivar measure: returns the processor time of one operation among so many.
    :ivar aim: the ratio that the design allows.
    """

    what: str
    few: int
    many: int
    measure: Callable[[int], Awaitable[float]]
    aim: float = 1.1

    def __str__(self) -> str:
        return self.what.format(few=f"{self.few:,}", many=f"{self.many:,}")


async def _each(count: int, do: Callable[[], Awaitable[object]]) -> float:
    """Return the processor time of doing something that is so many operations."""
    gc.collect()
    start = time.process_time()
    await do()
    return (time.process_time() - start) / count


async def _at_once(do: Callable[[str], Coroutine[Any, Any, object]], paths: Iterable[str]) -> None:
    async with anyio.create_task_group() as tasks:
        for path in paths:
            tasks.start_soon(do, path)


def _paths(count: int, name: str = "disk") -> list[str]:
    return [f"C:\\many\\{name}{n}.vhdx" for n in range(count)]


@asynccontextmanager
async def _vm(paths: Sequence[str]) -> AsyncIterator[UtilityVM]:
    """Run a VM on a host that has disks."""
    async with UtilityVM.create(_OPTIONS, backend=host(paths)) as vm:
        await vm.start()
        # The first is for what is made once.
        await release(await attach(vm.scsi, paths[:1]))
        yield vm


async def _vms(count: int) -> float:
    """Create and start VMs, all at once."""
    await create_and_close(1)
    backend = FakeBackend(files=boot_files())
    started: list[str] = []
    up, enough = anyio.Event(), anyio.Event()

    async def keep() -> None:
        async with UtilityVM.create(OPTIONS, backend=backend) as vm:
            await vm.start()
            started.append(vm.id)
            if len(started) == count:
                up.set()
            await enough.wait()

    async with anyio.create_task_group() as tasks:

        async def start_all() -> None:
            for _ in range(count):
                tasks.start_soon(keep)
            await up.wait()

        seconds = await _each(count, start_all)
        enough.set()
    return seconds


async def _layers_added(count: int) -> float:
    """Add layers, all at once."""
    async with _vm(_paths(count)) as vm:
        seconds = await _each(count, lambda: _at_once(vm.vpmem.add, _paths(count)))
        assert len(vm.vpmem.layers) == count
    return seconds


async def _layers_released(count: int) -> float:
    """Release layers, all at once."""
    async with _vm(_paths(count)) as vm:
        await _at_once(vm.vpmem.add, _paths(count))
        seconds = await _each(count, lambda: _at_once(vm.vpmem.remove, _paths(count)))
        assert not vm.vpmem.layers
    return seconds


async def _layers_there(count: int) -> float:
    """Add and release one more layer, where others are."""
    (one,) = _paths(1, "measured")

    async def add_and_release() -> None:
        for _ in range(_TIMES):
            await (await vm.vpmem.add(one)).release()

    async with _vm([one, *_paths(count)]) as vm:
        await _at_once(vm.vpmem.add, _paths(count))
        return await _each(_TIMES, add_and_release)


async def _disks_there(count: int) -> float:
    """Attach, mount and release one more disk, where others are."""
    one = _paths(1, "measured")

    async def attach_and_release() -> None:
        for _ in range(_TIMES):
            await release(await attach(vm.scsi, one))

    async with _vm([*one, *_paths(count)]) as vm:
        await attach(vm.scsi, _paths(count))
        return await _each(_TIMES, attach_and_release)


async def _one_disk(count: int) -> float:
    """Want one disk in many tasks."""
    one = _paths(1)
    async with _vm(one) as vm:
        seconds = await _each(count, lambda: _at_once(vm.scsi.attach, one * count))
        assert vm.scsi.disks[0].references == count
    return seconds


async def _log_entries(count: int) -> float:
    """Make one more request to a fake whose request log is full."""
    backend = FakeBackend(files=boot_files(), request_log_entries=count)

    async def ask(times: int) -> None:
        for _ in range(times):
            await system.properties()

    async with UtilityVM.create(OPTIONS, backend=backend) as vm:
        system = await backend.open(vm.id)
        await ask(count)
        seconds = await _each(_REQUESTS, lambda: ask(_REQUESTS))
        assert len(backend.request_log) == count
    return seconds


async def _paths_had(count: int) -> float:
    """Attach and release disks, each another, one after the other, and close the VM."""
    paths = _paths(count)

    async def use() -> None:
        async with _vm(paths) as vm:
            for path in paths:
                await (await vm.scsi.attach(path)).release()

    return await _each(count, use)


#: By the names that the command line takes.
ROWS: Final = {
    "vms": Row("{many} VMs at once against {few}, per VM", 100, 1000, _vms),
    "adds": Row("{many} VPMEM adds at once against {few}, per layer", 100, 1000, _layers_added),
    "releases": Row("{many} VPMEM releases at once against {few}, per layer", 100, 4000, _layers_released),
    "layers": Row("one more layer of {many} against one of {few}", 10, 4000, _layers_there),
    "disks": Row("one more disk beside {many} against beside {few}", 0, 255, _disks_there),
    "waiters": Row("one disk wanted by {many} tasks against by {few}, per task", 100, 10_000, _one_disk),
    "log": Row("a request with {many} entries in the fake's log against {few}", 100, 100_000, _log_entries),
    "paths": Row("a VM that had {many} paths against {few}, per path", 1000, 50_000, _paths_had),
}


def growth(*names: str) -> Iterator[Figure]:
    """Measure some rows, or all."""
    for name in names or ROWS:
        for loop in LOOPS:
            yield figure_of(name, loop, _in_process)


def figure_of(name: str, loop: str, run: Runner) -> Figure:
    """Measure one row: few and many in turns."""
    row = ROWS[name]
    turns = [(run(name, loop, row.few), run(name, loop, row.many)) for _ in range(_TURNS)]
    few, many = (min(each) * 1e6 for each in zip(*turns, strict=True))
    return Figure(
        str(row),
        "x",
        [after / before for before, after in turns],
        loop=loop,
        budget=f"{row.aim} x",
        note=f"at least {many:,.1f} us against {few:,.1f} us of processor time: {many / few:.2f} times",
    )


def _in_process(name: str, loop: str, count: int) -> float:
    return float(run_python("-m", "tests.bench.growth", name, loop, str(count)))


if __name__ == "__main__":
    row_name, event_loop, among = sys.argv[1:]
    print(anyio.run(ROWS[row_name].measure, int(among), backend=event_loop))
