"""Starts and shutdowns that are cancelled, closed or cut off at any moment: they leave nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest
from attrs import define, field

import uvm
from tests.clocks import jumping_backends
from tests.vm.support import DISK, OPTIONS, REDIALS, host_backend, lcow, quiet, running, wcow
from uvm._guest.timeouts import GuestTimeouts
from uvm._wire.ports import vsock_service_id
from uvm.backend import ByteStream
from uvm.backends.fake import FakeBackend, FakeListener
from uvm.backends.fake.streams import FakeStream
from uvm.errors import VMExitedError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends

PATIENCE_SECONDS = 10.0
SERVICE = vsock_service_id(5000)

Act = Callable[[], Awaitable[object]]
Disturb: TypeAlias = "Callable[[Attempt], Awaitable[object]]"

NO_REDIALS = GuestTimeouts()
GUESTS = pytest.mark.parametrize(
    ("options", "timeouts"),
    [(lcow, NO_REDIALS), (lcow, REDIALS), (wcow, NO_REDIALS)],
    ids=["linux", "linux that may dial again", "windows"],
)


@define
class Connections:
    """What the host listens to and has accepted."""

    listeners: list[FakeListener] = field(factory=list)
    closed: list[FakeListener] = field(factory=list)
    streams: list[FakeStream] = field(factory=list)

    async def check_closed(self) -> None:
        """Nothing was left to the end of the VM, or to the garbage collector, to close."""
        assert [each.service_id for each in self.listeners if each not in self.closed] == []
        for stream in self.streams:
            with pytest.raises(anyio.ClosedResourceError):
                await stream.send(b"anything")


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Connections:
    """Watch every listener and connection of every fake VM."""
    seen = Connections()
    accept, aclose = FakeListener.accept, FakeListener.aclose

    async def accepted(listener: FakeListener) -> FakeStream:
        stream = await accept(listener)
        seen.streams.append(stream)
        return stream

    async def closed(listener: FakeListener) -> None:
        seen.closed.append(listener)
        await aclose(listener)

    def listen(vm: Any, service_id: str) -> FakeListener:
        listener: FakeListener = vm_listen(vm, service_id)
        seen.listeners.append(listener)
        return listener

    vm_listen = uvm.backends.fake.FakeVM.listen
    monkeypatch.setattr(FakeListener, "accept", accepted)
    monkeypatch.setattr(FakeListener, "aclose", closed)
    monkeypatch.setattr(uvm.backends.fake.FakeVM, "listen", listen)
    return seen


@define
class Attempt:
    """A start, or a shutdown, that something else comes between."""

    vm: uvm.UtilityVM
    backend: FakeBackend
    error: Exception | None = None
    result: object = None
    cancelled: bool = False
    disturbed: bool = False

    async def make(self, call: Act, steps: int, disturb: Disturb | None) -> None:
        """Make the call, and after so many steps of the event loop disturb or, with None, cancel it."""

        async def act() -> None:
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            self.disturbed = True
            if disturb is None:
                scope.cancel()
            else:
                await disturb(self)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(act)
            with anyio.CancelScope() as scope:
                try:
                    self.result = await call()
                except Exception as error:
                    self.error = error
            self.cancelled = scope.cancelled_caught
            if not self.disturbed:
                tasks.cancel_scope.cancel()


async def crash(attempt: Attempt) -> None:
    attempt.backend.vms[attempt.vm.id].crash()


async def crash_and_wait(attempt: Attempt) -> None:
    await crash(attempt)
    await attempt.vm.wait()


async def close(attempt: Attempt) -> None:
    await attempt.vm.close()


async def terminate(attempt: Attempt) -> None:
    await attempt.vm.terminate()


async def shut_down(attempt: Attempt) -> None:
    await attempt.vm.shutdown()


@asynccontextmanager
async def starting(options: Any, timeouts: GuestTimeouts, steps: int, disturb: Any) -> AsyncIterator[Attempt]:
    """A start that is disturbed after so many steps; nothing is left on the host when it is over."""
    backend = host_backend()
    with anyio.fail_after(PATIENCE_SECONDS):
        async with uvm.UtilityVM.create(options(), backend=backend, timeouts=timeouts) as vm:
            attempt = Attempt(vm, backend)
            await attempt.make(vm.start, steps, disturb)
            yield attempt
        assert backend.leftovers() == []


# Starting.


@GUESTS
async def test_a_start_that_is_cancelled_at_any_step_ends_the_vm_and_leaves_nothing_open(
    options: Any, timeouts: GuestTimeouts, connections: Connections
) -> None:
    steps, cancelled = 0, True
    while cancelled:
        async with starting(options, timeouts, steps, None) as attempt:
            cancelled = attempt.cancelled
            assert attempt.error is None
            if cancelled:
                await attempt.vm.wait()
                assert attempt.vm.state is uvm.VMState.EXITED
        await connections.check_closed()
        steps += 1
    assert steps > 10, "it was not cancelled on its way"


@GUESTS
@pytest.mark.parametrize("end", [close, crash, terminate])
async def test_a_vm_that_ends_at_any_step_of_its_start_is_what_start_raises_bare(
    options: Any, timeouts: GuestTimeouts, end: Any, connections: Connections
) -> None:
    steps, disturbed = 0, True
    while disturbed:
        async with starting(options, timeouts, steps, end) as attempt:
            disturbed = attempt.disturbed
            if attempt.error is not None:
                assert type(attempt.error) is uvm.VMExitedError
                assert attempt.error.status == attempt.vm.exit_status
                assert attempt.error.status is not None
                assert not hasattr(attempt.error, "__notes__")
            if end is close and disturbed:
                assert attempt.vm.state is uvm.VMState.CLOSED
        await connections.check_closed()
        steps += 1
    assert steps > 10, "it did not end on its way"


@pytest.mark.parametrize("procedure", ["create", "start", "modify", "modify service settings"])
@pytest.mark.parametrize("late", [False, True], ids=["cancelled", "too late"])
async def test_a_guest_that_never_answers_holds_up_neither_a_cancelled_start_nor_one_that_took_too_long(
    procedure: str, late: bool
) -> None:
    backend = host_backend()
    timeouts = GuestTimeouts(boot_seconds=0.05) if late else NO_REDIALS
    with anyio.fail_after(PATIENCE_SECONDS):
        async with uvm.UtilityVM.create(wcow(), backend=backend, timeouts=timeouts) as vm:
            gate = backend.faults.hold(to="guest", operation=procedure)
            attempt = Attempt(vm, backend)

            async def cancel(attempt: Attempt) -> None:
                # A slow machine may be too late before it comes to the gate.
                if not late:
                    await gate.wait()
                    scope.cancel()

            with anyio.CancelScope() as scope:
                await attempt.make(vm.start, 0, cancel)
            assert attempt.disturbed
            if late:
                assert type(attempt.error) is uvm.BridgeClosedError
                assert "did not connect within" in str(attempt.error)
            await vm.wait()
            assert vm.state is uvm.VMState.EXITED
    assert backend.leftovers() == []


FAULTS: dict[str, Callable[[FakeBackend, dict[str, Any]], object]] = {
    "refused": lambda backend, call: backend.faults.refuse(**call),
    "refused as no guest is": lambda backend, call: backend.faults.refuse(OSError("cut"), **call),
    "lost": lambda backend, call: backend.faults.lose(applied=True, **call),
    "lost before": lambda backend, call: backend.faults.lose(applied=False, **call),
}


async def guest_calls(options: Any) -> list[dict[str, Any]]:
    """What a guest asks and is asked while it boots, as matchers."""
    backend = host_backend()
    async with uvm.UtilityVM.create(options, backend=backend) as vm:
        await vm.start()
        made = [entry.call.operation for entry in backend.request_log.entries(to="guest")]
    return [{"operation": each, "nth": made[: n + 1].count(each)} for n, each in enumerate(made)]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("options", [lcow(), wcow()], ids=["linux", "windows"])
async def test_whatever_fails_of_a_boot_is_known_long_before_the_guest_is_given_up(
    options: Any, fault: Callable[[FakeBackend, dict[str, Any]], object]
) -> None:
    calls = await guest_calls(options)
    assert {"operation": "connect", "nth": 1} in calls
    for call in calls:
        backend = host_backend()
        fault(backend, {"to": "guest", **call})
        began = anyio.current_time()
        async with uvm.UtilityVM.create(options, backend=backend) as vm:
            # Of a log that the guest does not forward, the boot goes on.
            with suppress(uvm.UVMError):
                await vm.start()
        assert anyio.current_time() - began < 2 * NO_REDIALS.vm_exit_seconds
        assert backend.leftovers() == []


@pytest.mark.parametrize("options", [lcow(), wcow()], ids=["linux", "windows"])
async def test_a_guest_that_cannot_connect_fails_the_start_at_once(
    options: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend = host_backend()
    backend.faults.refuse(operation="connect")
    async with uvm.UtilityVM.create(options, backend=backend) as vm:
        with pytest.raises(VMExitedError):
            await vm.start()
        assert vm.state is uvm.VMState.EXITED
    said = "failed to dial host vsock connection" in caplog.text
    # A Windows guest has not been told to forward its log.
    assert said is (vm.os == "linux")


async def test_a_guest_that_breaks_off_while_it_is_told_to_forward_its_log_has_not_started() -> None:
    backend = host_backend()
    backend.misbehaviour.drop(operation="modify service settings")
    async with uvm.UtilityVM.create(wcow(), backend=backend) as vm:
        with pytest.raises(uvm.BridgeClosedError):
            await vm.start()
        assert vm.state is uvm.VMState.EXITED
    assert backend.leftovers() == []


async def test_a_start_that_fails_and_whose_vm_hangs_says_that_ending_it_was_abandoned() -> None:
    backend = host_backend()
    create = uvm.UtilityVM.create(lcow(), backend=backend, close_grace_seconds=0.05)
    async with create as vm:
        backend.faults.refuse(HResult.E_FAIL, operation="start")
        hang = backend.faults.hang(operation="terminate")
        with pytest.raises(uvm.HostError) as caught:
            await vm.start()
        assert caught.value.__notes__ == ["and terminating the VM was abandoned after 0.05 s"]
        hang.remove()
    assert backend.leftovers() == []


async def test_one_vm_that_fails_to_start_does_not_disturb_another_of_its_host() -> None:
    backend = host_backend()
    async with running(lcow(id="other"), backend=backend) as other:
        backend.faults.refuse(HResult.E_FAIL, vm="vm1", operation="start")
        async with uvm.UtilityVM.create(lcow(), backend=backend) as vm:
            with pytest.raises(uvm.HostError):
                await vm.start()
        assert (await other.vm.run(["echo", "hello"])).stdout == b"hello\n"


# Shutting down.


@pytest.mark.parametrize("os", ["linux", "windows"])
@pytest.mark.parametrize("external", [True, False], ids=["our connection", "through HCS"])
@pytest.mark.parametrize("end", [crash, terminate, close, shut_down])
async def test_a_shutdown_that_the_exit_overtakes_at_any_step_tells_how_it_exited(
    os: str, external: bool, end: Any
) -> None:
    steps, disturbed = 0, True
    while disturbed:
        options = OPTIONS[os](external_guest_connection=external)
        async with running(options) as run:
            attempt = Attempt(run.vm, run.backend)
            with anyio.fail_after(PATIENCE_SECONDS):
                await attempt.make(run.vm.shutdown, steps, end)
            disturbed = attempt.disturbed
            assert attempt.error is None
            assert attempt.result == run.vm.exit_status
        steps += 1


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_a_shutdown_that_is_cancelled_at_any_step_may_be_asked_for_again(os: str) -> None:
    steps, cancelled = 0, True
    while cancelled:
        async with running(OPTIONS[os]()) as run:
            attempt = Attempt(run.vm, run.backend)
            await attempt.make(run.vm.shutdown, steps, None)
            cancelled = attempt.cancelled
            with anyio.fail_after(PATIENCE_SECONDS):
                assert await run.vm.shutdown() == uvm.ExitStatus("GracefulExit")
        steps += 1


@pytest.mark.parametrize("external", [True, False], ids=["our connection", "through HCS"])
async def test_a_shutdown_whose_answer_is_lost_is_known_by_the_exit(external: bool) -> None:
    async with running(wcow(external_guest_connection=external)) as run:
        if external:
            run.backend.misbehaviour.bad_json(b'{"Result": "?"}', operation="shutdown graceful")
        else:
            run.backend.faults.lose(operation="shutdown", applied=True)
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await run.vm.shutdown() == uvm.ExitStatus("GracefulExit")


# Releasing.


@pytest.mark.parametrize("os", ["linux", "windows"])
@pytest.mark.parametrize("external", [True, False], ids=["our connection", "through HCS"])
async def test_a_release_that_is_with_the_guest_when_the_vm_exits_succeeds(os: str, external: bool) -> None:
    async with running(OPTIONS[os](external_guest_connection=external)) as run:
        lease = await run.vm.scsi.attach(DISK, mount=uvm.Mount())
        with run.hold(to="guest") as gate, anyio.fail_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lease.release)
                await gate.wait()
                run.backend.vms[run.vm.id].crash()
                await quiet()
        assert run.vm.quarantined == ()


# Its end.


@pytest.mark.parametrize("end", [close, crash, terminate, shut_down])
async def test_a_handler_of_the_output_that_never_ends_is_abandoned_and_that_is_said(
    end: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend = host_backend()

    async def never_ends(output: ByteStream) -> None:
        await anyio.sleep_forever()

    created = uvm.UtilityVM.create(lcow(), backend=backend, guest_output=never_ends, close_grace_seconds=0.05)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with created as vm:
            await vm.start()
            await end(Attempt(vm, backend))
    assert "vm1: the handler of its output was abandoned after 0.05 s" in caplog.messages
    assert backend.leftovers() == []


@pytest.mark.parametrize("options", [lcow, wcow])
@pytest.mark.parametrize("ends", [crash_and_wait, close, terminate, shut_down])
async def test_the_last_output_was_handed_on_when_the_exit_is_told(options: Any, ends: Any) -> None:
    backend = host_backend()
    heard: list[bytes] = []

    async def slow(output: ByteStream) -> None:
        with suppress(anyio.EndOfStream):
            while True:
                data = await output.receive()
                await anyio.sleep(1)
                heard.append(data)

    async with uvm.UtilityVM.create(options(), backend=backend, guest_output=slow) as vm:
        await vm.start()
        # A Windows guest dials for its log only now.
        await anyio.wait_all_tasks_blocked()
        backend.vms[vm.id].service.log.write(b"the last words\n")
        await ends(Attempt(vm, backend))
        assert b"the last words\n" in b"".join(heard)


async def test_a_handler_of_the_output_may_end_its_vm(caplog: pytest.LogCaptureFixture) -> None:
    backend = host_backend()
    statuses: list[str] = []

    async def handler(output: ByteStream) -> None:
        while b"GCS started" not in await output.receive():
            pass
        statuses.append((await vm.terminate()).exit_type)
        await vm.close()

    began = anyio.current_time()
    async with uvm.UtilityVM.create(lcow(), backend=backend, guest_output=handler) as vm:
        with suppress(VMExitedError):
            await vm.start()
        await vm.wait()
    assert statuses == ["ForcedExit"]
    assert "abandoned" not in caplog.text
    assert anyio.current_time() - began < 1


async def test_a_handler_of_the_output_may_close_its_vm_while_it_is_closed() -> None:
    backend = host_backend()

    async def handler(output: ByteStream) -> None:
        with suppress(anyio.EndOfStream):
            while True:
                await output.receive()
        await vm.close()

    async with uvm.UtilityVM.create(lcow(), backend=backend, guest_output=handler) as vm:
        await vm.start()
    assert backend.leftovers() == []


async def test_a_caller_need_not_wait_for_the_last_output() -> None:
    backend = host_backend()

    async def never_ends(output: ByteStream) -> None:
        await anyio.sleep_forever()

    created = uvm.UtilityVM.create(lcow(), backend=backend, guest_output=never_ends)
    async with created as vm:
        await vm.start()
        with anyio.move_on_after(1) as scope:
            await vm.terminate()
        assert scope.cancelled_caught
        assert vm.exit_status is not None
        assert vm.state is uvm.VMState.EXITED


async def test_a_handler_of_the_output_that_is_slow_hears_all_of_it(caplog: pytest.LogCaptureFixture) -> None:
    backend = host_backend()
    heard = b""

    async def slow(output: ByteStream) -> None:
        nonlocal heard
        while not heard.endswith(b"main.main()\n"):
            await quiet_moment()
            heard += await output.receive(16)

    async def quiet_moment() -> None:
        for _ in range(10):
            await anyio.lowlevel.checkpoint()

    with anyio.fail_after(PATIENCE_SECONDS):
        async with uvm.UtilityVM.create(lcow(), backend=backend, guest_output=slow) as vm:
            await vm.start()
            await backend.vms[vm.id].service.panic("lost")
    assert b"panic: lost" in heard
    assert "abandoned" not in caplog.text


async def test_a_vm_that_is_left_running_holds_up_nobody_with_its_output(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = host_backend()

    async def to_its_end(output: ByteStream) -> None:
        with suppress(anyio.EndOfStream):
            while True:
                await output.receive()

    options = lcow(survive_process=True)
    created = uvm.UtilityVM.create(
        options, backend=backend, guest_output=to_its_end, close_grace_seconds=3600
    )
    with anyio.fail_after(PATIENCE_SECONDS):
        async with created as vm:
            await vm.start()
            vm.detach()
    assert backend.leftovers() == ["VM vm1 (Running)"]
    assert "abandoned" not in caplog.text


async def test_those_who_wait_for_a_vm_that_ends_are_woken_in_the_order_in_which_they_connected(
    anyio_backend_name: str,
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("trio runs what is ready in no order")
    woken: list[int] = []
    async with running() as run, anyio.create_task_group() as tasks:
        machine = run.backend.vms[run.vm.id]
        listener = await run.vm._link.system.listen(SERVICE)

        async def receive(number: int, stream: ByteStream) -> None:
            with suppress(anyio.BrokenResourceError):
                await stream.receive()
            woken.append(number)

        for number in range(100):
            machine.dial(SERVICE)
            tasks.start_soon(receive, number, await listener.accept())
        await quiet()
        machine.crash()
    assert woken == list(range(100))
