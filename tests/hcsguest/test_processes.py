"""Processes in a guest that is reached through HCS: as over our own connection, and nothing leaks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.abc
import pytest
from attrs import define
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import uvm
from tests.vm.orders import Choose, World, run_example
from tests.vm.support import Attempt, Running, host_backend, lcow, quiet, running, wcow
from uvm._guest.process import Process
from uvm._guest.timeouts import GuestTimeouts
from uvm.backends.fake import Call, FakeHostProcess, FakeProcess, FakeSystem, Parked
from uvm.errors import (
    HostError,
    NotSupportedError,
    OptionsError,
    OutputLimitError,
    UnknownOutcomeError,
    VMExitedError,
)
from uvm.hresult import HResult

anyio_test = pytest.mark.anyio

FOREVER = ["sleep", "3600"]

OPTIONS = pytest.mark.parametrize("options", [lcow, wcow])
EITHER_WAY = pytest.mark.parametrize("external", [True, False], ids=["our own", "through HCS"])


def relay(options: Any = lcow, **more: Any) -> Any:
    """Options of a VM whose guest is reached through HCS."""
    return options(external_guest_connection=False, **more)


def processes(run: Running) -> int:
    """How many processes run in the guest."""
    return len(run.backend.vms[run.vm.id].service.processes)


def handles(run: Running) -> list[str]:
    """The handles of processes that are open on the host."""
    return [each for each in run.backend.leftovers() if each.startswith("handle of process")]


async def everything(process: Process) -> bytes:
    """Receive all that a process writes."""
    return b"".join([chunk async for chunk in process.stdout])


# The same, whoever is connected to the guest.


@anyio_test
@EITHER_WAY
@OPTIONS
async def test_a_command_gives_its_exit_code_and_what_it_wrote(options: Any, external: bool) -> None:
    async with running(options(external_guest_connection=external)) as run:
        vm = run.vm
        done = await vm.run(["echo", "hello", "big world"])
        assert (done.args, done.exit_code) == (("echo", "hello", "big world"), 0)
        assert (done.stdout, done.stderr) == (b"hello big world\n", b"")
        assert (await vm.run(["false"])).exit_code == 1
        assert b"No such file" in (await vm.run(["cat", "nowhere"])).stderr
        much = bytes(range(256)) * 4096
        assert (await vm.run(["cat"], input=much)).stdout == much
        assert b"NAME=value" in (await vm.run(["env"], env={"NAME": "value"})).stdout
        with pytest.raises(OutputLimitError):
            await vm.run(["yes"], max_output_bytes=100_000)
        await quiet()
        assert processes(run) == 0
        assert handles(run) == []


@anyio_test
@EITHER_WAY
@OPTIONS
async def test_a_process_sees_what_it_was_started_with(options: Any, external: bool) -> None:
    backend = host_backend()
    seen: list[Any] = []

    @backend.programs.register("tell")
    async def tell(process: FakeProcess) -> int:
        seen.append((process.args, dict(process.env), process.cwd, process.user))
        return 0

    user = "" if options is lcow else "ContainerUser"
    async with running(options(external_guest_connection=external), backend=backend) as run:
        await run.vm.run(["tell", 'a "b"', ""], env={"A": "1"}, cwd="/tmp", user=user or None)
    assert seen == [(("tell", 'a "b"', ""), {"A": "1"}, "/tmp", user)]


@anyio_test
@EITHER_WAY
@OPTIONS
async def test_a_process_is_spoken_to_while_it_runs(options: Any, external: bool) -> None:
    async with running(options(external_guest_connection=external)) as run:
        async with run.vm.open_process(["cat"]) as process:
            await process.stdin.send(b"one")
            assert await process.stdout.receive() == b"one"
            await process.stdin.send(b"two")
            await process.stdin.send_eof()
            await process.stdin.send_eof()
            assert await everything(process) == b"two"
            assert await process.wait() == 0
            assert process.exit_code == 0
            with pytest.raises(anyio.ClosedResourceError):
                await process.stdin.send(b"three")
        assert not await process.kill()


@anyio_test
@EITHER_WAY
@OPTIONS
async def test_a_terminal_has_a_size_that_can_be_changed(options: Any, external: bool) -> None:
    backend = host_backend()

    @backend.programs.register("sizes")
    async def sizes(process: FakeProcess) -> int:
        assert process.terminal is not None
        for _ in range(2):
            await process.stdin.receive()
            await process.stdout.send(f"{process.terminal.height}x{process.terminal.width}".encode())
        return 0

    async with running(options(external_guest_connection=external), backend=backend) as run:
        async with run.vm.open_process(["sizes"], terminal=True, size=(24, 80)) as process:
            with pytest.raises(OptionsError, match="terminal"):
                _ = process.stderr
            await process.stdin.send(b"\n")
            assert await process.stdout.receive() == b"24x80"
            await process.resize(50, 132)
            await process.stdin.send(b"\n")
            assert await process.stdout.receive() == b"50x132"
            assert await process.wait() == 0
        async with run.vm.open_process(FOREVER) as plain:
            with pytest.raises(OptionsError, match="without one"):
                await plain.resize(1, 1)
            await plain.kill()


@anyio_test
@EITHER_WAY
@pytest.mark.parametrize(
    ("options", "signal", "code", "killed"),
    [(lcow, "TERM", 0xFFFFFFFF, 0xFFFFFFFF), (wcow, "INT", 0xC000013A, 1)],
)
async def test_a_process_is_signalled_and_killed(
    options: Any, signal: str, code: int, killed: int, external: bool
) -> None:
    async with running(options(external_guest_connection=external)) as run:
        for end, expected in ((partial(Process.signal, signal=signal), code), (Process.kill, killed)):
            process = await run.vm.open_process(FOREVER)
            assert process.exit_code is None
            assert await end(process)
            assert await process.wait() == expected
            assert not await process.kill()
            assert not await process.signal(signal)
            await process.aclose()


@anyio_test
@EITHER_WAY
async def test_a_process_whose_streams_were_closed_runs_on_and_can_be_killed(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        async with run.vm.open_process(FOREVER) as process:
            pass
        await quiet()
        assert process.exit_code is None
        assert processes(run) == 1
        assert await process.kill()
        assert await process.wait() == 0xFFFFFFFF
        await quiet()
        assert processes(run) == 0
        assert handles(run) == []


@anyio_test
@OPTIONS
async def test_a_guest_says_the_same_of_itself_either_way(options: Any) -> None:
    said = []
    for external in (True, False):
        async with running(options(external_guest_connection=external)) as run:
            said.append((run.vm.features, run.vm.capabilities))
    assert said[0] == said[1]
    assert said[0][0].signal_process


@anyio_test
@pytest.mark.parametrize(
    "nonsense",
    [
        {"GuestConnectionInfo": ["x"]},
        *({"GuestConnectionInfo": {"GuestDefinedCapabilities": x}} for x in ("x", [1], 5)),
        {"GuestConnectionInfo": {"ProtocolVersion": "4"}},
    ],
)
async def test_a_guest_that_tells_nonsense_of_itself_fails_the_start(
    monkeypatch: pytest.MonkeyPatch, nonsense: Any
) -> None:
    async def properties(self: FakeSystem, *types: str, queries: Any = None) -> Any:
        return nonsense

    backend = host_backend()
    async with uvm.UtilityVM.create(lcow(external_guest_connection=False), backend=backend) as vm:
        monkeypatch.setattr(FakeSystem, "properties", properties)
        with pytest.raises(HostError, match="HCS_E_PROTOCOL_ERROR"):
            await vm.start()
    assert backend.leftovers() == []


@anyio_test
@EITHER_WAY
async def test_a_guest_that_cannot_signal_can_still_kill(external: bool) -> None:
    backend = host_backend(guest_capabilities={})
    async with running(wcow(external_guest_connection=external), backend=backend) as run:
        process = await run.vm.open_process(FOREVER)
        with pytest.raises(NotSupportedError, match="SignalProcessSupported"):
            await process.signal("INT")
        assert await process.kill()
        assert await process.wait() == 1
        await process.aclose()


@anyio_test
@EITHER_WAY
async def test_a_process_whose_streams_are_closed_has_read_all_there_is(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        async with run.vm.open_process(["cat"], stdout=False) as process:
            await quiet()
            assert process.exit_code is None
        assert await process.wait() == 0
        ended = [
            e.document["CloseHandle"] for e in run.backend.request_log.entries(operation="modify process")
        ]
        # HCS does not pass on that its end of the pipe is closed.
        assert ended == ([] if external else [{"Handle": "StdIn"}])


@anyio_test
@EITHER_WAY
async def test_a_process_of_a_vm_that_has_gone_cannot_be_signalled(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        process = await run.vm.open_process(FOREVER, terminal=True)
        await run.vm.terminate()
        with pytest.raises(VMExitedError):
            await process.wait()
        with pytest.raises(VMExitedError):
            await process.signal("TERM")
        with pytest.raises(VMExitedError):
            await process.resize(1, 1)
        assert not await process.kill()
        await process.aclose()


@anyio_test
@EITHER_WAY
async def test_all_streams_of_a_process_that_is_closed_are_closed(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        process = await run.vm.open_process(["cat"])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await process.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await process.stdin.send(b"hello")
        for output in (process.stdout, process.stderr):
            with pytest.raises(anyio.ClosedResourceError):
                await output.receive()
        await process.aclose()


@anyio_test
async def test_a_handle_that_cannot_be_closed_is_reported_and_the_vm_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close = FakeHostProcess.close

    async def refuse(process: FakeHostProcess) -> None:
        await close(process)
        raise OSError("the pipe does not close")

    async with running(relay()) as run:
        with monkeypatch.context() as patched:
            patched.setattr(FakeHostProcess, "close", refuse)
            assert (await run.vm.run(["true"])).exit_code == 0
            await quiet()
        assert "the pipe does not close" in caplog.text
        assert (await run.vm.run(["true"])).exit_code == 0


@anyio_test
async def test_a_handle_that_does_not_close_holds_no_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(process: FakeHostProcess) -> None:
        await anyio.sleep_forever()

    limits = GuestTimeouts(close_seconds=3600, grace_seconds=0)
    with anyio.fail_after(60):
        async with uvm.UtilityVM.create(relay(), backend=host_backend(), timeouts=limits) as vm:
            await vm.start()
            await vm.open_process(FOREVER)
            monkeypatch.setattr(FakeHostProcess, "close", hang)


@anyio_test
@pytest.mark.parametrize("failure", [OSError("the host is out of order"), HostError("out of order", 5)])
async def test_a_wait_that_fails_is_no_exit_of_the_vm(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    async def fail(process: FakeHostProcess) -> int:
        raise failure

    async with running(relay(wcow)) as run:
        monkeypatch.setattr(FakeHostProcess, "wait", fail)
        async with run.vm.open_process(FOREVER) as process:
            errors = []
            for _ in range(2):
                with pytest.raises((HostError, UnknownOutcomeError), match="out of order") as raised:
                    await process.wait()
                errors.append(raised.value)
            assert errors[0] is not errors[1]
            assert await process.kill()
            await quiet()
            assert processes(run) == 0


@anyio_test
async def test_streams_are_closed_whatever_the_host_raises_at_the_end_of_the_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(process: FakeHostProcess, document: Any) -> None:
        raise OSError("the host is out of order")

    async with running(relay()) as run:
        process = await run.vm.open_process(["cat"])
        with monkeypatch.context() as patched:
            patched.setattr(FakeHostProcess, "modify", refuse)
            await process.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await process.stdout.receive()
        assert await process.wait() == 0
        await quiet()
        assert handles(run) == []


# What is HCS's own.


@anyio_test
@OPTIONS
async def test_a_command_that_the_guest_does_not_have_is_refused_by_hcs(options: Any) -> None:
    async with running(relay(options)) as run:
        with pytest.raises(HostError, match=r"no-such-command|cannot find the file"):
            await run.vm.run(["no-such-command"])
        assert (await run.vm.run(["true"])).exit_code == 0


@anyio_test
async def test_the_exit_code_is_known_without_anybody_waiting_for_it() -> None:
    async with running(relay()) as run:
        process = await run.vm.open_process(["false"])
        await quiet()
        assert process.exit_code == 1
        await process.aclose()


@anyio_test
async def test_a_handle_is_kept_until_the_output_was_read() -> None:
    async with running(relay()) as run:
        process = await run.vm.open_process(["echo", "late"], stderr=False)
        await process.wait()
        await quiet()
        assert len(handles(run)) == 1
        assert await everything(process) == b"late\n"
        await quiet()
        assert handles(run) == []
        await process.aclose()


@anyio_test
async def test_killing_does_not_wait_for_signals_and_leaves_no_handle() -> None:
    async with running(relay(wcow)) as run:
        process = await run.vm.open_process(FOREVER)
        with run.backend.faults.hold(operation="signal process") as gate:
            async with anyio.create_task_group() as tasks:
                signal = Attempt.begin(tasks, lambda: process.signal("INT"))
                await gate.wait(1)
                before = run.last
                assert await process.kill()
                assert await process.wait() == 1
                sent = [e.call.operation for e in run.backend.request_log if e.seq > before]
                assert sent == ["terminate process"]
                gate.close()
        assert signal.error is None
        assert signal.result is False
        await process.aclose()
        await quiet()
        assert handles(run) == []


@anyio_test
async def test_a_kill_that_is_refused_is_told_and_can_be_tried_again() -> None:
    async with running(relay(wcow)) as run:
        process = await run.vm.open_process(FOREVER)
        refused = run.backend.faults.refuse(operation="terminate process")
        with pytest.raises(HostError):
            await process.kill()
        refused.remove()
        assert len(handles(run)) == 1
        assert await process.kill()
        await process.aclose()


@anyio_test
async def test_killing_what_windows_is_ending_already_is_no_error() -> None:
    async with running(relay(wcow)) as run:
        process = await run.vm.open_process(FOREVER)
        refused = run.backend.faults.refuse(HResult.E_ACCESSDENIED, operation="terminate process")
        assert await process.kill()
        refused.remove()
        assert await process.kill()
        await process.aclose()


@anyio_test
async def test_where_hcs_forgets_to_tell_of_an_exit_the_wait_ends() -> None:
    async with running(relay(wcow), timeouts=GuestTimeouts(grace_seconds=0)) as run:
        process = await run.vm.open_process(FOREVER)
        run.backend.faults.refuse(HResult.ERROR_NOT_FOUND, operation="terminate process")
        assert not await process.kill()
        with pytest.raises(HostError, match="did not report how it exited"):
            await process.wait()
        assert process.exit_code is None
        await process.aclose()
        await quiet()
        assert handles(run) == []


@anyio_test
async def test_the_end_of_its_input_that_hcs_refuses_is_told() -> None:
    async with running(relay()) as run, run.vm.open_process(["cat"]) as process:
        refused = run.backend.faults.refuse(operation="modify process")
        with pytest.raises(HostError):
            await process.stdin.send_eof()
        refused.remove()
        await process.stdin.send_eof()
        assert await process.wait() == 0


@anyio_test
async def test_a_start_whose_answer_is_lost_is_of_unknown_outcome() -> None:
    async with running(relay()) as run:
        run.backend.faults.lose(operation="create process", applied=False)
        with pytest.raises(UnknownOutcomeError):
            await run.vm.run(["true"])


@anyio_test
async def test_a_run_that_is_cancelled_kills_its_process() -> None:
    async with running(relay()) as run:
        async with anyio.create_task_group() as tasks:
            attempt = Attempt.begin(tasks, lambda: run.vm.run(FOREVER))
            await quiet()
            assert processes(run) == 1
            attempt.scope.cancel()
        await quiet()
        assert processes(run) == 0
        assert handles(run) == []


@anyio_test
async def test_a_caller_who_is_cancelled_does_not_wait_and_what_he_started_is_killed() -> None:
    async with running(relay()) as run:
        with run.backend.faults.hold(operation="create process", nth=1) as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, lambda: run.vm.run(FOREVER))
                (parked,) = await gate.wait(1)
                attempt.scope.cancel()
                await quiet()
                assert attempt.done
                parked.proceed()
        await quiet()
        assert processes(run) == 0
        assert handles(run) == []


@anyio_test
async def test_the_exit_of_the_vm_ends_everything_that_waits_for_a_process() -> None:
    async with running(relay()) as run:
        process = await run.vm.open_process(FOREVER)
        run.backend.faults.hang(operation="create process")
        async with anyio.create_task_group() as tasks:
            waiting = Attempt.begin(tasks, process.wait)
            reading = Attempt.begin(tasks, lambda: everything(process))
            starting = Attempt.begin(tasks, lambda: run.vm.run(["true"]))
            await quiet()
            await run.vm.terminate()
        assert isinstance(waiting.error, VMExitedError)
        assert isinstance(reading.error, anyio.BrokenResourceError | anyio.ClosedResourceError)
        assert isinstance(starting.error, VMExitedError)
        assert not await process.kill()
        assert process.exit_code is None
        await process.aclose()
        with pytest.raises(VMExitedError):
            await run.vm.run(["true"])


@anyio_test
async def test_a_run_is_told_the_exit_of_its_vm() -> None:
    async with running(relay()) as run:
        async with anyio.create_task_group() as tasks:
            attempt = Attempt.begin(tasks, lambda: run.vm.run(FOREVER))
            await quiet()
            run.backend.vms[run.vm.id].crash()
        assert isinstance(attempt.error, VMExitedError)
        assert attempt.error.status == run.vm.exit_status


@anyio_test
@pytest.mark.parametrize(
    ("options", "operation"),
    [
        (wcow, "signal process"),
        (wcow, "terminate process"),
        (wcow, "modify process"),
        (lcow, "signal process"),
        (lcow, "create process"),
        (lcow, "process properties"),
    ],
)
async def test_a_call_that_the_exit_of_the_vm_overtakes_is_told_that_the_guest_has_gone(
    options: Any, operation: str
) -> None:
    """Also where the guest is helped along with a process of its own."""
    async with running(relay(options)) as run:
        process = await run.vm.open_process(FOREVER, terminal=True, stdin=False)
        signal = "TERM" if options is lcow else "INT"
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "terminate process": process.kill,
            "modify process": lambda: process.resize(1, 1),
        }
        if operation == "process properties":
            # The helper did not find it.
            run.backend.programs.register("kill")(_fails)
        with run.backend.faults.hold(operation=operation) as gate:
            async with anyio.create_task_group() as tasks:
                call = Attempt.begin(tasks, calls.get(operation, lambda: process.signal(signal)))
                await gate.wait(1)
                run.backend.vms[run.vm.id].crash()
        if operation == "terminate process":
            assert (call.result, call.error) == (False, None)
        else:
            assert isinstance(call.error, VMExitedError)
        await process.aclose()


async def _fails(process: FakeProcess) -> int:
    return 1


@anyio_test
async def test_a_process_that_has_exited_has_no_terminal_to_resize() -> None:
    async with running(relay(wcow)) as run:
        process = await run.vm.open_process(["true"], terminal=True)
        assert await everything(process) == b""
        await process.wait()
        await quiet()
        assert handles(run) == []
        with pytest.raises(HostError, match="HCS_E_PROCESS_ALREADY_STOPPED"):
            await process.resize(1, 1)
        await process.aclose()


@anyio_test
async def test_input_is_ended_once_however_often_it_is_closed() -> None:
    async with running(relay()) as run, run.vm.open_process(["yes"]) as process:
        await process.stdin.send_eof()
        await process.stdin.aclose()
        await process.aclose()
        assert len(run.backend.request_log.entries(operation="modify process")) == 1
        await process.kill()


@anyio_test
async def test_a_run_whose_input_cannot_be_ended_is_told_and_its_process_killed() -> None:
    async with running(relay()) as run:
        refused = run.backend.faults.refuse(operation="modify process")
        with anyio.fail_after(5), pytest.raises(HostError, match="modify"):
            await run.vm.run(["cat"], input=b"hello")
        refused.remove()
        await quiet()
        assert processes(run) == 0
        assert handles(run) == []


# In every order: nothing leaks.


async def _open_and_close(vm: uvm.UtilityVM, **more: Any) -> None:
    async with vm.open_process(FOREVER, **more) as process:
        try:
            await process.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await process.kill()


#: What tasks begin.
_BEGINNINGS: dict[str, Callable[[uvm.UtilityVM], Awaitable[Any]]] = {
    "run": lambda vm: vm.run(["echo", "hello"]),
    "run with input": lambda vm: vm.run(["cat"], input=b"hello"),
    "run for ever": lambda vm: vm.run(FOREVER),
    "open": _open_and_close,
    "open with a terminal": partial(_open_and_close, terminal=True, size=(24, 80)),
}


@define(eq=False)
class ProcessWorld(World):
    """Processes that begin, and the calls of HCS about them."""

    lost: int = 0

    def beginning(self) -> Callable[[], Awaitable[Any]]:
        """Choose what a task begins."""
        return partial(_BEGINNINGS[self.choose(sorted(_BEGINNINGS), "begin")], self.run.vm)

    def spoiled(self, parked: Parked, how: str) -> None:
        """Count the processes that may run on."""
        starts = parked.call.operation == "create process" and not _kills(parked.call)
        # A process of whose start nobody was told, or whose kill was lost, may run on.
        self.lost += how != "refuse" or not starts

    async def finish(self) -> None:
        """Answer everything, cancel everything, and look once it is at rest."""
        self.wind_up()
        await quiet()
        assert [each for each in self.begun if not each.done] == []
        self.check_errors()
        machine = self.run.backend.vms[self.run.vm.id]
        assert machine.handles == 1
        if self.run.vm.exit_status is not None:
            assert handles(self.run) == []
        elif not self.lost:
            assert processes(self.run) == 0
            assert handles(self.run) == []
        else:
            assert len(handles(self.run)) <= processes(self.run) <= self.lost + len(self.begun)


_OF_PROCESSES = frozenset({"create process", "signal process", "terminate process", "modify process"})


def _kills(call: Call) -> bool:
    """Whether it starts the program that kills a process for a Linux guest that cannot."""
    return bool((call.document.get("CommandArgs") or [""])[0] == "kill")


def _is_work(call: Call) -> bool:
    return call.operation in _OF_PROCESSES


async def _example(choose: Choose) -> None:
    options = relay(choose([lcow, wcow], "os"))
    async with running(options) as run:
        async with anyio.create_task_group() as tasks:
            with run.backend.faults.hold(where=_is_work) as gate:
                world = ProcessWorld(run, tasks, gate, choose)
                await world.play()
                await world.finish()
        event("the VM ended" if run.vm.exit_status is not None else "the VM ran on")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_whatever_happened_no_process_and_no_handle_is_left(backend: str, data: st.DataObject) -> None:
    run_example(_example, backend, data)
