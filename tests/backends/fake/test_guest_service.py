"""The compute service of the fake guest: its boot, its connection, and how it answers."""

from __future__ import annotations

import json

import anyio
import pytest

from tests.backends.fake.guesthost import ACTIVITY, GCS, Host, booted
from tests.backends.fake.support import (
    JSON,
    add,
    backend_of,
    disk,
    host_files,
    lcow,
    running,
    slot,
    to_guest,
    wcow,
)
from uvm._wire.frames import Kind, Procedure, encode
from uvm._wire.ports import (
    LINUX_ENTROPY_PORT,
    LINUX_LOG_PORT,
    WINDOWS_GCS_SERVICE,
    WINDOWS_LOG_SERVICE,
    WINDOWS_SIDECAR_SERVICE,
    vsock_service_id,
)
from uvm.backends.fake import FakeBackend, FakeSystem
from uvm.hresult import HResult
from uvm.schema.gcs import HOST_CONTAINER_ID

pytestmark = pytest.mark.anyio

INIT = "panic=-1 -- -e 1 /bin/vsockexec -e 109 /bin/gcs -v4"
MOUNT = to_guest("MappedVirtualDisk", "Add", MountPath="/m", Lun=0)
UNMOUNT = to_guest("MappedVirtualDisk", "Remove", MountPath="/m", Lun=0)

SHUTDOWN_AND_MORE = (Procedure.SHUTDOWN_GRACEFUL, Procedure.DUMP_STACKS)


def booting(command_line: str = INIT) -> JSON:
    """The document of a Linux VM with a kernel command line."""
    document = lcow()
    document["VirtualMachine"]["Chipset"]["LinuxKernelDirect"]["KernelCmdLine"] = command_line
    return document


# The boot.


async def test_a_linux_guest_takes_entropy_then_opens_its_log_then_dials_the_host() -> None:
    async with running(booting()) as system, anyio.create_task_group() as tasks:
        tasks.start_soon(system.wait)
        gcs = await system.listen(GCS)
        log = await system.listen(vsock_service_id(LINUX_LOG_PORT))
        entropy = await (await system.listen(vsock_service_id(LINUX_ENTROPY_PORT))).accept()
        await anyio.wait_all_tasks_blocked()
        assert not system.vm.service.connected
        await entropy.send(bytes(range(256)) * 2)
        await entropy.aclose()
        line = json.loads(await (await log.accept()).receive())
        assert (line["level"], line["msg"]) == ("info", "GCS started")
        await gcs.accept()
        assert system.vm.service.entropy == bytes(range(256)) * 2
        tasks.cancel_scope.cancel()


async def test_a_vm_may_exit_while_its_guest_waits_for_entropy() -> None:
    async with running(booting()) as system, anyio.create_task_group() as tasks:
        exits: list[str] = []

        async def wait() -> None:
            exits.append((await system.wait()).exit_type)

        tasks.start_soon(wait)
        await (await system.listen(vsock_service_id(LINUX_ENTROPY_PORT))).accept()
        await anyio.wait_all_tasks_blocked()
        await system.terminate()
        await anyio.wait_all_tasks_blocked()
        assert exits == ["ForcedExit"]


async def test_a_guest_dials_as_soon_as_somebody_listens() -> None:
    async with running() as system, anyio.create_task_group() as tasks:
        tasks.start_soon(system.wait)
        await anyio.wait_all_tasks_blocked()
        listener = await system.listen(GCS)
        with anyio.fail_after(5):
            await listener.accept()
        tasks.cancel_scope.cancel()


async def test_the_guest_boots_when_the_vm_starts_not_when_somebody_waits() -> None:
    system = await FakeBackend(files=host_files()).create("vm1", lcow())
    listener = await system.listen(GCS)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(system.wait)
        await anyio.wait_all_tasks_blocked()
        assert not system.vm.service.connected
        await system.start()
        await listener.accept()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("isolated", [False, True], ids=["plain", "confidential"])
async def test_a_confidential_windows_guest_answers_through_its_sidecar(isolated: bool) -> None:
    document = wcow()
    if isolated:
        document["VirtualMachine"]["SecuritySettings"] = {
            "Isolation": {"IsolationType": "SecureNestedPaging"}
        }
    async with running(document) as system, anyio.create_task_group() as tasks:
        listener = await system.listen(WINDOWS_SIDECAR_SERVICE if isolated else WINDOWS_GCS_SERVICE)
        tasks.start_soon(system.wait)
        with anyio.fail_after(5):
            await listener.accept()
        tasks.cancel_scope.cancel()


# Who runs it.


async def test_without_somebody_who_waits_nothing_of_the_guest_runs() -> None:
    async with running() as system:
        await system.listen(GCS)
        await anyio.wait_all_tasks_blocked()
        assert not system.vm.service.connected


async def test_when_the_first_who_waits_leaves_the_next_has_the_guest_dial_again() -> None:
    async with running() as system, anyio.create_task_group() as tasks:
        listener = await system.listen(GCS)
        first = anyio.CancelScope()

        async def wait_first() -> None:
            with first:
                await system.wait()

        tasks.start_soon(wait_first)
        host = Host(system, listener, await listener.accept())
        await host.negotiate()
        sleeping = await host.run("sleep", "1000")
        tasks.start_soon(system.wait)
        tasks.start_soon(system.wait)
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        await host.redial()
        assert await sleeping.wait() == 0xFFFFFFFF
        tasks.cancel_scope.cancel()


async def test_the_turn_is_passed_on_by_one_who_leaves_at_the_same_moment() -> None:
    async with running() as system, anyio.create_task_group() as tasks:
        listener = await system.listen(GCS)
        scopes = [anyio.CancelScope() for _ in range(3)]

        async def wait(scope: anyio.CancelScope) -> None:
            with scope:
                await system.wait()

        for scope in scopes:
            tasks.start_soon(wait, scope)
            await anyio.wait_all_tasks_blocked()
        await listener.accept()
        scopes[0].cancel()
        scopes[1].cancel()
        with anyio.fail_after(5):
            await listener.accept()
        tasks.cancel_scope.cancel()


async def test_closing_the_handle_whose_waiter_runs_the_guest_lets_another_handle_run_it() -> None:
    async with running() as system, anyio.create_task_group() as tasks:
        listener = await system.listen(GCS)
        other = await backend_of(system).open("vm1")

        async def wait_until_closed() -> None:
            with pytest.raises(Exception, match="E_HANDLE"):
                await other.wait()

        tasks.start_soon(wait_until_closed)
        await listener.accept()
        tasks.start_soon(system.wait)
        await anyio.wait_all_tasks_blocked()
        await other.close()
        with anyio.fail_after(5):
            await listener.accept()
        tasks.cancel_scope.cancel()


async def test_every_waiter_is_told_of_the_exit() -> None:
    async with running() as system:
        exits: list[str] = []

        async def wait(handle: FakeSystem) -> None:
            exits.append((await handle.wait()).exit_type)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait, system)
            await anyio.wait_all_tasks_blocked()
            await system.terminate()
        assert exits == ["ForcedExit"] * 3
        await wait(system)


# The conversation.


async def test_a_linux_guest_says_what_it_is() -> None:
    async with booted(negotiate=False) as host:
        assert await host.negotiate() == {
            "Result": 0,
            "ActivityId": ACTIVITY,
            "Version": 4,
            "Capabilities": {
                "SupportedSchemaVersions": [{"Major": 2, "Minor": 1}],
                "RuntimeOsType": "Linux",
                "GuestDefinedCapabilities": {
                    "NamespaceAddRequestSupported": True,
                    "SignalProcessSupported": True,
                    "DumpStacksSupported": True,
                    "DeleteContainerStateSupported": True,
                },
            },
        }


@pytest.mark.parametrize(("lowest", "highest"), [(5, 5), (1, 3)])
async def test_a_version_that_it_does_not_speak_is_refused(lowest: int, highest: int) -> None:
    async with booted(negotiate=False) as host:
        assert await host.refusal(
            Procedure.NEGOTIATE_PROTOCOL, "", MinimumVersion=lowest, MaximumVersion=highest
        ) == (HResult.ERROR_VMCOMPUTE_UNSUPPORTED_PROTOCOL_VERSION, "HRESULT: 0xc037010c")
        await host.negotiate()


async def test_before_the_version_is_agreed_on_nothing_else_is_answered_and_afterwards_not_that() -> None:
    async with booted(negotiate=False) as host:
        assert await host.refusal(Procedure.GET_PROPERTIES) == (
            HResult.E_NOTIMPL,
            "HRESULT 0x80004001: bridge: function not supported, header type: ComputeSystemGetPropertiesV1",
        )
        await host.negotiate()
        code, _ = await host.refusal(Procedure.NEGOTIATE_PROTOCOL, MinimumVersion=4, MaximumVersion=4)
        assert code == HResult.E_NOTIMPL


async def test_an_unknown_procedure_is_refused_with_its_number() -> None:
    async with booted() as host:
        assert await host.refusal(0x00100E01) == (
            HResult.E_NOTIMPL,
            "HRESULT 0x80004001: bridge: function not supported, header type: 269487617",
        )


@pytest.mark.parametrize("payload", [b"", b'{"ContainerId":', b"[]", b'{"ProcessId":"x"}'])
async def test_what_cannot_be_read_is_refused_with_what_came(payload: bytes) -> None:
    async with booted() as host:
        request_id, data = host.side.request(Procedure.WAIT_FOR_PROCESS, {})
        frame = data[:4] + (16 + len(payload)).to_bytes(4, "little") + data[8:16] + payload
        await host.stream.send(frame)
        body = await host.answer(request_id)
        assert body["Result"] & 0xFFFFFFFF == HResult.ERROR_VMCOMPUTE_INVALID_JSON
        assert (
            f'failed to unmarshal JSON in message "{payload.decode()}": HRESULT 0xc037010d: '
            in body["ErrorMessage"]
        )
        assert body["ErrorRecords"][0]["Result"] == body["Result"]


async def test_bytes_that_are_no_message_end_the_connection_and_the_guest_dials_again() -> None:
    async with booted() as host:
        await host.stream.send(b"\xff" * 16)
        with pytest.raises(anyio.EndOfStream):
            await host.pump()
        await host.redial()


async def test_a_linux_guest_ignores_fields_that_it_does_not_know_and_a_windows_guest_refuses_them() -> None:
    async with booted() as host:
        code, _ = await host.refusal(Procedure.WAIT_FOR_PROCESS, ProcessId=1, TimeoutInMs=0, New=True)
        assert code == HResult.ERROR_NOT_FOUND
    async with booted(wcow()) as host:
        code, message = await host.refusal(Procedure.WAIT_FOR_PROCESS, ProcessId=1, TimeoutInMs=0, New=True)
        assert code == HResult.ERROR_VMCOMPUTE_INVALID_JSON
        assert "'New'" in message


async def test_a_change_that_the_exit_overtakes_is_not_made() -> None:
    async with booted() as host:
        await host.system.modify(add(slot(0), disk()))
        gate = backend_of(host.system).faults.hold(to="guest", operation="modify")
        await host.send(Procedure.MODIFY_SETTINGS, Request=MOUNT)
        await gate.wait()
        await host.system.terminate()
        await anyio.wait_all_tasks_blocked()
        assert host.vm.guest.mounts == {}
        (entry,) = backend_of(host.system).request_log.entries(to="guest", operation="modify")
        assert (entry.outcome in ("failed", "cancelled"), entry.applied) == (True, False)


async def test_the_guest_changes_its_settings_and_the_request_log_has_the_request() -> None:
    async with booted() as host:
        await host.system.modify(add(slot(0), disk()))
        await host.ask(Procedure.MODIFY_SETTINGS, Request=MOUNT)
        assert list(host.vm.guest.mounts) == ["/m"]
        (entry,) = backend_of(host.system).request_log.entries(to="guest", operation="modify")
        assert (entry.call.resource, entry.call.request_type) == ("MappedVirtualDisk", "Add")
        assert (entry.document, entry.outcome) == (MOUNT, "ok")


async def test_a_refused_change_is_answered_with_code_and_message() -> None:
    async with booted() as host:
        code, message = await host.refusal(Procedure.MODIFY_SETTINGS, Request=MOUNT)
        assert (code, message) == (HResult.E_FAIL, "there is no disk 0:0")
        (entry,) = backend_of(host.system).request_log.entries(to="guest", operation="modify")
        assert (entry.outcome, entry.code) == ("refused", HResult.E_FAIL)


async def test_requests_are_answered_out_of_order_when_one_of_them_takes_longer() -> None:
    async with booted() as host:
        gate = backend_of(host.system).faults.hold(to="guest", operation="dump stacks")
        slow = await host.send(Procedure.DUMP_STACKS)
        quick = await host.send(Procedure.GET_PROPERTIES, "nobody")
        assert (await host.answer(quick))["Result"] & 0xFFFFFFFF == HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND
        (parked,) = await gate.wait()
        parked.proceed()
        assert "goroutine" in (await host.answer(slow))["GuestStacks"]


@pytest.mark.parametrize("applied", [True, False])
async def test_a_lost_answer_costs_the_connection(applied: bool) -> None:
    async with booted() as host:
        await host.system.modify(add(slot(0), disk()))
        backend_of(host.system).faults.lose(to="guest", operation="modify", nth=1, applied=applied)
        await host.send(Procedure.MODIFY_SETTINGS, Request=MOUNT)
        with pytest.raises(anyio.EndOfStream):
            await host.pump()
        await host.redial()
        assert bool(host.vm.guest.mounts) is applied


async def test_a_request_from_before_a_drop_is_answered_on_the_next_connection() -> None:
    async with booted() as host:
        gate = backend_of(host.system).faults.hold(to="guest", operation="dump stacks")
        late = await host.send(Procedure.DUMP_STACKS)
        (parked,) = await gate.wait()
        host.service.drop()
        await host.redial()
        parked.proceed()
        assert (await host.answer(late))["Result"] == 0


async def test_an_answer_without_a_connection_is_lost() -> None:
    async with booted() as host:
        gate = backend_of(host.system).faults.hold(to="guest", operation="dump stacks")
        lost = await host.send(Procedure.DUMP_STACKS)
        (parked,) = await gate.wait()
        await host.listener.aclose()
        host.service.drop()
        await anyio.wait_all_tasks_blocked()
        parked.proceed()
        await anyio.wait_all_tasks_blocked()
        host.listener = await host.system.listen(GCS)
        await host.redial()
        assert lost not in host.answers


async def test_a_request_is_not_answered_while_the_vm_is_paused() -> None:
    async with booted() as host:
        gate = backend_of(host.system).faults.hold(to="guest", operation="dump stacks")
        begun = await host.send(Procedure.DUMP_STACKS)
        (parked,) = await gate.wait()
        await host.system.pause()
        parked.proceed()
        later = await host.send(Procedure.GET_PROPERTIES, "nobody")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(host.answer, begun)
            await anyio.wait_all_tasks_blocked()
            assert not host.order[1:]
            await host.system.resume()
        assert (await host.answer(later))["Result"] != 0


async def test_many_answers_go_out_in_order_to_a_host_that_reads_late() -> None:
    async with booted() as host:
        backend_of(host.system).programs["x" * 200] = backend_of(host.system).programs["sleep"]
        for _ in range(50):
            await host.start_process({"CommandArgs": ["x" * 200, "1000"]})
        ids = [await host.send(Procedure.DUMP_STACKS) for _ in range(50)]
        await anyio.wait_all_tasks_blocked()
        for request_id in ids:
            await host.answer(request_id)
        assert host.order[-50:] == [f"answer {request_id}" for request_id in ids]


@pytest.mark.parametrize("procedure", [Procedure.SHUTDOWN_GRACEFUL, Procedure.SHUTDOWN_FORCED])
async def test_a_linux_guest_that_is_shut_down_does_not_answer(procedure: Procedure) -> None:
    async with booted() as host:
        await host.send(procedure)
        with pytest.raises((anyio.EndOfStream, anyio.ClosedResourceError)):
            await host.pump()
        status = host.vm.exit_status
        assert status is not None
        assert status.exit_type == "GracefulExit"


async def test_what_follows_a_shutdown_in_the_same_bytes_is_not_done() -> None:
    async with booted() as host:
        requests = (host.side.request(p, {"ContainerId": HOST_CONTAINER_ID})[1] for p in SHUTDOWN_AND_MORE)
        await host.stream.send(b"".join(requests))
        with anyio.fail_after(5):
            assert (await host.system.wait()).exit_type == "GracefulExit"
        entries = backend_of(host.system).request_log.entries(to="guest")
        assert [(e.call.operation, e.applied) for e in entries[2:]] == [
            ("shutdown graceful", True),
            ("dump stacks", False),
        ]


async def test_requests_are_matched_by_faults_by_the_name_of_their_procedure() -> None:
    async with booted() as host:
        backend_of(host.system).faults.refuse(
            HResult.ERROR_VMCOMPUTE_TIMEOUT, to="guest", operation="get properties", text="busy"
        )
        assert await host.refusal(Procedure.GET_PROPERTIES, "nobody") == (
            HResult.ERROR_VMCOMPUTE_TIMEOUT,
            "busy",
        )


async def test_an_exception_that_no_guest_can_answer_costs_the_connection() -> None:
    async with booted() as host:
        backend_of(host.system).faults.refuse(OSError("odd"), to="guest", nth=1)
        await host.send(Procedure.DUMP_STACKS)
        with pytest.raises(anyio.EndOfStream):
            await host.pump()
        await host.redial()


async def test_a_second_request_under_the_id_of_an_open_one_ends_the_connection() -> None:
    async with booted() as host:
        backend_of(host.system).faults.hold(to="guest", operation="dump stacks")
        for _ in range(2):
            await host.stream.send(encode(Kind.REQUEST, Procedure.DUMP_STACKS, 77, {}))
        with pytest.raises(anyio.EndOfStream):
            await host.pump()


# The Windows guest.


async def test_a_windows_guest_wants_to_be_created_and_started_first() -> None:
    async with booted(wcow(), negotiate=False) as host:
        capabilities = (await host.negotiate())["Capabilities"]
        assert capabilities["SendHostCreateMessage"] is capabilities["SendHostStartMessage"] is True
        assert capabilities["RuntimeOsType"] == "Windows"
        addresses = to_guest("HvSocket", "Update", LocalAddress="a", ParentAddress="b")
        assert (await host.refusal(Procedure.MODIFY_SETTINGS, Request=addresses))[
            0
        ] == HResult.ERROR_VMCOMPUTE_INVALID_STATE
        assert (await host.refusal(Procedure.START))[0] == HResult.ERROR_VMCOMPUTE_INVALID_STATE
        await host.ask(Procedure.CREATE, ContainerConfig='{"SystemType":"Container"}')
        await host.ask(Procedure.START)
        await host.ask(Procedure.MODIFY_SETTINGS, Request=addresses)


async def test_a_windows_guest_does_not_dial_again() -> None:
    async with booted(wcow()) as host:
        await host.stream.aclose()
        await anyio.wait_all_tasks_blocked()
        assert not host.service.connected


async def test_a_windows_guest_answers_that_it_shuts_down() -> None:
    async with booted(wcow()) as host:
        await host.ask(Procedure.SHUTDOWN_GRACEFUL)
        with anyio.fail_after(5):
            assert (await host.system.wait()).exit_type == "GracefulExit"


async def test_a_windows_guest_forwards_its_log_while_it_is_told_to() -> None:
    async with booted(wcow()) as host:
        listener = await host.system.listen(WINDOWS_LOG_SERVICE)

        async def command(rpc: str, settings: str = "") -> None:
            body = {"RPCType": rpc, "Settings": settings}
            await host.ask(Procedure.MODIFY_SERVICE_SETTINGS, PropertyType="LogForwardService", Settings=body)

        await command("ModifyServiceSettings", "c291cmNlcw==")
        await command("StartLogForwarding")
        log = await listener.accept()
        assert json.loads(await log.receive())["Message"] == "log forwarding started"
        host.service.log.line("something", level="warning", Source="tests")
        line = json.loads(await log.receive())
        assert (line["Message"], line["level"], line["Source"]) == ("something", "warning", "tests")
        await log.aclose()
        log = await listener.accept()
        assert json.loads(await log.receive())["Message"] == "log forwarding started"
        await command("StopLogForwarding")
        with pytest.raises(anyio.EndOfStream):
            await log.receive()
        assert host.service.log_settings == "c291cmNlcw=="


@pytest.mark.parametrize(
    ("service", "rpc", "code"),
    [
        ("LogForwardService", "Restart", HResult.E_INVALIDARG),
        ("OtherService", "StartLogForwarding", HResult.E_NOTIMPL),
    ],
)
async def test_a_windows_guest_refuses_services_and_commands_that_it_does_not_know(
    service: str, rpc: str, code: int
) -> None:
    async with booted(wcow()) as host:
        assert (
            await host.refusal(
                Procedure.MODIFY_SERVICE_SETTINGS, PropertyType=service, Settings={"RPCType": rpc}
            )
        )[0] == code


async def test_log_forwarding_starts_once_and_anew_after_it_was_stopped() -> None:
    async with booted(wcow()) as host:
        listener = await host.system.listen(WINDOWS_LOG_SERVICE)

        async def command(rpc: str) -> None:
            await host.ask(
                Procedure.MODIFY_SERVICE_SETTINGS, PropertyType="LogForwardService", Settings={"RPCType": rpc}
            )

        await command("StartLogForwarding")
        await command("StartLogForwarding")
        first = await listener.accept()
        await command("StopLogForwarding")
        await command("StartLogForwarding")
        second = await listener.accept()
        await anyio.wait_all_tasks_blocked()
        host.service.log.line("still here")
        lines = [json.loads(line)["Message"] for line in (await second.receive(), await second.receive())]
        assert lines == ["log forwarding started", "still here"]
        await first.receive()
        with pytest.raises(anyio.EndOfStream):
            await first.receive()


async def test_an_isolated_linux_guest_boots_as_its_image_says() -> None:
    document = lcow()
    document["VirtualMachine"]["SecuritySettings"] = {"Isolation": {"IsolationType": "SecureNestedPaging"}}
    async with running(document) as system, anyio.create_task_group() as tasks:
        tasks.start_soon(system.wait)
        with anyio.fail_after(5):
            entropy = await system.listen(vsock_service_id(LINUX_ENTROPY_PORT))
            await (await entropy.accept()).aclose()
            await (await system.listen(vsock_service_id(LINUX_LOG_PORT))).accept()
        tasks.cancel_scope.cancel()


async def test_a_guest_without_a_capability_does_not_do_it() -> None:
    backend = FakeBackend(files=host_files(), guest_capabilities={"SignalProcessSupported": True})
    async with booted(backend=backend) as host:
        assert (await host.refusal(Procedure.DUMP_STACKS))[0] == HResult.E_NOTIMPL
        assert (await host.refusal(Procedure.DELETE_CONTAINER_STATE, "c"))[0] == HResult.E_NOTIMPL


async def test_a_guest_that_panics_says_so_on_its_log_and_takes_the_vm_with_it() -> None:
    async with running(booting("-- /bin/vsockexec -e 109 /bin/gcs")) as system:
        log = await system.listen(vsock_service_id(LINUX_LOG_PORT))
        gcs = await system.listen(GCS)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.wait)
            stream = await log.accept()
            host = Host(system, gcs, await gcs.accept())
            await host.negotiate()
            # hcsshim's guest follows a null pointer here.
            config = json.dumps({"SchemaVersion": {"Major": 2, "Minor": 1}})
            await host.send(Procedure.CREATE, "c", ContainerConfig=config)
            text = b""
            with anyio.fail_after(5):
                while b"goroutine" not in text:
                    text += await stream.receive()
                assert (await system.wait()).exit_type == "UnexpectedExit"
        assert b"panic: runtime error" in text
