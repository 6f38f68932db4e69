"""Whole VMs on the fake, on both event loops.

``python -m tests.bench.vms LOOP COUNT`` prints the processor time of each of so many, in seconds, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Final

import anyio

from tests.bench.figures import Figure, Span
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
            # The first is for what is made once.
            [each.wall for each in anyio.run(create_and_close, _LIVES, backend=loop)[1:]],
            loop=loop,
            budget="2 ms",
        )


async def create_and_close(count: int) -> list[Span]:
    """Create a VM, start it and close it, so many times; returns what each took."""
    backend = FakeBackend(files=boot_files())
    took: list[Span] = []
    for _ in range(count):
        with Span.measured(took):
            async with UtilityVM.create(OPTIONS, backend=backend) as vm:
                await vm.start()
    assert backend.leftovers() == []
    return took


if __name__ == "__main__":
    event_loop, vms = sys.argv[1:]
    print(json.dumps([each.cpu for each in anyio.run(create_and_close, int(vms), backend=event_loop)]))
