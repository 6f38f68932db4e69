"""Real VMs with QEMU, on each event loop in a process of its own; ``make bench-qemu`` has what that takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from tests.bench.figures import Figure
from tests.bench.processes import run_python
from tests.bench.vms import LOOPS

__all__ = ["qemu"]

_AIMS: Final = {
    "a VM: create to greeted": "2,500 ms",
    "a clone: create to greeted": "300 ms",
    "a stream from the guest, 32 MiB": "100 MB/s",
    "a stream to the guest, 32 MiB": "100 MB/s",
}


def qemu() -> Iterator[Figure]:
    """Measure everything; how guests run is in each row."""
    for loop in LOOPS:
        measured = json.loads(run_python("-m", "tests.qemu.bench", loop))
        on = f"{loop}, {measured['accelerator'].upper()}"
        for what, (unit, samples) in measured["samples"].items():
            yield Figure(what, unit, samples, loop=on, budget=_AIMS.get(what, ""))
