"""What needs an interpreter of its own: imports, and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.bench.figures import Figure
from tests.bench.hcs import possible
from tests.bench.vms import LOOPS

__all__ = ["ROOT", "bytecode", "first_vms", "hcs_growth", "idle_vms", "imports", "output", "run_python"]

_RUNS: Final = 31
_FIRST_VM_RUNS: Final = 11
_PRINT_CPU: Final = "; import time; print(time.process_time())"
_USE: Final = "import uvm; uvm.UtilityVM; uvm.FakeBackend"
_NOT_LOADED: Final = ("cffi", "pycparser", "msgspec", "uvm.schema")
_VMS: Final = 1000
_MEMORY_RUNS: Final = 3
_OUTPUT_MIB: Final = 1024
_OUTPUT_RUNS: Final = 3
_HCS_CALLS: Final = 100_000
ROOT: Final = Path(__file__).parents[2]


def imports() -> Iterator[Figure]:
    """Import the library, and use it for the first time: processor time of the whole interpreter."""
    loaded = json.loads(run_python("-c", "import json, sys, uvm; print(json.dumps([*sys.modules]))"))
    found = [name for name in _NOT_LOADED if name in loaded]
    said = f"of {', '.join(_NOT_LOADED)} it loads {', '.join(found) or 'none'}"
    programs = {"an empty interpreter": "pass", "import uvm": "import uvm", "first use": _USE}
    took: dict[str, list[float]] = {name: [] for name in programs}
    with bytecode() as environment:
        for number in range(_RUNS + 1):
            for name, program in programs.items():
                seconds = float(run_python("-c", f"{program}{_PRINT_CPU}", env=environment))
                # The first writes the bytecode.
                if number:
                    took[name].append(seconds)
    yield Figure.of_seconds("an empty interpreter, processor time", "ms", took["an empty interpreter"])
    yield Figure.of_seconds("import uvm, likewise", "ms", took["import uvm"], budget="20 ms", note=said)
    what = "import uvm and first use of UtilityVM and FakeBackend, likewise"
    yield Figure.of_seconds(what, "ms", took["first use"], budget="150 ms")


def first_vms() -> Iterator[Figure]:
    """Create, start and close the first VM of a process, and its second."""
    for loop in LOOPS:
        with bytecode() as environment:
            run_python("-m", "tests.bench.vms", loop, "2", env=environment)
            runs = [
                json.loads(run_python("-m", "tests.bench.vms", loop, "2", env=environment))
                for _ in range(_FIRST_VM_RUNS)
            ]
        for what, seconds in zip(("first", "second"), zip(*runs, strict=True), strict=True):
            yield Figure.of_seconds(f"the {what} VM of a process, processor time", "ms", seconds, loop=loop)


@contextmanager
def bytecode() -> Iterator[dict[str, str]]:
    """Return an environment with bytecode, as an installed library has it; the first run writes it."""
    with tempfile.TemporaryDirectory(prefix="uvm-bench-") as directory:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": directory}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        yield environment


def run_python(*arguments: str, env: Mapping[str, str] | None = None) -> bytes:
    """Run an interpreter in the root of the project, and return what it prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT, env=env).stdout


def idle_vms() -> Iterator[Figure]:
    """Keep started VMs idle in one process, and see what each adds."""
    for loop in LOOPS:
        for how, what, unit, size, budget in (
            ("rss", "resident set", "KiB", 1024, "50 KiB"),
            ("tracemalloc", "Python objects, by tracemalloc", "KiB", 1024, "50 KiB"),
            ("objects", "objects that the garbage collector tracks", "objects", 1, "200"),
        ):
            command = ("-m", "tests.bench.memory", how, loop, str(_VMS))
            runs = [float(run_python(*command)) / size for _ in range(_MEMORY_RUNS)]
            yield Figure(f"idle VM, of {_VMS:,}: {what}", unit, runs, loop=loop, budget=budget)


def output() -> Iterator[Figure]:
    """Read a long output of a process in a guest, and see how fast it comes and what memory that takes."""
    for loop in LOOPS:
        runs = [
            json.loads(run_python("-m", "tests.bench.stdout", loop, str(_OUTPUT_MIB)))
            for _ in range(_OUTPUT_RUNS)
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
        grown = json.loads(run_python("-m", "tests.bench.hcs", loop, str(_HCS_CALLS)))
        resident = grown.pop("KiB resident")
        note = "and by " + ", ".join(f"{count:+d} {what}" for what, count in grown.items())
        what = f"{_HCS_CALLS:,} modifies and queries over HCS: resident set grows by"
        yield Figure(what, "KiB", [resident], loop=loop, note=note)
