"""Whole VMs on the fake, on both event loops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import anyio

from tests.bench.figures import Figure
from uvm import FakeBackend, LCOWOptions, UtilityVM
from uvm.backends.fake import FakeFiles

__all__ = ["LOOPS", "OPTIONS", "boot_files", "create_and_close", "lives"]

LOOPS: Final = ("asyncio", "trio")
_BOOT: Final = "C:\\boot"
OPTIONS: Final = LCOWOptions(boot_files_path=_BOOT)

_LIVES: Final = 300


def boot_files() -> FakeFiles:
    """A host's files, of which a Linux VM boots."""
    files = FakeFiles()
    for name in ("vmlinux", "initrd.img"):
        files.add(f"{_BOOT}\\{name}", size=1 << 20)
    return files


def lives() -> Iterator[Figure]:
    """Create a VM, start it and close it."""
    for loop in LOOPS:
        yield Figure.of_seconds(
            "one VM on the fake: create, start, close",
            "ms",
            # The first makes the functions that read and write documents.
            anyio.run(create_and_close, _LIVES, backend=loop)[1:],
            loop=loop,
            budget="2 ms",
        )


async def create_and_close(count: int) -> list[float]:
    """Create a VM, start it and close it, so many times; returns the seconds that each took."""
    backend = FakeBackend(files=boot_files())
    took = []
    for _ in range(count):
        start = time.perf_counter()
        async with UtilityVM.create(OPTIONS, backend=backend) as vm:
            await vm.start()
        took.append(time.perf_counter() - start)
    assert backend.leftovers() == []
    return took
