"""Processes of the guest itself: starting, waiting, signals, terminals, and what is refused."""

from __future__ import annotations

import json

import anyio
import pytest

from tests.backends.fake.guesthost import GCS, Host, booted
from tests.backends.fake.support import backend_of, wcow
from uvm._wire.frames import Procedure
from uvm._wire.ports import vsock_service_id
from uvm.hresult import HResult
from uvm.schema.gcs import WAIT_FOREVER_MS

pytestmark = pytest.mark.anyio

NOT_FOUND = (HResult.ERROR_NOT_FOUND, "HRESULT: 0x80070490")


async def execute(host: Host, parameters: object, **relay: object) -> tuple[int, str]:
    """Try to run something that is refused."""
    text = parameters if isinstance(parameters, str) else json.dumps(parameters)
    return await host.refusal(Procedure.EXECUTE_PROCESS, Settings={"ProcessParameters": text, **relay})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"CommandArgs": ["nothing"]}, 'exec: "nothing": executable file not found in $PATH'),
        ({"CommandLine": "nothing -x"}, 'exec: "nothing": executable file not found in $PATH'),
        ({"CommandArgs": ["/no/such"]}, 'exec: "/no/such": no such file or directory'),
    ],
)
async def test_a_command_that_does_not_exist_is_refused(parameters: object, message: str) -> None:
    async with booted() as host:
        assert await execute(host, parameters) == (
            HResult.E_FAIL,
            f"failed to call Start for external process: {message}",
        )
        assert host.service.external == {}


async def test_streams_of_a_process_that_does_not_start_are_closed() -> None:
    async with booted() as host:
        listener = await host.system.listen(vsock_service_id(7))
        parameters = {"CommandArgs": ["nothing"], "CreateStdOutPipe": True}
        assert (await execute(host, parameters, VsockStdioRelaySettings={"StdOut": 7}))[0] == HResult.E_FAIL
        with pytest.raises(anyio.EndOfStream):
            await (await listener.accept()).receive()


async def test_a_stream_to_where_nobody_listens_is_refused_and_the_others_are_closed() -> None:
    async with booted() as host:
        listener = await host.system.listen(vsock_service_id(7))
        parameters = {"CommandArgs": ["true"], "CreateStdInPipe": True, "CreateStdOutPipe": True}
        assert await execute(host, parameters, VsockStdioRelaySettings={"StdIn": 7, "StdOut": 8}) == (
            HResult.E_FAIL,
            "failed creating stdout Connection: vsock Dial port (8) failed: "
            "failed connect() to 00000002.00000008: connection refused",
        )
        with pytest.raises(anyio.EndOfStream):
            await (await listener.accept()).receive()


@pytest.mark.parametrize("parameters", ["xx", "[]", '{"CommandArgs":1}'])
async def test_parameters_that_cannot_be_read_are_refused(parameters: str) -> None:
    async with booted() as host:
        code, message = await execute(host, parameters)
        assert code == HResult.ERROR_VMCOMPUTE_INVALID_JSON
        assert message.startswith(
            f'failed to unmarshal JSON for ProcessParameters "{parameters}": HRESULT 0xc037010d: '
        )


async def test_a_command_line_that_does_not_end_is_refused() -> None:
    async with booted() as host:
        code, message = await execute(host, {"CommandLine": "echo 'a"})
        assert (code, message.split(":")[0]) == (
            HResult.E_FAIL,
            """failed to parse command line string "echo 'a\"""",
        )


async def test_nothing_to_run_kills_the_guest() -> None:
    """The guest of hcsshim takes the first of no words; a host has to look first."""
    async with booted() as host:
        await host.send(Procedure.EXECUTE_PROCESS, Settings={"ProcessParameters": "{}"})
        with anyio.fail_after(5):
            assert (await host.system.wait()).exit_type == "UnexpectedExit"


async def test_an_exit_is_told_to_all_who_waited_and_then_the_process_is_forgotten() -> None:
    async with booted() as host:
        process = await host.run("cat")
        waits = [
            await host.send(Procedure.WAIT_FOR_PROCESS, ProcessId=process.pid, TimeoutInMs=WAIT_FOREVER_MS)
            for _ in range(3)
        ]
        await anyio.wait_all_tasks_blocked()
        await process.end_input()
        for wait in waits:
            assert (await host.answer(wait))["ExitCode"] == 0
        assert await host.refusal(Procedure.WAIT_FOR_PROCESS, ProcessId=process.pid) == NOT_FOUND


async def test_an_exit_that_nobody_waited_for_is_kept_until_somebody_does() -> None:
    async with booted() as host:
        process = await host.run("false")
        await anyio.wait_all_tasks_blocked()
        assert await process.wait() == 1
        assert await host.refusal(Procedure.WAIT_FOR_PROCESS, ProcessId=process.pid) == NOT_FOUND


async def test_a_wait_with_a_limit_ends_at_the_limit_and_the_process_goes_on() -> None:
    async with booted() as host:
        process = await host.run("cat")
        for timeout_ms in (0, 20):
            assert await host.refusal(
                Procedure.WAIT_FOR_PROCESS, ProcessId=process.pid, TimeoutInMs=timeout_ms
            ) == (HResult.ERROR_VMCOMPUTE_TIMEOUT, "HRESULT: 0xc0370109")
        wait = await host.send(Procedure.WAIT_FOR_PROCESS, ProcessId=process.pid, TimeoutInMs=60_000)
        await process.end_input()
        assert (await host.answer(wait))["ExitCode"] == 0


async def test_the_guest_does_not_know_its_own_processes_when_they_are_to_be_signalled_or_resized() -> None:
    """As hcsshim's guest, which looks for a container of that id."""
    async with booted() as host:
        process = await host.run("sleep", "1000", EmulateConsole=True)
        for procedure, fields in (
            (Procedure.SIGNAL_PROCESS, {"Options": {"Signal": 9}}),
            (Procedure.RESIZE_CONSOLE, {"Height": 1, "Width": 1}),
        ):
            assert await host.refusal(procedure, ProcessId=process.pid, **fields) == (
                HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND,
                "HRESULT: 0xc037010e",
            )


async def test_two_hundred_processes_run_at_once() -> None:
    async with booted() as host:
        processes = [await host.run("cat") for _ in range(200)]
        assert len({process.pid for process in processes}) == 200
        for index, process in enumerate(processes):
            await process.write(str(index).encode())
        for index, process in enumerate(processes):
            assert await process.read(size=len(str(index))) == str(index).encode()
            await process.end_input()
        assert [await process.wait() for process in processes] == [0] * 200
        assert host.service.processes == host.service.external == {}


async def test_a_process_outlives_a_dropped_connection() -> None:
    async with booted() as host:
        process = await host.run("cat")
        wait = await host.send(Procedure.WAIT_FOR_PROCESS, ProcessId=process.pid, TimeoutInMs=WAIT_FOREVER_MS)
        await anyio.wait_all_tasks_blocked()
        host.service.drop()
        await host.redial()
        await process.write(b"still here")
        await process.end_input()
        assert await process.read() == b"still here"
        assert (await host.answer(wait))["ExitCode"] == 0


async def test_an_exit_during_a_disconnection_is_lost_to_who_waited_for_it() -> None:
    async with booted() as host:
        process = await host.run("cat")
        wait = await host.send(Procedure.WAIT_FOR_PROCESS, ProcessId=process.pid, TimeoutInMs=WAIT_FOREVER_MS)
        await anyio.wait_all_tasks_blocked()
        await host.listener.aclose()
        host.service.drop()
        await process.end_input()
        await anyio.wait_all_tasks_blocked()
        host.listener = await host.system.listen(GCS)
        await host.redial()
        assert await host.refusal(Procedure.WAIT_FOR_PROCESS, ProcessId=process.pid) == NOT_FOUND
        assert wait not in host.answers


async def test_the_request_log_has_the_processes_that_were_run() -> None:
    async with booted() as host:
        process = await host.run("true", Environment={"TOKEN": "sesame"})
        await process.wait()
        entries = backend_of(host.system).request_log.entries(to="guest", vm="vm1")
        assert [e.call.operation for e in entries] == [
            "connect",
            "negotiate protocol",
            "execute process",
            "wait for process",
        ]
        assert {e.outcome for e in entries} == {"ok"}


# The Windows guest.


async def test_a_windows_guest_signals_and_resizes_its_own_processes() -> None:
    async with booted(wcow()) as host:
        process = await host.run("sleep", "1000", EmulateConsole=True, ConsoleSize=[24, 80])
        terminal = host.service.processes[process.pid].view.terminal
        assert terminal is not None
        assert (terminal.height, terminal.width) == (24, 80)
        await host.ask(Procedure.RESIZE_CONSOLE, ProcessId=process.pid, Height=5, Width=6)
        assert (terminal.height, terminal.width) == (5, 6)
        code, message = await host.refusal(
            Procedure.SIGNAL_PROCESS, ProcessId=process.pid, Options={"Signal": "Hup"}
        )
        assert (code, message) == (HResult.E_INVALIDARG, "unknown signal 'Hup'")
        await process.signal("CtrlBreak")
        assert await process.wait() == 0xC000013A
        assert await host.refusal(Procedure.SIGNAL_PROCESS, ProcessId=process.pid) == NOT_FOUND


async def test_a_windows_guest_refuses_what_it_cannot_start() -> None:
    async with booted(wcow()) as host:
        assert (await execute(host, {"CommandLine": "nothing.exe"}))[0] == HResult.ERROR_FILE_NOT_FOUND
        assert (await execute(host, {"CommandLine": "stty size"}))[0] == HResult.ERROR_FILE_NOT_FOUND
        assert (await execute(host, {}))[0] == HResult.E_INVALIDARG
        parameters = {"CommandLine": "true", "CreateStdOutPipe": True}
        relay = {"StdioRelaySettings": {"StdOut": vsock_service_id(9)}}
        assert (await execute(host, parameters, **relay))[0] == HResult.WSAECONNREFUSED
        process = await host.run("cat")
        code, _ = await host.refusal(Procedure.RESIZE_CONSOLE, ProcessId=process.pid, Height=1, Width=1)
        assert code == HResult.E_INVALIDARG
