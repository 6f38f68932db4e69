"""That the VM has gone is one error, from every call over both connections; what ends something succeeds.

An exit in a call is a case of :mod:`tests.api`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import define

import uvm
from tests.clocks import jumping_backends
from tests.vm.support import DISK, LAYER, OTHER_LAYER, SCRATCH, SHARED, Running, host_backend, lcow, running
from uvm._guest.container import Container
from uvm._guest.process import Process
from uvm._guest.stdio import ProcessInput, ProcessOutput
from uvm.backends.fake import Call as Asked
from uvm.backends.fake.vm import FakeVM
from uvm.errors import BridgeClosedError, HostError, VMExitedError
from uvm.hresult import HResult

anyio_backend = jumping_backends

pytestmark = pytest.mark.anyio

SPEC = {"process": {"args": ["cat"], "cwd": "/"}, "root": {"path": "/root"}, "linux": {}}
REQUEST = {"RequestType": "Update", "ResourceType": "PodCgroupMemoryLimit"}
MISSING, NOWHERE = r"C:\missing", "99999999-0000-0000-0000-000000000009"
MEMORY = {"ResourcePath": "VirtualMachine/ComputeTopology/Memory/SizeInMB", "Settings": 1024}

EITHER = pytest.mark.parametrize("external", [True, False], ids=["our own", "through HCS"])


@define(eq=False)
class Held:
    """What a user holds of a VM."""

    run: Running
    vm: uvm.UtilityVM
    container: Container
    process: Process
    contained: Process
    terminal: Process
    lease: uvm.ScsiLease

    @property
    def machine(self) -> FakeVM:
        return self.run.backend.vms[self.vm.id]


@asynccontextmanager
async def held(external: bool) -> AsyncIterator[Held]:
    async with running(lcow(external_guest_connection=external)) as run:
        vm = run.vm
        container = await vm.create_container("c1", SPEC)
        await container.start()
        await container.open_init(stdin=True)
        yield Held(
            run,
            vm,
            container,
            await vm.open_process(["cat"]),
            await container.open_process(["cat"]),
            await vm.open_process(["cat"], terminal=True),
            await vm.scsi.attach(DISK),
        )


def stdin(process: Process) -> ProcessInput:
    return process.stdin


def stdout(process: Process) -> ProcessOutput:
    return process.stdout


Call = Callable[[Held], Awaitable[Any]]

#: What asks something of the host or the guest, so that a VM that exits in the call is noticed by it.
ASKS: dict[str, Call] = {
    "run": lambda held: held.vm.run(["true"]),
    "open process": lambda held: held.vm.open_process(["true"]),
    "create container": lambda held: held.vm.create_container("c2", SPEC),
    "properties": lambda held: held.vm.properties(),
    "stats": lambda held: held.vm.stats(),
    "assigned memory": lambda held: held.vm.assigned_memory_bytes(),
    "pause": lambda held: held.vm.pause(),
    "modify": lambda held: held.vm.modify(MEMORY),
    "guest request": lambda held: held.vm.guest_request(REQUEST),
    "update memory": lambda held: held.vm.update_memory(memory_mb=2048),
    "update cpu limits": lambda held: held.vm.update_cpu_limits(limit=100),
    "update container memory limits": lambda held: held.vm.update_container_memory_limits(),
    "scsi": lambda held: held.vm.scsi.attach(OTHER_LAYER),
    "scsi and mount": lambda held: held.vm.scsi.attach(OTHER_LAYER, mount=uvm.Mount()),
    "vpmem": lambda held: held.vm.vpmem.add(LAYER),
    "share": lambda held: held.vm.share(SHARED, "/mnt/s"),
    "layers": lambda held: held.vm.mount_layers("c2", [LAYER], SCRATCH),
    "container run": lambda held: held.container.run(["true"]),
    "container open process": lambda held: held.container.open_process(["true"]),
    "container properties": lambda held: held.container.properties(),
    "container statistics": lambda held: held.container.statistics(),
    "container signal": lambda held: held.container.signal("TERM"),
    "container processes": lambda held: held.container.processes(),
}

#: These need our own connection.
GUEST: dict[str, Call] = {
    "dump stacks": lambda held: held.vm.dump_stacks(),
    "guest dump stacks": lambda held: held.vm.guest.dump_stacks(),
    "guest modify": lambda held: held.vm.guest.modify(REQUEST),
    "guest run": lambda held: held.vm.guest.run(["true"]),
}

WAITS: dict[str, Call] = {
    "container wait": lambda held: held.container.wait(),
    "process wait": lambda held: held.process.wait(),
    "contained wait": lambda held: held.contained.wait(),
    "receive": lambda held: stdout(held.process).receive(),
    "contained receive": lambda held: stdout(held.contained).receive(),
}

#: What the guest answers whatever became of its VM, or what does not ask.
OTHERS: dict[str, Call] = {
    "container start": lambda held: held.container.start(),
    "container modify": lambda held: held.container.modify(REQUEST),
    "signal": lambda held: held.process.signal("TERM"),
    "contained signal": lambda held: held.contained.signal("TERM"),
    "resize": lambda held: held.terminal.resize(10, 10),
    "resume": lambda held: held.vm.resume(),
    "send": lambda held: stdin(held.process).send(b"x"),
    "send eof": lambda held: stdin(held.process).send_eof(),
    "contained send": lambda held: stdin(held.contained).send(b"x"),
    "contained send eof": lambda held: stdin(held.contained).send_eof(),
}

#: What the host would refuse, if it were asked.
WRONG: dict[str, Call] = {
    "network setup": lambda held: held.vm.network.setup(NOWHERE),
    "network namespace": lambda held: held.vm.network.add_namespace(NOWHERE),
    "endpoint": lambda held: held.vm.network.add_endpoint(NOWHERE, "none"),
    "share": lambda held: held.vm.share(MISSING, "/mnt/s"),
    "plan9": lambda held: held.vm.plan9.add(MISSING, "/mnt/s"),
    "scsi": lambda held: held.vm.scsi.attach(MISSING),
    "vpmem": lambda held: held.vm.vpmem.add(MISSING),
    "layers": lambda held: held.vm.mount_layers("c2", [MISSING], MISSING),
}

ENDS: dict[str, Call] = {
    "terminate": lambda held: held.vm.terminate(),
    "shutdown": lambda held: held.vm.shutdown(),
    "release": lambda held: held.lease.release(),
    "container terminate": lambda held: held.container.terminate(),
    "container shutdown": lambda held: held.container.shutdown(),
    "container delete state": lambda held: held.container.delete_state(),
    "container aclose": lambda held: held.container.aclose(),
    "kill": lambda held: held.process.kill(),
    "contained kill": lambda held: held.contained.kill(),
    "process aclose": lambda held: held.process.aclose(),
    "stdin aclose": lambda held: stdin(held.process).aclose(),
    "close": lambda held: held.vm.close(),
}


def of_either(external: bool, *calls: dict[str, Call]) -> dict[str, Call]:
    """Return calls by name, and those over our own connection only if there is one."""
    every = {name: call for each in calls for name, call in each.items()}
    return {**every, **GUEST} if external else every


async def says_how_it_exited(held: Held, name: str, call: Call) -> None:
    with pytest.raises(VMExitedError) as raised:
        await call(held)
    assert raised.value.status == held.vm.exit_status, name
    assert raised.value.status is not None, name
    assert held.vm.state is uvm.VMState.EXITED, name
    if "send" in name or "receive" in name:
        assert isinstance(raised.value, uvm.StreamVMExitedError), name
        assert isinstance(raised.value, anyio.BrokenResourceError), name


@EITHER
async def test_after_the_exit_each_call_says_how_the_vm_exited(external: bool) -> None:
    async with held(external) as has:
        has.machine.crash()
        await has.vm.wait()
        for name, call in of_either(external, ASKS, WAITS, OTHERS).items():
            await says_how_it_exited(has, name, call)


async def test_after_the_exit_the_host_is_not_asked_for_what_it_would_refuse() -> None:
    async with held(True) as has:
        assert has.vm.network.namespaces == ()
        has.machine.crash()
        await has.vm.wait()
        before = len(has.run.backend.request_log)
        for name, call in WRONG.items():
            await says_how_it_exited(has, name, call)
            assert len(has.run.backend.request_log) == before, name


async def test_memory_that_is_gone_before_the_exit_is_reported_is_gone_with_the_vm() -> None:
    async with held(True) as has:

        def crash(call: Asked) -> bool:
            has.machine.crash()
            return True

        faults = has.run.backend.faults
        faults.refuse(HResult.ERROR_NOT_FOUND, operation="working set", where=crash)
        await says_how_it_exited(has, "stats", ASKS["stats"])
    async with held(True) as has:
        has.run.backend.faults.refuse(HResult.ERROR_NOT_FOUND, operation="working set")
        with pytest.raises(HostError, match="ERROR_NOT_FOUND"):
            await has.vm.stats()


@EITHER
async def test_an_exit_that_was_not_reported_yet_is_waited_for(external: bool) -> None:
    for name, call in of_either(external, ASKS, WAITS, OTHERS).items():
        async with held(external) as has:
            has.machine.crash()
            await says_how_it_exited(has, name, call)


@EITHER
async def test_an_exit_during_a_wait_is_said_by_it(external: bool) -> None:
    for name, call in WAITS.items():
        async with held(external) as has, anyio.create_task_group() as tasks:
            tasks.start_soon(says_how_it_exited, has, name, call)
            await anyio.wait_all_tasks_blocked()
            has.machine.crash()


@EITHER
@pytest.mark.parametrize("noticed", [True, False])
async def test_what_ends_something_succeeds_after_the_exit(external: bool, noticed: bool) -> None:
    for name, call in ENDS.items():
        # Of a container that is not known to have ended, the state is not asked for.
        if noticed or name != "container delete state":
            async with held(external) as has:
                has.machine.crash()
                if noticed:
                    await has.vm.wait()
                await call(has)


@EITHER
async def test_a_run_says_that_the_vm_has_exited_whatever_it_was_at(external: bool) -> None:
    cases: list[dict[str, Any]] = [{}, {"input": b"x" * 10_000_000}]
    for given in cases:
        async with held(external) as has:
            async with anyio.create_task_group() as tasks:

                async def crash() -> None:
                    await anyio.sleep(1)
                    has.machine.crash()

                tasks.start_soon(crash)
                with pytest.raises(VMExitedError) as raised:
                    await has.vm.run(["sleep", "1000"], **given)
            assert type(raised.value) is VMExitedError, given


async def test_after_a_guest_that_went_alone_a_later_exit_is_still_said() -> None:
    async with held(True) as has:
        has.vm.guest.close()
        before = anyio.current_time()
        for _ in range(3):
            with pytest.raises(BridgeClosedError):
                await has.vm.run(["true"])
        # It is waited for once.
        assert anyio.current_time() - before == pytest.approx(uvm.GuestTimeouts().vm_exit_seconds)
        has.machine.crash()
        await says_how_it_exited(has, "run", ASKS["run"])


async def test_what_came_before_the_exit_is_received_first() -> None:
    async with held(True) as has:
        await stdin(has.contained).send(b"here")
        output = stdout(has.contained)
        assert await output.receive(1) == b"h"
        await anyio.wait_all_tasks_blocked()
        has.machine.crash()
        assert await output.receive(10) == b"ere"
        with pytest.raises(uvm.StreamVMExitedError):
            await output.receive()


@EITHER
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("operation", "nth"), [("listen", 1), ("listen", 2), ("start", 1)])
async def test_a_vm_that_exits_in_the_middle_of_its_start_says_how(
    external: bool, when: Any, operation: str, nth: int
) -> None:
    backend = host_backend()
    options = lcow(external_guest_connection=external)
    backend.faults.crash(when=when, operation=operation, nth=nth)
    async with uvm.UtilityVM.create(options, backend=backend) as vm:
        with pytest.raises(VMExitedError) as raised:
            await vm.start()
        assert raised.value.status == vm.exit_status is not None
        assert vm.state is uvm.VMState.EXITED
