"""A real VM that survives the process that created it, and is found, used and ended by the next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.qemu.vms import backend_of, leaving_nothing
from uvm.backends.qemu.runtime import ProcessName
from uvm.errors import NotSupportedError

pytestmark = pytest.mark.anyio

#: Has a VM that survives it, and waits to be killed.
HOLDS = """
import anyio, sys
from pathlib import Path
from tests.qemu.vms import backend_of, process_of, running_vm

async def main():
    async with backend_of(Path(sys.argv[1])) as backend:
        async with running_vm(backend, id="vm1", survive_process=True) as vm:
            print(process_of(backend, vm), flush=True)
            await anyio.sleep_forever()

anyio.run(main)
"""


async def test_a_vm_survives_a_kill_of_its_process_and_is_ended_by_the_next(tmp_path: Path) -> None:
    with leaving_nothing(tmp_path) as pids:
        qemu = _left_by_a_killed_process(tmp_path)
        pids.append(qemu)
        async with backend_of(tmp_path) as backend:
            [found] = await backend.enumerate()
            assert (found["Id"], found["State"]) == ("vm1", "Running")
            system = await backend.open("vm1")
            await system.pause()
            assert (await system.properties("Memory"))["State"] == "Paused"
            await system.resume()
            with pytest.raises(NotSupportedError, match="an earlier process created this VM"):
                await system.modify({"ResourcePath": "VirtualMachine/Devices/Plan9/Shares"})
            await system.close()
        # It has survived the second process as well.
        assert ProcessName.of(qemu) is not None
        async with backend_of(tmp_path) as backend:
            system = await backend.open("vm1")
            await system.crash()
            assert (await system.wait()).exit_type == "UnexpectedExit"
            await system.close()


def _left_by_a_killed_process(tmp_path: Path) -> int:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        qemu = int(process.stdout.readline())
        process.kill()
    return qemu
