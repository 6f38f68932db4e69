"""The operations whose instructions are counted.

``python -m tests.bench.counted ROW LOOP COUNT`` does one so many times; the loop of a pure one is ``-``.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import anyio
from attrs import frozen

from tests.bench import disks, gcs, machines, vms

__all__ = ["NO_LOOP", "OPERATIONS", "Operation"]

NO_LOOP: Final = "-"


@frozen
class Operation:
    """What a row counts.

    :ivar run: do it so many times.
    :ivar counts: how many times the two runs do it.
    :ivar aims: instructions that the design allows, by event loop.
    """

    what: str
    run: Callable[[int], object]
    counts: tuple[int, int]
    aims: dict[str, float]


def _pure(what: str, make: Callable[[], Callable[[], object]], aim: float) -> Operation:
    def run(count: int) -> None:
        do = make()
        for _ in range(count):
            do()

    return Operation(what, run, (200, 2200), {NO_LOOP: aim})


def _on_loops(
    what: str, run: Callable[[int], Awaitable[Any]], counts: tuple[int, int], asyncio: float, trio: float = 0
) -> Operation:
    return Operation(what, run, counts, {"asyncio": asyncio, "trio": trio})


#: By the names that the command line takes.
OPERATIONS: Final = {
    "scsi": _pure("SCSI machine, attach + detach", partial(machines.attach_and_detach, 0), 70e3),
    "scsi-json": _pure("the same with JSON", partial(machines.attach_and_detach, 0, as_json=True), 80e3),
    "vpmem": _pure("packed VPMEM, add + remove, 500 mapped", machines.add_and_remove, 0),
    "vpmem-json": _pure("the same with JSON", partial(machines.add_and_remove, as_json=True), 150e3),
    "codec": _pure("modify request written, its answer read", gcs.ask_and_read, 0),
    "rpc": _on_loops("two modify RPCs in process", gcs.mount_and_unmount, (50, 350), 775e3, 960e3),
    "disk": _on_loops(
        "one disk attached, mounted, released, fake", partial(disks.attach_and_release, 1), (20, 120), 2.3e6
    ),
    "disks": _on_loops("64 disks at once, the same", partial(disks.attach_and_release, 64), (2, 6), 0),
    "stubs": _on_loops("64 disks at once on stubs", disks.attach_and_release_on_stubs, (2, 12), 0),
    "vm": _on_loops("one VM created, started, closed", vms.create_and_close, (10, 50), 6e6),
}


def main() -> None:
    """Do an operation so many times."""
    name, loop, count = sys.argv[1:]
    run: Callable[[int], Any] = OPERATIONS[name].run
    if loop == NO_LOOP:
        run(int(count))
    else:
        anyio.run(run, int(count), backend=loop)


if __name__ == "__main__":
    main()
