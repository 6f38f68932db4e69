"""The machine as a whole, on Windows itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from uvm.errors import HostError

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "win32", reason="calls Windows itself"),
]


async def test_all_that_a_backend_asks_of_a_machine_is_answered(tmp_path: Path) -> None:
    from uvm.backends.hcs.machine import Machine
    from uvm.backends.hcs.windows.machine import WindowsMachine
    from uvm.backends.workers import Workers

    machine: Machine = WindowsMachine(Workers())
    path = tmp_path / "disk.vhd"
    path.write_bytes(b"disk")
    facts = await machine.facts()
    assert (facts.paths, facts.concurrency.vpmem) == ("windows", 1)
    await machine.grant_group(str(path), "read")
    await machine.revoke_group(str(path))
    copy = facts.path.join(str(tmp_path), "copy.vhd")
    await machine.files.copy(str(path), copy)
    assert await machine.files.read(copy, 4) == b"disk"
    with pytest.raises(HostError, match="ERROR_NOT_FOUND"):
        await machine.open_working_set("5c3a1f10-2b7e-4b4e-9a77-0d3b6c0e8f21")
