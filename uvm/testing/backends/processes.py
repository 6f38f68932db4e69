"""Scenarios: processes that the host itself starts in a guest, over its own connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio

from uvm.backend import BROKEN_STREAM, JSON, HostProcess, System
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.testing.backends.calls import (
    cancel_unanswered,
    held_call,
    overtake_by_the_exit,
    refuse_at_once_and_later,
)
from uvm.testing.backends.checks import Attempt, cancel_one_waiter, check, equal, raises, refused
from uvm.testing.backends.rig import Control, Rig
from uvm.testing.backends.scenario import Scenario, scenario, within
from uvm.testing.backends.world import everything, existing, linux_options, options_of, running_system

_PIPES = {"CreateStdInPipe": True, "CreateStdOutPipe": True, "CreateStdErrPipe": True}
_SLEEP: JSON = {"CommandLine": "sleep 3600", **_PIPES}
_CTRL_C: JSON = {"Signal": "CtrlC"}

#: The calls on a process of a Windows guest, by the operation that reaches the host.
CALLS: dict[str, Callable[[HostProcess], Awaitable[Any]]] = {
    "process properties": lambda process: process.properties(),
    "modify process": lambda process: process.modify(close_handle("StdIn")),
    "signal process": lambda process: process.signal(_CTRL_C),
    "terminate process": lambda process: process.terminate(),
}


def close_handle(name: str) -> JSON:
    """Return a request to close one of the streams of a process."""
    return {"Operation": "CloseHandle", "CloseHandle": {"Handle": name}}


def linux_command(*args: str, pipes: bool = True, **parameters: Any) -> JSON:
    """Return the parameters of a process in a Linux guest."""
    return {"CommandArgs": list(args), "WorkingDirectory": "/"} | (_PIPES if pipes else {}) | parameters


_CAT = linux_command("cat")


@asynccontextmanager
async def started(system: System, parameters: JSON) -> AsyncIterator[HostProcess]:
    """Yield a process; its handle is closed at the end."""
    process = await system.create_process(parameters)
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            await process.close()


def with_process(
    *args: str, **parameters: Any
) -> Callable[[Callable[[Rig, HostProcess], Awaitable[None]]], Scenario]:
    """Return a decorator for a scenario with a process in a Linux guest, which it gets."""

    @asynccontextmanager
    async def process_of(rig: Rig) -> AsyncIterator[HostProcess]:
        command = linux_command(*args, **parameters)
        async with running_system(rig) as system, started(system, command) as process:
            yield process

    return within(process_of, Control.LINUX, Control.PROGRAMS)


@with_process("echo", "hello")
async def a_process_writes_and_exits(rig: Rig, process: HostProcess) -> None:
    check(process.pid > 0, f"the id: {process.pid}")
    equal(await everything(process.stdout), b"hello\n", "the output")
    equal(await everything(process.stderr), b"", "the error output")
    equal([await process.wait() for _ in range(2)], [0, 0], "the exit code")
    found = await process.properties()
    equal((found["ProcessId"], found.get("Exited")), (process.pid, True), "the id, and that it exited")


@with_process("cat")
async def a_process_reads_to_the_end_of_its_input(rig: Rig, process: HostProcess) -> None:
    data = bytes(range(256)) * 1024
    stdin = existing(process.stdin)

    async def feed() -> None:
        await stdin.send(data)
        await stdin.send_eof()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed)
        equal(await everything(process.stdout), data, "what it read and wrote")
    equal(await process.wait(), 0, "the exit code")


@with_process("cat")
async def the_input_of_a_process_can_be_ended_by_a_request(rig: Rig, process: HostProcess) -> None:
    await process.modify(close_handle("StdIn"))
    equal(await everything(process.stdout), b"", "what it wrote")
    equal(await process.wait(), 0, "the exit code")


@with_process("false", pipes=False)
async def a_process_without_streams_has_none_and_reports_its_exit(rig: Rig, process: HostProcess) -> None:
    equal((process.stdin, process.stdout, process.stderr), (None, None, None), "the streams")
    equal(await process.wait(), 1, "the exit code")
    equal((await process.properties())["ExitCode"], 1, "the exit code")


@within(running_system, Control.LINUX, Control.PROGRAMS)
async def every_waiter_of_a_process_gets_its_exit_code(rig: Rig, system: System) -> None:
    async with started(system, _CAT) as process:
        other = await system.open_process(process.pid)
        equal((other.pid, other.stdin, other.stdout), (process.pid, None, None), "what was opened")
        async with anyio.create_task_group() as tasks:
            waiting = [Attempt.begin(tasks, each.wait) for each in [process, other] * 10]
            await existing(process.stdin).send_eof()
        equal({attempt.result for attempt in waiting}, {0}, "the exit codes in all waits")
        await other.close()


@within(running_system, Control.LINUX, Control.PROGRAMS)
async def the_handle_of_a_process_is_closed_once_and_refuses_everything_then(
    rig: Rig, system: System
) -> None:
    async with started(system, _CAT) as process:
        other = await system.open_process(process.pid)
        async with anyio.create_task_group() as tasks:
            waiting = Attempt.begin(tasks, other.wait)
            await other.close()
        equal(waiting.refusal, "E_HANDLE", "the error of the wait")
        for call in (other.wait, other.terminate, other.properties, other.close):
            with refused("E_HANDLE"):
                await call()
        equal((await process.properties()).get("Exited", False), False, "whether it exited")


@within(running_system, Control.LINUX, Control.PROGRAMS)
async def a_process_that_is_not_there_is_not_opened_and_no_program_is_not_started(
    rig: Rig, system: System
) -> None:
    with refused("ERROR_NOT_FOUND"):
        await system.open_process(999_999)
    with raises(HostError):
        await system.create_process(linux_command("no-such-program"))
    with refused("HCS_E_INVALID_JSON"):
        await system.create_process({"Comand": "echo"})


@with_process("cat", "no-such-file")
async def what_a_process_wrote_can_be_read_after_its_exit(rig: Rig, process: HostProcess) -> None:
    equal(await process.wait(), 1, "the exit code")
    check(b"no-such-file" in await everything(process.stderr), "the complaint is in its error output")
    equal(await everything(process.stdout), b"", "the output")


@with_process("env", Environment={"NAME": "some value"})
async def a_process_has_its_environment(rig: Rig, process: HostProcess) -> None:
    lines = (await everything(process.stdout)).splitlines()
    check(b"NAME=some value" in lines, f"the environment: {lines}")


@with_process("cat", "no-such-file", EmulateConsole=True, CreateStdErrPipe=False)
async def with_a_console_both_outputs_are_one(rig: Rig, process: HostProcess) -> None:
    equal(process.stderr, None, "the error output")
    check(b"no-such-file" in await everything(process.stdout), "the complaint is in its output")


@within(running_system, Control.LINUX, Control.PROGRAMS)
async def the_streams_of_a_process_close_with_its_handle(rig: Rig, system: System) -> None:
    process = await system.create_process(_CAT)
    stdin, stdout = existing(process.stdin), existing(process.stdout)
    await process.close()
    with raises(*BROKEN_STREAM):
        await stdout.receive()
    with raises(*BROKEN_STREAM):
        await stdin.send(b"hello")


@within(running_system, Control.LINUX, Control.PROGRAMS)
async def closing_a_process_takes_effect_if_the_caller_is_cancelled(rig: Rig, system: System) -> None:
    process = await system.create_process(_CAT)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await process.close()
    with refused("E_HANDLE"):
        await process.close()


@with_process("cat")
async def a_cancelled_waiter_of_a_process_disturbs_no_other(rig: Rig, process: HostProcess) -> None:
    found = await cancel_one_waiter(process.wait, partial(process.modify, close_handle("StdIn")))
    equal(found, 0, "the exit code in the other wait")


@with_process("sleep", "3600", pipes=False)
async def requests_to_a_process_that_make_no_sense_are_refused(rig: Rig, process: HostProcess) -> None:
    for request in ({}, {"Operation": "ConsoleSize"}, {"Operation": "Dance"}, close_handle("StdLog")):
        with refused("HCS_E_INVALID_JSON", what=str(request)):
            await process.modify(request)
    with refused("ERROR_NOT_FOUND", what="to close a stream that it does not have"):
        await process.modify(close_handle("StdOut"))
    with refused("HCS_E_INVALID_JSON", what="a signal that is none"):
        await process.signal({"Sgnal": 15})


@asynccontextmanager
async def sleeping(rig: Rig) -> AsyncIterator[HostProcess]:
    """Yield a process of a Windows guest, which can be signalled and killed."""
    options = options_of(rig, "windows", external_guest_connection=False)
    async with running_system(rig, options) as system, started(system, _SLEEP) as process:
        yield process


@within(sleeping, Control.WINDOWS, Control.PROGRAMS)
async def a_process_of_a_windows_guest_is_killed_once(rig: Rig, process: HostProcess) -> None:
    await process.terminate()
    await process.wait()
    with refused("HCS_E_PROCESS_ALREADY_STOPPED", "ERROR_NOT_FOUND"):
        await process.terminate()


@scenario(Control.WINDOWS, Control.PROGRAMS)
async def a_signalled_process_exits_otherwise_than_a_killed_one(rig: Rig) -> None:
    ends = []
    for name in ("signal process", "terminate process"):
        async with sleeping(rig) as process:
            await CALLS[name](process)
            ends.append(await process.wait())
    equal(ends[0], 0xC000013A, "the exit code after Ctrl+C")
    check(ends[0] != ends[1], f"another exit code after a kill: {ends[1]:#x}")


# Calls that are disturbed.


@scenario(Control.WINDOWS, Control.PROGRAMS, Control.CALLS)
async def a_call_on_a_process_refused_at_once_or_later_reports_the_reason(rig: Rig) -> None:
    for name, call in CALLS.items():
        async with sleeping(rig) as process:
            await refuse_at_once_and_later(rig, name, call, process)


@scenario(Control.WINDOWS, Control.PROGRAMS, Control.CALLS)
async def a_call_on_a_process_that_never_completes_is_cancelled(rig: Rig) -> None:
    for name, call in CALLS.items():
        async with sleeping(rig) as process:
            await cancel_unanswered(rig, name, call, process)
            check(not (await process.properties()).get("Exited"), f"it runs after {name} was cancelled")


@scenario(Control.WINDOWS, Control.PROGRAMS, Control.CALLS, Control.EXIT)
async def calls_on_a_process_overtaken_by_the_exit_of_its_system_end(rig: Rig) -> None:
    for name, call in CALLS.items():
        async with sleeping(rig) as process:
            attempt = await overtake_by_the_exit(rig, name, call, process)
            # HCS may return what it knows of a process even after the system has exited.
            answered = name == "process properties" and attempt.error is None
            check(answered or isinstance(attempt.error, HostError), f"the error of {name}: {attempt.error!r}")


@within(running_system, Control.LINUX, Control.PROGRAMS, Control.CALLS)
async def a_refused_start_reports_the_reason_and_the_next_one_succeeds(rig: Rig, system: System) -> None:
    rig.host.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES, operation="create process", nth=1)
    with refused("ERROR_NO_SYSTEM_RESOURCES"):
        await system.create_process(linux_command("true"))
    rig.host.undisturbed()
    async with started(system, linux_command("true")) as process:
        equal(await process.wait(), 0, "the exit code")


@within(running_system, Control.LINUX, Control.PROGRAMS, Control.CALLS)
async def a_start_whose_caller_is_cancelled_leaves_no_handle(rig: Rig, system: System) -> None:
    """Cancel the caller before the answer, and with it."""
    for with_it in (False, True):
        async with held_call(rig, "create process", system.create_process, _CAT) as (held, attempt):
            if with_it:
                held.pending[0].proceed()
            await attempt.cancel()
        if attempt.result is not None:
            await attempt.result.close()
        rig.host.undisturbed()
    async with started(system, linux_command("true")) as process:
        equal(await process.wait(), 0, "the exit code")


@scenario(Control.LINUX)
async def no_process_starts_if_hcs_is_not_connected_to_the_guest(rig: Rig) -> None:
    async with running_system(rig, linux_options(rig, external_guest_connection=True)) as system:
        with refused("HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION"):
            await system.create_process(linux_command("true"))


@within(running_system, Control.LINUX, Control.PROGRAMS)
async def processes_end_with_their_system(rig: Rig, system: System) -> None:
    async with started(system, _CAT) as process:
        async with anyio.create_task_group() as tasks:
            waiting = Attempt.begin(tasks, process.wait)
            await system.terminate()
        check(isinstance(waiting.error, HostError), f"the error of the wait: {waiting.error!r}")
