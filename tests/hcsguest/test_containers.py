"""Containers in a guest that is reached through HCS: as over our own connection, and nothing leaks."""

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
from tests.vm.audit import check_at_rest
from tests.vm.orders import Choose, World, run_example
from tests.vm.support import DISK, LAYER, Attempt, Running, host_backend, lcow, quiet, running, wcow
from uvm._guest.container import Container, ContainerExit
from uvm._guest.process import Process
from uvm._guest.timeouts import GuestTimeouts
from uvm.backends.fake import Call, FakeBackend, FakeProcess, Parked
from uvm.errors import (
    AnswerLostError,
    GuestError,
    HostError,
    NotSupportedError,
    OptionsError,
    OutputLimitError,
    RefusedError,
    UnknownOutcomeError,
    VMExitedError,
    VMStateError,
)
from uvm.hresult import HResult

anyio_test = pytest.mark.anyio

SPEC = {
    "ociVersion": "1.1.0",
    "process": {"args": ["cat"], "cwd": "/", "env": ["GREETING=hello"]},
    "linux": {},
}
WINDOWS = {"SchemaVersion": {"Major": 2, "Minor": 1}, "Container": {"Storage": {"Layers": []}}}
FOREVER = ["sleep", "3600"]

#: What HCS passes on of a Linux guest that has no such program, and says of a system that there is already.

OPTIONS = pytest.mark.parametrize("options", [lcow, wcow])
EITHER_WAY = pytest.mark.parametrize("external", [True, False], ids=["our own", "through HCS"])


def relay(options: Any = lcow, **more: Any) -> Any:
    """Options of a VM whose guest is reached through HCS."""
    return options(external_guest_connection=False, **more)


def document(vm: uvm.UtilityVM) -> Any:
    """What a container of the guest is made of."""
    return SPEC if vm.os == "linux" else WINDOWS


def left(backend: FakeBackend) -> list[str]:
    """The containers, and the handles of processes, that HCS has."""
    return [each for each in backend.leftovers() if each.startswith(("container", "handle of process"))]


def in_guest(run: Running) -> list[str]:
    """The containers that the guest knows."""
    return list(run.backend.vms[run.vm.id].service.containers)


def calls(run: Running, operation: str, container_id: str = "c1") -> int:
    """How many calls of a kind reached HCS for a container."""
    return len(run.backend.request_log.entries(operation=operation, resource=container_id))


async def everything(process: Process) -> bytes:
    """Receive all that a process writes."""
    return b"".join([chunk async for chunk in process.stdout])


async def started(vm: uvm.UtilityVM, container_id: str = "c1") -> Container:
    """A container that runs; a Linux one has a process that reads and writes."""
    container = await vm.create_container(container_id, document(vm))
    await container.start()
    if vm.os == "linux":
        await container.open_init(stdin=True)
    return container


# The same, whoever is connected to the guest.


@anyio_test
@EITHER_WAY
async def test_a_linux_container_runs_its_own_process_and_others_beside_it(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        root = await run.vm.mount_layers("c1", [LAYER], DISK)
        async with run.vm.create_container("c1", SPEC, root=root) as container:
            await container.start()
            init = await container.open_init(stdin=True)
            beside = await container.run(["env"])
            assert beside.stdout == b"GREETING=hello\n"
            assert (await container.run(["false"])).exit_code == 1
            assert [each.process_id for each in await container.processes()] == [init.pid]
            assert (await container.statistics())["pids"] == {"current": 1}
            await init.stdin.send(b"to the container")
            await init.stdin.send_eof()
            assert await everything(init) == b"to the container"
            assert await init.wait() == 0
            assert (await container.wait()).type == "UnexpectedExit"
            assert container.exit is not None
            with pytest.raises((GuestError, HostError)):
                await container.run(["true"])
        await root.release()
        check_at_rest(run)
        assert in_guest(run) == []
        assert left(run.backend) == []


@anyio_test
@EITHER_WAY
async def test_a_container_whose_own_process_writes_too_much_is_told(external: bool) -> None:
    spec = SPEC | {"process": {"args": ["yes"], "cwd": "/"}}
    async with running(lcow(external_guest_connection=external)) as run:
        async with run.vm.create_container("c1", spec) as container:
            await container.start()
            with (
                anyio.fail_after(5),
                pytest.raises(OutputLimitError, match="own process wrote more than 1000 "),
            ):
                await (await container.open_init()).communicate(max_output_bytes=1000)
        assert in_guest(run) == []


@anyio_test
@EITHER_WAY
async def test_a_windows_container_runs_processes_until_it_is_shut_down(external: bool) -> None:
    async with running(wcow(external_guest_connection=external)) as run:
        async with run.vm.create_container("c1", WINDOWS) as container:
            await container.start()
            assert (await container.run(["echo", "from", "inside"])).stdout == b"from inside\n"
            assert (await container.run(["false"])).exit_code == 1
            assert "Memory" in await container.statistics()
            process = await container.open_process(FOREVER)
            assert [each.process_id for each in await container.processes()] == [process.pid]
            with pytest.raises(NotSupportedError):
                await container.open_init()
            await container.shutdown()
            assert (await container.wait()).type == "GracefulExit"
            assert await process.wait() != 0
            await process.aclose()
            await container.shutdown()
            await container.terminate()
        await quiet()
        assert external or in_guest(run) == []
        assert left(run.backend) == []


@anyio_test
@EITHER_WAY
async def test_the_exit_of_a_container_process_is_told_though_nobody_has_read_what_it_wrote(
    external: bool,
) -> None:
    async with (
        running(lcow(external_guest_connection=external)) as run,
        run.vm.create_container("c1", SPEC) as container,
    ):
        await container.start()
        await container.open_init(stdin=True)
        process = await container.open_process(["echo", "still here"])
        assert await process.wait() == 0
        assert await process.stdout.receive(5) == b"still"
        assert await everything(process) == b" here\n"


@anyio_test
@EITHER_WAY
async def test_a_process_in_a_container_is_signalled_with_its_number(external: bool) -> None:
    """It needs no help of the guest, unlike a process outside of containers, and its exit code says it."""
    async with (
        running(lcow(external_guest_connection=external)) as run,
        run.vm.create_container("c1", SPEC) as container,
    ):
        await container.start()
        await container.open_init(stdin=True)
        async with container.open_process(FOREVER) as process:
            assert await process.signal("TERM")
            assert await process.wait() == 128 + 15
            assert not await process.signal("TERM")
        async with container.open_process(FOREVER) as process:
            assert await process.kill()
            assert await process.wait() == 128 + 9


@anyio_test
@EITHER_WAY
async def test_a_terminal_in_a_container_has_its_size_from_the_start(external: bool) -> None:
    backend = host_backend()

    @backend.programs.register("sizes")
    async def sizes(process: FakeProcess) -> int:
        assert process.terminal is not None
        for _ in range(2):
            await process.stdin.receive()
            await process.stdout.send(f"{process.terminal.height}x{process.terminal.width}".encode())
        return 0

    async with (
        running(lcow(external_guest_connection=external), backend=backend) as run,
        run.vm.create_container("c1", SPEC) as container,
    ):
        await container.start()
        await container.open_init(stdin=True)
        process = await container.open_process(["sizes"], terminal=True, size=(24, 80))
        with pytest.raises(OptionsError, match="terminal"):
            _ = process.stderr
        await process.stdin.send(b"?")
        assert await process.stdout.receive() == b"24x80"
        await process.resize(50, 132)
        await process.stdin.send(b"?")
        assert await process.stdout.receive() == b"50x132"
        assert await process.wait() == 0


@anyio_test
@EITHER_WAY
@OPTIONS
async def test_a_container_that_is_left_is_ended_and_forgotten(options: Any, external: bool) -> None:
    async with running(options(external_guest_connection=external)) as run:
        # Over our own connection, a Windows guest does not say that it forgets.
        forgets = options is lcow or not external
        for container_id in ("c1", "c1" if forgets else "c2"):
            async with run.vm.create_container(container_id, document(run.vm)) as container:
                await container.start()
                if run.vm.os == "linux":
                    await container.open_init(stdin=True)
            assert container.exit is not None
            assert container.exit.type == "ForcedExit"
            assert not forgets or in_guest(run) == []
        async with run.vm.create_container("c3", document(run.vm)):
            pass
        assert not forgets or in_guest(run) == []
        await quiet()
        assert left(run.backend) == []


@anyio_test
@EITHER_WAY
async def test_the_memory_limit_of_a_container_is_changed(external: bool) -> None:
    request = {
        "RequestType": "Update",
        "ResourceType": "ContainerConstraints",
        "Settings": {"Linux": {"memory": {"limit": 1 << 26}}},
    }
    async with (
        running(lcow(external_guest_connection=external)) as run,
        run.vm.create_container("c1", SPEC) as container,
    ):
        await container.start()
        await container.open_init(stdin=True)
        await container.modify(request)
        assert (await container.statistics())["memory"]["usage"]["limit"] == 1 << 26
        with pytest.raises((GuestError, HostError), match="not supported for containers"):
            await container.modify(request | {"ResourceType": "CombinedLayers"})
        with pytest.raises(OptionsError, match="which is no JSON value"):
            await container.modify(request | {"Settings": {1, 2}})


# What HCS is asked.


@anyio_test
@OPTIONS
async def test_hcs_is_asked_for_a_compute_system_that_the_vm_hosts(options: Any) -> None:
    async with (
        running(relay(options, owner="somebody")) as run,
        run.vm.create_container("c1", document(run.vm)) as container,
    ):
        [entry] = run.backend.request_log.entries(operation="create", resource="c1")
        hosted = entry.document.pop("HostedSystem")
        assert entry.document == {
            "Owner": "somebody",
            "SchemaVersion": {"Major": 2, "Minor": 1},
            "HostingSystemId": "vm1",
            "ShouldTerminateOnLastHandleClosed": True,
        }
        if run.vm.os == "linux":
            assert hosted["OciSpecification"]["process"] == SPEC["process"]
            assert hosted["OciBundlePath"] == "/run/gcs/c/c1"
        else:
            assert hosted == WINDOWS
        [listed] = await run.backend.enumerate({"Types": ["Container"]})
        assert (listed["Id"], listed["Owner"], listed["HostingSystemId"]) == ("c1", "somebody", "vm1")
        assert container.id == "c1"


@anyio_test
async def test_a_process_of_a_linux_container_is_described_as_oci_does() -> None:
    async with running(relay()) as run, run.vm.create_container("c1", SPEC) as container:
        await container.start()
        init = await container.open_init(stdin=True)
        await container.run(["true"])
        first, second = run.backend.request_log.entries(operation="create process", resource="c1")
        assert "OciProcess" not in first.document
        assert second.document["OciProcess"]["args"] == ["true"]
        assert second.document["OciProcess"]["env"] == ["GREETING=hello"]
        assert await init.kill()


# Refusals.


@anyio_test
async def test_what_is_refused_leaves_nothing() -> None:
    async with running(relay()) as run:
        missing = {**SPEC, "process": {"args": ["nowhere"], "cwd": "/"}}
        with pytest.raises(HostError, match="nowhere") as refused:
            await run.vm.create_container("c1", missing)
        assert refused.value.hresult == HResult.E_FAIL
        documents: list[Any] = [{}, {"process": {}}, []]
        for nothing in documents:
            with pytest.raises(OptionsError):
                await run.vm.create_container("c1", nothing)
        with pytest.raises(OptionsError):
            await run.vm.create_container("", SPEC)
        assert left(run.backend) == []
        async with run.vm.create_container("c1", SPEC) as container:
            for taken in ("c1", "vm1"):
                with pytest.raises(HostError) as refused:
                    await run.vm.create_container(taken, SPEC)
                assert refused.value.hresult == HResult.HCS_E_SYSTEM_ALREADY_EXISTS
            with pytest.raises(HostError, match="HCS_E_INVALID_STATE"):
                await container.run(["true"])
            await container.start()
            with pytest.raises(HostError, match="HCS_E_INVALID_STATE"):
                await container.start()
            with pytest.raises(HostError, match="nowhere"):
                await container.run(["nowhere"])


@anyio_test
async def test_a_container_that_runs_is_not_forgotten() -> None:
    async with running(relay()) as run, run.vm.create_container("c1", SPEC) as container:
        await container.start()
        init = await container.open_init(stdin=True)
        with pytest.raises(VMStateError, match="has not exited"):
            await container.delete_state()
        await init.kill()
        await container.wait()
        with pytest.raises(HostError, match="HCS_E_SYSTEM_ALREADY_STOPPED"):
            await container.statistics()
        await container.delete_state()
        await container.delete_state()
        assert left(run.backend) == []
        assert in_guest(run) == []
        with pytest.raises(HostError, match="E_HANDLE"):
            await container.statistics()
        assert calls(run, "close") == 1


@anyio_test
async def test_a_container_that_was_deleted_before_it_ran_has_no_exit() -> None:
    async with running(relay()) as run:
        container = await run.vm.create_container("c1", SPEC)
        async with anyio.create_task_group() as tasks:
            waiting = Attempt.begin(tasks, container.wait)
            await quiet()
            await container.delete_state()
        assert isinstance(waiting.error, VMStateError)
        assert left(run.backend) == []
        assert in_guest(run) == []


@anyio_test
async def test_an_exit_that_hcs_does_not_tell_in_time_is_an_error_and_the_container_is_let_go() -> None:
    async with running(relay(wcow), timeouts=GuestTimeouts(grace_seconds=0)) as run:
        container = await started(run.vm)
        run.backend.faults.refuse(operation="terminate", resource="c1")
        with pytest.raises(HostError, match="E_FAIL"):
            await container.aclose()
        assert (await container.wait()).type == "Unknown"
        await quiet()
        # HCS ends what nobody has a handle on.
        assert left(run.backend) == []
        assert calls(run, "close") == 1


# The end of the VM.


@anyio_test
@OPTIONS
@pytest.mark.parametrize("end", ["terminate", "crash"])
async def test_the_exit_of_the_vm_ends_everything_that_waits_for_a_container(options: Any, end: str) -> None:
    async with running(relay(options)) as run:
        container = await started(run.vm)
        process = await container.open_process(FOREVER)
        run.backend.faults.hang(operation="create", resource="c2")
        async with anyio.create_task_group() as tasks:
            waiting = Attempt.begin(tasks, container.wait)
            running_on = Attempt.begin(tasks, process.wait)
            creating = Attempt.begin(tasks, lambda: run.vm.create_container("c2", document(run.vm)))
            await quiet()
            if end == "crash":
                run.backend.vms[run.vm.id].crash()
            else:
                await run.vm.terminate()
        assert isinstance(waiting.error, VMExitedError)
        assert isinstance(running_on.error, VMExitedError)
        assert isinstance(creating.error, VMExitedError)
        assert container.exit is None
        assert left(run.backend) == []
        assert calls(run, "close") == 1
        for ask in (container.statistics, container.start, lambda: container.run(["true"])):
            with pytest.raises(VMExitedError):
                await ask()
        await container.terminate()
        await container.delete_state()
        await container.aclose()
        await process.aclose()
        with pytest.raises(VMExitedError):
            await run.vm.create_container("c1", document(run.vm))


@anyio_test
@pytest.mark.parametrize(
    "operation", ["start", "shutdown", "terminate", "modify", "properties", "create process"]
)
async def test_a_call_that_the_exit_of_the_vm_overtakes_is_told_that_the_guest_has_gone(
    operation: str,
) -> None:
    async with running(relay(wcow)) as run:
        container = await run.vm.create_container("c1", WINDOWS)
        if operation != "start":
            await container.start()
        asked: dict[str, Callable[[], Awaitable[Any]]] = {
            "start": container.start,
            "shutdown": container.shutdown,
            "terminate": container.terminate,
            "modify": lambda: container.modify({"RequestType": "Update", "ResourceType": "x"}),
            "properties": container.statistics,
            "create process": lambda: container.run(["true"]),
        }
        with run.backend.faults.hold(operation=operation, resource="c1") as gate:
            async with anyio.create_task_group() as tasks:
                call = Attempt.begin(tasks, asked[operation])
                await gate.wait(1)
                run.backend.vms[run.vm.id].crash()
        if operation in ("shutdown", "terminate"):
            assert call.error is None
        else:
            assert isinstance(call.error, VMExitedError)
        await container.aclose()


@anyio_test
async def test_a_vm_that_is_closed_takes_its_containers_with_it() -> None:
    backend = host_backend()
    async with running(relay(), backend=backend) as run:
        await started(run.vm)
        await started(run.vm, "c2")
    assert backend.hosted_systems == {}


# Cancellation.


@anyio_test
@OPTIONS
@pytest.mark.parametrize("outcome", ["proceed", "refuse"])
async def test_a_container_whose_caller_was_cancelled_is_ended_and_forgotten(
    options: Any, outcome: str
) -> None:
    async with running(relay(options)) as run:
        with run.backend.faults.hold(operation="create", resource="c1") as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, lambda: run.vm.create_container("c1", document(run.vm)))
                [parked] = await gate.wait(1)
                attempt.scope.cancel()
                await quiet()
                assert attempt.done
                assert attempt.result is None
                getattr(parked, outcome)()
        await quiet()
        assert left(run.backend) == []
        assert in_guest(run) == []
        assert calls(run, "close") == (outcome == "proceed")
        async with run.vm.create_container("c1", document(run.vm)):
            pass


@anyio_test
async def test_a_container_of_whose_creation_the_answer_was_lost_keeps_its_id_until_its_vm_ends() -> None:
    async with running(relay()) as run:
        run.backend.faults.lose(operation="create", resource="c1", first=1)
        with pytest.raises(UnknownOutcomeError) as lost:
            await run.vm.create_container("c1", SPEC)
        assert not isinstance(lost.value, AnswerLostError)
        with pytest.raises(HostError) as refused:
            await run.vm.create_container("c1", SPEC)
        assert refused.value.hresult == HResult.HCS_E_SYSTEM_ALREADY_EXISTS


@anyio_test
async def test_whoever_is_cancelled_while_waiting_leaves_the_container_as_it_is() -> None:
    async with running(relay()) as run, run.vm.create_container("c1", SPEC) as container:
        await container.start()
        init = await container.open_init(stdin=True)
        async with anyio.create_task_group() as tasks:
            attempts = [Attempt.begin(tasks, container.wait) for _ in range(3)]
            await quiet()
            attempts[0].scope.cancel()
            await quiet()
            assert [each.done for each in attempts] == [True, False, False]
            await init.kill()
        assert [each.result for each in attempts[1:]] == [ContainerExit("ForcedExit")] * 2


# In every order: nothing leaks.


async def _live(vm: uvm.UtilityVM, container_id: str, *, runs: bool) -> None:
    async with vm.create_container(container_id, document(vm)) as container:
        await container.start()
        if vm.os == "linux":
            await container.open_init(stdin=True)
        if runs:
            await container.run(["echo", "hello"])
        else:
            await container.wait()


async def _give_up(vm: uvm.UtilityVM, container_id: str) -> None:
    container = await vm.create_container(container_id, document(vm))
    with anyio.CancelScope(shield=True):
        await container.aclose()


#: What tasks begin.
_BEGINNINGS: dict[str, Callable[[uvm.UtilityVM, str], Awaitable[Any]]] = {
    "run": partial(_live, runs=True),
    "wait": partial(_live, runs=False),
    "give up": _give_up,
}


@define(eq=False)
class ContainerWorld(World):
    """Containers that begin, and the calls of HCS about them."""

    lost: bool = False

    exit_odds = 30
    answers = ("proceed", "proceed", "proceed", "refuse", "lose applied")

    def beginning(self) -> Callable[[], Awaitable[Any]]:
        """Choose what a task begins."""
        make = _BEGINNINGS[self.choose(sorted(_BEGINNINGS), "begin")]
        # Ids may be taken by others that are under way.
        return partial(make, self.run.vm, self.choose(["c1", "c2", "c3"], "id"))

    def spoiled(self, parked: Parked, how: str) -> None:
        """Note whether something may stay: of what was lost at its creation, nobody has a handle."""
        if how != "refuse" and parked.call.operation in ("create", "create process"):
            self.lost = True

    async def check(self) -> None:
        """Look, once all tasks have ended, that nothing is left."""
        # The VM's tasks end what a cancelled caller left; where a container does not report its exit, later.
        await anyio.sleep(60)
        await quiet()
        self.check_errors()
        machine = self.run.backend.vms[self.run.vm.id]
        assert machine.handles == 1
        if self.run.vm.exit_status is not None or not self.lost:
            assert left(self.run.backend) == []
        closed = self.run.backend.request_log.entries(operation="close", outcome="refused")
        assert [str(each) for each in closed] == []


_WORK = frozenset({"create", "start", "terminate", "create process", "properties"})


def _is_work(call: Call) -> bool:
    return call.operation in _WORK and call.resource.startswith("c")


async def _example(choose: Choose) -> None:
    async with running(relay(choose([lcow, wcow], "os"))) as run:
        async with anyio.create_task_group() as tasks:
            with run.backend.faults.hold(where=_is_work) as gate:
                world = ContainerWorld(run, tasks, gate, choose)
                await world.play()
                world.wind_up()
        await world.check()
        event("the VM ended" if run.vm.exit_status is not None else "the VM ran on")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_whatever_happened_no_container_and_no_handle_is_left(backend: str, data: st.DataObject) -> None:
    run_example(_example, backend, data)


# Signals to all of its processes.


async def busy(run: Running) -> tuple[Container, list[Process]]:
    """Return a container and its processes, its own first."""
    container = await run.vm.create_container("c1", SPEC)
    await container.start()
    processes = [await container.open_init(stdin=True)]
    processes += [await container.open_process(FOREVER) for _ in range(2)]
    return container, processes


@anyio_test
@EITHER_WAY
async def test_a_signal_to_a_container_reaches_all_of_its_processes(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        container, (init, *others) = await busy(run)
        assert await container.signal("TERM") is True
        assert [await process.wait() for process in (*others, init)] == [128 + 15] * 3
        assert await container.signal("KILL") is False
        await container.aclose()


@anyio_test
@EITHER_WAY
async def test_its_own_process_is_signalled_last_and_what_has_exited_not_at_all(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        container, (init, first, second) = await busy(run)
        await first.kill()
        await first.wait()
        with run.backend.faults.hold(operation="signal process") as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(container.signal, "TERM")
                for process in (second, init):
                    [parked] = await gate.wait()
                    await quiet()
                    assert list(gate.pending) == [parked]
                    parked.proceed()
                    assert await process.wait() == 128 + 15
        await container.aclose()


@anyio_test
@EITHER_WAY
async def test_a_process_that_is_refused_keeps_no_other_from_the_signal(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        container, processes = await busy(run)
        run.backend.faults.refuse(HResult.E_FAIL, operation="signal process", first=1)
        with pytest.raises(RefusedError, match="signal process") as refusal:
            await container.signal("TERM")
        # Those beside the container's own are signalled at once, in any order.
        signalled = [each for each in processes if f"signal process {each.pid}:" not in str(refusal.value)]
        assert [await process.wait() for process in signalled] == [128 + 15] * 2
        await container.aclose()


@anyio_test
@EITHER_WAY
async def test_no_signal_goes_to_a_container_in_which_nothing_runs(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        container = await run.vm.create_container("c1", SPEC)
        assert await container.signal("TERM") is False
        with pytest.raises(OptionsError, match="no signal 'NOSUCH'"):
            await container.signal("NOSUCH")
        await container.aclose()


@anyio_test
@EITHER_WAY
async def test_a_windows_container_is_signalled_with_an_event(external: bool) -> None:
    async with running(wcow(external_guest_connection=external)) as run:
        container = await run.vm.create_container("c1", WINDOWS)
        await container.start()
        process = await container.open_process(FOREVER)
        assert await container.signal("CtrlC") is True
        assert await process.wait() == 0xC000013A
        await container.aclose()
