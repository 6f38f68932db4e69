"""A process in a guest: its start, its streams, its signals, its end, and what can go wrong with each."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.gcs.guests import (
    LINUX,
    NULL_ID,
    WINDOWS,
    Answer,
    Answerer,
    Guest,
    Redial,
    Refusal,
    connected,
    undone,
)
from uvm._gcs.connection import GuestConnection
from uvm._guest.exchange import CompletedProcess
from uvm._guest.process import Process
from uvm._guest.stdio import StreamBrokenError
from uvm._guest.timeouts import GuestTimeouts
from uvm._wire.frames import Procedure
from uvm._wire.ports import FIRST_STDIO_PORT, vsock_service_id
from uvm.errors import (
    AnswerLostError,
    BridgeClosedError,
    GuestError,
    NotSupportedError,
    OptionsError,
    OutputLimitError,
    UnknownOutcomeError,
)
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

EXECUTE, WAIT, SIGNAL = Procedure.EXECUTE_PROCESS, Procedure.WAIT_FOR_PROCESS, Procedure.SIGNAL_PROCESS
NOT_FOUND, WAIT_TIMEOUT, NO_SUCH_SYSTEM = (
    HResult.ERROR_NOT_FOUND,
    HResult.ERROR_VMCOMPUTE_TIMEOUT,
    HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND,
)
FOREVER = 0xFFFFFFFF


@pytest.fixture
def guest() -> Guest:
    return Guest()


def parameters(body: dict[str, Any]) -> Any:
    return json.loads(body["Settings"]["ProcessParameters"])


def wait_of(answers: dict[int, Answer], *, bounded: dict[int, Answer]) -> Answerer:
    """Answer waits by process id; others where they have a limit."""
    return lambda body: (
        bounded if body["TimeoutInMs"] != FOREVER and body["ProcessId"] in bounded else answers
    )[body["ProcessId"]]


# Its start.


async def test_a_process_of_a_linux_guest_is_asked_for_with_the_ports_of_its_streams(guest: Guest) -> None:
    async with connected(guest) as connection:
        async with await connection.open_process(["cat", "-"], cwd="/tmp", env={"A": "b"}) as process:
            assert (process.pid, process.args, process.exit_code) == (7, ("cat", "-"), None)
        [body] = guest.bodies(EXECUTE)
        assert body["ContainerId"] == NULL_ID
        assert body["Settings"]["VsockStdioRelaySettings"] == {
            "StdIn": FIRST_STDIO_PORT,
            "StdOut": FIRST_STDIO_PORT + 1,
            "StdErr": FIRST_STDIO_PORT + 2,
        }
        assert parameters(body) == {
            "CommandArgs": ["cat", "-"],
            "WorkingDirectory": "/tmp",
            "Environment": {"A": "b"},
            "CreateStdInPipe": True,
            "CreateStdOutPipe": True,
            "CreateStdErrPipe": True,
        }


async def test_a_process_of_a_windows_guest_is_asked_for_with_the_services_of_its_streams(
    guest: Guest,
) -> None:
    guest.capabilities = WINDOWS
    async with connected(guest) as connection:
        async with await connection.open_process(["cmd", "/c", "dir"], stdin=False, stderr=False) as process:
            with pytest.raises(OptionsError, match="process 7 has no stdin: start it with stdin=True"):
                _ = process.stdin
            with pytest.raises(OptionsError, match="process 7 has no stderr: start it with stderr=True"):
                _ = process.stderr
        [body] = guest.bodies(EXECUTE)
        assert body["Settings"]["StdioRelaySettings"] == {"StdOut": vsock_service_id(FIRST_STDIO_PORT)}
        assert "VsockStdioRelaySettings" not in body["Settings"]
        assert parameters(body) == {
            "CommandLine": "cmd /c dir",
            "WorkingDirectory": "C:\\",
            "CreateStdOutPipe": True,
        }


async def test_a_process_with_a_terminal_has_no_standard_error(guest: Guest) -> None:
    async with connected(guest) as connection:
        async with await connection.open_process(["sh"], terminal=True, size=(24, 80)) as process:
            with pytest.raises(OptionsError, match="no stderr: its terminal writes all to stdout"):
                _ = process.stderr
        asked = parameters(guest.bodies(EXECUTE)[0])
        assert asked["EmulateConsole"] is True
        assert asked["ConsoleSize"] == [24, 80]


async def test_a_command_that_the_guest_does_not_have_is_the_guests_error(guest: Guest) -> None:
    guest.answers[EXECUTE] = lambda _: Refusal(HResult.E_FAIL, "executable file not found in $PATH")
    async with connected(guest) as connection:
        with pytest.raises(GuestError, match=r"run 'nosuch'.*not found in \$PATH"):
            await connection.open_process(["nosuch"])
        assert [each.closed for each in guest.listeners] == [1, 1, 1]
        assert not connection.closed


async def test_what_cannot_be_run_anywhere_is_refused_before_anything_is_sent(guest: Guest) -> None:
    async with connected(guest) as connection:
        for bad in ("echo hi", [], [1], None):
            with pytest.raises(OptionsError):
                await connection.run(bad)  # type: ignore[arg-type]
        with pytest.raises(OptionsError):
            await connection.run(["env"], env={"A=b": "c"})
        with pytest.raises(OptionsError):
            await connection.run(["cat"], input="text")  # type: ignore[call-overload]
        with pytest.raises(NotSupportedError):
            await connection.run(["id"], user="nobody")
        assert not guest.bodies(EXECUTE)
        assert not guest.listeners


@pytest.mark.parametrize("pid", [-1, 2**32, "7", None, 7.0])
async def test_an_answer_without_a_process_id_leaves_the_outcome_unknown(guest: Guest, pid: Any) -> None:
    guest.answers[EXECUTE] = lambda _: {"ProcessId": pid}
    async with connected(guest) as connection:
        if pid is None:
            # As Go does, null is read as the zero value.
            await (await connection.open_process(["true"])).aclose()
        else:
            with pytest.raises(UnknownOutcomeError, match="cannot be read"):
                await connection.open_process(["true"])
        assert all(each.closed == 1 for each in guest.listeners)


async def test_listeners_are_closed_where_one_of_them_cannot_be_opened(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = guest.listen

    async def listen_twice(service_id: str) -> Any:
        if len(guest.listeners) == 2:
            raise OSError("no more sockets")
        return await listen(service_id)

    monkeypatch.setattr(guest, "listen", listen_twice)
    async with connected(guest) as connection:
        with pytest.raises(OSError, match="no more"):
            await connection.open_process(["cat"])
        assert [each.closed for each in guest.listeners] == [1, 1]
        assert not guest.bodies(EXECUTE)


async def open_it(connection: GuestConnection, args: list[str]) -> None:
    await connection.open_process(args)


async def test_a_process_whose_caller_is_cancelled_meanwhile_is_killed(guest: Guest) -> None:
    guest.answers[EXECUTE] = lambda _: None
    async with connected(guest) as connection:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_it, connection, ["sleep", "1000"])
            await guest.until_asked(EXECUTE)
            tasks.cancel_scope.cancel()
        assert [each.closed for each in guest.listeners] == [0, 0, 0], "the guest dials while it starts it"
        guest.answer_held(EXECUTE, {"ProcessId": 9})
        await guest.until_asked(SIGNAL)
        guest.exit()
        await undone(connection)
        [killed] = guest.bodies(SIGNAL)
        assert killed["ProcessId"] == 9
        assert "Options" not in killed
        assert [each.closed for each in guest.listeners] == [1, 1, 1]
        assert not connection.closed


async def test_a_cancelled_caller_whose_process_was_refused_has_nothing_to_take_back(guest: Guest) -> None:
    guest.answers[EXECUTE] = lambda _: None
    async with connected(guest) as connection:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_it, connection, ["nosuch"])
            await guest.until_asked(EXECUTE)
            tasks.cancel_scope.cancel()
            guest.answer_held(EXECUTE, Refusal(HResult.E_FAIL))
        await undone(connection)
        assert not guest.bodies(SIGNAL)
        assert [each.closed for each in guest.listeners] == [1, 1, 1]


# Its end.


async def test_any_number_of_tasks_wait_for_the_exit_and_any_of_them_may_leave(guest: Guest) -> None:
    codes: list[int] = []

    async def wait(process: Process) -> None:
        codes.append(await process.wait())

    async with connected(guest) as connection, await connection.open_process(["sleep"]) as process:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await process.wait()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait, process)
            await guest.until_asked(WAIT)
            guest.exit(0xFFFFFFFF)
        assert codes == [0xFFFFFFFF] * 3
        assert process.exit_code == 0xFFFFFFFF
        assert await process.wait() == 0xFFFFFFFF
        [asked] = guest.bodies(WAIT)
        assert asked["TimeoutInMs"] == FOREVER


@pytest.mark.parametrize("code", [-1, 2**32, "0", 1.5])
async def test_an_exit_code_that_is_none_leaves_the_exit_unknown(guest: Guest, code: Any) -> None:
    guest.answers[WAIT] = lambda _: {"ExitCode": code}
    async with connected(guest) as connection, await connection.open_process(["true"]) as process:
        with pytest.raises(UnknownOutcomeError, match="cannot be read"):
            await process.wait()
        assert process.exit_code is None


async def test_a_process_that_the_guest_does_not_know_has_no_exit_code(guest: Guest) -> None:
    guest.answers[WAIT] = lambda _: Refusal(NOT_FOUND)
    async with connected(guest) as connection, await connection.open_process(["true"]) as process:
        errors = []
        for _ in range(2):
            with pytest.raises(GuestError, match="its exit code is unknown") as caught:
                await process.wait()
            errors.append(caught.value)
        assert errors[0] is not errors[1]
        assert process.exit_code is None


async def test_a_wait_that_the_guest_refuses_is_the_guests_error(guest: Guest) -> None:
    guest.answers[WAIT] = lambda _: Refusal(HResult.E_ACCESSDENIED, "denied")
    async with connected(guest) as connection, await connection.open_process(["true"]) as process:
        with pytest.raises(GuestError, match="denied"):
            await process.wait()


async def test_a_wait_ends_with_the_connection(guest: Guest) -> None:
    async with connected(guest) as connection:
        process = await connection.open_process(["sleep"])
        await guest.until_asked(WAIT)
        guest.script.hang_up()
        await connection.wait_closed()
        with pytest.raises(BridgeClosedError):
            await process.wait()
        # Releasing it succeeds at once.
        assert await process.kill() is False
        await process.aclose()
        with pytest.raises(BridgeClosedError):
            await process.signal("TERM")


async def test_a_process_that_still_runs_is_left_running_when_its_streams_are_closed(guest: Guest) -> None:
    async with connected(guest) as connection:
        async with await connection.open_process(["sleep"]) as process:
            pass
        assert [each.closed for each in guest.listeners] == [1, 1, 1]
        assert not guest.bodies(SIGNAL)
        await guest.until_asked(WAIT)
        guest.exit(3)
        assert await process.wait() == 3


# Signals.


async def test_a_signal_goes_to_the_process(guest: Guest) -> None:
    async with connected(guest) as connection, await connection.open_process(["sleep"]) as process:
        assert await process.signal("TERM") is True
        assert await process.kill() is True
        term, kill = guest.bodies(SIGNAL)
        assert (term["ProcessId"], term["Options"]) == (7, {"Signal": 15})
        assert "Options" not in kill


async def test_a_windows_guest_takes_signals_by_name(guest: Guest) -> None:
    guest.capabilities = WINDOWS
    async with connected(guest) as connection, await connection.open_process(["cmd"]) as process:
        await process.signal("CtrlBreak")
        assert guest.bodies(SIGNAL)[0]["Options"] == {"Signal": "CtrlBreak"}


async def test_a_guest_without_signals_can_only_kill(guest: Guest) -> None:
    guest.capabilities = LINUX | {"GuestDefinedCapabilities": {}}
    async with connected(guest) as connection, await connection.open_process(["sleep"]) as process:
        with pytest.raises(NotSupportedError, match="SignalProcessSupported"):
            await process.signal("TERM")
        assert not guest.bodies(SIGNAL)
        assert await process.signal("KILL") is True


async def test_an_unknown_signal_is_not_sent(guest: Guest) -> None:
    async with connected(guest) as connection, await connection.open_process(["sleep"]) as process:
        with pytest.raises(OptionsError):
            await process.signal("NOSUCH")
        assert not guest.bodies(SIGNAL)


async def test_a_process_that_has_exited_is_not_signalled(guest: Guest) -> None:
    guest.answers[WAIT] = lambda _: {"ExitCode": 0}
    async with connected(guest) as connection, await connection.open_process(["true"]) as process:
        await process.wait()
        assert await process.signal("TERM") is False
        assert await process.kill() is False
        assert not guest.bodies(SIGNAL)


@pytest.mark.parametrize("answer", [Refusal(HResult.E_FAIL), {"ExitCode": -1}], ids=["refused", "unreadable"])
async def test_a_process_whose_exit_is_unknown_can_be_killed(guest: Guest, answer: Any) -> None:
    guest.answers[WAIT] = lambda _: answer
    async with connected(guest) as connection, await connection.open_process(["sleep"]) as process:
        errors = []
        for _ in range(2):
            with pytest.raises((GuestError, UnknownOutcomeError)) as raised:
                await process.wait()
            errors.append(raised.value)
        assert errors[0] is not errors[1]
        assert await process.kill()
        assert guest.bodies(SIGNAL)


async def test_a_refused_signal_is_the_guests_error(guest: Guest) -> None:
    guest.answers[SIGNAL] = lambda _: Refusal(HResult.E_FAIL, "invalid argument")
    async with connected(guest) as connection, await connection.open_process(["sleep"]) as process:
        with pytest.raises(GuestError, match="invalid argument"):
            await process.signal(64)


async def test_the_exit_of_a_process_that_cannot_be_signalled_any_more_is_asked_for(guest: Guest) -> None:
    guest.answers[SIGNAL] = lambda _: Refusal(NOT_FOUND)
    guest.answers[WAIT] = lambda body: None if body["TimeoutInMs"] == FOREVER else {"ExitCode": 5}
    async with connected(guest) as connection, await connection.open_process(["sleep"]) as process:
        assert await process.signal("TERM") is False
        assert await process.wait() == 5
        # The answer to the first wait may come all the same, and is dropped.
        guest.answer_held(WAIT, {"ExitCode": 6})
        assert await process.kill() is False
        assert process.exit_code == 5


@pytest.mark.parametrize("probe", [NOT_FOUND, WAIT_TIMEOUT])
async def test_a_signal_answered_not_found_ends_a_wait_that_would_never_end(guest: Guest, probe: int) -> None:
    guest.answers[SIGNAL] = lambda _: Refusal(NOT_FOUND)
    guest.answers[WAIT] = lambda body: None if body["TimeoutInMs"] == FOREVER else Refusal(probe)
    async with connected(guest) as connection, await connection.open_process(["sleep"]) as process:
        assert await process.kill() is False
        with pytest.raises(GuestError, match="its exit code is unknown"):
            await process.wait()


async def test_the_answer_to_a_wait_may_come_just_behind_the_news_that_the_process_is_forgotten(
    guest: Guest,
) -> None:
    guest.answers[SIGNAL] = lambda _: Refusal(NOT_FOUND)
    guest.answers[WAIT] = lambda _: None
    async with connected(guest) as connection, await connection.open_process(["sleep"]) as process:
        await guest.until_asked(WAIT)
        assert await process.kill() is False
        await guest.until_asked(WAIT, 2)
        wait, probe = guest.held[WAIT]
        guest.answer(probe, Refusal(NOT_FOUND))
        guest.answer(wait, {"ExitCode": 11})
        assert await process.wait() == 11


# What the Linux guest cannot do for processes outside of containers, programs of its own do.


def helping(guest: Guest, code: int) -> None:
    """Have programs of the guest with other ids than 7 exit at once."""
    first = guest.answers[EXECUTE]
    guest.answers[SIGNAL] = guest.answers[Procedure.RESIZE_CONSOLE] = lambda _: Refusal(NO_SUCH_SYSTEM)
    guest.answers[WAIT] = lambda body: None if body["ProcessId"] == 7 else {"ExitCode": code}
    guest.answers[EXECUTE] = lambda body: (
        {"ProcessId": 8} if parameters(body)["CommandArgs"][0] in ("kill", "stty") else first(body)
    )


async def test_a_linux_guest_signals_its_own_processes_with_kill(guest: Guest) -> None:
    helping(guest, 0)
    async with connected(guest) as connection, await connection.open_process(["sleep"]) as process:
        assert await process.signal("HUP") is True
        assert await process.kill() is True
        helpers = [parameters(body) for body in guest.bodies(EXECUTE)[1:]]
        assert [each["CommandArgs"] for each in helpers] == [["kill", "-1", "7"], ["kill", "-9", "7"]]
        assert all("CreateStdOutPipe" not in each for each in helpers)


async def test_a_kill_that_finds_nobody_means_that_the_process_has_exited(guest: Guest) -> None:
    helping(guest, 1)
    guest.answers[WAIT] = wait_of({8: {"ExitCode": 1}, 7: None}, bounded={7: {"ExitCode": 5}})
    async with connected(guest) as connection, await connection.open_process(["sleep"]) as process:
        assert await process.kill() is False
        assert process.exit_code == 5
        probe = guest.bodies(WAIT)[-1]
        assert (probe["ProcessId"], probe["TimeoutInMs"]) == (7, 1000)


async def test_a_linux_guest_resizes_the_terminals_of_its_own_processes_with_stty(guest: Guest) -> None:
    helping(guest, 0)
    async with connected(guest) as connection:
        async with await connection.open_process(["sh"], terminal=True) as process:
            await process.resize(50, 120)
        stty = ["stty", "-F", "/proc/7/fd/0", "rows", "50", "cols", "120"]
        assert parameters(guest.bodies(EXECUTE)[1])["CommandArgs"] == stty


async def test_a_resize_that_fails_is_the_guests_error(guest: Guest) -> None:
    helping(guest, 1)
    async with connected(guest) as connection:
        process = await connection.open_process(["sh"], terminal=True)
        with pytest.raises(GuestError, match="stty exited with 1"):
            await process.resize(50, 120)
        await process.aclose()


async def test_only_terminals_are_resized_and_only_to_a_size(guest: Guest) -> None:
    async with connected(guest) as connection:
        async with await connection.open_process(["sh"]) as process:
            with pytest.raises(OptionsError, match="without one"):
                await process.resize(50, 120)
        async with await connection.open_process(["sh"], terminal=True) as process:
            with pytest.raises(OptionsError):
                await process.resize(0, 120)
            await process.resize(50, 120)
        [body] = guest.bodies(Procedure.RESIZE_CONSOLE)
        assert (body["Height"], body["Width"]) == (50, 120)


# A guest that dials again.

RESUMING = GuestTimeouts(redial_seconds=60)


async def resume(guest: Guest, redial: Redial) -> None:
    guest.script.hang_up()
    await redial.wait_for_host()
    redial.dial()
    await guest.until_asked(Procedure.NEGOTIATE_PROTOCOL, 2)


@pytest.mark.parametrize(
    ("probed", "expected"), [({"ExitCode": 4}, 4), (Refusal(WAIT_TIMEOUT), 9), (Refusal(HResult.E_FAIL), 9)]
)
async def test_after_a_guest_dialled_again_an_exit_is_asked_for_and_the_wait_goes_on(
    guest: Guest, probed: Any, expected: int
) -> None:
    guest.answers[WAIT] = lambda body: None if body["TimeoutInMs"] == FOREVER else probed
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=RESUMING, redial=redial) as connection:
            process = await connection.open_process(["sleep"])
            await guest.until_asked(WAIT)
            await resume(guest, redial)
            assert (await guest.until_asked(WAIT, 2))["TimeoutInMs"] == 50
            if expected == 9:
                guest.answer_held(WAIT, {"ExitCode": 9})
            assert await process.wait() == expected
            await process.aclose()


async def test_a_process_that_a_guest_has_forgotten_when_it_dials_again_is_lost(guest: Guest) -> None:
    guest.answers[WAIT] = lambda body: None if body["TimeoutInMs"] == FOREVER else Refusal(NOT_FOUND)
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=RESUMING, redial=redial) as connection:
            process = await connection.open_process(["sleep"])
            await guest.until_asked(WAIT)
            await resume(guest, redial)
            with pytest.raises(GuestError, match="its exit code is unknown"):
                await process.wait()
            await process.aclose()


async def test_a_process_whose_start_was_asked_for_when_the_connection_broke_has_an_unknown_outcome(
    guest: Guest,
) -> None:
    guest.answers[EXECUTE] = lambda _: None
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=RESUMING, redial=redial) as connection:
            async with anyio.create_task_group() as callers:
                callers.start_soon(_expect_unknown, connection)
                await guest.until_asked(EXECUTE)
                await resume(guest, redial)
            # It may still be answered.
            guest.answer_held(EXECUTE, {"ProcessId": 9})
            await guest.until_asked(SIGNAL)
            guest.exit()
            await undone(connection)
            assert [each.closed for each in guest.listeners] == [1, 1, 1]


async def test_a_process_is_not_asked_for_any_more_where_its_caller_left_before_it_was(guest: Guest) -> None:
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=RESUMING, redial=redial) as connection:
            guest.script.hang_up()
            await redial.wait_for_host()
            async with anyio.create_task_group() as callers:
                callers.start_soon(open_it, connection, ["touch", "x"])
                await anyio.wait_all_tasks_blocked()
                callers.cancel_scope.cancel()
            redial.dial()
            await connection.dump_stacks()
            assert not guest.bodies(EXECUTE)
            assert [each.closed for each in guest.listeners] == [1, 1, 1]


async def test_a_probe_that_is_lost_leaves_the_wait_alone(guest: Guest) -> None:
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=RESUMING, redial=redial) as connection:
            process = await connection.open_process(["sleep"])
            await guest.until_asked(WAIT)
            await resume(guest, redial)
            await guest.until_asked(WAIT, 2)
            # The probe of the first resume is on its way when the connection breaks again.
            guest.script.hang_up()
            await redial.wait_for_host()
            redial.dial()
            await guest.until_asked(WAIT, 3)
            guest.answer_held(WAIT, {"ExitCode": 9})
            assert await process.wait() == 9
            await process.aclose()


async def _expect_unknown(connection: GuestConnection) -> None:
    with pytest.raises(UnknownOutcomeError):
        await connection.open_process(["touch", "x"])


# To its end.


async def write_and_exit(guest: Guest, out: bytes, err: bytes, code: int) -> None:
    """Have the next process write something, and exit."""
    await guest.until_asked(WAIT)
    for name, data in (("StdOut", out), ("StdErr", err)):
        await guest.streams[name].send(data)
    guest.exit(code)


async def test_a_run_gives_the_exit_code_and_all_output(guest: Guest) -> None:
    async with connected(guest) as connection, anyio.create_task_group() as tasks:
        tasks.start_soon(write_and_exit, guest, b"out", b"err", 3)
        done = await connection.run(["sh", "-c", "exit 3"])
        assert done == CompletedProcess(("sh", "-c", "exit 3"), 3, b"out", b"err")
        assert "StdIn" not in guest.bodies(EXECUTE)[0]["Settings"]["VsockStdioRelaySettings"]
        assert all(each.closed == 1 for each in guest.listeners)


async def test_a_run_feeds_its_input_while_it_reads_the_output(guest: Guest) -> None:
    text = bytes(range(256)) * 40_000

    async def cat() -> None:
        await guest.until_asked(WAIT)
        stdin, stdout = guest.streams["StdIn"], guest.streams["StdOut"]
        while True:
            try:
                await stdout.send(await stdin.receive())
            except anyio.EndOfStream:
                break
        guest.exit(0)

    async with connected(guest) as connection, anyio.create_task_group() as tasks:
        tasks.start_soon(cat)
        assert (await connection.run(["cat"], input=text)).stdout == text


async def test_a_process_need_not_read_its_input(guest: Guest) -> None:
    async def head() -> None:
        await guest.until_asked(WAIT)
        guest.streams.pop("StdIn").close()
        guest.exit(0)

    async with connected(guest) as connection, anyio.create_task_group() as tasks:
        tasks.start_soon(head)
        assert (await connection.run(["true"], input=bytes(10_000_000))).exit_code == 0


async def test_a_run_that_writes_more_than_its_caller_takes_is_killed(guest: Guest) -> None:
    async def yes() -> None:
        await guest.until_asked(WAIT)
        with suppress(anyio.BrokenResourceError):
            while True:
                await guest.streams["StdOut"].send(b"y\n" * 1000)

    async with connected(guest) as connection, anyio.create_task_group() as tasks:
        tasks.start_soon(yes)
        with pytest.raises(OutputLimitError, match="'yes' wrote more than 100000 bytes"):
            await connection.run(["yes"], max_output_bytes=100_000)
        assert len(guest.bodies(SIGNAL)) == 1


async def test_a_run_whose_output_breaks_off_says_so_and_kills_its_process(guest: Guest) -> None:
    async with connected(guest) as connection, anyio.create_task_group() as tasks:

        async def break_off() -> None:
            await guest.until_asked(WAIT)
            await anyio.wait_all_tasks_blocked()
            guest.break_streams()
            guest.answer_held(WAIT, {"ExitCode": 0})

        tasks.start_soon(break_off)
        with pytest.raises(StreamBrokenError, match=r"std(out|err) of process 7"):
            await connection.run(["cat"])


async def test_a_run_that_is_cancelled_kills_its_process(guest: Guest) -> None:
    async with connected(guest) as connection:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run, ["sleep", "1000"])
            await guest.until_asked(WAIT)
            tasks.cancel_scope.cancel()
        assert len(guest.bodies(SIGNAL)) == 1
        assert [each.closed for each in guest.listeners] == [1, 1]


async def test_a_run_ends_with_the_connection_also_where_its_streams_stay_open(guest: Guest) -> None:
    async with connected(guest) as connection, anyio.create_task_group() as tasks:

        async def hang_up() -> None:
            await guest.until_asked(WAIT)
            guest.script.hang_up()

        tasks.start_soon(hang_up)
        with pytest.raises(BridgeClosedError):
            await connection.run(["sleep", "1000"])


async def test_many_processes_run_at_once(guest: Guest) -> None:
    guest.answers[WAIT] = lambda _: {"ExitCode": 0}
    guest.dials = False
    count = 50

    async def start(connection: GuestConnection) -> None:
        async with await connection.open_process(["true"]) as process:
            assert await process.wait() == 0

    async with connected(guest) as connection:
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(start, connection)
        assert [each.closed for each in guest.listeners] == [1] * 3 * count
        assert not guest.script.read()


async def test_all_streams_are_closed_also_in_a_cancelled_scope(guest: Guest) -> None:
    async with connected(guest) as connection:
        process = await connection.open_process(["cat"])
        await process.stdin.aclose()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await process.aclose()
        assert [each.closed for each in guest.listeners] == [1, 1, 1]


@pytest.mark.parametrize("helper", ["kill", "resize"])
async def test_a_program_that_helps_and_never_ends_is_not_waited_for_without_end(
    guest: Guest, helper: str
) -> None:
    guest.answers[SIGNAL] = guest.answers[Procedure.RESIZE_CONSOLE] = lambda _: Refusal(NO_SUCH_SYSTEM)
    async with connected(guest, timeouts=GuestTimeouts(rpc_seconds=0.05)) as connection:
        process = await connection.open_process(["sh"], terminal=True)
        with pytest.raises(UnknownOutcomeError, match="has not ended"):
            await (process.kill() if helper == "kill" else process.resize(24, 80))
        assert not connection.closed


async def test_a_kill_that_fails_leaves_the_wait_for_a_process_that_runs_alone(guest: Guest) -> None:
    guest.answers[SIGNAL] = lambda _: Refusal(NO_SUCH_SYSTEM)
    guest.answers[EXECUTE] = lambda body: {"ProcessId": 8 if "kill" in json.dumps(body) else 7}
    guest.answers[WAIT] = wait_of({8: {"ExitCode": 1}, 7: None}, bounded={7: Refusal(WAIT_TIMEOUT)})
    async with connected(guest) as connection:
        process = await connection.open_process(["sleep", "1"])
        with pytest.raises(GuestError, match="kill exited with 1"):
            await process.signal(40)
        guest.answer_held(WAIT, {"ExitCode": 5})
        assert await process.wait() == 5


async def test_an_exit_code_just_behind_the_news_that_a_second_wait_came_too_late_counts(
    guest: Guest,
) -> None:
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=GuestTimeouts(redial_seconds=10), redial=redial) as connection:
            process = await connection.open_process(["sleep", "1"])
            guest.answers[WAIT] = wait_of({7: None}, bounded={7: Refusal(WAIT_TIMEOUT)})
            await guest.until_asked(WAIT)
            guest.script.hang_up()
            await redial.wait_for_host()
            redial.dial()
            await guest.until_asked(WAIT, times=3)
            first, second = guest.held[WAIT]
            guest.answers[WAIT] = lambda _: Refusal(NOT_FOUND)
            guest.answer(second, Refusal(NOT_FOUND))
            guest.answer(first, {"ExitCode": 5})
            assert await process.wait() == 5


async def test_a_process_that_was_started_as_the_connection_closed_has_an_unknown_outcome(
    guest: Guest,
) -> None:
    guest.answers[EXECUTE] = lambda _: None
    async with connected(guest) as connection, anyio.create_task_group() as tasks:

        async def start() -> None:
            with pytest.raises(AnswerLostError):
                await connection.open_process(["sleep", "1"])

        tasks.start_soon(start)
        await guest.until_asked(EXECUTE)
        guest.answer_held(EXECUTE, {"ProcessId": 7})
        guest.script.send(b"\xff" * 16)
    assert [each.closed for each in guest.listeners] == [1, 1, 1]


async def test_a_run_ends_with_its_process_also_where_nobody_takes_its_input(guest: Guest) -> None:
    async with connected(guest) as connection, anyio.create_task_group() as tasks:

        async def run() -> None:
            done.append(await connection.run(["true"], input=b"x" * 1_000_000))

        done: list[CompletedProcess[bytes]] = []
        tasks.start_soon(run)
        await guest.until_asked(WAIT)
        await anyio.wait_all_tasks_blocked()
        guest.streams.pop("StdOut").close()
        guest.streams.pop("StdErr").close()
        guest.answer_held(WAIT, {"ExitCode": 0})
        while not done:
            await anyio.lowlevel.checkpoint()
        assert done[0].exit_code == 0


async def test_who_inherited_the_input_of_a_process_is_fed_as_long_as_the_output_is_open(
    guest: Guest,
) -> None:
    text = b"x" * 1_000_000
    async with connected(guest) as connection, anyio.create_task_group() as tasks:

        async def run() -> None:
            assert (await connection.run(["sh", "-c", "cat &"], input=text)).exit_code == 0

        tasks.start_soon(run)
        await guest.until_asked(WAIT)
        guest.answer_held(WAIT, {"ExitCode": 0})
        taken = 0
        with suppress(anyio.EndOfStream):
            while True:
                taken += len(await guest.streams["StdIn"].receive())
        assert taken == len(text)
        guest.streams.pop("StdOut").close()
        guest.streams.pop("StdErr").close()
