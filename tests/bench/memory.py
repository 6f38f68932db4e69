"""``python -m tests.bench.memory rss|tracemalloc|objects LOOP COUNT``: what each idle VM takes.

That is in bytes, or objects that the garbage collector tracks.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.abc

from tests.bench.vms import OPTIONS, boot_files
from uvm import FakeBackend, UtilityVM

__all__ = ["peak_resident_bytes", "resident_bytes"]

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Give the resident set of this process; 0 where the system has no ``/proc``."""
    return _status("VmRSS:")


def peak_resident_bytes() -> int:
    """Give the largest resident set that this process ever had; 0 where the system has no ``/proc``."""
    return _status("VmHWM:")


def _status(name: str) -> int:
    if not _STATUS.exists():
        return 0
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith(name)]
    return int(kibibytes) * 1024


def _traced_bytes() -> int:
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    return tracemalloc.get_traced_memory()[0]


def _tracked_objects() -> int:
    return len(gc.get_objects())


_MEASURES = {"rss": resident_bytes, "tracemalloc": _traced_bytes, "objects": _tracked_objects}


async def _per_vm(in_use: Callable[[], int], count: int) -> float:
    backend = FakeBackend(files=boot_files())
    # One VM first, for what is made once.
    async with UtilityVM.create(OPTIONS, backend=backend) as vm:
        await vm.start()
    enough = anyio.Event()

    async def keep(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with UtilityVM.create(OPTIONS, backend=backend) as vm:
            await vm.start()
            task_status.started()
            await enough.wait()

    gc.collect()
    before = in_use()
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            await tasks.start(keep)
        gc.collect()
        after = in_use()
        enough.set()
    return (after - before) / count


if __name__ == "__main__":
    how, loop, vms = sys.argv[1:]
    print(anyio.run(_per_vm, _MEASURES[how], int(vms), backend=loop))
