"""Processes that HCS starts over its own connection to the guest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from tests.backends.fake.support import JSON, backend_of, expect_refusal, host_files, lcow, running, wcow
from uvm._async import BareTaskGroup
from uvm.backend import HostInfo, HostProcess, System
from uvm.backends.fake import FakeBackend, FakeHostProcess, FakeProcess, FakeSystem
from uvm.errors import UnknownOutcomeError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

ALL = {"CreateStdInPipe": True, "CreateStdOutPipe": True, "CreateStdErrPipe": True}
CAT: JSON = {"CommandArgs": ["cat"], **ALL}
WINDOWS_CAT: JSON = {"CommandLine": "cat.exe", **ALL}
FOREVER: JSON = {"CommandArgs": ["sleep", "3600"]}
WINDOWS_FOREVER: JSON = {"CommandLine": "sleep 3600"}


def relaying(document: JSON) -> JSON:
    """A document of a VM to whose guest HCS connects."""
    document["VirtualMachine"]["GuestConnection"] = {}
    return document


@asynccontextmanager
async def attended(
    document: JSON | None = None, backend: FakeBackend | None = None
) -> AsyncIterator[FakeSystem]:
    """A running VM whose guest runs too, Linux by default; no handle of a process may be left."""
    async with running(relaying(lcow()) if document is None else document, backend) as system:

        async def close(failure: BaseException | None) -> BaseException | None:
            tasks.cancel_scope.cancel()
            return failure

        async with BareTaskGroup(close) as tasks:
            tasks.start_soon(system.wait)
            await anyio.wait_all_tasks_blocked()
            yield system
        assert [each for each in backend_of(system).leftovers() if "process" in each] == []


EITHER = pytest.mark.parametrize(
    ("document", "cat"), [(lcow, CAT), (wcow, WINDOWS_CAT)], ids=["linux", "windows"]
)


async def start(system: FakeSystem, parameters: JSON) -> FakeHostProcess:
    """Start a process; mypy holds the fake to the protocol here."""
    of_the_protocol: System = system
    process: HostProcess = await of_the_protocol.create_process(parameters)
    assert isinstance(process, FakeHostProcess)
    return process


async def everything(stream: Any) -> bytes:
    """Receive until the end."""
    received = b""
    try:
        while True:
            received += await stream.receive()
    except anyio.EndOfStream:
        return received


@EITHER
async def test_a_process_reads_and_writes_what_it_was_given_streams_for(document: Any, cat: JSON) -> None:
    async with attended(relaying(document())) as system:
        process = await start(system, cat)
        assert process.stdin is not None
        await process.stdin.send(b"hello")
        await process.modify({"Operation": "CloseHandle", "CloseHandle": {"Handle": "StdIn"}})
        assert await everything(process.stdout) == b"hello"
        assert await everything(process.stderr) == b""
        assert await process.wait() == 0
        assert await process.properties() == {"ProcessId": process.pid, "Exited": True}
        await process.close()


async def test_streams_that_were_not_asked_for_are_not_there() -> None:
    async with attended() as system:
        process = await start(system, {"CommandArgs": ["echo", "nobody hears"], "CreateStdErrPipe": True})
        assert (process.stdin, process.stdout) == (None, None)
        assert await everything(process.stderr) == b""
        assert await process.wait() == 0
        await process.close()


async def test_with_a_console_both_outputs_are_one() -> None:
    async with attended() as system:
        process = await start(system, {"CommandArgs": ["cat", "nowhere"], "EmulateConsole": True, **ALL})
        assert process.stderr is None
        assert b"No such file" in await everything(process.stdout)
        assert await process.wait() == 1
        assert (await process.properties())["ExitCode"] == 1
        await process.close()


async def test_a_console_of_a_windows_guest_has_a_size_that_can_be_changed() -> None:
    backend = FakeBackend(files=host_files())

    @backend.programs.register("size")
    async def size(process: FakeProcess) -> int:
        assert process.terminal is not None
        await process.stdin.receive()
        await process.stdout.send(f"{process.terminal.height}x{process.terminal.width}".encode())
        return 0

    async with attended(relaying(wcow()), backend) as system:
        console = {"CommandLine": "size", "EmulateConsole": True, "ConsoleSize": [24, 80], **ALL}
        process = await start(system, console)
        await process.modify({"Operation": "ConsoleSize", "ConsoleSize": {"Height": 50, "Width": 132}})
        assert process.stdin is not None
        await process.stdin.send(b"\n")
        assert await everything(process.stdout) == b"50x132"
        await process.close()


async def test_a_windows_process_is_signalled_and_terminated() -> None:
    async with attended(relaying(wcow())) as system:
        for end, code in (("signal", 0xC000013A), ("terminate", 1)):
            process = await start(system, WINDOWS_FOREVER)
            await (process.signal({"Signal": "CtrlC"}) if end == "signal" else process.terminate())
            assert await process.wait() == code
            for refused in (process.terminate, lambda p=process: p.signal({"Signal": "CtrlC"})):
                with expect_refusal(HResult.HCS_E_PROCESS_ALREADY_STOPPED):
                    await refused()
            await process.close()


async def test_a_linux_guest_finds_no_process_of_its_own_to_signal_or_resize() -> None:
    """As over any connection: it takes its own id for that of a container."""
    async with attended() as system:
        process = await start(system, {**FOREVER, "EmulateConsole": True})
        for refused in (
            process.terminate(),
            process.signal({"Signal": 15}),
            process.modify({"Operation": "ConsoleSize", "ConsoleSize": {"Height": 1, "Width": 1}}),
        ):
            with expect_refusal(HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND):
                await refused
        await process.close()


async def test_a_process_is_opened_by_its_id_and_lives_on_without_handles() -> None:
    async with attended(relaying(wcow())) as system:
        process = await start(system, WINDOWS_FOREVER)
        pid = process.pid
        await process.close()
        again = await system.open_process(pid)
        assert (again.pid, again.stdin, again.stdout, again.stderr) == (pid, None, None, None)
        assert await again.properties() == {"ProcessId": pid}
        await again.terminate()
        assert await again.wait() == 1
        with expect_refusal(HResult.HCS_E_PROCESS_ALREADY_STOPPED):
            await system.open_process(pid)
        await again.close()
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.open_process(pid)


async def test_closing_a_handle_that_was_opened_leaves_the_streams_to_who_made_the_process() -> None:
    async with attended() as system:
        process = await start(system, CAT)
        await (await system.open_process(process.pid)).close()
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send(b"still here")
        assert await process.stdout.receive() == b"still here"
        await process.close()


async def test_a_closed_handle_is_refused_and_whoever_waits_on_it_is_told() -> None:
    async with attended() as system:
        process = await start(system, FOREVER)

        async def wait() -> None:
            with expect_refusal(HResult.E_HANDLE):
                await process.wait()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await process.close()
        signal: JSON = {"Signal": 9}
        for call in (
            process.close(),
            process.wait(),
            process.signal(signal),
            process.terminate(),
            process.modify({}),
            process.properties(),
        ):
            with expect_refusal(HResult.E_HANDLE):
                await call


async def test_the_exit_of_the_vm_is_told_to_whoever_waits_for_a_process() -> None:
    async with attended() as system:
        process = await start(system, FOREVER)

        async def wait() -> None:
            with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
                await process.wait()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await system.terminate()
        status = await process.properties()
        assert status["Exited"] is True
        assert status["LastWaitResult"] & 0xFFFFFFFF == HResult.HCS_E_SYSTEM_ALREADY_STOPPED
        with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
            await process.terminate()
        await process.close()


@EITHER
async def test_what_cannot_be_started_is_refused_and_leaves_nothing(document: Any, cat: JSON) -> None:
    unknown = {**cat, **({"CommandArgs": ["nothing"]} if document is lcow else {"CommandLine": "nothing"})}
    missing = HResult.E_FAIL if document is lcow else HResult.ERROR_FILE_NOT_FOUND
    unreadable: tuple[JSON, ...] = ({"CommandLin": "x"}, {"CommandArgs": "cat"}, {"Environment": {1: "x"}})
    async with running(document()) as system:
        with expect_refusal(HResult.HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION):
            await system.create_process(cat)
        with expect_refusal(HResult.HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION):
            await system.open_process(1)
    async with attended(relaying(document())) as system:
        with expect_refusal(missing) as caught:
            await system.create_process(unknown)
        assert "executable file not found" in str(caught.value) or "cannot find the file" in str(caught.value)
        for parameters in unreadable:
            with expect_refusal(HResult.HCS_E_INVALID_JSON):
                await system.create_process(parameters)
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.open_process(1)
        await system.pause()
        with expect_refusal(HResult.HCS_E_INVALID_STATE):
            await system.create_process(cat)
        await system.resume()
        await system.terminate()
        with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
            await system.create_process(cat)


async def test_changes_that_a_process_cannot_make_are_refused() -> None:
    async with attended() as system:
        process = await start(system, {**FOREVER, "CreateStdInPipe": True})
        wrong: tuple[JSON, ...] = (
            {},
            {"Operation": "Console"},
            {"Operation": "ConsoleSize"},
            {"Operation": "CloseHandle", "CloseHandle": {"Handle": "StdLog"}},
        )
        for request in wrong:
            with expect_refusal(HResult.HCS_E_INVALID_JSON):
                await process.modify(request)
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await process.modify({"Operation": "CloseHandle", "CloseHandle": {"Handle": "StdOut"}})
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await process.signal({"Signal": "CtrlC"})
        await process.close()


async def test_a_windows_guest_has_no_other_signals_than_those_of_its_console() -> None:
    async with attended(relaying(wcow())) as system:
        process = await start(system, WINDOWS_FOREVER)
        with expect_refusal(HResult.E_INVALIDARG):
            await process.signal({"Signal": "Term"})
        await process.terminate()
        await process.close()


async def test_without_somebody_who_waits_for_the_vm_its_guest_starts_nothing() -> None:
    async with running(relaying(lcow())) as system:
        with expect_refusal(HResult.HCS_E_CONNECT_FAILED):
            await system.create_process(CAT)


async def test_a_command_that_crashes_the_guests_service_gets_no_answer() -> None:
    async with attended() as system:
        with expect_refusal(HResult.HCS_E_CONNECTION_CLOSED):
            await system.create_process({})
        await anyio.wait_all_tasks_blocked()
        assert system.vm.exit_status is not None


async def test_each_call_is_in_the_request_log_and_meets_faults() -> None:
    async with attended(relaying(wcow())) as system:
        backend = backend_of(system)
        process = await start(system, WINDOWS_FOREVER)
        backend.faults.refuse(
            HResult.ERROR_VMCOMPUTE_TIMEOUT, to="guest", operation="signal process", first=1
        )
        with expect_refusal(HResult.ERROR_VMCOMPUTE_TIMEOUT):
            await process.signal({"Signal": "CtrlC"})
        with backend.faults.hold(operation="terminate process") as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(process.terminate)
                (parked,) = await gate.wait(1)
                assert parked.call.resource == str(process.pid)
                assert (await process.properties()).get("Exited") is None
                parked.proceed()
        await process.wait()
        await process.close()
        told = [
            (e.to, e.call.operation, e.outcome) for e in backend.request_log if "process" in e.call.operation
        ]
        assert told == [
            ("guest", "create process", "ok"),
            ("guest", "signal process", "refused"),
            ("guest", "terminate process", "ok"),
            ("query", "process properties", "ok"),
            ("lifecycle", "close process", "ok"),
        ]


async def test_a_process_whose_start_was_not_answered_runs_without_streams_nor_handle() -> None:
    async with attended() as system:
        backend = backend_of(system)
        backend.faults.lose(operation="create process", first=1)
        with pytest.raises(UnknownOutcomeError):
            await system.create_process({**CAT, "CreateStdInPipe": False, "CommandArgs": ["yes"]})
        await anyio.wait_all_tasks_blocked()
        # It wrote into the void, and died of it.
        assert system.vm.service.processes == {}
        assert system.vm.hosted == {}


async def test_open_handles_are_among_what_is_left() -> None:
    async with attended() as system:
        process = await start(system, FOREVER)
        assert f"handle of process {process.pid} of vm1" in backend_of(system).leftovers()
        await process.close()
        assert not [each for each in backend_of(system).leftovers() if "process" in each]


async def test_environments_are_not_printed() -> None:
    async with attended() as system:
        process = await start(system, {"CommandArgs": ["true"], "Environment": {"TOKEN": "s3cret"}})
        await process.close()
        (entry,) = backend_of(system).request_log.entries(operation="create process")
        assert entry.document["Environment"] == {"TOKEN": "s3cret"}
        assert "s3cret" not in entry.render()


# Properties.


async def test_queries_are_answered_as_responses_by_type() -> None:
    async with attended() as system:
        plain = await system.properties("GuestConnection", "Statistics")
        answer = await system.properties(
            "SystemGUID", queries={"GuestConnection": None, "ProcessorTopology": {}}
        )
        assert answer["SystemGUID"] == system.runtime_id
        assert "GuestConnectionInfo" not in answer
        responses = answer["PropertyResponses"]
        assert responses["GuestConnection"]["Response"] == plain["GuestConnectionInfo"]
        assert responses["ProcessorTopology"]["Response"]["LogicalProcessorCount"] == 8
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await system.properties(queries={"NoSuchThing": None})
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await system.properties(queries={"Memory": object()})


@pytest.mark.parametrize(("build", "minor"), [(17763, 1), (18362, 2), (19041, 3), (20348, 5), (26100, 6)])
async def test_the_compute_service_tells_the_schemas_that_its_build_knows(build: int, minor: int) -> None:
    backend = FakeBackend(host=HostInfo(build=build))
    answer = await backend.service_properties("Basic")
    versions = [{"Major": 1, "Minor": 0}, {"Major": 2, "Minor": minor}]
    assert answer == {"Properties": [{"SupportedSchemaVersions": versions}]}


async def test_the_compute_service_tells_one_property_for_each_type_in_their_order() -> None:
    backend = FakeBackend(host=HostInfo(processors=4))
    types = ("ProcessorTopology", "QoSCapabilities", "CpuGroup", "ContainerCredentialGuard")
    topology, *others = (await backend.service_properties(*types))["Properties"]
    assert topology["LogicalProcessorCount"] == len(topology["LogicalProcessors"]) == 4
    assert others == [{"ProcessorQoSSupported": True}, {"CpuGroups": []}, {"Instances": []}]
    assert await backend.service_properties() == {"Properties": []}
    with expect_refusal(HResult.HCS_E_INVALID_JSON):
        await backend.service_properties("Basic", "NoSuchThing")
