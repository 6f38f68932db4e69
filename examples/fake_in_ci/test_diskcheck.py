"""The tool's tests: the fixtures of ``uvm.testing`` and its strategies, on the in-memory host."""

from __future__ import annotations

from contextlib import suppress

import pytest
from diskcheck import CheckFailed, Report, check_disk
from hypothesis import given, settings
from hypothesis import strategies as st

import uvm
from uvm.backends.fake import FakeBackend, FakeFiles, FakeProcess, Faults
from uvm.testing.clocks import run_without_waiting
from uvm.testing.plugin import jumping_backends
from uvm.testing.requests import assert_requests
from uvm.testing.strategies import Fault, faults, lcow_options

pytestmark = pytest.mark.anyio
#: Both event loops, with time that jumps: a check that hangs takes no minute.
anyio_backend = jumping_backends

DISK = r"C:\incoming\disk.vhdx"


def install_e2fsck(backend: FakeBackend, *, exit_code: int = 0) -> None:
    @backend.programs.register("e2fsck")
    async def e2fsck(process: FakeProcess) -> int:
        await process.stdout.send(b"clean\n" if exit_code == 0 else b"FOUND ERRORS\n")
        return exit_code


@pytest.fixture
def host(uvm_backend: FakeBackend, uvm_files: FakeFiles) -> FakeBackend:
    uvm_files.add(DISK, size=1 << 30)
    install_e2fsck(uvm_backend)
    return uvm_backend


async def test_a_clean_disk_is_clean(host: FakeBackend) -> None:
    assert await check_disk(host, DISK) == Report(True, "clean\n")


async def test_a_broken_disk_is_not(host: FakeBackend) -> None:
    install_e2fsck(host, exit_code=4)
    assert await check_disk(host, DISK) == Report(False, "FOUND ERRORS\n")


async def test_the_disk_is_attached_read_only_and_not_mounted(host: FakeBackend) -> None:
    await check_disk(host, DISK)
    assert_requests(
        host.request_log.entries(to=("host", "guest"), request_type="Add"),
        [
            ("host Add */Attachments/0", {"Path": DISK, "ReadOnly": True}),
            ("guest Add MappedVirtualDisk", {"BlockDev": True}),
        ],
    )


async def test_a_vm_that_dies_is_replaced_once(host: FakeBackend, uvm_faults: Faults) -> None:
    uvm_faults.crash(operation="execute process", nth=1)
    assert (await check_disk(host, DISK)).clean


async def test_a_disk_that_kills_every_vm_is_reported(host: FakeBackend, uvm_faults: Faults) -> None:
    uvm_faults.crash(operation="execute process")
    with pytest.raises(CheckFailed) as raised:
        await check_disk(host, DISK)
    assert isinstance(raised.value.__cause__, uvm.VMExitedError)


async def test_a_guest_that_falls_silent_is_left(host: FakeBackend) -> None:
    host.misbehaviour.silent(operation="execute process")
    with pytest.raises(CheckFailed, match="the time ran out"):
        await check_disk(host, DISK, seconds=60)


async def test_a_guest_that_falls_silent_is_given_up_by_the_library_too(host: FakeBackend) -> None:
    host.misbehaviour.silent(operation="execute process")
    with pytest.raises(CheckFailed, match="no answer within 300 s"):
        await check_disk(host, DISK, seconds=3600)


@settings(max_examples=20)
@given(options=lcow_options(scsi_controllers=st.integers(1, 4)), fault=faults())
def test_whatever_goes_wrong_there_is_a_report_or_a_reason_and_no_vm_is_left(
    options: uvm.LCOWOptions, fault: Fault
) -> None:
    backend = FakeBackend()
    backend.files.add(DISK, size=1 << 30)
    install_e2fsck(backend)
    fault.apply(backend)

    async def run() -> None:
        with suppress(CheckFailed):
            assert (await check_disk(backend, DISK, options=lambda: options)).clean

    run_without_waiting(run, backend="asyncio")
    assert not backend.vms
