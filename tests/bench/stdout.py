"""``python -m tests.bench.stdout LOOP MIB``: reads so much output of a process in a guest.

It says in JSON how many seconds that took, and how many bytes the resident set grew by at its peak.
"""

from __future__ import annotations

import json
import sys
import time

import anyio

from tests.bench.memory import peak_resident_bytes
from tests.bench.vms import OPTIONS, boot_files
from uvm import FakeBackend, UtilityVM

#: What is read before anything is measured, in bytes.
_FIRST = 1 << 20


async def _read_output(size: int) -> dict[str, float]:
    async with UtilityVM.create(OPTIONS, backend=FakeBackend(files=boot_files())) as vm:
        await vm.start()
        async with vm.open_process(["yes"], stdin=False, stderr=False) as process:
            assert process.stdout is not None
            taken = 0
            while taken < _FIRST:
                taken += len(await process.stdout.receive())
            before, start, taken = peak_resident_bytes(), time.perf_counter(), 0
            while taken < size:
                taken += len(await process.stdout.receive())
            seconds = time.perf_counter() - start
            return {"bytes": taken, "seconds": seconds, "growth": peak_resident_bytes() - before}


if __name__ == "__main__":
    loop, mebibytes = sys.argv[1:]
    print(json.dumps(anyio.run(_read_output, int(mebibytes) << 20, backend=loop)))
