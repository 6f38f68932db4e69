"""The scenarios. Each has its own containers, and leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from tests.guestsuite.guests import Guest
from tests.guestsuite.host import ACTIVITY
from uvm._wire.frames import Procedure
from uvm.hresult import HResult
from uvm.schema.gcs import WAIT_FOREVER_MS

Scenario: TypeAlias = Callable[[Guest], Awaitable[None]]
SCENARIOS: list[Scenario] = []

UNKNOWN = (HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND, "HRESULT: 0xc037010e")
NOT_FOUND = (HResult.ERROR_NOT_FOUND, "HRESULT: 0x80070490")
NOTHING_ASKED: dict[str, Any] = {"Settings": {"ProcessParameters": "{}"}}


def scenario(function: Scenario) -> Scenario:
    """Add a scenario."""
    SCENARIOS.append(function)
    return function


# Processes of the guest itself.


@scenario
async def a_process_of_the_guest_reads_writes_and_exits(guest: Guest) -> None:
    process = await guest.host.run("cat")
    await process.write(b"hello")
    assert await process.read(size=5) == b"hello"
    await process.end_input()
    assert await guest.end(process) == (b"", 0)


@scenario
async def a_guest_has_a_name(guest: Guest) -> None:
    assert await guest.end(await guest.host.run("uname", "-n")) == (b"uvm\n", 0)


@scenario
async def an_exit_is_answered_to_each_that_waits_and_then_forgotten(guest: Guest) -> None:
    process = await guest.host.run("cat")
    body: dict[str, Any] = {"ProcessId": process.pid, "TimeoutInMs": WAIT_FOREVER_MS}
    waits = [await guest.host.send(Procedure.WAIT_FOR_PROCESS, **body) for _ in range(3)]
    # Requests are served at once: the three are waiting when one that came after them has been answered.
    await guest.host.refusal(Procedure.WAIT_FOR_PROCESS, **{**body, "TimeoutInMs": 1})
    await process.end_input()
    for wait in waits:
        assert (await guest.host.answer(wait))["ExitCode"] == 0
    assert await guest.host.refusal(Procedure.WAIT_FOR_PROCESS, **body) == NOT_FOUND


@scenario
async def a_wait_ends_at_its_limit_and_the_process_goes_on(guest: Guest) -> None:
    process = await guest.host.run("cat")
    code, _ = await guest.host.refusal(Procedure.WAIT_FOR_PROCESS, ProcessId=process.pid, TimeoutInMs=1)
    assert code == HResult.ERROR_VMCOMPUTE_TIMEOUT
    await process.end_input()
    assert await guest.end(process) == (b"", 0)


@scenario
async def a_command_that_is_not_there_is_refused(guest: Guest) -> None:
    text = json.dumps({"CommandArgs": ["no-such-command"]})
    settings = {"ProcessParameters": text}
    assert await guest.host.refusal(Procedure.EXECUTE_PROCESS, Settings=settings) == (
        HResult.E_FAIL,
        "failed to call Start for external process: "
        'exec: "no-such-command": executable file not found in $PATH',
    )


@scenario
async def a_port_at_which_no_host_listens_is_refused(guest: Guest) -> None:
    text = json.dumps({"CommandArgs": ["true"], "CreateStdOutPipe": True})
    settings = {"ProcessParameters": text, "VsockStdioRelaySettings": {"StdOut": 8}}
    assert await guest.host.refusal(Procedure.EXECUTE_PROCESS, Settings=settings) == (
        HResult.E_FAIL,
        "failed creating stdout Connection: vsock Dial port (8) failed: "
        "failed connect() to 00000002.00000008: connection refused",
    )


# Containers.


@scenario
async def the_exit_of_a_container_follows_that_of_its_first_process(guest: Guest) -> None:
    await guest.create("c1", "cat")
    process = await guest.start("c1")
    await process.write(b"hello")
    await process.end_input()
    assert await process.read() == b"hello"
    body: dict[str, Any] = {"ProcessId": process.pid, "TimeoutInMs": WAIT_FOREVER_MS}
    wait = await guest.host.send(Procedure.WAIT_FOR_PROCESS, "c1", **body)
    assert await guest.host.notification() == {
        "ContainerId": "c1",
        "ActivityId": ACTIVITY,
        "Type": "UnexpectedExit",
        "Operation": "None",
        "Result": 0,
    }
    assert guest.host.order[-2:] == [f"answer {wait}", "notification of c1"]
    assert (await guest.host.answer(wait))["ExitCode"] == 0
    await guest.delete("c1")


@scenario
async def a_failing_first_process_ends_its_container_with_its_code(guest: Guest) -> None:
    await guest.create("c1", "false")
    assert await guest.end(await guest.start("c1")) == (b"", 1)
    assert (await guest.host.notification())["Type"] == "UnexpectedExit"
    await guest.delete("c1")


@scenario
async def other_processes_run_in_a_container_and_end_with_it(guest: Guest) -> None:
    await guest.create("c1", "cat")
    first = await guest.start("c1")
    assert await guest.end(await guest.execute("c1", "echo", "hi")) == (b"hi\n", 0)
    other = await guest.execute("c1", "sleep", "1000")
    await first.end_input()
    assert await guest.end(first) == (b"", 0)
    assert await guest.end(other) == (b"", 128 + 9)
    await guest.host.notification()
    await guest.delete("c1")


@scenario
async def a_process_in_a_container_is_killed_by_a_signal(guest: Guest) -> None:
    await guest.create("c1", "cat")
    first = await guest.start("c1")
    for number, code in ((9, 137), (15, 143), (None, 137)):
        process = await guest.execute("c1", "sleep", "1000")
        await process.signal(number)
        assert await guest.end(process) == (b"", code)
        body = {"ProcessId": process.pid}
        for procedure in (Procedure.SIGNAL_PROCESS, Procedure.WAIT_FOR_PROCESS):
            assert await guest.host.refusal(procedure, "c1", **body) == NOT_FOUND
    await guest.terminate(first)


@scenario
async def what_is_no_signal_is_refused(guest: Guest) -> None:
    await guest.create("c1", "cat")
    first = await guest.start("c1")
    body = {"ProcessId": first.pid, "Options": {"Signal": 999}}
    refused = await guest.host.refusal(Procedure.SIGNAL_PROCESS, "c1", **body)
    assert refused == (HResult.E_FAIL, "invalid argument")
    await guest.terminate(first)


@scenario
async def a_terminated_container_has_exited_by_force(guest: Guest) -> None:
    await guest.create("c1", "cat")
    process = await guest.start("c1")
    await guest.host.ask(Procedure.SHUTDOWN_FORCED, "c1")
    assert await guest.end(process) == (b"", 137)
    assert (await guest.host.notification())["Type"] == "ForcedExit"
    stopped = (HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED, "HRESULT 0xc0370110: container not running")
    assert await guest.host.refusal(Procedure.SHUTDOWN_FORCED, "c1") == stopped
    await guest.delete("c1")


@scenario
async def a_container_starts_once(guest: Guest) -> None:
    await guest.create("c1", "cat")
    process = await guest.start("c1")
    running, stopped = (f"cannot start a container that is {state}" for state in ("running", "stopped"))
    refused = await guest.host.refusal(Procedure.EXECUTE_PROCESS, "c1", **NOTHING_ASKED)
    assert refused == (HResult.E_FAIL, running)
    await process.end_input()
    await guest.end(process)
    refused = await guest.host.refusal(Procedure.EXECUTE_PROCESS, "c1", **NOTHING_ASKED)
    assert refused == (HResult.E_FAIL, stopped)
    await guest.host.notification()
    await guest.delete("c1")


@scenario
async def a_container_whose_program_is_not_there_is_refused_and_leaves_its_id(guest: Guest) -> None:
    for _ in range(2):
        config = await guest.config("c1", "no-such-command")
        code, text = await guest.host.refusal(Procedure.CREATE, "c1", ContainerConfig=config)
        assert code == HResult.E_FAIL
        assert text.startswith("failed to create container: ")
        assert "no-such-command" in text
        assert "not found" in text


@scenario
async def a_program_that_is_not_in_the_container_is_refused(guest: Guest) -> None:
    await guest.create("c1", "cat")
    first = await guest.start("c1")
    parameters = json.dumps({"OciProcess": {"args": ["no-such-command"], "cwd": "/", "env": []}})
    settings = {"ProcessParameters": parameters}
    code, text = await guest.host.refusal(Procedure.EXECUTE_PROCESS, "c1", Settings=settings)
    assert (code, "exec failed" in text, "no-such-command" in text) == (HResult.E_FAIL, True, True)
    await guest.terminate(first)


@scenario
async def an_id_is_taken_until_the_state_is_deleted(guest: Guest) -> None:
    for _ in range(2):
        await guest.create("c1", "true")
        config = await guest.config("c1", "true")
        assert await guest.host.refusal(Procedure.CREATE, "c1", ContainerConfig=config) == (
            HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_EXISTS,
            "HRESULT: 0xc037010f",
        )
        await guest.delete("c1")
        assert await guest.host.refusal(Procedure.DELETE_CONTAINER_STATE, "c1") == UNKNOWN
    assert guest.host.notifications == []


@scenario
async def a_running_container_keeps_its_state(guest: Guest) -> None:
    await guest.create("c1", "cat")
    process = await guest.start("c1")
    assert await guest.host.refusal(Procedure.DELETE_CONTAINER_STATE, "c1") == (
        HResult.HCS_E_INVALID_STATE,
        "HRESULT 0x80370105: container not stopped",
    )
    if guest.forgets_running:
        assert await guest.host.refusal(Procedure.SHUTDOWN_FORCED, "c1") == UNKNOWN
        return
    await process.end_input()
    assert await guest.end(process) == (b"", 0)
    await guest.host.notification()
    await guest.delete("c1")


@scenario
async def an_unknown_container_is_not_found(guest: Guest) -> None:
    for procedure in (
        Procedure.SHUTDOWN_GRACEFUL,
        Procedure.SHUTDOWN_FORCED,
        Procedure.EXECUTE_PROCESS,
        Procedure.WAIT_FOR_PROCESS,
        Procedure.SIGNAL_PROCESS,
        Procedure.RESIZE_CONSOLE,
        Procedure.GET_PROPERTIES,
        Procedure.DELETE_CONTAINER_STATE,
    ):
        assert await guest.host.refusal(procedure, "none", **NOTHING_ASKED) == UNKNOWN


@scenario
async def two_containers_run_beside_each_other_and_one_that_ends_disturbs_no_other(guest: Guest) -> None:
    await guest.create("c1", "cat")
    await guest.create("c2", "cat")
    first, second = [await guest.start(each) for each in ("c1", "c2")]
    await guest.host.ask(Procedure.SHUTDOWN_FORCED, "c1")
    assert await guest.end(first) == (b"", 137)
    assert (await guest.host.notification())["ContainerId"] == "c1"
    await guest.delete("c1")
    await second.write(b"still here")
    await second.end_input()
    assert await guest.end(second) == (b"still here", 0)
    assert (await guest.host.notification())["ContainerId"] == "c2"
    await guest.delete("c2")


@scenario
async def a_network_namespace_is_assigned_to_one_container(guest: Guest) -> None:
    await guest.create("c1", "cat")
    shared = {"windows": {"network": {"networkNamespace": "C1"}}}
    config = await guest.config("c2", "cat", **shared)
    code, text = await guest.host.refusal(Procedure.CREATE, "c2", ContainerConfig=config)
    assert code == HResult.E_FAIL
    assert "previously assigned container pid" in text
    assert text.endswith('to network namespace "c1"')
    await guest.delete("c1")
    await guest.host.ask(Procedure.CREATE, "c2", ContainerConfig=config)
    await guest.delete("c2")


# Terminals.


@scenario
async def a_terminal_in_a_container_has_the_size_that_was_asked_for(guest: Guest) -> None:
    await guest.create("c1", "cat")
    first = await guest.start("c1")
    refused = await guest.host.refusal(Procedure.RESIZE_CONSOLE, "c1", ProcessId=first.pid, Height=1, Width=1)
    assert refused[0] == HResult.E_FAIL
    size = {"height": 10, "width": 20}
    process = await guest.execute("c1", "stty", "size", terminal=True, consoleSize=size)
    assert await guest.end(process) == (b"10 20\r\n", 0)
    await guest.terminate(first)


@scenario
async def the_first_process_may_have_a_terminal(guest: Guest) -> None:
    size = {"height": 33, "width": 77}
    await guest.create("c1", "stty", "size", process={"terminal": True, "consoleSize": size})
    assert await guest.end(await guest.start("c1")) == (b"33 77\r\n", 0)
    await guest.host.notification()
    await guest.delete("c1")


# Properties and resources.


@scenario
async def the_processes_of_a_container_are_listed(guest: Guest) -> None:
    await guest.create("c1", "cat")
    assert await guest.properties("c1") == {}
    (created,) = (await guest.properties("c1", "ProcessList"))["ProcessList"]
    first = await guest.start("c1")
    assert created == {"ProcessId": first.pid}
    other = await guest.execute("c1", "sleep", "1000")
    listed = (await guest.properties("c1", "ProcessList"))["ProcessList"]
    assert {each["ProcessId"] for each in listed} == {first.pid, other.pid}
    await guest.terminate(first)


@scenario
async def the_figures_of_a_container_have_the_names_of_cgroup_v1(guest: Guest) -> None:
    limit = 64 << 20
    await guest.create("c1", "cat", resources={"memory": {"limit": limit}})
    first = await guest.start("c1")
    metrics = (await guest.properties("c1", "Statistics"))["LCOWMetrics"]
    assert metrics["pids"]["current"] == 1
    assert metrics["memory"]["usage"]["limit"] == limit
    assert 0 < metrics["memory"]["usage"]["usage"] <= metrics["memory"]["usage"]["max"] < limit
    assert metrics["cpu"]["usage"].get("total", 0) >= metrics["cpu"]["usage"].get("kernel", 0)
    await guest.terminate(first)


@scenario
async def resources_of_a_container_are_changed(guest: Guest) -> None:
    await guest.create("c1", "cat")
    first = await guest.start("c1")

    async def update(**linux: Any) -> dict[str, Any]:
        settings = {"Linux": linux}
        change = {"ResourceType": "ContainerConstraints", "RequestType": "Update", "Settings": settings}
        return {"Request": change}

    limit = 48 << 20
    await guest.host.ask(Procedure.MODIFY_SETTINGS, "c1", **await update(memory={"limit": limit}))
    metrics = (await guest.properties("c1", "Statistics"))["LCOWMetrics"]
    assert metrics["memory"]["usage"]["limit"] == limit
    code, text = await guest.host.refusal(
        Procedure.MODIFY_SETTINGS, "c1", **await update(memory={"limit": 4096})
    )
    assert (code, "update failed: unable to set memory limit to 4096" in text) == (HResult.E_FAIL, True)
    await guest.terminate(first)
