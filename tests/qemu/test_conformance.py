"""The conformance suite on real VMs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.backends.qemu.rig import QEMUHost
from tests.qemu.images import DISKS
from tests.qemu.limits import PATIENCE_SECONDS
from tests.qemu.vms import MEMORY_MB, backend_of
from uvm.backends.qemu.backend import QEMUBackend
from uvm.options import LCOWOptions
from uvm.testing.backends import SCENARIOS, Control, Rig, Scenario

#: One loop: the other plays them over a stand-in for QEMU, and runs the other tests of real VMs.
pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)]


class RealHost(QEMUHost):
    """Control of a host that runs real VMs."""

    controls = QEMUHost.controls | {Control.PROGRAMS}

    def put_file(self, name: str, *, size_bytes: int = 1 << 20, content: bytes = b"") -> str:
        """Put a file on the host; those of disks have a file system."""
        path = self.directory / name
        if path.suffix in DISKS and not content:
            DISKS[path.suffix](path, size_bytes)
            return str(path)
        return super().put_file(name, size_bytes=size_bytes, content=content)

    def crash(self, system_id: str) -> None:
        """Kill QEMU."""
        if (vm := self.backend._vms.get(system_id)) is not None:
            os.kill(vm.pid, signal.SIGKILL)


#: The others need no VM, and are played over a stand-in.
BOOTING = [scenario for scenario in SCENARIOS if Control.LINUX in scenario.needs]


@pytest.mark.parametrize("scenario", BOOTING, ids=str)
async def test_qemu_conforms(scenario: Scenario, tmp_path: Path) -> None:
    backend: QEMUBackend = backend_of(tmp_path)
    async with backend:
        options = LCOWOptions(memory_mb=max(MEMORY_MB, 1040), processors=1)
        rig = Rig(backend, RealHost(backend, tmp_path), options, timeout_seconds=PATIENCE_SECONDS)
        if missing := scenario.lacks(rig):
            pytest.skip(f"the rig lacks {', '.join(missing)}")
        await scenario.play(rig)
    assert RealHost(backend, tmp_path).leftovers() == []
