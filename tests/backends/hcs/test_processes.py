"""A process over the C API: its streams, its exit, how it is killed, and what a failed start leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve

from tests.backends.fake.support import expect_refusal, host_files, wcow
from tests.backends.hcs.harness import Host
from tests.backends.hcs.support import driven, relayed, started
from uvm.backend import JSON, ByteStream, HostProcess
from uvm.backends.fake import FakeBackend, FakeProcess
from uvm.backends.fake.hosted import HostedProcess
from uvm.backends.hcs import process as under_test
from uvm.backends.hcs.backend import HCSBackend
from uvm.backends.hcs.host import Host as HCSHost
from uvm.backends.hcs.system import HCSSystem
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.testing.backends.checks import until

pytestmark = pytest.mark.anyio


# HCS_EVENT_TYPE of computedefs.h.
PROCESS_EXITED = 0x00010000
SYSTEM_EXITED = 0x1
SERVICE_DISCONNECT = 0x02000000

STREAMS: JSON = {"CreateStdInPipe": True, "CreateStdOutPipe": True, "CreateStdErrPipe": True}
CAT: JSON = {"CommandArgs": ["cat"], **STREAMS}
FOREVER: JSON = {"CommandArgs": ["sleep", "3600"]}
END_OF_INPUT: JSON = {"Operation": "CloseHandle", "CloseHandle": {"Handle": "StdIn"}}


@asynccontextmanager
async def running(
    fake: FakeBackend | None = None, document: JSON | None = None, grace_seconds: float = 5.0
) -> AsyncIterator[tuple[Host, HCSSystem]]:
    """Yield a system to whose guest, by default Linux, HCS is connected."""
    async with driven(fake) as (host, _):
        backend = HCSBackend(platform=evolve(host.platform, grace_seconds=grace_seconds))
        async with started(backend, document=document or relayed()) as system:
            yield host, system


async def everything(stream: ByteStream | None) -> bytes:
    assert stream is not None
    received = b""
    try:
        while True:
            received += await stream.receive()
    except anyio.EndOfStream:
        return received


def exiting_with(code: int) -> FakeBackend:
    """Return a host in whose guests the program ``quit`` exits at once with a code."""
    fake = FakeBackend(files=host_files())

    @fake.programs.register("quit")
    async def quits(process: FakeProcess) -> int:
        return code

    return fake


def events(host: Host, kind: int, data: str = "") -> None:
    """Send an event to every handle of a process."""
    for handle in host._switchboard._processes:
        host.double.event(handle, kind, data)


# Streams and queries


async def test_everything_that_is_written_is_echoed() -> None:
    data = bytes(range(256)) * 8192
    async with running() as (_, system):
        process = await system.create_process(CAT)
        assert process.stdin is not None
        received: list[bytes] = []

        async def read() -> None:
            received.append(await everything(process.stdout))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await process.stdin.send(data)
            await process.stdin.send_eof()
        assert received == [data]
        assert await everything(process.stderr) == b""
        assert await process.wait() == 0
        await process.close()


async def test_host_may_be_asked_to_end_its_input() -> None:
    async with running() as (_, system):
        process = await system.create_process(CAT)
        assert process.stdin is not None
        await process.stdin.send(b"before")
        async with anyio.create_task_group() as tasks:
            assert process.stdout is not None
            assert await process.stdout.receive() == b"before"
            tasks.start_soon(process.modify, END_OF_INPUT)
        assert await everything(process.stdout) == b""
        assert await process.wait() == 0
        await process.close()


async def test_streams_that_were_not_asked_for_are_not_there() -> None:
    async with running() as (_, system):
        process = await system.create_process({"CommandArgs": ["echo", "hello"], "CreateStdOutPipe": True})
        assert (process.stdin, process.stderr) == (None, None)
        assert await everything(process.stdout) == b"hello\n"
        await process.close()


@pytest.mark.parametrize("code", [0, 7, 0xC0000005])
async def test_its_exit_code_is_an_unsigned_number(code: int) -> None:
    async with running(exiting_with(code)) as (_, system):
        process = await system.create_process({"CommandArgs": ["quit"]})
        assert await process.wait() == code
        await process.close()


async def test_a_process_opened_by_its_id_has_no_streams() -> None:
    async with running() as (_, system):
        process = await system.create_process(CAT)
        other = await system.open_process(process.pid)
        assert other.pid == process.pid
        assert (other.stdin, other.stdout, other.stderr) == (None, None, None)
        status = await other.properties()
        assert status["ProcessId"] == process.pid
        assert not status.get("Exited")
        await other.close()
        assert (await process.properties())["ProcessId"] == process.pid
        await process.close()


@pytest.mark.parametrize("pid", [4711, -1, 1 << 32])
async def test_an_id_that_no_process_has_opens_nothing(pid: int) -> None:
    async with running() as (_, system):
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.open_process(pid)


async def test_a_kill_uses_handles_of_its_own_and_every_waiter_gets_the_exit() -> None:
    document = wcow()
    document["VirtualMachine"]["GuestConnection"] = {}
    async with running(document=document) as (host, system):
        process = await system.create_process({"CommandLine": "sleep 3600"})
        other = await system.open_process(process.pid)
        host.faults.never("HcsSignalProcess")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.signal, {"Signal": "CtrlC"})
            await anyio.wait_all_tasks_blocked()
            before = host.double.objects
            await process.terminate()
            # What it opened has been closed.
            assert host.double.objects == before
            assert await process.wait() == await other.wait()
            tasks.cancel_scope.cancel()
        for each in (process, other):
            await each.close()


@pytest.mark.parametrize(
    "code", [HResult.E_ACCESSDENIED, HResult.HCS_E_PROCESS_ALREADY_STOPPED, HResult.ERROR_NOT_FOUND]
)
@pytest.mark.parametrize("function", ["HcsOpenComputeSystem", "HcsOpenProcess", "HcsTerminateProcess"])
async def test_a_kill_that_is_refused_leaves_no_handle(function: str, code: int) -> None:
    async with running() as (host, system):
        process = await system.create_process(FOREVER)
        before = host.double.objects
        host.faults.at_once(function, code)
        with expect_refusal(code):
            await process.terminate()
        assert host.double.objects == before
        await process.close()


@pytest.mark.parametrize("function", ["HcsOpenComputeSystem", "HcsOpenProcess", "HcsTerminateProcess"])
async def test_a_kill_that_is_cancelled_leaves_no_handle(function: str) -> None:
    async with running(grace_seconds=0.05) as (host, system):
        process = await system.create_process(FOREVER)
        host.faults.never(function)
        with anyio.move_on_after(0.02) as scope:
            await process.terminate()
        assert scope.cancelled_caught
        await process.close()


async def test_a_process_that_has_exited_takes_no_signal() -> None:
    async with running() as (_, system):
        process = await system.create_process({"CommandArgs": ["true"]})
        await process.wait()
        calls: list[Callable[[], Awaitable[None]]] = [
            lambda: process.signal({"Signal": 9}),
            process.terminate,
            lambda: process.modify(END_OF_INPUT),
        ]
        for call in calls:
            with pytest.raises(HostError) as caught:
                await call()
            assert caught.value.hresult in (HResult.HCS_E_PROCESS_ALREADY_STOPPED, HResult.ERROR_NOT_FOUND)
        assert (await process.properties())["Exited"] is True
        await process.close()


async def test_a_closed_handle_refuses_every_call() -> None:
    async with running() as (_, system):
        process = await system.create_process(FOREVER)
        await process.close()
        calls: list[Callable[[], Awaitable[object]]] = [
            process.close,
            process.wait,
            process.terminate,
            process.properties,
            lambda: process.signal({"Signal": 9}),
            lambda: process.modify(END_OF_INPUT),
        ]
        for call in calls:
            with expect_refusal(HResult.E_HANDLE):
                await call()


async def test_closing_it_ends_waits_and_streams_and_leaves_it_running() -> None:
    async with running() as (_, system):
        process = await system.create_process(CAT)

        async def wait() -> None:
            with expect_refusal(HResult.E_HANDLE):
                await process.wait()

        async def read() -> None:
            assert process.stdout is not None
            with pytest.raises(anyio.ClosedResourceError):
                await process.stdout.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await process.close()


# The exit


async def test_an_exit_before_the_registration_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = HCSHost.watch
    async with running(exiting_with(3)) as (host, system):

        async def watch_late(*args: Any) -> int:
            hosted = [
                each for each in host.fake.vms["vm1"].hosted.values() if isinstance(each, HostedProcess)
            ]
            await until(lambda: all(each.ended.is_set() for each in hosted))
            return await watch(*args)

        monkeypatch.setattr(HCSHost, "watch", watch_late)
        process = await system.create_process({"CommandArgs": ["quit"]})
        assert await process.wait() == 3
        await process.close()


@pytest.mark.parametrize("code", [HResult.ERROR_NOT_FOUND, HResult.HCS_E_PROCESS_ALREADY_STOPPED])
async def test_a_wait_for_a_process_that_the_host_forgot_ends(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "_EXIT_GRACE_SECONDS", 0.01)
    async with running() as (host, system):
        host.faults.later("HcsGetProcessProperties", code)
        process = await system.create_process(FOREVER)
        with expect_refusal(code):
            await process.wait()
        await process.close()


async def test_an_exit_that_is_reported_late_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_EXIT_GRACE_SECONDS", 60.0)
    async with running() as (host, system):
        host.faults.later("HcsGetProcessProperties", HResult.ERROR_NOT_FOUND)
        process = await system.create_process(FOREVER)
        codes: list[int] = []

        async def wait() -> None:
            codes.append(await process.wait())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            events(host, PROCESS_EXITED, '{"ExitCode": 5}')
        assert codes == [5]
        await process.close()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ('{"ProcessId": 1, "Exited": true}', 0),
        ("null", 0),
        ('{"ExitCode": null, "LastWaitResult": null}', 0),
        ('{"ExitCode": -1073741510}', 0xC000013A),
    ],
)
async def test_what_is_left_out_of_an_exit_is_zero(data: str, code: int) -> None:
    async with running() as (host, system):
        process = await system.create_process(FOREVER)
        events(host, PROCESS_EXITED, data)
        assert await process.wait() == code
        await process.close()


@pytest.mark.parametrize(
    "data", ["", "<no json>", "[]", '"0"', '{"ExitCode": "0"}', '{"LastWaitResult": []}']
)
async def test_an_exit_that_cannot_be_decoded_has_an_unknown_code(data: str) -> None:
    async with running() as (host, system):
        process = await system.create_process(FOREVER)
        events(host, PROCESS_EXITED, data)
        for _ in range(2):
            with expect_refusal(HResult.HCS_E_INVALID_JSON):
                await process.wait()
        await process.close()


async def test_a_wait_of_the_host_that_failed_is_no_exit_code() -> None:
    async with running() as (host, system):
        process = await system.create_process(FOREVER)
        events(host, PROCESS_EXITED, '{"Exited": true, "ExitCode": 0, "LastWaitResult": -2147467259}')
        with expect_refusal(HResult.E_FAIL):
            await process.wait()
        await process.close()


async def test_when_the_service_stops_the_exit_code_is_unknown() -> None:
    async with running() as (host, system):
        process = await system.create_process(FOREVER)
        events(host, SERVICE_DISCONNECT)
        events(host, PROCESS_EXITED, '{"ExitCode": 5}')
        with expect_refusal(HResult.HCS_E_SERVICE_DISCONNECT):
            await process.wait()
        await process.close()


async def test_the_exit_of_the_system_ends_the_waits() -> None:
    async with running() as (_, system):
        process = await system.create_process(FOREVER)

        async def wait() -> None:
            with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
                await process.wait()

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await system.terminate()
        await process.close()


async def test_an_exit_reported_after_that_of_the_system_still_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(under_test, "_EXIT_GRACE_SECONDS", 60.0)
    async with running() as (host, system):
        process = await system.create_process(FOREVER)
        host.event(system.id, SYSTEM_EXITED, '{"Status": 0, "ExitType": "GracefulExit"}')
        assert (await system.wait()).exit_type == "GracefulExit"
        events(host, PROCESS_EXITED, '{"ExitCode": 5}')
        assert await process.wait() == 5
        await process.close()


async def test_an_exit_that_was_known_stays_known_when_the_system_exits() -> None:
    async with running(exiting_with(3)) as (_, system):
        process = await system.create_process({"CommandArgs": ["quit"]})
        await process.wait()
        await system.terminate()
        await system.wait()
        assert await process.wait() == 3
        await process.close()


@pytest.mark.parametrize("answer", ["[]", '"text"', "5", "<no json>"])
async def test_a_status_that_is_no_object_is_refused(answer: str) -> None:
    async with running() as (host, system):
        process = await system.create_process(FOREVER)
        host.faults.later("HcsGetProcessProperties", 0, answer)
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await process.properties()
        host.faults.later("HcsGetProcessProperties", 0, answer)
        other = await system.open_process(process.pid)
        await other.close()
        await process.close()


# Failing starts


@asynccontextmanager
async def nothing_left(host: Host) -> AsyncIterator[None]:
    """Check that the block closes what it opens: handles, operations and strings."""
    objects, strings = host.double.objects, host.double.strings
    yield
    await until(lambda: (host.double.objects, host.double.strings) == (objects, strings))


async def test_what_the_host_started_though_it_says_it_failed_is_asked_itself() -> None:
    async with running() as (host, system):
        host.faults.done_but("HcsCreateProcess", HResult.E_INVALIDARG)
        process = await system.create_process(CAT)
        assert process.stdin is not None
        await process.stdin.send_eof()
        assert await everything(process.stdout) == b""
        assert await process.wait() == 0
        await process.close()


@pytest.mark.parametrize("fault", ["at_once", "later"])
async def test_if_the_process_cannot_be_asked_the_first_error_is_raised(fault: str) -> None:
    async with running() as (host, system), nothing_left(host):
        host.faults.done_but("HcsCreateProcess", HResult.E_INVALIDARG)
        getattr(host.faults, fault)("HcsGetProcessInfo", HResult.E_FAIL)
        with expect_refusal(HResult.E_INVALIDARG):
            await system.create_process(CAT)


@pytest.mark.parametrize("fault", ["at_once", "later"])
async def test_a_start_that_is_refused_leaves_nothing(fault: str) -> None:
    async with running() as (host, system), nothing_left(host):
        getattr(host.faults, fault)("HcsCreateProcess", HResult.E_ACCESSDENIED)
        with expect_refusal(HResult.E_ACCESSDENIED) as caught:
            await system.create_process(CAT)
        assert caught.value.operation == "create process in vm1"


async def test_a_result_that_cannot_be_fetched_is_asked_for_again() -> None:
    async with running() as (host, system):
        host.faults.at_once("HcsGetOperationResultAndProcessInfo", HResult.E_INVALIDARG)
        process = await system.create_process(CAT)
        assert process.pid
        await process.close()


async def test_a_process_that_cannot_be_watched_is_closed() -> None:
    async with running() as (host, system), nothing_left(host):
        host.faults.at_once("HcsSetProcessCallback", HResult.E_FAIL)
        with expect_refusal(HResult.E_FAIL):
            await system.create_process(CAT)


async def test_an_opened_process_that_cannot_be_watched_is_closed() -> None:
    async with running() as (host, system):
        process = await system.create_process(FOREVER)
        async with nothing_left(host):
            host.faults.at_once("HcsSetProcessCallback", HResult.E_FAIL)
            with expect_refusal(HResult.E_FAIL):
                await system.open_process(process.pid)
        await process.close()


@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize(
    "kind", [HostError("open", HResult.E_FAIL), anyio.ClosedResourceError()], ids=["host", "closed"]
)
async def test_a_stream_that_cannot_be_taken_over_takes_the_others_with_it(
    broken: int, kind: Exception
) -> None:
    # The transport closes the handle that it refuses; the others have to be handed to it nevertheless.
    async with driven() as (host, _):
        opened: list[ByteStream] = []

        class Broken:
            @property
            def pipes(self) -> Any:
                return self

            def open(self, handle: int) -> ByteStream:
                opened.append(host.platform.transport.pipes.open(handle))
                if len(opened) == broken + 1:
                    opened[broken].close()  # type: ignore[attr-defined]
                    raise kind
                return opened[-1]

            def __getattr__(self, name: str) -> Any:
                return getattr(host.platform.transport, name)

        backend = HCSBackend(platform=evolve(host.platform, transport=Broken()))
        async with started(backend, document=relayed()) as system, nothing_left(host):
            with pytest.raises(type(kind)):
                await system.create_process(CAT)
            assert len(opened) == 3
            for stream in opened:
                with pytest.raises(anyio.ClosedResourceError):
                    await stream.receive()


@pytest.mark.parametrize("steps", range(12))
@pytest.mark.parametrize("recovered", [False, True], ids=["started", "recovered"])
async def test_a_start_may_be_cancelled_at_each_step(steps: int, recovered: bool) -> None:
    async with running() as (host, system), nothing_left(host):
        if recovered:
            host.faults.done_but("HcsCreateProcess", HResult.E_INVALIDARG)
        made: list[HostProcess] = []

        async def start() -> None:
            made.append(await system.create_process(CAT))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        for process in made:
            await process.close()


@pytest.mark.parametrize("function", ["HcsCreateProcess", "HcsGetProcessInfo", "HcsGetProcessProperties"])
async def test_a_start_that_hangs_can_be_cancelled(function: str) -> None:
    async with running() as (host, system), nothing_left(host):
        if function == "HcsGetProcessInfo":
            host.faults.done_but("HcsCreateProcess", HResult.E_INVALIDARG)
        host.faults.never(function)
        with anyio.move_on_after(0.02) as scope:
            await system.create_process(CAT)
        assert scope.cancelled_caught


async def test_an_opening_that_hangs_can_be_cancelled() -> None:
    async with running(grace_seconds=0.05) as (host, system):
        process = await system.create_process(FOREVER)
        host.faults.never("HcsOpenProcess")
        with anyio.move_on_after(0.02) as scope:
            await system.open_process(process.pid)
        assert scope.cancelled_caught
        await process.close()
