"""The outcome that is recorded says `refused` only of what changed nothing."""

from __future__ import annotations

import logging

import anyio
import pytest

import uvm
from tests.vm.support import DISK, LAYER, SCRATCH, SHARED, host_backend, lcow, running
from uvm._guest.timeouts import GuestTimeouts
from uvm._observed import outcome_of

pytestmark = pytest.mark.anyio


def outcomes(caplog: pytest.LogCaptureFixture, operation: str) -> list[str]:
    records = [vars(each) for each in caplog.records]
    return [each["outcome"] for each in records if each.get("outcome") and each["operation"] == operation]


async def test_an_attachment_that_was_rolled_back_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as run:
        run.backend.faults.refuse("E_FAIL", to="guest", request_type="Add", nth=1)
        caplog.set_level(logging.DEBUG, logger="uvm")
        with pytest.raises(uvm.GuestError):
            await run.vm.scsi.attach(DISK, mount=uvm.Mount())
        await run.vm.settled()
    # The disk was attached, its mount refused.
    assert outcomes(caplog, "attach") == ["ok", "refused"]


async def test_a_device_that_stays_in_part_since_its_roll_back_was_refused_is_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as run:
        run.backend.faults.refuse("E_FAIL", to="guest", request_type="Add", nth=1)
        run.backend.faults.refuse("E_FAIL", to="host", request_type="Remove", nth=1)
        caplog.set_level(logging.DEBUG, logger="uvm")
        with pytest.raises(uvm.UndoFailedError):
            await run.vm.plan9.add(SHARED, "/a")
        await run.vm.settled()
        assert outcomes(caplog, "attach") == ["unknown"]


async def test_a_removal_that_stops_half_done_is_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as run:
        lease = await run.vm.plan9.add(SHARED, "/a")
        run.backend.faults.refuse("E_FAIL", to="host", request_type="Remove", nth=1)
        caplog.set_level(logging.DEBUG, logger="uvm")
        with pytest.raises(uvm.HostError):
            await lease.release()
        assert outcomes(caplog, "detach") == ["unknown", "unknown"], "of the operation, and of the warning"


async def test_a_release_in_parts_is_unknown_once_a_part_failed(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as run:
        root = await run.vm.mount_layers("c1", [LAYER], SCRATCH)
        run.backend.faults.refuse("E_FAIL", to="host", request_type="Remove", nth=1)
        caplog.set_level(logging.DEBUG, logger="uvm")
        with pytest.raises(uvm.HostError):
            await root.release()
        assert run.vm.devices().roots == ()
    assert outcomes(caplog, "unmount layers") == ["unknown"]


async def test_a_start_whose_caller_is_cancelled_was_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="uvm")
    async with uvm.UtilityVM.create(lcow(), backend=host_backend()) as vm:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await vm.start()
        await vm.settled()
        await vm.wait()
    assert outcomes(caplog, "start")[-1] == "cancelled"
    assert "refused" not in outcomes(caplog, "start")


async def test_a_start_that_the_host_refused_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    backend = host_backend()
    backend.faults.refuse("E_FAIL", operation="start")
    caplog.set_level(logging.DEBUG, logger="uvm")
    async with uvm.UtilityVM.create(lcow(), backend=backend) as vm:
        with pytest.raises(uvm.HostError):
            await vm.start()
    assert outcomes(caplog, "start") == ["refused", "refused"], "of the request, and of the operation"


async def test_a_start_that_had_begun_to_boot_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    backend = host_backend()
    backend.faults.hang(operation="connect")
    caplog.set_level(logging.DEBUG, logger="uvm")
    async with uvm.UtilityVM.create(lcow(), backend=backend, timeouts=GuestTimeouts(boot_seconds=0)) as vm:
        with pytest.raises(uvm.BridgeClosedError):
            await vm.start()
    assert outcomes(caplog, "start")[-1] == "unknown"
    assert "refused" not in outcomes(caplog, "start")


async def test_closing_that_failed_in_part_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    backend = host_backend()
    caplog.set_level(logging.DEBUG, logger="uvm")
    vm = await uvm.start_vm(lcow(), backend=backend)
    backend.faults.refuse("E_FAIL", operation="terminate", nth=1)
    with pytest.raises(uvm.HostError):
        await vm.close()
    assert outcomes(caplog, "close") == ["unknown"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (uvm.HostError("modify", 0x80004005), "refused"),
        (uvm.GuestError("modify", 0x80004005), "refused"),
        (uvm.OptionsError("no"), "refused"),
        (uvm.NoSpaceError("no"), "refused"),
        (uvm.UVMErrorGroup("two", [uvm.OptionsError("no"), uvm.OptionsError("no")]), "unknown"),
        (uvm.UndoFailedError("two", [uvm.OptionsError("no")]), "unknown"),
        (uvm.BridgeClosedError("closed"), "unknown"),
        (uvm.VMExitedError("exited"), "unknown"),
        (uvm.UnknownOutcomeError("lost"), "unknown"),
        (uvm.UVMError("a step was abandoned"), "unknown"),
        (RuntimeError("a fault"), "unknown"),
        (KeyboardInterrupt(), "cancelled"),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_only_what_says_that_nothing_changed_was_refused(error: BaseException, outcome: str) -> None:
    assert outcome_of(error) == outcome
