"""Containers of the fake guest: their lives, their processes, their exits."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from tests.backends.fake.guesthost import ACTIVITY, GCS, Host, Process, booted
from tests.backends.fake.support import JSON, backend_of, host_files, to_guest, wcow
from uvm._wire.frames import Procedure
from uvm.backends.fake import FakeBackend
from uvm.backends.fake.guest.state import Mount
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

UNKNOWN = (HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND, "HRESULT: 0xc037010e")
NOT_FOUND = (HResult.ERROR_NOT_FOUND, "HRESULT: 0x80070490")


def spec(*args: str, **process: Any) -> JSON:
    """An OCI specification with what the guest needs."""
    return {
        "ociVersion": "1.0.2",
        "process": {"args": list(args), "cwd": "/", "user": {"uid": 0, "gid": 0}, **process},
        "root": {"path": "/run/gcs/c/c/rootfs"},
        "linux": {},
        "windows": {"network": {"networkNamespace": "C"}},
    }


def config(specification: object, version: tuple[int, int] = (2, 1)) -> str:
    return json.dumps(
        {
            "SchemaVersion": {"Major": version[0], "Minor": version[1]},
            "OciBundlePath": "/run/gcs/c/c",
            "OciSpecification": specification,
            "ScratchDirPath": "/run/gcs/c/c/scratch",
        }
    )


async def create(host: Host, *args: str, container: str = "c", **process: Any) -> None:
    await host.ask(Procedure.CREATE, container, ContainerConfig=config(spec(*args, **process)))
    await host.ask(Procedure.START, container)


async def start(host: Host, container: str = "c") -> Process:
    """Start the first process of a container."""
    return await host.start_process({}, "StdIn", "StdOut", container=container)


async def execute(host: Host, *args: str, container: str = "c", **process: Any) -> Process:
    """Run another process in a container."""
    parameters = {"OciProcess": {"args": list(args), "cwd": "/", "env": [], **process}}
    return await host.start_process(parameters, "StdIn", "StdOut", container=container)


async def properties(host: Host, *types: str, container: str = "c") -> Any:
    query = json.dumps({"PropertyTypes": list(types)})
    return json.loads((await host.ask(Procedure.GET_PROPERTIES, container, Query=query))["Properties"])


async def end(process: Process) -> int:
    """Read what a process writes to the end, which its runtime waits for, and wait for its exit."""
    await process.read()
    return await process.wait()


# Creation.


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            "xx",
            HResult.ERROR_VMCOMPUTE_INVALID_JSON,
            'failed to unmarshal JSON for ContainerConfig "xx": HRESULT 0xc037010d: ',
        ),
        (
            config(spec("true"), (1, 0)),
            HResult.ERROR_VMCOMPUTE_INVALID_JSON,
            "HRESULT 0xc037010d: invalid schema version: {1 0}",
        ),
        ("{}", HResult.ERROR_VMCOMPUTE_INVALID_JSON, "HRESULT 0xc037010d: invalid schema version: {0 0}"),
        (
            config("a text"),
            HResult.ERROR_VMCOMPUTE_INVALID_JSON,
            "failed to unmarshal JSON for ContainerConfig",
        ),
        (
            config(spec("nothing")),
            HResult.E_FAIL,
            'failed to create container: exec: "nothing": executable file not found in $PATH',
        ),
        (
            config(spec()),
            HResult.E_FAIL,
            "failed to create container: exec",
        ),
    ],
)
async def test_a_container_that_cannot_be_is_refused(text: str, code: int, message: str) -> None:
    async with booted() as host:
        answer = await host.refusal(Procedure.CREATE, "c", ContainerConfig=text)
        assert answer[0] == code
        assert answer[1].startswith(message)
        assert host.service.containers == {}


async def test_an_id_is_taken_until_the_container_is_deleted() -> None:
    async with booted() as host:
        await create(host, "true")
        assert await host.refusal(Procedure.CREATE, "c", ContainerConfig=config(spec("true"))) == (
            HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_EXISTS,
            "HRESULT: 0xc037010f",
        )
        await host.ask(Procedure.DELETE_CONTAINER_STATE, "c")
        await create(host, "true")
        assert host.notifications == []


async def test_a_network_namespace_is_assigned_to_one_container_until_that_of_its_name_is_deleted() -> None:
    async with booted() as host:
        await create(host, "true", container="d")
        pid = f"{host.service.containers['d'].pids[0]}"
        taken = (HResult.E_FAIL, f'previously assigned container pid {pid} to network namespace "c"')
        again = config(spec("true"))
        assert await host.refusal(Procedure.CREATE, "c", ContainerConfig=again) == taken
        await host.ask(Procedure.DELETE_CONTAINER_STATE, "d")
        assert await host.refusal(Procedure.CREATE, "c", ContainerConfig=again) == taken
        in_pod = {**spec("true"), "annotations": {"io.kubernetes.cri.container-type": "container"}}
        await host.ask(Procedure.CREATE, "c", ContainerConfig=config(in_pod))
        await host.ask(Procedure.DELETE_CONTAINER_STATE, "c")
        await host.ask(Procedure.CREATE, "c", ContainerConfig=again)


@pytest.mark.parametrize("missing", ["process", "root", "linux"])
async def test_a_specification_without_the_essential_kills_the_guest(missing: str) -> None:
    """The guest of hcsshim follows a null pointer there; a host has to look first."""
    async with booted() as host:
        broken = {key: value for key, value in spec("true").items() if key != missing}
        await host.send(Procedure.CREATE, "c", ContainerConfig=config(broken))
        with anyio.fail_after(5):
            assert (await host.system.wait()).exit_type == "UnexpectedExit"


@pytest.mark.parametrize(
    "procedure",
    [
        Procedure.SHUTDOWN_GRACEFUL,
        Procedure.SHUTDOWN_FORCED,
        Procedure.EXECUTE_PROCESS,
        Procedure.WAIT_FOR_PROCESS,
        Procedure.SIGNAL_PROCESS,
        Procedure.RESIZE_CONSOLE,
        Procedure.GET_PROPERTIES,
        Procedure.DELETE_CONTAINER_STATE,
    ],
)
async def test_an_unknown_container_is_refused(procedure: Procedure) -> None:
    async with booted() as host:
        assert await host.refusal(procedure, "nobody", Settings={"ProcessParameters": "{}"}) == UNKNOWN


# Processes.


async def test_a_container_runs_from_the_start_of_its_first_process() -> None:
    async with booted() as host:
        await create(host, "cat", env=["A=1"], user={"username": "me"})
        assert await properties(host) == {}
        (created,) = (await properties(host, "ProcessList"))["ProcessList"]
        process = await start(host)
        assert created == {"ProcessId": process.pid}
        view = host.service.processes[process.pid].view
        assert (view.env, view.user) == ({"A": "1"}, "me")
        await process.write(b"x")
        assert await process.read(size=1) == b"x"


async def test_other_processes_run_in_it_and_its_end_is_theirs() -> None:
    async with booted() as host:
        await create(host, "cat")
        first = await start(host)
        other = await execute(host, "sleep", "1000")
        listed = (await properties(host, "ProcessList"))["ProcessList"]
        assert [each["ProcessId"] for each in listed] == [first.pid, other.pid]
        await first.end_input()
        assert await end(first) == 0
        assert await end(other) == 137


async def test_the_exit_of_a_container_process_is_known_when_its_output_was_read_and_closed() -> None:
    async with booted() as host:
        await create(host, "echo", "hi")
        process = await start(host)
        assert await process.streams["StdOut"].receive() == b"hi\n"
        with pytest.raises(anyio.EndOfStream):
            await process.streams["StdOut"].receive()
        code, _ = await host.refusal(Procedure.WAIT_FOR_PROCESS, "c", ProcessId=process.pid, TimeoutInMs=0)
        assert code == HResult.ERROR_VMCOMPUTE_TIMEOUT
        await process.streams["StdOut"].aclose()
        assert await process.wait() == 0


@pytest.mark.parametrize(("signal", "code"), [(9, 137), (15, 143), (1, 129), (None, 137)])
async def test_a_process_killed_by_a_signal_exits_with_128_and_its_number(
    signal: int | None, code: int
) -> None:
    async with booted() as host:
        await create(host, "cat")
        await start(host)
        process = await execute(host, "sleep", "1000")
        await process.signal(signal)
        assert await end(process) == code
        gone = {"ProcessId": process.pid}
        assert await host.refusal(Procedure.SIGNAL_PROCESS, "c", **gone) == NOT_FOUND
        assert await host.refusal(Procedure.WAIT_FOR_PROCESS, "c", **gone) == NOT_FOUND


async def test_a_process_that_writes_to_nobody_dies_of_it() -> None:
    async with booted() as host:
        await create(host, "yes")
        process = await start(host)
        await process.streams["StdOut"].receive()
        await process.streams["StdOut"].aclose()
        assert await process.wait() == 141


async def test_a_first_process_whose_program_is_gone_by_now_is_refused() -> None:
    async with booted() as host:
        await create(host, "cat")
        del backend_of(host.system).programs["cat"]
        settings = {"ProcessParameters": "{}"}
        code, message = await host.refusal(Procedure.EXECUTE_PROCESS, "c", Settings=settings)
        assert (code, "executable file not found" in message) == (HResult.E_FAIL, True)


async def test_a_signal_to_a_process_that_has_exited_is_refused_though_nobody_waited() -> None:
    async with booted() as host:
        await create(host, "cat")
        await start(host)
        process = await execute(host, "true")
        await process.read()
        await anyio.wait_all_tasks_blocked()
        assert await host.refusal(Procedure.SIGNAL_PROCESS, "c", ProcessId=process.pid) == NOT_FOUND


async def test_what_is_no_signal_is_refused() -> None:
    async with booted() as host:
        await create(host, "cat")
        process = await start(host)
        assert await host.refusal(
            Procedure.SIGNAL_PROCESS, "c", ProcessId=process.pid, Options={"Signal": 999}
        ) == (HResult.E_FAIL, "invalid argument")


async def test_a_process_with_a_terminal_is_resized_and_one_without_is_not() -> None:
    async with booted() as host:
        await create(host, "cat")
        first = await start(host)
        code, _ = await host.refusal(Procedure.RESIZE_CONSOLE, "c", ProcessId=first.pid, Height=1, Width=1)
        assert code == HResult.E_FAIL
        size = {"height": 10, "width": 20}
        process = await execute(host, "stty", "size", terminal=True, consoleSize=size)
        assert await process.read() == b"10 20\r\n"
        process = await execute(host, "cat", terminal=True)
        await host.ask(Procedure.RESIZE_CONSOLE, "c", ProcessId=process.pid, Height=33, Width=77)
        terminal = host.service.processes[process.pid].view.terminal
        assert terminal is not None
        assert (terminal.height, terminal.width) == (33, 77)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["nothing"], 'exec: "nothing": executable file not found in $PATH'),
        (["/no/such"], 'exec: "/no/such": no such file or directory'),
        ([], 'exec: "": executable file not found in $PATH'),
    ],
)
async def test_a_command_that_cannot_run_is_refused(command: list[str], message: str) -> None:
    async with booted() as host:
        await create(host, "cat")
        await start(host)
        settings = {"ProcessParameters": json.dumps({"OciProcess": {"args": command}})}
        assert await host.refusal(Procedure.EXECUTE_PROCESS, "c", Settings=settings) == (
            HResult.E_FAIL,
            f"exec failed: {message}",
        )


async def test_a_first_process_starts_once() -> None:
    async with booted() as host:
        await create(host, "cat")
        process = await start(host)
        again = {"Settings": {"ProcessParameters": "{}"}}
        running, stopped = (f"cannot start a container that is {state}" for state in ("running", "stopped"))
        assert await host.refusal(Procedure.EXECUTE_PROCESS, "c", **again) == (HResult.E_FAIL, running)
        await process.end_input()
        await end(process)
        assert await host.refusal(Procedure.EXECUTE_PROCESS, "c", **again) == (HResult.E_FAIL, stopped)


# The exit.


async def test_the_exit_is_told_after_the_answer_to_a_wait_and_only_then() -> None:
    async with booted() as host:
        await create(host, "true")
        process = await start(host)
        await process.read()
        await anyio.wait_all_tasks_blocked()
        code, _ = await host.refusal(Procedure.EXECUTE_PROCESS, "c", Settings={"ProcessParameters": "{}"})
        assert (code, host.notifications) == (HResult.E_FAIL, [])
        wait = await host.send(Procedure.WAIT_FOR_PROCESS, "c", ProcessId=process.pid)
        assert await host.notification() == {
            "ContainerId": "c",
            "ActivityId": ACTIVITY,
            "Type": "UnexpectedExit",
            "Operation": "None",
            "Result": 0,
        }
        assert host.order[-2:] == [f"answer {wait}", "notification of c"]
        assert await process.wait() == 0
        assert host.notifications == []


@pytest.mark.parametrize(
    ("how", "code", "exit_type"),
    [
        (9, 137, "ForcedExit"),
        (15, 143, "GracefulExit"),
        (1, 129, "UnexpectedExit"),
        (Procedure.SHUTDOWN_FORCED, 137, "ForcedExit"),
        (Procedure.SHUTDOWN_GRACEFUL, 143, "GracefulExit"),
    ],
)
async def test_how_a_container_was_ended_is_told(how: int, code: int, exit_type: str) -> None:
    async with booted() as host:
        await create(host, "sleep", "1000")
        process = await start(host)
        if how in list(Procedure):
            await host.ask(how, "c")
        else:
            await process.signal(how)
        assert await end(process) == code
        assert (await host.notification())["Type"] == exit_type


async def test_what_an_exited_container_refuses() -> None:
    async with booted() as host:
        await create(host, "true")
        process = await start(host)
        await end(process)
        assert await host.refusal(Procedure.SHUTDOWN_FORCED, "c") == (
            HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED,
            "HRESULT 0xc0370110: container not running",
        )
        assert await host.refusal(Procedure.SIGNAL_PROCESS, "c", ProcessId=process.pid) == NOT_FOUND
        settings = {"ProcessParameters": json.dumps({"OciProcess": {"args": ["true"]}})}
        code, message = await host.refusal(Procedure.EXECUTE_PROCESS, "c", Settings=settings)
        assert (code, message.endswith("cannot exec in a stopped container")) == (HResult.E_FAIL, True)
        assert await properties(host, "ProcessList") == {}
        await host.ask(Procedure.DELETE_CONTAINER_STATE, "c")
        assert await host.refusal(Procedure.DELETE_CONTAINER_STATE, "c") == UNKNOWN


async def test_a_running_container_is_not_deleted_but_forgotten() -> None:
    """As hcsshim's guest does when runc refuses."""
    async with booted() as host:
        await create(host, "cat")
        process = await start(host)
        code, message = await host.refusal(Procedure.DELETE_CONTAINER_STATE, "c")
        assert (code, message.endswith("HRESULT 0x80370105: container not stopped")) == (
            HResult.HCS_E_INVALID_STATE,
            True,
        )
        assert await host.refusal(Procedure.GET_PROPERTIES, "c") == UNKNOWN
        assert process.pid in host.service.processes


@pytest.mark.parametrize("path", ["/run/gcs/c/c", "/run/gcs/c/c/rootfs", "/run/gcs//c/c/rootfs/"])
async def test_a_state_is_not_deleted_while_something_is_mounted_in_its_bundle_but_forgotten(
    path: str,
) -> None:
    """As hcsshim's guest does when the bundle cannot be removed."""
    async with booted() as host:
        await create(host, "true")
        host.vm.guest.mounts[host.vm.guest.key(path)] = Mount(path, "disk")
        code, message = await host.refusal(Procedure.DELETE_CONTAINER_STATE, "c")
        assert (code, message) == (HResult.E_FAIL, f"unlinkat {path}: device or resource busy")
        assert await host.refusal(Procedure.GET_PROPERTIES, "c") == UNKNOWN


async def test_what_is_mounted_beside_a_bundle_holds_no_state() -> None:
    async with booted() as host:
        await create(host, "true")
        host.vm.guest.mounts["/run/gcs/c/c2"] = Mount("/run/gcs/c/c2", "disk")
        await host.ask(Procedure.DELETE_CONTAINER_STATE, "c")


async def test_a_container_that_was_never_started_can_be_killed() -> None:
    async with booted() as host:
        await create(host, "cat")
        await host.ask(Procedure.SHUTDOWN_FORCED, "c")
        code, message = await host.refusal(
            Procedure.EXECUTE_PROCESS, "c", Settings={"ProcessParameters": "{}"}
        )
        assert (code, message.endswith("cannot start a container that is stopped")) == (HResult.E_FAIL, True)
        assert host.notifications == []


async def test_an_exit_during_a_disconnection_is_told_on_the_next_connection() -> None:
    async with booted() as host:
        await create(host, "cat")
        process = await start(host)
        await host.send(Procedure.WAIT_FOR_PROCESS, "c", ProcessId=process.pid, TimeoutInMs=0xFFFFFFFF)
        await anyio.wait_all_tasks_blocked()
        await host.listener.aclose()
        host.service.drop()
        await process.end_input()
        await process.read()
        await anyio.wait_all_tasks_blocked()
        host.listener = await host.system.listen(GCS)
        await host.redial()
        assert (await host.notification())["ContainerId"] == "c"


# Properties and changes.


async def test_the_metrics_of_a_container_follow_its_processes_and_its_limits() -> None:
    async with booted() as host:
        specification = spec("cat")
        specification["linux"] = {"resources": {"memory": {"limit": 1 << 28}}}
        await host.ask(Procedure.CREATE, "c", ContainerConfig=config(specification))
        await start(host)
        await execute(host, "cat")
        metrics = (await properties(host, "Statistics", "Unknown"))["LCOWMetrics"]
        assert metrics["pids"] == {"current": 2}
        assert metrics["memory"]["usage"]["limit"] == 1 << 28
        assert metrics["cpu"]["usage"]["total"] > 0
        constraints = {"Linux": {"memory": {"limit": 1 << 27}}, "Windows": {}}
        request = to_guest("ContainerConstraints", "Update", **constraints)
        await host.ask(Procedure.MODIFY_SETTINGS, "c", Request=request)
        metrics = (await properties(host, "Statistics"))["LCOWMetrics"]
        assert metrics["memory"]["usage"]["limit"] == 1 << 27


async def test_a_container_has_no_other_settings() -> None:
    async with booted() as host:
        await create(host, "cat")
        request = to_guest("MappedVirtualDisk", "Add", MountPath="/m")
        assert await host.refusal(Procedure.MODIFY_SETTINGS, "c", Request=request) == (
            HResult.E_FAIL,
            "MappedVirtualDisk is not supported for containers",
        )
        code, message = await host.refusal(Procedure.MODIFY_SETTINGS, "c", Request=to_guest("Foo", "Add"))
        assert (code, message) == (HResult.E_FAIL, "invalid ResourceType 'Foo'")
        request = to_guest("ContainerConstraints", "Update")
        assert await host.refusal(Procedure.MODIFY_SETTINGS, Request=request) == UNKNOWN


async def test_the_guest_itself_has_no_properties() -> None:
    async with booted() as host:
        assert await host.refusal(Procedure.GET_PROPERTIES, Query="") == (
            HResult.E_FAIL,
            "getPropertiesV2 is not supported against the UVM",
        )
        assert (await host.refusal(Procedure.GET_PROPERTIES, Query="xx"))[
            0
        ] == HResult.ERROR_VMCOMPUTE_INVALID_JSON


# Windows containers.


async def windows_container(host: Host) -> None:
    document = {"SchemaVersion": {"Major": 2, "Minor": 1}, "Container": {"GuestOs": {"HostName": "h"}}}
    await host.ask(Procedure.CREATE, "c", ContainerConfig=json.dumps(document))


async def test_a_windows_container_lives_from_its_start_to_its_shutdown() -> None:
    async with booted(wcow()) as host:
        await windows_container(host)
        settings = {"ProcessParameters": json.dumps({"CommandLine": "sleep 1000"})}
        assert (await host.refusal(Procedure.EXECUTE_PROCESS, "c", Settings=settings))[
            0
        ] == HResult.ERROR_VMCOMPUTE_INVALID_STATE
        await host.ask(Procedure.START, "c")
        assert (await host.refusal(Procedure.START, "c"))[0] == HResult.ERROR_VMCOMPUTE_INVALID_STATE
        process = await host.start_process({"CommandLine": "sleep 1000"}, "StdOut", container="c")
        found = await properties(host, "ProcessList", "Statistics")
        assert (found["State"], found["ProcessList"]) == (
            "Running",
            [{"ProcessId": process.pid, "ImageName": "sleep"}],
        )
        assert found["Statistics"]["Memory"]["MemoryUsageCommitBytes"] > 0
        shutdown = await host.send(Procedure.SHUTDOWN_GRACEFUL, "c")
        assert (await host.notification())["Type"] == "GracefulExit"
        assert host.order[-2:] == [f"answer {shutdown}", "notification of c"]
        assert await process.wait() == 1
        assert (await host.refusal(Procedure.SHUTDOWN_FORCED, "c"))[
            0
        ] == HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED


async def test_a_terminated_windows_container_exited_by_force() -> None:
    async with booted(wcow()) as host:
        await windows_container(host)
        await host.ask(Procedure.START, "c")
        await host.ask(Procedure.SHUTDOWN_FORCED, "c")
        assert (await host.notification())["Type"] == "ForcedExit"


async def test_the_state_of_a_windows_container_is_deleted_where_the_guest_can_once_it_does_not_run() -> None:
    backend = FakeBackend(files=host_files(), guest_capabilities={"DeleteContainerStateSupported": True})
    async with booted(wcow(), backend) as host:
        await windows_container(host)
        await host.ask(Procedure.START, "c")
        assert (await host.refusal(Procedure.DELETE_CONTAINER_STATE, "c"))[
            0
        ] == HResult.ERROR_VMCOMPUTE_INVALID_STATE
        await host.ask(Procedure.SHUTDOWN_FORCED, "c")
        await host.ask(Procedure.DELETE_CONTAINER_STATE, "c")
        assert (await host.refusal(Procedure.DELETE_CONTAINER_STATE, "c"))[
            0
        ] == HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND


async def test_a_windows_container_takes_changes_and_its_document_is_read_strictly() -> None:
    async with booted(wcow()) as host:
        await windows_container(host)
        request = to_guest("MappedDirectory", "Add", HostPath="C:\\x", ContainerPath="C:\\y")
        await host.ask(Procedure.MODIFY_SETTINGS, "c", Request=request)
        for text, code in (
            ('{"Container":{},"New":1}', HResult.ERROR_VMCOMPUTE_INVALID_JSON),
            ("{}", HResult.E_INVALIDARG),
            ('{"Container":{}}', HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_EXISTS),
        ):
            assert (await host.refusal(Procedure.CREATE, "c", ContainerConfig=text))[0] == code
        assert (await host.refusal(Procedure.GET_PROPERTIES, "nobody"))[
            0
        ] == HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND
