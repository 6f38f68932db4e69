"""Check the file system of a disk that nobody trusts, in a VM: a parser of file systems is a target.

A tool as others may build one on ``uvm``. ``test_diskcheck.py`` shows how it is tested without a hypervisor.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
from attrs import frozen

import uvm

#: How often a check is begun, with a new VM each time: one that exits has met its disk.
ATTEMPTS = 2


class CheckFailed(Exception):
    """The disk could not be checked; the cause says why."""


@frozen
class Report:
    """What the check has found.

    :ivar clean: nothing is wrong with the file system.
    :ivar text: what the program printed.
    """

    clean: bool
    text: str


async def check_disk(
    backend: uvm.Backend,
    path: str,
    *,
    options: Callable[[], uvm.LCOWOptions | uvm.WCOWOptions] = uvm.LCOWOptions,
    seconds: float = 60,
) -> Report:
    """Check a disk, read-only, within a time.

    :raises CheckFailed: the VM exited each time, the time ran out, or the host refused the disk.
    """
    try:
        with anyio.fail_after(seconds):
            return await _check(backend, path, options)
    except TimeoutError as error:
        raise CheckFailed(f"{path} could not be checked: the time ran out") from error
    except uvm.UVMError as error:
        raise CheckFailed(f"{path} could not be checked: {error}") from error


async def _check(
    backend: uvm.Backend, path: str, options: Callable[[], uvm.LCOWOptions | uvm.WCOWOptions]
) -> Report:
    for _ in range(ATTEMPTS - 1):
        try:
            return await _check_once(backend, path, options())
        except uvm.VMExitedError:
            continue
    return await _check_once(backend, path, options())


async def _check_once(backend: uvm.Backend, path: str, options: uvm.LCOWOptions | uvm.WCOWOptions) -> Report:
    async with uvm.UtilityVM.create(options, backend=backend) as vm:
        await vm.start()
        disk = await vm.scsi.attach(path, read_only=True, mount=uvm.Mount(block_device=True))
        done = await vm.run(["e2fsck", "-n", disk.guest_path])
        return Report(done.exit_code == 0, done.stdout.decode(errors="replace"))
