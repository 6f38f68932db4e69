"""The scenarios of Linux guests, against the agent in a real VM: all of them in one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from tests.guestsuite.guests import Guest
from tests.guestsuite.host import GCS, GuestHost
from tests.guestsuite.scenarios import SCENARIOS
from tests.qemu.limits import PATIENCE_SECONDS
from tests.qemu.roots import MAKE_ROOT, ROOT
from tests.qemu.vms import MEMORY_MB, backend_of, leaving_nothing

pytestmark = pytest.mark.anyio

DOCUMENT = {
    "Owner": "tests",
    "SchemaVersion": {"Major": 2, "Minor": 1},
    "VirtualMachine": {
        "Chipset": {"LinuxKernelDirect": {}},
        "ComputeTopology": {"Memory": {"SizeInMB": MEMORY_MB}, "Processor": {"Count": 1}},
        "Devices": {},
    },
    "ShouldTerminateOnLastHandleClosed": True,
}


async def _root(container: str) -> str:
    # The scenarios only read it.
    return ROOT


@asynccontextmanager
async def booted(directory: Path) -> AsyncIterator[GuestHost]:
    """A host that the agent of a new VM has connected to."""
    async with backend_of(directory) as backend:
        system = await backend.create("guest", DOCUMENT)
        try:
            listener = await system.listen(GCS)
            await system.start()
            with anyio.fail_after(PATIENCE_SECONDS):
                host = GuestHost(system, listener, await listener.accept(), patience_seconds=PATIENCE_SECONDS)
                await host.negotiate()
            yield host
        finally:
            with anyio.CancelScope(shield=True):
                await system.terminate()
                await system.close()


async def test_the_agent_in_a_vm_behaves_as_the_scenarios_have_it(tmp_path: Path) -> None:
    with leaving_nothing(tmp_path):
        async with booted(tmp_path) as host:
            made = await host.run("sh", "-c", MAKE_ROOT)
            assert (await made.read("StdErr"), await made.wait()) == (b"", 0)
            guest = Guest(host, _root)
            failed: dict[str, str] = {}
            for scenario in SCENARIOS:
                host.notifications.clear()
                try:
                    with anyio.fail_after(PATIENCE_SECONDS):
                        await scenario(guest)
                    assert host.notifications == []
                except (AssertionError, TimeoutError, ValueError, KeyError) as error:
                    failed[scenario.__name__] = f"{type(error).__name__}: {error}"
            assert failed == {}
