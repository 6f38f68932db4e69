"""The conformance suite on the backend of QEMU, over a stand-in for QEMU with a guest of the fake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.backends.qemu.rig import QEMUHost
from tests.backends.qemu.standin import StandInBackend, StandInLauncher
from uvm._vm.vm import UtilityVM
from uvm.backend import ByteStream
from uvm.backends.fake import FakeStream
from uvm.backends.qemu.backend import QEMUBackend
from uvm.options import LCOWOptions
from uvm.testing.backends import SCENARIOS, Control, Rig, Scenario
from uvm.testing.backends.audit import audit
from uvm.testing.backends.checks import equal

pytestmark = pytest.mark.anyio


@pytest.fixture
def boot_files(tmp_path: Path) -> str:
    directory = tmp_path / "boot"
    directory.mkdir()
    for name in ("vmlinux", "initrd.img"):
        (directory / name).write_bytes(b"boots")
    return str(directory)


class StandInHost(QEMUHost):
    """Control of the stand-ins and of their guests as well."""

    controls = QEMUHost.controls | {Control.PROGRAMS, Control.DIAL, Control.AUDIT}

    def __init__(self, backend: QEMUBackend, directory: Path, launcher: StandInLauncher) -> None:
        super().__init__(backend, directory)
        self.launcher = launcher

    def crash(self, system_id: str) -> None:
        """Have the process end."""
        if (child := self.launcher.started.get(system_id)) is not None:
            child.end(1, "internal error")

    async def dial(self, system_id: str, service_id: str) -> ByteStream:
        """Connect as the guest does."""
        guest = self.launcher.started[system_id].fake.vms["guest"]
        await guest.until_listening(service_id)
        stream: FakeStream = guest.dial(service_id)
        return stream

    def leftovers(self) -> list[str]:
        """Return what is left, and what runs."""
        started = self.launcher.started.items()
        running = [f"process of {name}" for name, each in started if each.exit_code is None]
        return [*super().leftovers(), *running]

    def differences(self, vm: UtilityVM) -> list[str]:
        """Return the differences between the ledgers, the device tree of the backend, and the guest."""
        guest = self.launcher.started[vm.id].fake.vms["guest"].guest
        equal(self.launcher.trees[vm.id].inventory(), guest.tree.inventory(), "what QEMU has")
        machine: Any = SimpleNamespace(document=vm.plan.document, guest=guest)
        found = audit(vm, machine)
        missing = [f"the ledgers have {fact}" for fact in sorted(found.expected - found.actual, key=repr)]
        return missing + [
            f"the machine has {fact}" for fact in sorted(found.actual - found.expected, key=repr)
        ]


@asynccontextmanager
async def standing_in(directory: Path) -> AsyncIterator[tuple[QEMUBackend, StandInLauncher]]:
    """An entered backend whose QEMU is a stand-in."""
    launcher = StandInLauncher()
    async with StandInBackend(launcher, directory / "run") as backend:
        yield backend, launcher


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_qemu_conforms(scenario: Scenario, tmp_path: Path, boot_files: str) -> None:
    async with standing_in(tmp_path) as (backend, launcher):
        host = StandInHost(backend, tmp_path, launcher)
        rig = Rig(backend, host, LCOWOptions(boot_files_path=boot_files, memory_mb=1040))
        if missing := scenario.lacks(rig):
            pytest.skip(f"the rig lacks {', '.join(missing)}")
        await scenario.play(rig)
