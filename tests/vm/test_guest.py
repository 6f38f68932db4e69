"""What a VM's guest does for its user: processes, containers, its log, and what happens when it goes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import anyio
import pytest
from attrs import evolve

import uvm
from tests.clocks import jumping_backends
from tests.vm import support as host
from tests.vm.audit import check_at_rest
from tests.vm.support import Attempt, host_backend, lcow, quiet, running, wcow
from uvm._guest.process import Process
from uvm._guest.timeouts import GuestTimeouts
from uvm.backend import ByteStream
from uvm.backends.fake import FakeBackend, FakeProcess, GuestService
from uvm.errors import (
    AlreadyReleasedError,
    AnswerLostError,
    BridgeClosedError,
    GuestError,
    NotSupportedError,
    OptionsError,
    UnknownOutcomeError,
    VMExitedError,
)
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends

#: Its guest may go without it.
ALONE = GuestTimeouts(vm_exit_seconds=0)
SPEC = {
    "ociVersion": "1.1.0",
    "process": {"args": ["cat"], "cwd": "/", "env": ["GREETING=hello"]},
    "linux": {},
}
OPTIONS = pytest.mark.parametrize("options", [lcow, wcow])


def service(run: host.Running) -> GuestService:
    """The compute service of a VM's guest."""
    return run.backend.vms[run.vm.id].service


@asynccontextmanager
async def beside(run: host.Running) -> AsyncIterator[uvm.UtilityVM]:
    """Another VM on the same host."""
    async with uvm.UtilityVM.create(lcow(id="vm2"), backend=run.backend) as vm:
        await vm.start()
        yield vm


async def hush(process: Process) -> None:
    """Tell a process that there is no more to read."""
    await process.stdin.send_eof()


async def hear(process: Process, max_bytes: int = 65536) -> bytes:
    """Receive something that a process wrote."""
    return await process.stdout.receive(max_bytes)


# Processes. What holds over either connection is in tests/hcsguest.


@OPTIONS
async def test_a_command_that_the_guest_does_not_have_is_refused_and_the_vm_goes_on(options: Any) -> None:
    async with running(options()) as run:
        with pytest.raises(GuestError, match="no-such-command"):
            await run.vm.run(["no-such-command"])
        assert (await run.vm.run(["true"])).exit_code == 0


async def test_what_a_process_writes_waits_in_the_guest_until_somebody_reads_it() -> None:
    backend = host_backend()
    written = 0

    @backend.programs.register("chatter")
    async def chatter(process: FakeProcess) -> int:
        nonlocal written
        while True:
            await process.stdout.send(b"x" * 65536)
            written += 65536

    async with running(backend=backend) as run, run.vm.open_process(["chatter"]) as process:
        await quiet()
        ahead = written
        assert ahead < 4 << 20
        await hear(process)
        await quiet()
        assert written > ahead
        await process.kill()
        await process.wait()


async def test_a_wait_that_is_cancelled_leaves_the_process_to_the_next_wait() -> None:
    async with running() as run, run.vm.open_process(["cat"]) as process:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.wait)
            await quiet()
            tasks.cancel_scope.cancel()
        await hush(process)
        assert await process.wait() == 0


async def test_a_program_that_fails_ends_with_its_traceback_and_harms_nobody() -> None:
    backend = host_backend()

    @backend.programs.register("broken")
    async def broken(process: FakeProcess) -> int:
        raise RuntimeError("out of order")

    async with running(backend=backend) as run:
        done = await run.vm.run(["broken"])
        assert done.exit_code == 1
        assert b"RuntimeError: out of order" in done.stderr
        assert (await run.vm.run(["true"])).exit_code == 0


async def test_many_processes_run_at_once() -> None:
    async with running() as run:
        outputs: set[bytes] = set()

        async def one(number: int) -> None:
            outputs.add((await run.vm.run(["echo", str(number)])).stdout)

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(one, number)
        assert outputs == {f"{number}\n".encode() for number in range(50)}


# Containers.


async def test_what_is_no_container_is_refused_before_the_guest_is_asked() -> None:
    async with running() as run:
        before = len(run.sent())
        specs: list[Any] = [[], {}, {"process": {}}, {**SPEC, "process": "cat"}]
        for spec in specs:
            with pytest.raises(OptionsError):
                await run.vm.create_container("c1", spec)
        with pytest.raises(OptionsError):
            await run.vm.create_container("", SPEC)
        assert len(run.sent()) == before


# The compute service itself.


@OPTIONS
async def test_the_guest_tells_the_stacks_of_its_service_and_what_it_can_do(options: Any) -> None:
    async with running(options()) as run:
        assert await run.vm.dump_stacks()
        assert run.vm.features.signal_process
        assert run.vm.capabilities["SignalProcessSupported"] is True
        assert run.vm.features.host_process_container is (run.vm.os == "windows")


async def test_a_windows_guest_is_set_up_before_anything_else_is_asked_of_it() -> None:
    backend = host_backend(host=uvm.HostInfo(time_zone={"Bias": 60, "StandardName": "Elsewhere"}))
    async with running(wcow(), backend=backend) as run:
        asked = [e.call for e in backend.request_log.entries(to="guest")]
        assert [call.operation for call in asked[:5]] == [
            "connect",
            "negotiate protocol",
            "create",
            "start",
            "modify",
        ]
        assert '"StandardName":"Elsewhere"' in asked[2].document["ContainerConfig"]
        assert asked[4].document["ResourceType"] == "HvSocket"
        assert run.guest.addresses.local_address == run.vm.runtime_id  # type: ignore[attr-defined]


async def test_a_windows_guest_may_keep_utc() -> None:
    async with running(wcow(inherit_time_zone=False)) as run:
        (created,) = run.backend.request_log.entries(to="guest", operation="create")
        assert "Coordinated Universal Time" in created.document["ContainerConfig"]


async def test_a_field_that_only_says_the_default_is_never_sent_to_a_windows_guest() -> None:
    # hcsshim's issue 2714: older guests refuse fields that they do not know.
    async with running(wcow()) as run:
        await run.vm.mount_layers("c1", [uvm.WCOWLayer(host.SHARED, "a")], host.SCRATCH)
        (combined,) = run.backend.request_log.entries(to="guest", resource="CombinedLayers")
        assert "FilterType" not in combined.document["Settings"]


async def test_a_policy_fragment_reaches_the_guest_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    options = lcow(security_policy="c2VjcmV0", security_policy_enabled=True)
    async with running(options) as run:
        await run.vm.inject_policy_fragment("ZnJhZ21lbnQ=", "application/cose-x509+rego")
        assert [each.fragment for each in run.guest.fragments] == ["ZnJhZ21lbnQ="]
    assert "modify settings" in caplog.text
    assert "ZnJhZ21lbnQ=" not in caplog.text
    assert "c2VjcmV0" not in caplog.text


async def test_a_root_whose_caller_left_while_it_was_combined_is_taken_apart_in_order() -> None:
    async with running() as run, anyio.create_task_group() as tasks:
        with run.backend.faults.hold(to="guest", resource="CombinedLayers") as gate:
            mounting = Attempt.begin(tasks, run.vm.mount_layers, "c1", [host.LAYER], host.SCRATCH)
            await gate.wait()
            await mounting.cancel()
        await quiet()
        assert run.vm.orphans == () == run.vm.scsi.disks
        assert not run.guest.mounts
        check_at_rest(run)


# The channels of the boot.


async def test_a_linux_guest_boots_with_random_bytes_of_the_host() -> None:
    async with running() as run, beside(run) as other:
        vms = run.backend.vms
        assert len(vms[run.vm.id].service.entropy) == 512
        assert vms[run.vm.id].service.entropy != vms[other.id].service.entropy


async def test_the_log_of_a_linux_guest_becomes_records(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="uvm.guest")
    async with running() as run:
        service(run).log.line("mounted", level="warning", device="/dev/sda")
        await quiet()
        record = next(r for r in caplog.records if r.getMessage() == "vm1: mounted")
        assert (record.name, record.levelno) == ("uvm.guest", logging.WARNING)
        assert record.vm_id == "vm1"  # type: ignore[attr-defined]
        assert record.guest["device"] == "/dev/sda"  # type: ignore[attr-defined]


async def test_what_a_guest_says_when_it_panics_is_passed_on_as_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as run:
        await service(run).panic("assignment to entry in nil map")
        assert (await run.vm.wait()).exit_type == "UnexpectedExit"
    (record,) = [r for r in caplog.records if "guest terminated" in r.getMessage()]
    assert record.levelno == logging.ERROR
    assert "goroutine 1 [running]" in record.guest_text  # type: ignore[attr-defined]


async def test_the_output_of_a_guest_goes_to_the_handler_of_ones_choice_to_its_end() -> None:
    heard = b""

    async def handler(stream: ByteStream) -> None:
        nonlocal heard
        try:
            while True:
                heard += await stream.receive()
        except anyio.EndOfStream:
            heard += b"(the end)"

    backend = host_backend()
    created = uvm.UtilityVM.create(lcow(), backend=backend, guest_output=handler)
    async with created as vm:
        await vm.start()
        backend.vms[vm.id].service.log.write(b"plain words\n")
    assert b"GCS started" in heard
    assert heard.endswith(b"plain words\n(the end)")


@pytest.mark.parametrize("fails", [True, False])
async def test_a_handler_that_fails_or_never_reads_does_not_hurt_the_vm(fails: bool) -> None:
    async def handler(stream: ByteStream) -> None:
        if fails:
            raise ValueError("no thanks")
        await anyio.sleep_forever()

    backend = host_backend()
    created = uvm.UtilityVM.create(lcow(), backend=backend, guest_output=handler, close_grace_seconds=0.1)
    async with created as vm:
        await vm.start()
        for _ in range(300):
            backend.vms[vm.id].service.log.write(b"x" * 65536 + b"\n")
            await anyio.lowlevel.checkpoint()
        assert (await vm.run(["true"])).exit_code == 0


async def test_a_windows_guest_forwards_its_log_until_it_is_told_to_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="uvm.guest")
    async with running(wcow()) as run:
        assert service(run).log_settings
        await quiet()
        service(run).log.line("an event")
        await quiet()
        assert "an event" in caplog.text
        await run.vm.stop_log_forwarding()
        service(run).log.line("another event")
        await run.vm.set_log_sources()
        await run.vm.start_log_forwarding()
        await quiet()
        service(run).log.line("a third event")
        await quiet()
        assert "another event" not in caplog.text
        assert "a third event" in caplog.text


# Shutting down.


@OPTIONS
async def test_a_guest_that_is_asked_to_shut_down_ends_its_vm_in_order(options: Any) -> None:
    async with running(options()) as run:
        assert (await run.vm.shutdown()).exit_type == "GracefulExit"
        assert [e.call.operation for e in run.backend.request_log.entries(to="guest")][
            -1
        ] == "shutdown graceful"
        assert (await run.vm.shutdown()).exit_type == "GracefulExit"


async def test_a_guest_that_does_not_shut_down_in_time_is_terminated() -> None:
    async with running() as run:
        run.backend.faults.hang(to="guest", operation="shutdown graceful")
        assert (await run.vm.shutdown(timeout_seconds=0)).exit_type == "ForcedExit"


async def test_a_guest_that_refuses_to_shut_down_leaves_the_vm_running() -> None:
    async with running() as run:
        run.backend.faults.refuse(HResult.E_FAIL, to="guest", operation="shutdown graceful")
        with pytest.raises(GuestError):
            await run.vm.shutdown()
        assert (await run.vm.run(["true"])).exit_code == 0


# A guest that goes.


async def test_once_the_guest_is_gone_what_was_in_it_is_released_at_once() -> None:
    # hcsshim's issue 2743.
    async with running(timeouts=ALONE) as run:
        mounted = await run.vm.scsi.attach(host.DISK, mount=uvm.Mount())
        layer = await run.vm.vpmem.add(host.LAYER)
        root = await run.vm.mount_layers("c1", [host.OTHER_LAYER], host.SCRATCH)
        container = await run.vm.create_container("c1", SPEC, root=root)
        service(run).drop()
        await run.vm.guest.wait_closed()
        for lease in (mounted, layer, root):
            await lease.release()
            with pytest.raises(AlreadyReleasedError):
                await lease.release()
        await container.terminate()
        await container.delete_state()
        with pytest.raises(BridgeClosedError):
            await container.wait()
        check_at_rest(run)
        assert not run.vm.quarantined
        with pytest.raises(BridgeClosedError):
            await run.vm.run(["true"])
        assert (await run.vm.shutdown(timeout_seconds=0)).exit_type == "ForcedExit"


async def test_once_the_vm_is_gone_what_was_in_it_is_released_at_once() -> None:
    async with running() as run:
        leases = [await run.vm.scsi.attach(host.DISK, mount=uvm.Mount()), await run.vm.vpmem.add(host.LAYER)]
        container = await run.vm.create_container("c1", SPEC)
        await container.start()
        init = await container.open_init(stdin=True)
        process = await run.vm.open_process(["cat"])
        run.backend.vms[run.vm.id].crash()
        await run.vm.wait()
        for lease in leases:
            await lease.release()
        for each in (init, process):
            with pytest.raises(VMExitedError):
                await each.wait()
            await each.aclose()
        await container.aclose()
        with pytest.raises(VMExitedError):
            await container.wait()
        with pytest.raises(VMExitedError):
            await run.vm.run(["true"])


async def test_a_request_whose_answer_never_came_closes_the_connection_and_withholds_its_slot() -> None:
    async with running(timeouts=ALONE) as run:
        run.vm.guest._bridge._rpc_timeout_seconds = 0
        run.backend.misbehaviour.silent(operation="modify")
        with pytest.raises(AnswerLostError, match="for 0 s"):
            await run.vm.scsi.attach(host.DISK, mount=uvm.Mount())
        assert run.vm.guest.closed
        assert run.vm.quarantined


@pytest.mark.parametrize(
    "misdeed", ["twice", "wrong_procedure", "unknown_id", "unknown_kind", "garbage", "oversize", "bad_json"]
)
async def test_a_guest_that_breaks_the_protocol_ends_its_own_connection_and_nothing_else(
    misdeed: str,
) -> None:
    redials = evolve(host.REDIALS, vm_exit_seconds=0)
    async with running(timeouts=redials) as run, beside(run) as other:
        getattr(run.backend.misbehaviour, misdeed)(vm="vm1", operation="dump stacks")
        # The first of two answers is good.
        with nullcontext() if misdeed == "twice" else pytest.raises(BridgeClosedError):
            await run.vm.dump_stacks()
        await run.vm.guest.wait_closed()
        assert (await other.run(["true"])).exit_code == 0
        assert run.vm.state is uvm.VMState.RUNNING


async def test_a_linux_guest_that_dials_again_is_spoken_to_again() -> None:
    async with running() as run:
        lease = await run.vm.scsi.attach(host.DISK, mount=uvm.Mount())
        process = await run.vm.open_process(["cat"])
        with run.hold(to="guest") as gate:
            async with anyio.create_task_group() as tasks:
                unanswered = Attempt.begin(tasks, lambda: run.vm.vpmem.add(host.LAYER))
                await gate.wait()
                service(run).drop()
                await quiet()
                assert isinstance(unanswered.error, UnknownOutcomeError)
                assert not isinstance(unanswered.error, BridgeClosedError)
        assert len(run.vm.quarantined) == 1
        await hush(process)
        assert await process.wait() == 0
        await process.aclose()
        await lease.release()
        assert (await run.vm.run(["true"])).exit_code == 0


async def test_the_exit_of_a_process_while_nobody_was_connected_is_learnt_afterwards() -> None:
    async with running() as run:
        process = await run.vm.open_process(["cat"])
        service(run).drop()
        await hush(process)
        assert await process.wait() == 0
        await process.aclose()


async def test_a_process_that_the_guest_has_lost_is_not_waited_for_for_ever() -> None:
    # hcsshim's issue 2846: a signal is answered "not found" while the wait is pending.
    async with running() as run:
        container = await run.vm.create_container("c1", SPEC)
        await container.start()
        init = await container.open_init(stdin=True)
        run.backend.misbehaviour.silent(operation="wait for process", nth=1)
        process = await container.open_process(["cat"], stdout=False, stderr=False)
        await hush(process)
        await quiet()
        assert not await process.kill()
        with pytest.raises(GuestError, match="its exit code is unknown"):
            await process.wait()
        await process.aclose()
        await init.aclose()


async def test_a_paused_guest_answers_once_it_goes_on() -> None:
    async with running() as run:
        await run.vm.pause()
        async with anyio.create_task_group() as tasks:
            asked = Attempt.begin(tasks, lambda: run.vm.run(["echo", "awake"]))
            await quiet()
            assert not asked.done
            await run.vm.resume()
        assert asked.result.stdout == b"awake\n"


# Through HCS, and not at all.


@OPTIONS
async def test_a_guest_behind_hcs_takes_changes_and_cannot_be_asked_for_its_stacks(options: Any) -> None:
    async with running(options(external_guest_connection=False)) as run:
        await run.vm.scsi.attach(host.DISK, mount=uvm.Mount())
        with pytest.raises(NotSupportedError, match="external_guest_connection"):
            await run.vm.dump_stacks()
        assert (await run.vm.shutdown()).exit_type == "GracefulExit"


async def test_a_vm_without_a_guest_connection_has_no_guest_to_ask() -> None:
    async with running(lcow(use_guest_connection=False)) as run:
        with pytest.raises(NotSupportedError):
            await run.vm.dump_stacks()
        with pytest.raises(NotSupportedError, match="use_guest_connection"):
            await run.vm.create_container("c1", SPEC)
        with pytest.raises(NotSupportedError, match="use_guest_connection"):
            await run.vm.run(["true"])


async def test_a_guest_of_another_version_is_not_supported_and_its_vm_terminated() -> None:
    backend = FakeBackend()
    backend.faults.refuse(
        HResult.ERROR_VMCOMPUTE_UNSUPPORTED_PROTOCOL_VERSION, to="guest", operation="negotiate protocol"
    )
    async with uvm.UtilityVM.create(uvm.LCOWOptions(), backend=backend) as vm:
        with pytest.raises(NotSupportedError, match="version 4"):
            await vm.start()
        assert vm.state is uvm.VMState.EXITED


@OPTIONS
@pytest.mark.parametrize("external", [True, False], ids=["our own", "through HCS"])
async def test_the_version_of_the_protocol_is_known_over_both_connections(
    options: Any, external: bool
) -> None:
    async with running(options(external_guest_connection=external)) as run:
        assert run.vm.protocol_version == 4
