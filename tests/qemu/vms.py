"""Real VMs of tests: an entered backend with a runtime directory of its own, and what is left of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.qemu.limits import PATIENT
from uvm._vm.vm import UtilityVM
from uvm.backends.qemu.backend import QEMUBackend
from uvm.backends.qemu.runtime import ProcessName
from uvm.options import LCOWOptions

MEMORY_MB = 512


def backend_of(directory: Path, **options: Any) -> QEMUBackend:
    """A backend that is yet to be entered."""
    return QEMUBackend(runtime_directory=directory / "run", **options)


@asynccontextmanager
async def running_vm(backend: QEMUBackend, **options: Any) -> AsyncIterator[UtilityVM]:
    """A VM that has started."""
    wanted = LCOWOptions(**{"memory_mb": MEMORY_MB, "processors": 1, **options})
    async with UtilityVM.create(wanted, backend=backend, timeouts=PATIENT) as vm:
        await vm.start()
        yield vm


def process_of(backend: QEMUBackend, vm: UtilityVM) -> int:
    """The id of QEMU's process."""
    return backend._vms[vm.id].pid


def open_to_all(directory: Path) -> Path:
    """A directory that QEMU may use, whatever user it runs as."""
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    return directory


@contextmanager
def leaving_nothing(directory: Path) -> Iterator[list[int]]:
    """Check that processes, which the body lists, have ended, and that no VM has a directory."""
    pids: list[int] = []
    yield pids
    assert [pid for pid in pids if ProcessName.of(pid) is not None] == []
    # Locks of users are there where this process may make none for the whole machine.
    assert {path.name for path in (directory / "run").iterdir()} - {"users"} == {"lock"}
