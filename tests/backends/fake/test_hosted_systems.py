"""Containers that HCS hosts in a VM: compute systems of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from tests.backends.fake.support import JSON, backend_of, expect_refusal, host_files, lcow, running, wcow
from tests.backends.fake.test_host_processes import attended, relaying
from uvm.backend import System
from uvm.backends.fake import FakeBackend, FakeHostedSystem, FakeSystem
from uvm.backends.fake.guest.containers import LinuxContainer
from uvm.errors import ExitStatus, UnknownOutcomeError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

LINUX: JSON = {
    "SchemaVersion": {"Major": 2, "Minor": 1},
    "OciBundlePath": "/run/gcs/c/c1",
    "OciSpecification": {
        "process": {"args": ["cat"], "cwd": "/"},
        "root": {"path": "/"},
        "linux": {},
        "windows": {"network": {"networkNamespace": "c1"}},
    },
}
LASTING = LINUX | {
    "OciSpecification": LINUX["OciSpecification"] | {"process": {"args": ["sleep", "3600"], "cwd": "/"}}
}
WINDOWS: JSON = {"Container": {"Storage": {"Layers": []}}}
PIPES = {"CreateStdInPipe": True, "CreateStdOutPipe": True}


def hosted(document: JSON = LINUX, vm: str = "vm1", **more: Any) -> JSON:
    """A document of a container in a VM."""
    return {
        "Owner": "tests",
        "SchemaVersion": {"Major": 2, "Minor": 1},
        "HostingSystemId": vm,
        "HostedSystem": document,
        "ShouldTerminateOnLastHandleClosed": True,
        **more,
    }


@asynccontextmanager
async def container(document: JSON = LINUX) -> AsyncIterator[FakeHostedSystem]:
    """A container that was created, in a VM of its kind whose guest runs; mypy holds it to the protocol."""
    async with attended(relaying(wcow() if document is WINDOWS else lcow())) as vm:
        of_the_protocol: System = await backend_of(vm).create("c1", hosted(document))
        assert isinstance(of_the_protocol, FakeHostedSystem)
        yield of_the_protocol
        if of_the_protocol.hosted.handles:
            await of_the_protocol.close()
        await anyio.wait_all_tasks_blocked()
        assert not backend_of(vm).hosted_systems


async def ids(backend: FakeBackend, **query: list[str]) -> list[str]:
    """The compute systems that are listed."""
    return [each["Id"] for each in await backend.enumerate(dict(query))]


# Creation.


async def test_a_container_is_a_compute_system_beside_its_vm() -> None:
    async with container() as c1:
        backend = backend_of(c1)
        assert (c1.id, c1.runtime_id) == ("c1", "")
        assert await ids(backend) == ["vm1", "c1"]
        assert await ids(backend, Types=["Container"], Owners=["tests"]) == ["c1"]
        assert await c1.properties() == {
            "Id": "c1",
            "Name": "c1",
            "Owner": "tests",
            "SystemType": "Container",
            "RuntimeOsType": "Linux",
            "HostingSystemId": "vm1",
            "State": "Created",
        }
        assert "container c1 of vm1 (Created)" in backend.leftovers()


async def test_what_cannot_be_hosted_is_refused_and_leaves_nothing() -> None:
    async with attended() as vm:
        backend = backend_of(vm)
        with expect_refusal(HResult.HCS_E_SYSTEM_NOT_FOUND):
            await backend.create("c1", hosted(vm="vm2"))
        documents: list[Any] = [None, [], "text"]
        for nothing in documents:
            with expect_refusal(HResult.HCS_E_INVALID_JSON):
                await backend.create("c1", hosted() | {"HostedSystem": nothing})
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await backend.create("c1", hosted() | {"HostingSystemId": 5})
        with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_EXISTS):
            await backend.create("vm1", hosted())
        missing = LINUX | {"OciSpecification": LINUX["OciSpecification"] | {"process": {"args": ["nowhere"]}}}
        with expect_refusal(HResult.E_FAIL) as refused:
            await backend.create("c1", hosted(missing))
        refused.match("nowhere")
        with expect_refusal(HResult.ERROR_NOT_SUPPORTED):
            await backend.create("c1", {"Container": {}})
        assert await ids(backend) == ["vm1"]
        c1 = await backend.create("c1", hosted())
        for document in (hosted(), relaying(lcow())):
            with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_EXISTS):
                await backend.create("c1", document)
        await c1.close()


async def test_the_vm_has_to_run_and_hcs_to_be_connected_to_its_guest() -> None:
    async with running() as vm:
        with expect_refusal(HResult.HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION):
            await backend_of(vm).create("c1", hosted())
    async with running(relaying(lcow())) as vm:
        with expect_refusal(HResult.HCS_E_CONNECT_FAILED):
            await backend_of(vm).create("c1", hosted())
        await vm.pause()
        with expect_refusal(HResult.HCS_E_INVALID_STATE):
            await backend_of(vm).create("c1", hosted())
        await vm.resume()
        await vm.terminate()
        with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
            await backend_of(vm).create("c1", hosted())
    backend = FakeBackend(files=host_files())
    vm = await backend.create("vm1", relaying(lcow()))
    with expect_refusal(HResult.HCS_E_INVALID_STATE):
        await backend.create("c1", hosted())
    await vm.close()


async def test_a_specification_that_the_guest_dies_of_gets_no_answer() -> None:
    async with attended() as vm:
        with expect_refusal(HResult.HCS_E_CONNECTION_CLOSED):
            await backend_of(vm).create("c1", hosted(LINUX | {"OciSpecification": {}}))
        assert (await vm.wait()).exit_type == "UnexpectedExit"


async def test_a_container_of_whose_creation_the_answer_is_lost_ends_with_its_vm() -> None:
    async with attended() as vm:
        backend = backend_of(vm)
        backend.faults.lose(operation="create", resource="c1")
        with pytest.raises(UnknownOutcomeError):
            await backend.create("c1", hosted())
        assert await ids(backend) == ["vm1", "c1"]
        await vm.terminate()
        assert not backend.hosted_systems


# Life.


async def test_a_linux_container_lives_as_long_as_its_first_process() -> None:
    async with container() as c1:
        for ask in (c1.shutdown, lambda: c1.create_process(PIPES), lambda: c1.open_process(1)):
            with expect_refusal(HResult.HCS_E_INVALID_STATE):
                await ask()
        await c1.start()
        with expect_refusal(HResult.HCS_E_INVALID_STATE):
            await c1.start()
        init = await c1.create_process(PIPES)
        assert init.stdin is not None
        assert init.stdout is not None
        with expect_refusal(HResult.E_FAIL) as refused:
            await c1.create_process(PIPES)
        refused.match("that is running")
        beside = await c1.create_process({"OciProcess": {"args": ["sleep", "3600"], "cwd": "/"}})
        listed = (await c1.properties("ProcessList"))["ProcessList"]
        assert [each["ProcessId"] for each in listed] == [init.pid, beside.pid]
        await init.stdin.send(b"hello")
        assert await init.stdout.receive() == b"hello"
        await init.modify({"Operation": "CloseHandle", "CloseHandle": {"Handle": "StdIn"}})
        with pytest.raises(anyio.EndOfStream):
            await init.stdout.receive()
        # What has written all is told of only when that was read, or closed.
        await init.stdout.aclose()
        assert await init.wait() == 0
        assert await c1.wait() == ExitStatus("UnexpectedExit")
        assert await beside.wait() == 128 + 9
        told = await c1.properties()
        assert (told["State"], told["Stopped"], told["ExitType"]) == ("Stopped", True, "UnexpectedExit")
        for process in (init, beside):
            await process.close()


async def test_a_windows_container_lives_until_it_is_ended() -> None:
    async with container(WINDOWS) as c1:
        await c1.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(c1.wait)
            process = await c1.create_process({"CommandLine": "sleep 3600"})
            assert "Memory" in (await c1.properties("Statistics"))["Statistics"]
            with expect_refusal(HResult.ERROR_FILE_NOT_FOUND):
                await c1.create_process({"CommandLine": "nowhere"})
            await c1.shutdown()
        assert await c1.wait() == ExitStatus("GracefulExit")
        await process.wait()
        await process.close()


@pytest.mark.parametrize("document", [LINUX, WINDOWS], ids=["linux", "windows"])
async def test_a_container_that_has_not_run_is_terminated_all_the_same(document: JSON) -> None:
    async with container(document) as c1:
        await c1.terminate()
        assert await c1.wait() == ExitStatus("ForcedExit")


async def test_a_process_belongs_to_its_container() -> None:
    async with container(LASTING) as c1:
        await c1.start()
        init = await c1.create_process({})
        vm = await backend_of(c1).open("vm1")
        outside = await vm.create_process({"CommandArgs": ["sleep", "3600"]})
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await c1.open_process(outside.pid)
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await vm.open_process(init.pid)
        again = await c1.open_process(init.pid)
        await again.signal({"Signal": 15})
        # As over any connection, the guest finds none outside of its containers.
        with expect_refusal(HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND):
            await outside.terminate()
        assert await init.wait() == 128 + 15
        assert await c1.wait() == ExitStatus("GracefulExit")
        for handle in (init, again, outside, vm):
            await handle.close()


async def test_a_container_is_changed_by_its_guest() -> None:
    async with container() as c1:
        limits = {"Linux": {"memory": {"limit": 1 << 26}}}
        request = {"RequestType": "Update", "ResourceType": "ContainerConstraints", "Settings": limits}
        await c1.modify(request)
        changed = c1.vm.service.containers["c1"]
        assert isinstance(changed, LinuxContainer)
        assert changed.constraints == limits["Linux"]
        with expect_refusal(HResult.E_FAIL) as refused:
            await c1.modify(request | {"ResourceType": "CombinedLayers"})
        refused.match("not supported for containers")
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await c1.modify({"RequestType": {1, 2}})
        [entry, *_] = backend_of(c1).request_log.entries(operation="modify", resource="c1")
        assert (entry.vm, entry.to, entry.call.request_type) == ("vm1", "guest", "Update")


@pytest.mark.parametrize(
    "ask",
    [
        lambda c1: c1.crash(),
        lambda c1: c1.pause(),
        lambda c1: c1.resume(),
        lambda c1: c1.save({"SaveType": "AsTemplate"}),
        lambda c1: c1.working_set_bytes(),
        lambda c1: c1.listen("11111111-2222-3333-4444-555555555555"),
        lambda c1: c1.properties(queries={"Statistics": {}}),
    ],
    ids=["crash", "pause", "resume", "save", "working set", "listen", "queries"],
)
async def test_what_only_virtual_machines_do_is_refused(
    ask: Callable[[FakeSystem], Awaitable[object]],
) -> None:
    async with container() as c1:
        await c1.start()
        with expect_refusal(HResult.ERROR_NOT_SUPPORTED):
            await ask(c1)
        assert c1.vm.state == "Running"


async def test_a_property_that_containers_do_not_have_is_refused() -> None:
    async with container() as c1:
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await c1.properties("GuestConnection")


# The end.


async def test_what_has_exited_takes_no_more_requests() -> None:
    async with container() as c1:
        await c1.start()
        await c1.terminate()
        asked: list[Callable[[], Awaitable[object]]] = [
            c1.start,
            c1.shutdown,
            c1.terminate,
            lambda: c1.modify({}),
            lambda: c1.properties("Statistics"),
            lambda: c1.create_process({}),
            lambda: c1.open_process(1),
        ]
        for ask in asked:
            with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
                await ask()


async def test_a_container_ends_with_its_vm() -> None:
    async with attended() as vm:
        c1 = await backend_of(vm).create("c1", hosted())
        await c1.start()
        process = await c1.create_process(PIPES)
        vm.vm.crash()
        assert await c1.wait() == ExitStatus("UnexpectedExit", HResult.HCS_E_UNEXPECTED_EXIT)
        with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
            await process.wait()
        with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
            await c1.terminate()
        assert "container c1 of vm1 (Stopped)" in backend_of(vm).leftovers()
        await process.close()
        await c1.close()
        assert not backend_of(vm).hosted_systems


async def test_a_container_ends_with_its_last_handle_and_its_id_is_free_again() -> None:
    async with container(LASTING) as c1:
        backend = backend_of(c1)
        await c1.start()
        process = await c1.create_process({})
        second = await backend.open("c1")
        assert isinstance(second, FakeHostedSystem)
        await c1.close()
        assert (await second.properties())["State"] == "Running"
        await second.close()
        assert await process.wait() == 128 + 9
        await process.close()
        await anyio.wait_all_tasks_blocked()
        assert await ids(backend) == ["vm1"]
        assert not c1.vm.service.containers
        with expect_refusal(HResult.HCS_E_SYSTEM_NOT_FOUND):
            await backend.open("c1")
        again = await backend.create("c1", hosted())
        await again.close()


async def test_a_container_that_its_document_keeps_runs_on_without_a_handle() -> None:
    async with attended() as vm:
        backend = backend_of(vm)
        c1 = await backend.create("c1", hosted(ShouldTerminateOnLastHandleClosed=False))
        await c1.start()
        await c1.close()
        again = await backend.open("c1")
        assert (await again.properties())["State"] == "Running"
        await again.terminate()
        await again.close()


async def test_a_closed_handle_takes_no_more_requests() -> None:
    async with container() as c1:
        second = await backend_of(c1).open("c1")
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                with expect_refusal(HResult.E_HANDLE):
                    await second.wait()

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await second.close()
        for ask in (second.start, second.close, second.wait, second.properties):
            with expect_refusal(HResult.E_HANDLE):
                await ask()
        assert (await c1.properties())["State"] == "Created"
