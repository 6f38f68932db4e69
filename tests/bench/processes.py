"""What needs an interpreter of its own: imports, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench.figures import Figure
from tests.bench.hcs import possible
from tests.bench.vms import LOOPS

__all__ = ["hcs_growth", "idle_vms", "imports", "output"]

_RUNS: Final = 31
_USE: Final = "import uvm; uvm.UtilityVM; uvm.FakeBackend"
_NOT_LOADED: Final = ("cffi", "pycparser", "cattrs", "uvm.schema")
_VMS: Final = 1000
_MEMORY_RUNS: Final = 3
_OUTPUT_MIB: Final = 1024
_OUTPUT_RUNS: Final = 3
_HCS_CALLS: Final = 100_000
_ROOT: Final = Path(__file__).parents[2]


def imports() -> Iterator[Figure]:
    """Import the library, and use it for the first time, over an interpreter that does nothing."""
    loaded = json.loads(_run("import json, sys, uvm; print(json.dumps([*sys.modules]))"))
    found = [name for name in _NOT_LOADED if name in loaded]
    said = f"of {', '.join(_NOT_LOADED)} it loads {', '.join(found) or 'none'}"
    seconds = _over_bare("import uvm")
    yield Figure.of_seconds("import uvm, over a bare interpreter", "ms", seconds, budget="60 ms", note=said)
    yield Figure.of_seconds(
        "import uvm and first use of UtilityVM and FakeBackend, likewise", "ms", _over_bare(_USE)
    )


def _over_bare(program: str) -> list[float]:
    """Time a program against an empty one, in turns, so that both meet the same machine."""
    _time(program)
    return [_time(program) - _time("pass") for _ in range(_RUNS)]


def _time(program: str) -> float:
    start = time.perf_counter()
    _run(program)
    return time.perf_counter() - start


def _run(*arguments: str) -> bytes:
    command = [sys.executable, *(("-c", *arguments) if len(arguments) == 1 else arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=_ROOT).stdout


def idle_vms() -> Iterator[Figure]:
    """Keep started VMs idle in one process, and see how much memory each adds."""
    for loop in LOOPS:
        for how, what in (("rss", "resident set"), ("tracemalloc", "Python objects, by tracemalloc")):
            runs = [
                float(_run("-m", "tests.bench.memory", how, loop, str(_VMS))) / 1024
                for _ in range(_MEMORY_RUNS)
            ]
            yield Figure(f"memory per idle VM, of {_VMS:,}: {what}", "KiB", runs, loop=loop, budget="60 KiB")


def output() -> Iterator[Figure]:
    """Read a long output of a process in a guest, and see how fast it comes and what memory that takes."""
    for loop in LOOPS:
        runs = [
            json.loads(_run("-m", "tests.bench.stdout", loop, str(_OUTPUT_MIB))) for _ in range(_OUTPUT_RUNS)
        ]
        what = f"{_OUTPUT_MIB:,} MiB of a process's stdout to a reader"
        yield Figure(what, "MB/s", [run["bytes"] / run["seconds"] / 1e6 for run in runs], loop=loop)
        growth = [run["growth"] / 1024 for run in runs]
        yield Figure("resident set at its peak, above that before", "KiB", growth, loop=loop)


def hcs_growth() -> Iterator[Figure]:
    """Modify and query a system over the C API of HCS, and see what grows."""
    if not possible():
        return
    for loop in LOOPS:
        grown = json.loads(_run("-m", "tests.bench.hcs", loop, str(_HCS_CALLS)))
        resident = grown.pop("KiB resident")
        note = "and by " + ", ".join(f"{count:+d} {what}" for what, count in grown.items())
        what = f"{_HCS_CALLS:,} modifies and queries over HCS: resident set grows by"
        yield Figure(what, "KiB", [resident], loop=loop, note=note)
