"""Compute systems: states, handles, exits, and what HCS says to what it does not do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import reduce
from typing import Any

import anyio
import pytest

from tests.backends.fake.support import (
    JSON,
    SERVICE,
    add,
    backend_of,
    disk,
    expect_refusal,
    guest_of,
    host_files,
    lcow,
    running,
    slot,
    vm_of,
    wcow,
)
from uvm.backend import Backend, HostInfo
from uvm.backends import backend_factory
from uvm.backends.fake import FakeBackend, FakeSystem
from uvm.errors import ExitStatus
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

Operation = Callable[[FakeSystem], Awaitable[Any]]

OPERATIONS: dict[str, Operation] = {
    "start": lambda s: s.start(),
    "shutdown": lambda s: s.shutdown(),
    "terminate": lambda s: s.terminate(),
    "crash": lambda s: s.crash(),
    "pause": lambda s: s.pause(),
    "resume": lambda s: s.resume(),
    "save": lambda s: s.save({"SaveType": "ToFile"}),
    "modify": lambda s: s.modify(add(slot(0), disk(ReadOnly=True))),
    "listen": lambda s: s.listen(SERVICE),
}

#: What each state refuses, with HCS_E_INVALID_STATE; a stopped system refuses everything, with another code.
REFUSED = {
    "Created": {"shutdown", "crash", "pause", "resume", "save", "modify"},
    "Running": {"start", "resume", "save"},
    "Paused": {"start", "shutdown", "pause", "modify"},
    "SavedAsTemplate": set(OPERATIONS) - {"terminate"},
}


async def bring(system: FakeSystem, state: str) -> None:
    """Bring a created system into a state."""
    if state == "Created":
        return
    await system.start()
    if state in ("Paused", "SavedAsTemplate"):
        await system.pause()
    if state == "SavedAsTemplate":
        await system.save({"SaveType": "AsTemplate"})


@pytest.mark.parametrize("state", REFUSED)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_each_state_allows_some_operations_and_refuses_the_others(state: str, operation: str) -> None:
    system = await FakeBackend(files=host_files()).create("vm1", lcow())
    await bring(system, state)
    if operation in REFUSED[state]:
        with expect_refusal(HResult.HCS_E_INVALID_STATE):
            await OPERATIONS[operation](system)
        assert system.vm.state == state
    else:
        await OPERATIONS[operation](system)


@pytest.mark.parametrize("state", ["Created", "Paused"])
async def test_the_guest_connects_once_its_system_runs(state: str) -> None:
    system = await FakeBackend(files=host_files()).create("vm1", lcow())
    await bring(system, state)
    async with anyio.create_task_group() as tasks:
        connected = anyio.Event()

        async def connect() -> None:
            async with guest_of(system):
                connected.set()

        tasks.start_soon(connect)
        await anyio.wait_all_tasks_blocked()
        assert (connected.is_set(), system.vm.service.connected) == (False, False)
        await OPERATIONS["start" if state == "Created" else "resume"](system)
    assert connected.is_set()


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_stopped_system_refuses_everything(operation: str) -> None:
    system = await FakeBackend(files=host_files()).create("vm1", lcow())
    await system.terminate()
    with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
        await OPERATIONS[operation](system)


@pytest.mark.parametrize("operation", [*OPERATIONS, "properties", "wait", "close"])
async def test_a_closed_handle_refuses_everything(operation: str) -> None:
    more: dict[str, Operation] = {
        "properties": lambda s: s.properties(),
        "wait": lambda s: s.wait(),
        "close": lambda s: s.close(),
    }
    system = await FakeBackend(files=host_files()).create("vm1", lcow())
    await system.close()
    with expect_refusal(HResult.E_HANDLE):
        await (OPERATIONS | more)[operation](system)


@pytest.mark.parametrize(
    ("operation", "exit_type"),
    [("terminate", "ForcedExit"), ("shutdown", "GracefulExit"), ("crash", "UnexpectedExit")],
)
async def test_every_waiter_is_told_how_the_system_exited(operation: str, exit_type: str) -> None:
    async with running() as system:
        statuses: list[ExitStatus] = []

        async def wait() -> None:
            statuses.append(await system.wait())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await OPERATIONS[operation](system)
        statuses.append(await system.wait())
        assert [s.exit_type for s in statuses] == [exit_type] * 3
        assert bool(statuses[0].code) == (exit_type == "UnexpectedExit")


async def test_an_id_can_be_taken_once() -> None:
    backend = FakeBackend(files=host_files())
    await backend.create("vm1", lcow())
    with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_EXISTS):
        await backend.create("vm1", lcow())


async def test_a_stopped_system_keeps_its_id_until_its_last_handle_closes() -> None:
    backend = FakeBackend(files=host_files())
    system = await backend.create("vm1", lcow())
    other = await backend.open("vm1")
    await system.terminate()
    await system.close()
    with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_EXISTS):
        await backend.create("vm1", lcow())
    await other.close()
    await backend.create("vm1", lcow())


async def test_what_does_not_exist_cannot_be_opened() -> None:
    with expect_refusal(HResult.HCS_E_SYSTEM_NOT_FOUND):
        await FakeBackend().open("vm1")


async def test_a_system_ends_with_its_last_handle_where_its_document_says_so() -> None:
    async with running() as system:
        other = await backend_of(system).open("vm1")
        await system.close()
        assert vm_of(other).state == "Running"
        await other.close()
        assert vm_of(other).exit_status == ExitStatus("ForcedExit")
        assert "vm1" not in backend_of(system).vms


async def test_a_system_outlives_its_handles_where_its_document_says_so() -> None:
    document = lcow() | {"ShouldTerminateOnLastHandleClosed": False}
    async with running(document) as system:
        await system.close()
        again = await backend_of(system).open("vm1")
        assert again.vm.state == "Running"
        await again.terminate()
        await again.close()
        assert backend_of(system).vms == {}


async def test_a_system_without_handles_vanishes_when_it_exits() -> None:
    async with running(lcow() | {"ShouldTerminateOnLastHandleClosed": False}) as system:
        await system.close()
        system.vm.crash()
        assert backend_of(system).vms == {}


async def test_closing_a_handle_wakes_its_own_waiters_only() -> None:
    async with running() as system:
        other = await backend_of(system).open("vm1")
        async with anyio.create_task_group() as tasks:

            async def wait_on_the_closed_handle() -> None:
                with expect_refusal(HResult.E_HANDLE):
                    await system.wait()

            async def wait_on_the_other() -> None:
                assert (await other.wait()).exit_type == "ForcedExit"

            tasks.start_soon(wait_on_the_closed_handle)
            tasks.start_soon(wait_on_the_other)
            await anyio.wait_all_tasks_blocked()
            await system.close()
            await anyio.wait_all_tasks_blocked()
            await other.terminate()


async def test_closing_takes_effect_even_where_the_caller_is_cancelled() -> None:
    async with running() as system:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await system.close()
        assert backend_of(system).vms == {}


async def test_a_call_that_is_cancelled_before_it_is_carried_out_changes_nothing() -> None:
    async with running() as system:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await system.modify(add(slot(0), disk()))
        assert system.vm.tree.scsi.disks == {}
        assert list(backend_of(system).request_log)[-1].outcome == "cancelled"


def without(document: JSON, *path: str) -> JSON:
    part = document
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    return document


TOO_DEEP: list[Any] = reduce(lambda inner, _: [inner], range(9999), [])


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({}, HResult.HCS_E_INVALID_JSON),
        (lcow() | {"Unknown": 1}, HResult.HCS_E_INVALID_JSON),
        (lcow() | {"Owner": 5}, HResult.HCS_E_INVALID_JSON),
        (lcow() | {"Owner": object()}, HResult.HCS_E_INVALID_JSON),
        (lcow() | {"Owner": TOO_DEEP}, HResult.HCS_E_INVALID_JSON),
        (lcow() | {1: "key"}, HResult.HCS_E_INVALID_JSON),
        (lcow(Plan9={"Share": []}), HResult.HCS_E_INVALID_JSON),
        (lcow(Scsi={"x": {"Attachments": {"first": disk()}}}), HResult.E_INVALIDARG),
        (lcow() | {"Container": {}}, HResult.ERROR_NOT_SUPPORTED),
        (without(lcow(), "VirtualMachine", "ComputeTopology"), HResult.E_INVALIDARG),
        (without(lcow(), "VirtualMachine", "ComputeTopology", "Memory", "SizeInMB"), HResult.E_INVALIDARG),
        (without(lcow(), "VirtualMachine", "ComputeTopology", "Processor", "Count"), HResult.E_INVALIDARG),
        (lcow(NetworkAdapters={"a": {"EndpointId": "none", "MacAddress": "x"}}), HResult.E_INVALIDARG),
        (
            lcow(Scsi={"x": {"Attachments": {"0": disk(r"C:\none", ReadOnly=True)}}}),
            HResult.ERROR_FILE_NOT_FOUND,
        ),
    ],
)
async def test_a_document_that_hcs_cannot_carry_out_is_refused_and_leaves_nothing(
    document: JSON, code: int
) -> None:
    backend = FakeBackend(files=host_files())
    with expect_refusal(code):
        await backend.create("vm1", document)
    assert backend.leftovers() == []


async def test_devices_before_the_refused_one_are_let_go() -> None:
    backend = FakeBackend(files=host_files())
    document = lcow(Scsi={"x": {"Attachments": {"0": disk(ReadOnly=True), "64": disk(ReadOnly=True)}}})
    with expect_refusal(HResult.E_INVALIDARG):
        await backend.create("vm1", document)
    assert not backend.files.is_open(disk()["Path"])


async def test_the_kernel_must_exist() -> None:
    with expect_refusal(HResult.ERROR_FILE_NOT_FOUND) as caught:
        await FakeBackend().create("vm1", lcow())
    assert "vmlinux" in str(caught.value)


@pytest.mark.parametrize("present", [False, True])
async def test_what_uefi_boots_from_the_host_must_exist(present: bool) -> None:
    backend = FakeBackend(files=host_files())
    entry = {"DeviceType": "VmbFs", "DevicePath": "\\kernel", "VmbFsRootPath": r"C:\efi"}
    document = lcow()
    document["VirtualMachine"]["Chipset"] = {"Uefi": {"BootThis": entry}}
    if present:
        backend.files.add(r"C:\efi\kernel")
        assert (await backend.create("vm1", document)).vm.os == "linux"
    else:
        with expect_refusal(HResult.ERROR_FILE_NOT_FOUND):
            await backend.create("vm1", document)


@pytest.mark.parametrize(
    ("host", "code"),
    [
        (HostInfo(processors=1), HResult.E_INVALIDARG),
        (HostInfo(memory_mb=512), HResult.ERROR_NO_SYSTEM_RESOURCES),
    ],
)
async def test_a_vm_cannot_be_larger_than_the_host(host: HostInfo, code: int) -> None:
    with expect_refusal(code):
        await FakeBackend(host=host).create("vm1", wcow())


async def test_systems_are_enumerated_and_filtered() -> None:
    backend = FakeBackend(files=host_files())
    first = await backend.create("vm1", lcow())
    await backend.create("vm2", wcow() | {"Owner": "somebody"})
    await first.start()
    listed = {s["Id"]: s for s in await backend.enumerate()}
    assert listed["vm1"]["State"] == "Running"
    assert listed["vm1"]["RuntimeId"] == first.runtime_id
    assert listed["vm2"]["RuntimeOsType"] == "Windows"
    assert [s["Id"] for s in await backend.enumerate({"Owners": ["somebody"]})] == ["vm2"]
    assert [s["Id"] for s in await backend.enumerate({"Ids": ["vm1"], "Types": ["VirtualMachine"]})] == [
        "vm1"
    ]
    assert await backend.enumerate({"Names": ["none"]}) == []


async def test_saving_to_a_file_writes_the_file() -> None:
    async with running() as system:
        await system.pause()
        await system.save({"SaveType": "ToFile", "SaveStateFilePath": r"C:\saved\vm1.vmrs"})
        assert backend_of(system).files.listing(r"C:\saved") == ["vm1.vmrs"]
        await system.resume()
        assert vm_of(system).state == "Running"


async def test_unknown_options_are_invalid_json() -> None:
    async with running() as system:
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await system.pause({"Level": "Suspend"})
        assert system.vm.state == "Running"


async def test_ids_follow_from_the_seed() -> None:
    def made(seed: int) -> list[str]:
        backend = FakeBackend(seed=seed)
        return [backend.new_id() for _ in range(3)]

    assert made(1) == made(1)
    assert made(1) != made(2)
    assert len(set(made(1))) == 3
    assert all(guid[14] == "4" for guid in made(1))


async def test_the_backend_is_registered_under_its_name() -> None:
    made: Backend = FakeBackend()  # mypy holds it to the protocol
    assert backend_factory(made.name) is FakeBackend
    async with made as backend:
        assert await backend.host() == HostInfo()
