"""Scenarios: changes to systems, their properties and connections; and access to files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel

from uvm._vm.cpugroups import cpu_groups, create_cpu_group, delete_cpu_group
from uvm.backend import BROKEN_STREAM, VM_GROUP, ByteStream, Listener, System
from uvm.errors import UVMError
from uvm.schema.common import RS5
from uvm.schema.json import from_json
from uvm.schema.properties import Properties
from uvm.testing.backends.checks import Attempt, check, equal, raises, refused
from uvm.testing.backends.rig import Control, Rig
from uvm.testing.backends.scenario import scenario, within
from uvm.testing.backends.world import (
    attach_disk,
    detach_disk,
    everything,
    linux_options,
    resize_memory,
    running_system,
    some_system,
)

#: The services of two vsock ports, which every guest can reach.
SERVICE = "00001111-facb-11e6-bd58-64006a7986d3"
OTHER_SERVICE = "00002222-facb-11e6-bd58-64006a7986d3"

_MANY = 50
#: More than any socket buffers.
_MUCH = 32 << 20

# Changes.


@within(running_system, Control.LINUX, Control.FILES)
async def a_disk_is_attached_once_and_detached_once(rig: Rig, system: System) -> None:
    path = rig.host.put_file("disk.vhdx")
    with refused("E_ACCESSDENIED", what="a disk to which the VM has no access"):
        await system.modify(attach_disk(path))
    await rig.backend.grant_access(path, system.id)
    await system.modify(attach_disk(path))
    with refused("ERROR_ALREADY_EXISTS", what="another disk at the same slot"):
        await system.modify(attach_disk(path))
    await system.modify(detach_disk())
    with refused("ERROR_NOT_FOUND", what="detaching a disk that is not attached"):
        await system.modify(detach_disk())
    await rig.backend.revoke_access(path, system.id)


@within(running_system, Control.LINUX)
async def requests_that_make_no_sense_are_refused_and_change_nothing(rig: Rig, system: System) -> None:
    with refused("E_INVALIDARG", what="an unknown path"):
        await system.modify({"ResourcePath": "VirtualMachine/Nothing", "RequestType": "Add"})
    with refused("HCS_E_INVALID_JSON", what="an unknown field"):
        await system.modify({"ResourcePth": "VirtualMachine/Nothing"})
    with refused("HCS_E_INVALID_JSON", what="an unknown type of request"):
        await system.modify(detach_disk() | {"RequestType": "Perhaps"})
    await system.modify(resize_memory(1026))


@within(running_system, Control.LINUX, Control.FILES, answers=True)
async def a_request_to_the_guest_is_relayed_after_an_add_and_before_a_remove(
    rig: Rig, system: System
) -> None:
    path = rig.host.put_file("disk.vhdx")
    disk = {"ResourceType": "MappedVirtualDisk", "Settings": {"MountPath": "/mnt/disk"}}
    await rig.backend.grant_access(path, system.id)
    await system.modify(attach_disk(path) | {"GuestRequest": disk | {"RequestType": "Add"}})
    await system.modify(detach_disk() | {"GuestRequest": disk | {"RequestType": "Remove"}})
    with refused("ERROR_NOT_FOUND", "E_FAIL", "E_INVALIDARG", what="once more"):
        await system.modify(detach_disk() | {"GuestRequest": disk | {"RequestType": "Remove"}})
    await rig.backend.revoke_access(path, system.id)


@scenario(Control.LINUX)
async def nothing_is_relayed_if_hcs_is_not_connected_to_the_guest(rig: Rig) -> None:
    request = {"GuestRequest": {"ResourceType": "MappedVirtualDisk", "RequestType": "Remove"}}
    async with running_system(rig, linux_options(rig, external_guest_connection=True)) as system:
        with refused("HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION"):
            await system.modify(request)


@within(running_system, Control.LINUX)
async def many_changes_at_once_are_all_answered(rig: Rig, system: System) -> None:
    async with anyio.create_task_group() as tasks:
        sizes = range(512, 640, 2)
        attempts = [Attempt.begin(tasks, system.modify, resize_memory(size)) for size in sizes]
    equal([each.error for each in attempts if each.error], [], "the errors")


# Properties.


@within(some_system, Control.LINUX)
async def without_types_there_is_a_summary_in_every_state(rig: Rig, system: System) -> None:
    found = await system.properties()
    equal((found["Id"], found["State"]), (system.id, "Created"), "the id and state")
    equal(found["RuntimeId"].casefold(), system.runtime_id.casefold(), "the runtime id")
    await system.terminate()
    await system.wait()
    found = await system.properties()
    equal((found["State"], found["Stopped"], found["ExitType"]), ("Stopped", True, "ForcedExit"), "the end")


@scenario(Control.LINUX)
async def each_type_of_property_is_reported_and_fits_the_schema(rig: Rig) -> None:
    async with running_system(rig, linux_options(rig, memory_mb=1024, processors=2)) as system:
        found = from_json(Properties, await system.properties("Memory", "Statistics"))
        check(found.memory is not None and found.memory.virtual_machine_memory is not None, "the memory")
        check(found.statistics is not None and found.statistics.processor is not None, "the statistics")
        found = from_json(Properties, await system.properties("TerminateOnLastHandleClosed", "SystemGUID"))
        check(found.terminate_on_last_handle_closed, "that it ends with its last handle")
        equal(found.system_guid.casefold(), system.runtime_id.casefold(), "the GUID")
        found = from_json(Properties, await system.properties("GuestConnection"))
        check(found.guest_connection_info is not None, "the connection to its guest")
        found = from_json(Properties, await system.properties("ProcessorTopology", "CpuGroup"))
        equal({*found.property_responses}, {"ProcessorTopology", "CpuGroup"}, "the responses")


@within(running_system, Control.LINUX)
async def properties_are_queried_with_arguments(rig: Rig, system: System) -> None:
    found = await system.properties(queries={"Memory": {}})
    check("Response" in found["PropertyResponses"]["Memory"], f"a response: {found}")


@within(running_system, Control.LINUX)
async def an_unknown_type_of_property_is_refused(rig: Rig, system: System) -> None:
    with refused("HCS_E_INVALID_JSON"):
        await system.properties("Memory", "Weather")


@within(some_system, Control.LINUX)
async def a_system_that_does_not_run_has_no_statistics(rig: Rig, system: System) -> None:
    with refused("HCS_E_INVALID_STATE"):
        await system.properties("Statistics")


@within(running_system, Control.LINUX)
async def a_running_system_occupies_memory(rig: Rig, system: System) -> None:
    first, second = await system.working_set_bytes(), await system.working_set_bytes()
    check(first > 0 and second > 0, f"the working set: {first}, then {second} bytes")


@scenario()
async def the_host_reports_its_facts(rig: Rig) -> None:
    host = await rig.backend.host()
    check(host.build >= RS5, f"the build: {host.build}")
    check(host.processors > 0 and host.memory_mb > 0, f"the processors and memory: {host}")
    equal(await rig.backend.host(), host, "the same facts again")


@scenario()
async def the_compute_service_reports_its_properties(rig: Rig) -> None:
    found = (await rig.backend.service_properties("Basic", "ProcessorTopology"))["Properties"]
    equal(len(found), 2, "the number of its properties")
    check(found[0]["SupportedSchemaVersions"], "the schema versions")
    with refused("HCS_E_INVALID_JSON"):
        await rig.backend.service_properties("Weather")


@scenario(Control.UPDATES)
async def a_cpu_group_of_the_host_is_created_listed_and_deleted(rig: Rig) -> None:
    # Others may come and go meanwhile.
    before = await cpu_groups(rig.backend)
    made = await create_cpu_group(rig.backend, [0])
    check(made not in before and made in await cpu_groups(rig.backend), "the CPU group is there, and is new")
    await delete_cpu_group(rig.backend, made.id)
    check(made not in await cpu_groups(rig.backend), "the CPU group is gone")
    with refused("ERROR_HV_INVALID_CPU_GROUP_ID"):
        await delete_cpu_group(rig.backend, made.id)


@scenario()
async def a_change_of_the_compute_service_of_an_unknown_type_is_refused(rig: Rig) -> None:
    with refused("HCS_E_INVALID_JSON"):
        await rig.backend.modify_service({"PropertyType": "Weather", "Settings": {}})


# Connections of the guest.


@asynccontextmanager
async def listening(rig: Rig) -> AsyncIterator[tuple[System, Listener]]:
    """Yield a running system, to whose guest HCS does not connect, and a listener for the guest."""
    async with running_system(rig, linux_options(rig, external_guest_connection=True)) as system:
        listener = await system.listen(SERVICE)
        yield system, listener
        await listener.aclose()


@asynccontextmanager
async def connected(rig: Rig) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    """Yield a connection of a running system to the host: the guest's end, and the host's."""
    async with listening(rig) as (system, listener):
        guest = await rig.host.dial(system.id, SERVICE)
        stream = await listener.accept()
        yield guest, stream
        await stream.aclose()
        await guest.aclose()


@scenario(Control.LINUX, Control.DIAL)
async def what_a_guest_sends_arrives_and_is_answered(rig: Rig) -> None:
    async with some_system(rig, linux_options(rig, external_guest_connection=True)) as system:
        listener = await system.listen(SERVICE)
        await system.start()
        guest = await rig.host.dial(system.id, SERVICE)
        stream = await listener.accept()
        await guest.send(b"hello")
        equal(await stream.receive(), b"hello", "what the host received")
        await stream.send(b"good day")
        equal(await guest.receive(), b"good day", "what the guest received")
        await guest.send_eof()
        with raises(anyio.EndOfStream):
            await stream.receive()
        for each in (stream, guest, listener, listener):
            await each.aclose()


@scenario(Control.LINUX, Control.DIAL)
async def each_connection_is_accepted_once_and_by_its_own_service(rig: Rig) -> None:
    async with listening(rig) as (system, first):
        second = await system.listen(OTHER_SERVICE)
        for service, listener in [(SERVICE, first), (OTHER_SERVICE, second)] * 3:
            guest = await rig.host.dial(system.id, service)
            stream = await listener.accept()
            await guest.send(service.encode())
            equal(await stream.receive(), service.encode(), "what was received over this service")
            await guest.aclose()
            await stream.aclose()
        await second.aclose()


@scenario(Control.LINUX, Control.DIAL)
async def an_accept_ends_when_its_listener_is_closed(rig: Rig) -> None:
    async with listening(rig) as (system, listener):
        async with anyio.create_task_group() as tasks:
            waiting = Attempt.begin(tasks, listener.accept)
            await listener.aclose()
        check(isinstance(waiting.error, anyio.ClosedResourceError), f"the error: {waiting.error!r}")
        await (await system.listen(SERVICE)).aclose()


@scenario(Control.LINUX, Control.DIAL)
async def what_a_cancelled_caller_closes_is_closed(rig: Rig) -> None:
    async with listening(rig) as (system, listener):
        guest = await rig.host.dial(system.id, SERVICE)
        stream = await listener.accept()
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await stream.aclose()
            finally:
                await listener.aclose()
        with raises(anyio.EndOfStream, *BROKEN_STREAM):
            await guest.receive()
        await (await system.listen(SERVICE)).aclose()
        await guest.aclose()


@scenario(Control.LINUX, Control.DIAL)
async def listeners_and_connections_end_with_their_system(rig: Rig) -> None:
    async with listening(rig) as (system, listener):
        guest = await rig.host.dial(system.id, SERVICE)
        stream = await listener.accept()
        async with anyio.create_task_group() as tasks:
            waiting = [Attempt.begin(tasks, listener.accept), Attempt.begin(tasks, stream.receive)]
            await system.terminate()
        for attempt in waiting:
            found = attempt.error
            check(isinstance(found, (UVMError, anyio.EndOfStream, *BROKEN_STREAM)), f"the error: {found!r}")
        await stream.aclose()
        await guest.aclose()


async def moments(number: int) -> None:
    """Pass none to four checkpoints, so that repetitions meet at different ones."""
    for _ in range(number % 5):
        await anyio.lowlevel.checkpoint()


@scenario(Control.LINUX, Control.DIAL)
async def no_more_is_received_than_was_asked_for(rig: Rig) -> None:
    async with connected(rig) as (guest, stream):
        await guest.send(b"0123456789")
        received = b""
        while len(received) < 10:
            piece = await stream.receive(3)
            check(1 <= len(piece) <= 3, f"1 to 3 bytes: {piece!r}")
            received += piece
        equal(received, b"0123456789", "what was received")


@scenario(Control.LINUX, Control.DIAL)
async def a_reader_cancelled_with_the_data_loses_none(rig: Rig) -> None:
    async with connected(rig) as (guest, stream):
        received = b""
        for number in range(_MANY):
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, stream.receive)
                await moments(number)
                await guest.send(bytes([number]))
                await attempt.cancel()
            received += attempt.result or b""
        await guest.send_eof()
        received += await everything(stream)
        equal(received, bytes(range(_MANY)), "what was received")


@scenario(Control.LINUX, Control.DIAL)
async def an_accept_cancelled_with_a_connection_leaves_it_to_the_next(rig: Rig) -> None:
    async with listening(rig) as (system, listener):
        for number in range(_MANY):
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, listener.accept)
                await moments(number)
                guest = await rig.host.dial(system.id, SERVICE)
                await moments(number // 5)
                await attempt.cancel()
            await guest.send(bytes([number]))
            stream = attempt.result or await listener.accept()
            equal(await stream.receive(), bytes([number]), "what arrived over the connection")
            await stream.aclose()
            await guest.aclose()


@scenario(Control.LINUX, Control.DIAL)
async def a_sender_waits_for_a_slow_reader(rig: Rig) -> None:
    async with connected(rig) as (guest, stream), anyio.create_task_group() as tasks:
        sending = Attempt.begin(tasks, stream.send, bytes(_MUCH))
        received = len(await guest.receive())
        check(not sending.done, f"{_MUCH} bytes are not all in flight at once")
        while received < _MUCH:
            received += len(await guest.receive())
        await sending.wait()
        equal((sending.error, received), (None, _MUCH), "what was received")


# Access.


@scenario(Control.FILES)
async def access_is_granted_to_what_exists_and_revoked_more_than_once(rig: Rig) -> None:
    backend, path, vm_id = rig.backend, rig.host.put_file("disk.vhdx"), rig.own("vm1")
    with refused("ERROR_FILE_NOT_FOUND"):
        await backend.grant_access(rig.host.path_of("missing.vhdx"), vm_id)
    for change in (backend.grant_access, backend.revoke_access):
        await change(path, vm_id)
        await change(path, vm_id)
    await backend.grant_access(path, vm_id)
    await backend.files.remove(path)
    await backend.revoke_access(path, vm_id)


@scenario(Control.LINUX, Control.FILES)
async def access_of_the_vm_group_goes_by_its_mask(rig: Rig) -> None:
    path = rig.host.put_file("disk.vhdx")
    async with running_system(rig) as system:
        await rig.backend.grant_access(path, VM_GROUP, "read")
        with refused("E_ACCESSDENIED", what="writing with access to read"):
            await system.modify(attach_disk(path))
        await rig.backend.grant_access(path, VM_GROUP, "all")
        await system.modify(attach_disk(path))
        await system.modify(detach_disk())
    await rig.backend.revoke_access(path, VM_GROUP)


@scenario(Control.LINUX, Control.FILES)
async def access_revoked_from_one_is_kept_by_the_others(rig: Rig) -> None:
    path = rig.host.put_file("disk.vhdx")
    async with running_system(rig) as system:
        await rig.backend.grant_access(path, system.id)
        await rig.backend.grant_access(path, rig.own("vm2"))
        await rig.backend.revoke_access(path, rig.own("vm2"))
        await system.modify(attach_disk(path))
        await system.modify(detach_disk())
        await rig.backend.revoke_access(path, system.id)
