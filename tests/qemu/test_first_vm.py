"""A real VM, from its creation to each of its ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path

import anyio
import pytest

from tests.qemu.limits import PATIENCE_SECONDS
from tests.qemu.patient import PATIENT_PYTHON
from tests.qemu.vms import backend_of, leaving_nothing, process_of, running_vm
from uvm.errors import ExitStatus, VMExitedError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

#: Has a VM, and waits to be killed.
HOLDS = """
import anyio, sys
from pathlib import Path
from tests.qemu.vms import backend_of, process_of, running_vm

async def main():
    async with backend_of(Path(sys.argv[1])) as backend, running_vm(backend) as vm:
        print(process_of(backend, vm), flush=True)
        await anyio.sleep_forever()

anyio.run(main, backend=sys.argv[2])
"""


async def test_a_vm_without_boot_files_runs_a_command_and_leaves_nothing(tmp_path: Path) -> None:
    with leaving_nothing(tmp_path) as pids:
        async with backend_of(tmp_path) as backend, running_vm(backend) as vm:
            pids.append(process_of(backend, vm))
            done = await vm.run(["uname", "-a"], text=True)
            assert done.stdout.startswith("Linux ")
            assert (await vm.run(["sh", "-c", "exit 3"])).exit_code == 3
            assert (await vm.stats()).memory is not None
            await vm.pause()
            await vm.resume()
            assert (await vm.run(["cat"], input=b"in")).stdout == b"in"
            assert (await vm.shutdown()).exit_type == "GracefulExit"


async def _ended(tmp_path: Path, *command: str, crash: bool = False, kill: bool = False) -> ExitStatus:
    """Have a VM end, and return how."""
    with leaving_nothing(tmp_path) as pids:
        async with backend_of(tmp_path) as backend, running_vm(backend) as vm:
            pids.append(process_of(backend, vm))
            if kill:
                os.kill(pids[0], signal.SIGKILL)
            elif crash:
                await vm.crash()
            else:
                with pytest.raises(VMExitedError):
                    await vm.run([*command])
            return await vm.wait()


async def test_a_guest_that_panics_is_reported_with_what_it_wrote_last(tmp_path: Path) -> None:
    status = await _ended(tmp_path, "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert (status.exit_type, status.code) == ("UnexpectedExit", HResult.HCS_E_GUEST_CRITICAL_ERROR)
    assert status.detail is not None
    assert "Kernel panic" in status.detail["QEMU"]["Console"]


async def test_a_guest_that_is_made_to_crash_panics(tmp_path: Path) -> None:
    status = await _ended(tmp_path, crash=True)
    assert (status.exit_type, status.code) == ("UnexpectedExit", HResult.HCS_E_GUEST_CRITICAL_ERROR)
    assert status.detail is not None
    # It was not killed for want of a panic.
    assert status.detail["QEMU"]["ExitCode"] == 0


async def test_a_guest_that_reboots_has_been_reset(tmp_path: Path) -> None:
    status = await _ended(tmp_path, "sh", "-c", "echo b > /proc/sysrq-trigger")
    assert (status.exit_type, status.code) == ("Reset", 0)


async def test_a_qemu_that_is_killed_has_exited_unexpectedly(tmp_path: Path) -> None:
    status = await _ended(tmp_path, kill=True)
    assert (status.exit_type, status.code) == ("UnexpectedExit", HResult.HCS_E_UNEXPECTED_EXIT)
    assert status.detail is not None
    assert status.detail["Attribution"] == [{"WorkerExit": {"ExitCode": -signal.SIGKILL}}]


def test_a_vm_ends_with_the_process_that_has_it_however_that_ends(
    tmp_path: Path, anyio_backend_name: str
) -> None:
    command = [*PATIENT_PYTHON, "-c", HOLDS, str(tmp_path), anyio_backend_name]
    with leaving_nothing(tmp_path) as pids:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            pids.append(int(process.stdout.readline()))
            pidfd = os.pidfd_open(pids[0])
            process.kill()
        assert select.select([pidfd], [], [], PATIENCE_SECONDS)[0]
        os.close(pidfd)
        # The next one removes what it has left.
        anyio.run(_enter, tmp_path)


async def _enter(tmp_path: Path) -> None:
    async with backend_of(tmp_path) as backend:
        assert await backend.enumerate() == []
