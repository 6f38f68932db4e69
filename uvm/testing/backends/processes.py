"""Scenarios: processes that the host itself starts in a guest, over its own connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from uvm.backends.base import JSON, ByteStream, HostProcess, System
from uvm.errors import HostError
from uvm.testing.backends.checks import Attempt, check, equal, raises, refused
from uvm.testing.backends.rig import Control, Rig
from uvm.testing.backends.scenario import scenario
from uvm.testing.backends.world import linux_options, options_of, running_system

_PIPES = {"CreateStdInPipe": True, "CreateStdOutPipe": True, "CreateStdErrPipe": True}


def linux_command(*args: str, pipes: bool = True) -> JSON:
    """The parameters of a process in a Linux guest."""
    return {"CommandArgs": list(args), "WorkingDirectory": "/", **(_PIPES if pipes else {})}


@asynccontextmanager
async def started(system: System, parameters: JSON) -> AsyncIterator[HostProcess]:
    """A process; its handle is closed at the end."""
    process = await system.create_process(parameters)
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            await process.close()


async def everything(stream: ByteStream | None) -> bytes:
    """Receive all that comes."""
    check(stream is not None, "it has the stream that was asked for")
    assert stream is not None
    pieces: list[bytes] = []
    try:
        while True:
            pieces.append(await stream.receive())
    except anyio.EndOfStream:
        return b"".join(pieces)


@scenario(Control.LINUX, Control.PROGRAMS)
async def a_process_writes_and_exits(rig: Rig) -> None:
    async with (
        running_system(rig) as system,
        started(system, linux_command("echo", "hello")) as process,
    ):
        check(process.pid > 0, f"its id: {process.pid}")
        equal(await everything(process.stdout), b"hello\n", "its output")
        equal(await everything(process.stderr), b"", "its error output")
        equal([await process.wait() for _ in range(2)], [0, 0], "how it exited")
        told = await process.properties()
        equal((told["ProcessId"], told.get("Exited")), (process.pid, True), "its id, and that it exited")


@scenario(Control.LINUX, Control.PROGRAMS)
async def a_process_reads_to_the_end_of_its_input(rig: Rig) -> None:
    data = bytes(range(256)) * 1024
    async with running_system(rig) as system, started(system, linux_command("cat")) as process:
        stdin = process.stdin
        assert stdin is not None

        async def feed() -> None:
            await stdin.send(data)
            await stdin.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed)
            equal(await everything(process.stdout), data, "what it read and wrote")
        equal(await process.wait(), 0, "how it exited")


@scenario(Control.LINUX, Control.PROGRAMS)
async def the_input_of_a_process_can_be_ended_by_a_request(rig: Rig) -> None:
    async with running_system(rig) as system, started(system, linux_command("cat")) as process:
        await process.modify({"Operation": "CloseHandle", "CloseHandle": {"Handle": "StdIn"}})
        equal(await everything(process.stdout), b"", "what it wrote")
        equal(await process.wait(), 0, "how it exited")


@scenario(Control.LINUX, Control.PROGRAMS)
async def a_process_without_streams_has_none_and_tells_its_exit(rig: Rig) -> None:
    async with (
        running_system(rig) as system,
        started(system, linux_command("false", pipes=False)) as process,
    ):
        equal((process.stdin, process.stdout, process.stderr), (None, None, None), "its streams")
        equal(await process.wait(), 1, "how it exited")
        equal((await process.properties())["ExitCode"], 1, "its exit code")


@scenario(Control.LINUX, Control.PROGRAMS)
async def everybody_who_waits_for_a_process_is_told_its_exit(rig: Rig) -> None:
    async with running_system(rig) as system, started(system, linux_command("cat")) as process:
        other = await system.open_process(process.pid)
        equal((other.pid, other.stdin, other.stdout), (process.pid, None, None), "what was opened")
        async with anyio.create_task_group() as tasks:
            waiting = [Attempt.begin(tasks, each.wait) for each in [process, other] * 10]
            assert process.stdin is not None
            await process.stdin.send_eof()
        equal({attempt.result for attempt in waiting}, {0}, "what those who waited were told")
        await other.close()


@scenario(Control.LINUX, Control.PROGRAMS)
async def the_handle_of_a_process_is_closed_once_and_refuses_everything_then(rig: Rig) -> None:
    async with running_system(rig) as system, started(system, linux_command("cat")) as process:
        other = await system.open_process(process.pid)
        async with anyio.create_task_group() as tasks:
            waiting = Attempt.begin(tasks, other.wait)
            await other.close()
        equal(getattr(waiting.error, "name", None), "E_HANDLE", "what who waited was told")
        for call in (other.wait, other.terminate, other.properties, other.close):
            with refused("E_HANDLE"):
                await call()
        equal((await process.properties()).get("Exited", False), False, "whether it exited")


@scenario(Control.LINUX, Control.PROGRAMS)
async def a_process_that_is_not_there_is_not_opened_and_no_program_is_not_started(rig: Rig) -> None:
    async with running_system(rig) as system:
        with refused("ERROR_NOT_FOUND"):
            await system.open_process(999_999)
        with raises(HostError):
            await system.create_process(linux_command("no-such-program"))
        with refused("HCS_E_INVALID_JSON"):
            await system.create_process({"Comand": "echo"})


@scenario(Control.WINDOWS, Control.PROGRAMS)
async def a_process_of_a_windows_guest_is_killed_once(rig: Rig) -> None:
    options = options_of(rig, "windows", external_guest_connection=False)
    sleep: JSON = {"CommandLine": "sleep 3600", **_PIPES}
    async with running_system(rig, options) as system, started(system, sleep) as process:
        await process.terminate()
        await process.wait()
        with refused("HCS_E_PROCESS_ALREADY_STOPPED", "ERROR_NOT_FOUND"):
            await process.terminate()


@scenario(Control.LINUX)
async def no_process_starts_where_hcs_is_not_connected_to_the_guest(rig: Rig) -> None:
    async with running_system(rig, linux_options(rig, external_guest_connection=True)) as system:
        with refused("HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION"):
            await system.create_process(linux_command("true"))


@scenario(Control.LINUX, Control.PROGRAMS)
async def processes_end_with_their_system(rig: Rig) -> None:
    async with running_system(rig) as system, started(system, linux_command("cat")) as process:
        async with anyio.create_task_group() as tasks:
            waiting = Attempt.begin(tasks, process.wait)
            await system.terminate()
        check(isinstance(waiting.error, HostError), f"who waited was told {waiting.error!r}")
