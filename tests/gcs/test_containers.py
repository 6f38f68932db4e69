"""Containers in a guest: their life, what runs in them, and what a guest may say of them."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from tests.clocks import jumping_backends
from tests.gcs.guests import LINUX, WINDOWS, Guest, Redial, Refusal, connected, undone
from uvm._gcs.connection import GuestConnection
from uvm._guest.container import Container, ContainerExit
from uvm._guest.specs import linux_container
from uvm._guest.timeouts import GuestTimeouts
from uvm._wire.frames import Procedure
from uvm.errors import (
    BridgeClosedError,
    GuestError,
    NotSupportedError,
    OptionsError,
    UnknownOutcomeError,
    UVMError,
    VMStateError,
    WireError,
)
from uvm.hresult import HResult
from uvm.schema.container import Container as ContainerDocument
from uvm.schema.container import GuestOs, HostedSystem
from uvm.schema.gcs import LinuxHostedSystem
from uvm.schema.json import SchemaError

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends

CREATE, EXECUTE, WAIT = Procedure.CREATE, Procedure.EXECUTE_PROCESS, Procedure.WAIT_FOR_PROCESS
FORCED, GRACEFUL = Procedure.SHUTDOWN_FORCED, Procedure.SHUTDOWN_GRACEFUL
DELETE, PROPERTIES = Procedure.DELETE_CONTAINER_STATE, Procedure.GET_PROPERTIES

PROCESS = {"args": ["httpd"], "cwd": "/srv", "env": ["MODE=live"], "user": {"uid": 33, "gid": 33}}
DOCUMENT = linux_container(
    {"ociVersion": "1.0.2", "process": PROCESS, "root": {"path": "rootfs"}, "linux": {}},
    bundle_path="/run/gcs/c/1",
    scratch_path="/run/gcs/c/1/scratch",
)
WITH_TERMINAL = linux_container(
    {"process": PROCESS | {"terminal": True}, "root": {"path": "rootfs"}, "linux": {}},
    bundle_path="/run/gcs/c/1",
)


@pytest.fixture
def guest() -> Guest:
    return Guest()


async def created(connection: GuestConnection, container_id: str = "c1") -> Container:
    return await connection.create_container(container_id, DOCUMENT)


# Their life.


async def test_a_linux_container_is_created_from_its_document(guest: Guest) -> None:
    async with connected(guest) as connection:
        container = await created(connection)
        assert (container.id, container.exit) == ("c1", None)
        [body] = guest.bodies(CREATE)
        assert body["ContainerId"] == "c1"
        config = json.loads(body["ContainerConfig"])
        assert config["OciBundlePath"] == "/run/gcs/c/1"
        assert config["OciSpecification"]["process"] == PROCESS


async def test_a_windows_container_is_created_from_hcs_own_document(guest: Guest) -> None:
    guest.capabilities = WINDOWS
    document = HostedSystem(container=ContainerDocument(guest_os=GuestOs(host_name="web")))
    async with connected(guest) as connection:
        await connection.create_container("c1", document)
        await connection.create_container("c2", {"Container": {"GuestOs": {"HostName": "web"}}})
        first, second = (json.loads(body["ContainerConfig"]) for body in guest.bodies(CREATE))
        assert first == second == {"Container": {"GuestOs": {"HostName": "web"}}}


async def test_a_container_ends_when_the_guest_says_so(guest: Guest) -> None:
    exits: list[ContainerExit] = []

    async def wait(container: Container) -> None:
        exits.append(await container.wait())

    async with connected(guest) as connection:
        container = await created(connection)
        await container.start()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait, container)
            await anyio.wait_all_tasks_blocked()
            guest.script.notify("c1", Type="UnexpectedExit", Result=-5, ResultInfo="{}")
        assert exits == [ContainerExit("UnexpectedExit", 0xFFFFFFFB, "{}")] * 3
        assert container.exit == exits[0]
        # The id is free again.
        assert await created(connection) is not container


async def test_a_container_that_the_guest_refuses_leaves_nothing_behind(guest: Guest) -> None:
    guest.answers[CREATE] = lambda _: Refusal(HResult.E_FAIL, "no rootfs")
    async with connected(guest) as connection:
        with pytest.raises(GuestError, match=r"create container c1.*no rootfs"):
            await created(connection)
        del guest.answers[CREATE]
        await created(connection)


@pytest.mark.parametrize(
    ("container_id", "document"),
    [
        ("", DOCUMENT),
        (7, DOCUMENT),
        ("a\0", DOCUMENT),
        ("c1", None),
        ("c1", "{}"),
        ("c1", {}),
        ("c1", {"OciSpecification": {"process": {}}}),
        ("c1", {"OciSpecification": {"process": {}, "linux": {}, "root": {}, "extra": {1}}}),
    ],
)
async def test_what_is_no_container_is_refused_before_anything_is_sent(
    guest: Guest, container_id: Any, document: Any
) -> None:
    async with connected(guest) as connection:
        with pytest.raises(OptionsError):
            await connection.create_container(container_id, document)
        assert not guest.bodies(CREATE)
        await created(connection)


async def test_two_containers_cannot_have_one_id(guest: Guest) -> None:
    async with connected(guest) as connection:
        await created(connection)
        with pytest.raises(OptionsError, match="one of that id is there"):
            await created(connection)
        assert len(guest.bodies(CREATE)) == 1


async def test_a_container_whose_caller_is_cancelled_meanwhile_is_ended_and_forgotten(guest: Guest) -> None:
    guest.answers[CREATE] = lambda _: None
    async with connected(guest) as connection:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(created, connection)
            await guest.until_asked(CREATE)
            tasks.cancel_scope.cancel()
        guest.answer_held(CREATE, {})
        await undone(connection)
        assert [len(guest.bodies(each)) for each in (FORCED, DELETE)] == [1, 1]
        del guest.answers[CREATE]
        await created(connection)


async def test_a_container_that_was_refused_while_its_caller_left_leaves_nothing_behind(guest: Guest) -> None:
    guest.answers[CREATE] = lambda _: None
    async with connected(guest) as connection:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(created, connection)
            await guest.until_asked(CREATE)
            tasks.cancel_scope.cancel()
        guest.answer_held(CREATE, Refusal(HResult.E_FAIL))
        await undone(connection)
        assert not guest.bodies(FORCED)
        del guest.answers[CREATE]
        await created(connection)


async def test_a_container_of_which_it_is_unknown_whether_it_exists_is_ended_before_another_of_its_id(
    guest: Guest,
) -> None:
    guest.answers[CREATE] = lambda _: None
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=GuestTimeouts(redial_seconds=60), redial=redial) as connection:
            async with anyio.create_task_group() as callers:
                callers.start_soon(_expect_unknown, connection)
                await guest.until_asked(CREATE)
                guest.script.hang_up()
                await redial.wait_for_host()
                redial.dial()
            del guest.answers[CREATE]
            # It waits for that end.
            await created(connection)
            assert [len(guest.bodies(each)) for each in (FORCED, DELETE)] == [1, 1]


async def test_a_container_is_not_asked_for_any_more_where_its_caller_left_before_it_was(
    guest: Guest,
) -> None:
    async with anyio.create_task_group() as tasks:
        redial = Redial(guest, tasks)
        async with connected(guest, timeouts=GuestTimeouts(redial_seconds=60), redial=redial) as connection:
            guest.script.hang_up()
            await redial.wait_for_host()
            async with anyio.create_task_group() as callers:
                callers.start_soon(created, connection)
                await anyio.wait_all_tasks_blocked()
                callers.cancel_scope.cancel()
            redial.dial()
            await connection.dump_stacks()
            assert not guest.bodies(CREATE)
            await created(connection)


async def _expect_unknown(connection: GuestConnection) -> None:
    with pytest.raises(UnknownOutcomeError):
        await created(connection)


# What a guest may not say.


async def test_the_exit_of_a_container_that_never_was_ends_the_connection(guest: Guest) -> None:
    async with connected(guest) as connection:
        await created(connection)
        guest.script.notify("c2")
        await connection.wait_closed()
        with pytest.raises(BridgeClosedError, match="a container that is not there") as caught:
            await connection.run(["true"])
        assert isinstance(caught.value.__cause__, WireError)


# The end.


async def test_a_container_is_ended_when_its_context_ends(guest: Guest) -> None:
    guest.answers[WAIT] = lambda _: None

    def terminated(_: Any) -> dict[str, Any]:
        guest.script.notify("c1", Type="ForcedExit")
        return {}

    guest.answers[FORCED] = terminated
    async with connected(guest) as connection:
        async with await created(connection) as container:
            await container.open_init()
        assert container.exit == ContainerExit("ForcedExit")
        assert [len(guest.bodies(each)) for each in (FORCED, DELETE)] == [1, 1]


async def test_a_container_that_has_exited_is_only_forgotten(guest: Guest) -> None:
    async with connected(guest) as connection:
        async with await created(connection) as container:
            guest.script.notify("c1")
            await container.wait()
            await container.shutdown()
            await container.terminate()
        assert [len(guest.bodies(each)) for each in (GRACEFUL, FORCED, DELETE)] == [0, 0, 1]


async def test_the_unread_output_of_a_container_is_dropped_when_it_is_closed(guest: Guest) -> None:
    # The Linux guest tells of the exit only once the output was read, or closed.
    async with connected(guest, timeouts=GuestTimeouts(grace_seconds=0.01)) as connection:

        async def end() -> None:
            await guest.until_asked(FORCED)
            with pytest.raises(anyio.EndOfStream):
                await guest.streams["StdOut"].receive()
            guest.script.notify("c1")

        async with anyio.create_task_group() as tasks, await created(connection) as container:
            await container.open_init()
            tasks.start_soon(end)
        assert container.exit is not None


async def test_a_linux_container_that_never_ran_is_not_waited_for(guest: Guest) -> None:
    async with connected(guest) as connection:
        async with await created(connection) as container:
            pass
        with pytest.raises(VMStateError, match="before it ran"):
            await container.wait()
        await created(connection)


@pytest.mark.parametrize(
    "code", [HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND, HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED]
)
async def test_to_end_and_forget_what_is_gone_succeeds(guest: Guest, code: int) -> None:
    for each in (FORCED, GRACEFUL, DELETE):
        guest.answers[each] = lambda _: Refusal(code)
    async with connected(guest) as connection:
        container = await created(connection)
        await container.shutdown()
        await container.terminate()
        await container.delete_state()


async def test_once_the_connection_is_closed_releasing_a_container_succeeds_at_once(guest: Guest) -> None:
    async with connected(guest) as connection:
        container = await created(connection)
        process = await container.open_init()
        guest.script.hang_up()
        await connection.wait_closed()
        await container.shutdown()
        await container.terminate()
        await container.delete_state()
        await container.aclose()
        await process.aclose()
        with pytest.raises(BridgeClosedError):
            await container.wait()
        with pytest.raises(BridgeClosedError):
            await container.start()


async def test_a_container_that_does_not_end_is_reported(guest: Guest) -> None:
    async with connected(guest, timeouts=GuestTimeouts(close_seconds=0.1, grace_seconds=0)) as connection:
        container = await created(connection)
        await container.open_init()
        with pytest.raises(UVMError, match=r"did not report its exit within 0\.1 s"):
            await container.aclose()
        assert len(guest.bodies(DELETE)) == 1


async def test_an_error_of_the_body_is_told_with_what_failed_at_the_end(guest: Guest) -> None:
    guest.answers[DELETE] = lambda _: Refusal(HResult.HCS_E_INVALID_STATE, "still there")
    async with connected(guest) as connection:
        with pytest.raises(ValueError, match="body") as caught:
            async with await created(connection):
                raise ValueError("body")
        assert "still there" in caught.value.__notes__[0]
        with pytest.raises(GuestError, match="still there"):
            async with await created(connection, "c2"):
                pass


async def test_a_guest_that_cannot_forget_containers_says_so(guest: Guest) -> None:
    guest.capabilities = LINUX | {"GuestDefinedCapabilities": {}}
    async with connected(guest) as connection:
        async with await created(connection) as container:
            with pytest.raises(NotSupportedError, match="DeleteContainerStateSupported"):
                await container.delete_state()
        assert not guest.bodies(DELETE)


# What runs in them.


async def test_the_own_process_of_a_linux_container_is_started_without_saying_what_it_is(
    guest: Guest,
) -> None:
    async with connected(guest) as connection:
        container = await created(connection)
        async with await container.open_init(stdin=True) as process:
            assert process.args == ()
        [body] = guest.bodies(EXECUTE)
        assert body["ContainerId"] == "c1"
        assert json.loads(body["Settings"]["ProcessParameters"]) == {
            "CreateStdInPipe": True,
            "CreateStdOutPipe": True,
            "CreateStdErrPipe": True,
        }


async def test_the_terminal_of_a_container_is_its_only_output_and_can_be_resized(guest: Guest) -> None:
    async with connected(guest) as connection:
        container = await connection.create_container("c1", WITH_TERMINAL)
        async with await container.open_init() as process:
            with pytest.raises(OptionsError, match="terminal"):
                _ = process.stderr
            await process.resize(24, 80)
        assert guest.bodies(Procedure.RESIZE_CONSOLE)[0]["ContainerId"] == "c1"


async def test_a_process_in_a_linux_container_is_an_oci_process_like_the_containers_own(guest: Guest) -> None:
    async with connected(guest) as connection:
        container = await created(connection)
        async with await container.open_process(["ls"], stdin=False, stderr=False):
            pass
        [body] = guest.bodies(EXECUTE)
        assert json.loads(body["Settings"]["ProcessParameters"]) == {
            "OciProcess": PROCESS | {"args": ["ls"], "terminal": False},
            "CreateStdOutPipe": True,
        }


async def test_a_process_in_a_windows_container_is_a_command_line(guest: Guest) -> None:
    guest.capabilities = WINDOWS
    async with connected(guest) as connection:
        container = await connection.create_container("c1", HostedSystem())
        async with await container.open_process(["cmd"], stdin=False, stderr=False):
            pass
        [body] = guest.bodies(EXECUTE)
        assert json.loads(body["Settings"]["ProcessParameters"])["CommandLine"] == "cmd"
        with pytest.raises(NotSupportedError, match="Windows"):
            await container.open_init()


async def test_a_process_in_a_container_is_never_signalled_by_another_program(guest: Guest) -> None:
    guest.answers[Procedure.SIGNAL_PROCESS] = lambda _: Refusal(HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND)
    async with connected(guest) as connection:
        container = await created(connection)
        async with await container.open_process(["sleep"]) as process:
            with pytest.raises(GuestError):
                await process.kill()
        assert len(guest.bodies(EXECUTE)) == 1


async def test_a_run_in_an_exited_container_is_the_guests_error(guest: Guest) -> None:
    guest.answers[EXECUTE] = lambda _: Refusal(HResult.E_FAIL, "cannot exec in a stopped container")
    async with connected(guest) as connection:
        container = await created(connection)
        with pytest.raises(GuestError, match="stopped container"):
            await container.run(["true"])
        assert not connection.closed


# What they can be asked.


async def test_properties_are_asked_for_by_name(guest: Guest) -> None:
    guest.answers[PROPERTIES] = lambda _: {"Properties": '{"Memory":{"x":1}}'}
    async with connected(guest) as connection:
        container = await created(connection)
        assert await container.properties("Memory") == {"Memory": {"x": 1}}
        guest.answers[PROPERTIES] = lambda _: {"Properties": '\ufeff{"Memory":{"x":1}}'}
        assert await container.properties("Memory") == {"Memory": {"x": 1}}
        assert json.loads(guest.bodies(PROPERTIES)[0]["Query"]) == {"PropertyTypes": ["Memory"]}


async def test_the_statistics_of_a_linux_container_are_its_metrics(guest: Guest) -> None:
    guest.answers[PROPERTIES] = lambda _: {"Properties": '{"LCOWMetrics":{"pids":{"current":1}}}'}
    async with connected(guest) as connection:
        container = await created(connection)
        assert await container.statistics() == {"pids": {"current": 1}}
        guest.answers[PROPERTIES] = lambda _: {"Properties": "{}"}
        assert await container.statistics() == {}
        guest.answers[PROPERTIES] = lambda _: {"Properties": '{"LCOWMetrics":[1]}'}
        with pytest.raises(SchemaError):
            await container.statistics()


async def test_the_statistics_of_a_windows_container_are_hcs_own(guest: Guest) -> None:
    guest.capabilities = WINDOWS
    guest.answers[PROPERTIES] = lambda _: {"Properties": '{"Statistics":{"Uptime100ns":5}}'}
    async with connected(guest) as connection:
        container = await connection.create_container("c1", HostedSystem())
        assert (await container.statistics())["Uptime100ns"] == 5


async def test_the_processes_of_a_container_are_listed(guest: Guest) -> None:
    guest.answers[PROPERTIES] = lambda _: {"Properties": '{"ProcessList":[{"ProcessId":4},{"ProcessId":9}]}'}
    async with connected(guest) as connection:
        container = await created(connection)
        assert [each.process_id for each in await container.processes()] == [4, 9]


@pytest.mark.parametrize("text", ["", "[]", "nope", '{"a":' + "[" * 500 + "]" * 500 + "}"])
async def test_properties_that_are_none_are_an_error_and_no_more(guest: Guest, text: str) -> None:
    guest.answers[PROPERTIES] = lambda _: {"Properties": text}
    async with connected(guest) as connection:
        container = await created(connection)
        with pytest.raises(WireError):
            await container.properties("Memory")
        assert not connection.closed


async def test_a_container_is_modified(guest: Guest) -> None:
    async with connected(guest) as connection:
        container = await created(connection)
        await container.modify({"ResourceType": "ContainerConstraints"})
        [body] = guest.bodies(Procedure.MODIFY_SETTINGS)
        assert (body["ContainerId"], body["Request"]) == ("c1", {"ResourceType": "ContainerConstraints"})


async def test_what_fails_twice_at_the_end_of_a_container_is_one_error_of_ours(guest: Guest) -> None:
    guest.answers[FORCED] = lambda _: Refusal(HResult.E_FAIL, "will not end")
    guest.answers[DELETE] = lambda _: Refusal(HResult.HCS_E_INVALID_STATE, "still there")
    async with connected(guest) as connection:
        container = await created(connection)
        with pytest.raises(UVMError, match=r"will not end.*still there"):
            await container.aclose()


async def test_a_container_whose_own_process_was_started_as_its_caller_left_is_seen_to_its_end(
    guest: Guest,
) -> None:
    start = guest.answers[EXECUTE]
    guest.answers[EXECUTE] = lambda _: None
    guest.answers[DELETE] = lambda _: {} if guest.bodies(FORCED) else Refusal(HResult.HCS_E_INVALID_STATE)
    async with connected(guest) as connection, anyio.create_task_group() as tasks:

        async def end() -> None:
            await guest.until_asked(FORCED)
            await anyio.wait_all_tasks_blocked()
            guest.script.notify("c1")

        container = await created(connection)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as opening:

                async def open_init() -> None:
                    await container.open_init()

                opening.start_soon(open_init)
                body = await guest.until_asked(EXECUTE)
                scope.cancel()
                with anyio.CancelScope(shield=True):
                    await anyio.wait_all_tasks_blocked()
                    answer = start(body)
                    assert isinstance(answer, dict)
                    guest.answer_held(EXECUTE, answer)
        tasks.start_soon(end)
        await container.aclose()
        await anyio.wait_all_tasks_blocked()
        assert container.exit is not None
        assert not connection.closed


async def test_who_waits_for_a_container_before_its_own_process_is_started_reads_its_output_too(
    guest: Guest,
) -> None:
    async with connected(guest) as connection, anyio.create_task_group() as tasks:
        container = await created(connection)
        tasks.start_soon(container.wait)
        await anyio.wait_all_tasks_blocked()
        await container.open_init()
        # As the Linux guest, which tells of the exit only once its output was read.
        for name in ("StdOut", "StdErr"):
            stream = guest.streams[name]
            await stream.send(b"unread")
            await stream.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        guest.script.notify("c1")


async def test_a_document_that_nests_too_deeply_is_refused_in_each_of_its_forms(guest: Guest) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    spec = {"process": deep, "root": {}, "linux": {}}
    async with connected(guest) as connection:
        for document in (LinuxHostedSystem(oci_specification=spec), {"OciSpecification": spec}):
            with pytest.raises(OptionsError, match="nests too deeply"):
                await connection.create_container("c1", document)
        assert not guest.bodies(CREATE)
