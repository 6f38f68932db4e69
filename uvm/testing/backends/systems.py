"""Scenarios: compute systems, their handles, states and ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from operator import methodcaller
from typing import Any

import anyio

from uvm.backend import JSON, System
from uvm.options import LCOWOptions, WCOWOptions
from uvm.testing.backends.checks import Attempt, cancel_one_waiter, check, equal, refused
from uvm.testing.backends.rig import Control, Rig
from uvm.testing.backends.scenario import scenario, within
from uvm.testing.backends.world import (
    closed_at_the_end,
    linux_options,
    opened,
    options_of,
    resize_memory,
    running_system,
    some_system,
)

Operation = Callable[[System], Awaitable[Any]]

#: Operations by the names of their methods.
OPERATIONS: dict[str, Operation] = {
    **{name: methodcaller(name) for name in ("start", "shutdown", "terminate", "crash", "pause", "resume")},
    "save": methodcaller("save", {"SaveType": "AsTemplate"}),
    "modify": methodcaller("modify", resize_memory(1026)),
}

#: What a state refuses, with HCS_E_INVALID_STATE.
REFUSED: dict[str, tuple[str, ...]] = {
    "Created": ("shutdown", "crash", "pause", "resume", "save", "modify"),
    "Running": ("start", "resume", "save"),
    "Paused": ("start", "shutdown", "pause", "modify"),
    "SavedAsTemplate": ("start", "shutdown", "crash", "pause", "resume", "save", "modify"),
}


async def listed(rig: Rig, query: JSON) -> list[str]:
    """Return the ids of the systems that a query finds."""
    return [each["Id"] for each in await rig.backend.enumerate(query)]


async def is_listed(rig: Rig) -> bool:
    """Return whether the rig's system ``vm1`` is found by its id."""
    return bool(await listed(rig, {"Ids": [rig.own("vm1")]}))


async def state_of(system: System) -> str:
    """Return the state of a system."""
    return str((await system.properties())["State"])


async def template_options(rig: Rig, **changes: Any) -> LCOWOptions | WCOWOptions:
    """Return the options of a Linux VM that can be saved as a template."""
    saved = "linux" in (await rig.backend.host()).templates
    return linux_options(rig, external_guest_connection=True, template=saved, **changes)


async def bring(system: System, state: str) -> None:
    """Bring a created system into a state."""
    if state != "Created":
        await system.start()
    if state in ("Paused", "SavedAsTemplate"):
        await system.pause()
    if state == "SavedAsTemplate":
        await system.save({"SaveType": "AsTemplate"})


# Listing.


@scenario(Control.LINUX)
async def a_system_is_listed_from_its_creation_to_its_last_handle(rig: Rig) -> None:
    equal(await is_listed(rig), False, "whether it is listed before the creation")
    async with some_system(rig, linux_options(rig, owner=rig.own("owner"))) as system:
        equal(system.id, rig.own("vm1"), "the id")
        [found] = await rig.backend.enumerate({"Ids": [system.id]})
        equal((found["Owner"], found["State"]), (rig.own("owner"), "Created"), "the owner and state")
        equal(found["SystemType"], "VirtualMachine", "the type")
        equal(found["RuntimeId"].casefold(), system.runtime_id.casefold(), "the runtime id")
        await system.start()
        [found] = await rig.backend.enumerate({"Ids": [system.id]})
        equal(found["State"], "Running", "the state")
        await system.terminate()
    equal(await is_listed(rig), False, "whether it is listed after its last handle closed")


@scenario(Control.LINUX)
async def systems_are_found_by_owner_by_id_and_by_type(rig: Rig) -> None:
    first, second, owner = rig.own("vm1"), rig.own("vm2"), rig.own("other-owner")
    async with (
        some_system(rig, linux_options(rig, owner=rig.own("owner"))),
        some_system(rig, linux_options(rig, id=second, owner=owner)),
    ):
        equal(await listed(rig, {"Owners": [owner]}), [second], "found by owner")
        equal(sorted(await listed(rig, {"Ids": [first, second]})), [first, second], "found by id")
        of_vms = {"Ids": [first], "Types": ["VirtualMachine"]}
        equal(await listed(rig, of_vms), [first], "found by id among the virtual machines")
        equal(await listed(rig, of_vms | {"Types": ["Container"]}), [], "found among the containers")
        check({first, second} <= {each["Id"] for each in await rig.backend.enumerate()}, "all are found")


@scenario(Control.LINUX)
async def an_id_can_be_taken_once(rig: Rig) -> None:
    async with some_system(rig) as system:
        with refused("HCS_E_SYSTEM_ALREADY_EXISTS"):
            await rig.backend.create(
                system.id, {"SchemaVersion": {"Major": 2, "Minor": 1}, "VirtualMachine": {}}
            )


@scenario(Control.WINDOWS, answers=True)
async def a_container_is_a_system_that_a_vm_hosts(rig: Rig) -> None:
    id, owner = rig.own("c1"), rig.own("owner")
    document: JSON = {
        "Owner": owner,
        "SchemaVersion": {"Major": 2, "Minor": 1},
        "HostingSystemId": rig.own("vm1"),
        "HostedSystem": {"Container": {"Storage": {"Path": "C:\\c1"}}},
        "ShouldTerminateOnLastHandleClosed": True,
    }
    with refused("HCS_E_SYSTEM_NOT_FOUND"):
        await rig.backend.create(id, document)
    async with (
        running_system(rig, options_of(rig, "windows", external_guest_connection=False)) as vm,
        closed_at_the_end(await rig.backend.create(id, document)) as container,
    ):
        equal(container.id, id, "the id")
        equal(await listed(rig, {"Types": ["Container"], "Owners": [owner]}), [id], "found by type")
        with refused("HCS_E_SYSTEM_ALREADY_EXISTS"):
            await rig.backend.create(id, document)
        with refused("HCS_E_INVALID_STATE"):
            await container.shutdown()
        await container.start()
        with refused("ERROR_NOT_SUPPORTED"):
            await container.listen(rig.backend.new_id())
        async with closed_at_the_end(await rig.backend.open(id)) as second:
            equal(await state_of(second), "Running", "the state")
            await second.terminate()
            equal((await container.wait()).exit_type, "ForcedExit", "the type of the exit")
        equal(await state_of(vm), "Running", "the state of its VM")


@scenario()
async def what_does_not_exist_cannot_be_opened(rig: Rig) -> None:
    with refused("HCS_E_SYSTEM_NOT_FOUND"):
        await rig.backend.open(rig.own("unknown"))


@scenario()
async def a_document_that_cannot_be_read_creates_nothing(rig: Rig) -> None:
    for document in ({}, {"Owner": 5}, {"Unknown": 1}):
        with refused("HCS_E_INVALID_JSON", what=f"create {document}"):
            await rig.backend.create(rig.own("vm1"), document)
    equal(await is_listed(rig), False, "whether it was created")


@scenario()
async def ids_are_fresh_guids(rig: Rig) -> None:
    made = {rig.backend.new_id() for _ in range(10)}
    equal(len(made), 10, "different ids")
    check(all([len(part) for part in each.split("-")] == [8, 4, 4, 4, 12] for each in made), f"GUIDs: {made}")


# States.


@scenario(Control.LINUX)
async def each_state_allows_some_operations_and_refuses_the_others(rig: Rig) -> None:
    for state, wrong in REFUSED.items():
        # A template is saved of a VM to whose guest HCS is not connected.
        is_template = state == "SavedAsTemplate"
        options = await template_options(rig) if is_template else linux_options(rig)
        async with some_system(rig, options) as system:
            await bring(system, state)
            for name in wrong:
                with refused("HCS_E_INVALID_STATE", what=f"{name} in state {state}"):
                    await OPERATIONS[name](system)
            equal(await state_of(system), state, "the state after the refusals")


@within(running_system, Control.LINUX)
async def a_system_that_has_ended_refuses_everything(rig: Rig, system: System) -> None:
    await system.terminate()
    await system.wait()
    for name, operation in OPERATIONS.items():
        with refused("HCS_E_SYSTEM_ALREADY_STOPPED", what=name):
            await operation(system)


@within(running_system, Control.LINUX)
async def a_paused_system_is_resumed(rig: Rig, system: System) -> None:
    for _ in range(2):
        await system.pause({"SuspensionLevel": "Suspend"})
        equal(await state_of(system), "Paused", "the state")
        await system.resume()
        equal(await state_of(system), "Running", "the state")


@scenario(Control.LINUX, Control.FILES)
async def a_paused_system_is_saved_to_a_file_and_resumed(rig: Rig) -> None:
    path = rig.host.path_of("saved.vmrs")
    async with running_system(rig) as system:
        await system.pause()
        await system.save({"SaveType": "ToFile", "SaveStateFilePath": path})
        check(await rig.backend.files.stat(path), "the file is there")
        await system.resume()
        equal(await state_of(system), "Running", "the state")


@within(some_system, Control.LINUX)
async def a_system_saved_as_a_template_only_ends(rig: Rig, system: System) -> None:
    with refused("HCS_E_INVALID_STATE", what="saving what HCS is connected to the guest of"):
        await bring(system, "SavedAsTemplate")
    equal(await state_of(system), "Paused", "the state after the refusal")
    await system.terminate()
    async with some_system(rig, await template_options(rig, id=rig.own("vm2"))) as template:
        await bring(template, "SavedAsTemplate")
        equal(await state_of(template), "SavedAsTemplate", "the state")
        await template.terminate()
        equal((await template.wait()).exit_type, "ForcedExit", "the type of the exit")


@within(running_system, Control.LINUX)
async def options_that_cannot_be_read_are_refused(rig: Rig, system: System) -> None:
    with refused("HCS_E_INVALID_JSON"):
        await system.pause({"Level": "Suspend"})
    equal(await state_of(system), "Running", "the state")


# The exit.


@scenario(Control.LINUX)
async def every_waiter_gets_the_exit_status(rig: Rig) -> None:
    exits = {"terminate": "ForcedExit", "shutdown": "GracefulExit", "crash": "UnexpectedExit"}
    for name, exit_type in exits.items():
        async with running_system(rig) as system:
            async with anyio.create_task_group() as tasks:
                waiting = [Attempt.begin(tasks, system.wait) for _ in range(20)]
                await OPERATIONS[name](system)
            found = {attempt.result.exit_type for attempt in waiting} | {(await system.wait()).exit_type}
            equal(found, {exit_type}, f"the exits after {name}")
            code = (await system.wait()).code
            equal(bool(code), name == "crash", f"whether the exit after {name} has an error ({code:#x})")


@within(running_system, Control.LINUX, Control.EXIT)
async def a_system_that_exits_by_itself_reports_it(rig: Rig, system: System) -> None:
    async with anyio.create_task_group() as tasks:
        waiting = Attempt.begin(tasks, system.wait)
        rig.host.crash(system.id)
    equal(waiting.result.exit_type, "UnexpectedExit", "the type of the exit")
    check(waiting.result.code, "there is an error code")
    check((waiting.result.detail or {}).get("Attribution"), "the cause of the exit is reported")
    with refused("HCS_E_SYSTEM_ALREADY_STOPPED"):
        await system.terminate()


@within(running_system, Control.LINUX)
async def a_cancelled_waiter_disturbs_no_other(rig: Rig, system: System) -> None:
    found = await cancel_one_waiter(system.wait, system.terminate)
    equal(found.exit_type, "ForcedExit", "the exit in the other wait")


# Handles.


@within(running_system, Control.LINUX)
async def a_handle_is_closed_once_and_refuses_everything_then(rig: Rig, system: System) -> None:
    await system.close()
    more = {name: methodcaller(name) for name in ("properties", "wait", "close")}
    for name, operation in (OPERATIONS | more).items():
        with refused("E_HANDLE", what=name):
            await operation(system)
    equal(system.id, rig.own("vm1"), "the id, which is still known")


@within(running_system, Control.LINUX)
async def a_wait_ends_when_its_handle_is_closed(rig: Rig, system: System) -> None:
    async with opened(rig) as other, anyio.create_task_group() as tasks:
        waiting = Attempt.begin(tasks, other.wait)
        await other.close()
        await waiting.wait()
        equal(waiting.refusal, "E_HANDLE", "the error of the wait")
    equal(await state_of(system), "Running", "the state, over the other handle")


@scenario(Control.LINUX)
async def closing_takes_effect_if_the_caller_is_cancelled(rig: Rig) -> None:
    async with running_system(rig) as system:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await system.close()
        with refused("E_HANDLE"):
            await system.close()
    equal(await is_listed(rig), False, "whether the system is there, whose only handle was closed")


@scenario(Control.LINUX)
async def several_handles_are_one_system(rig: Rig) -> None:
    async with some_system(rig) as first, opened(rig) as other:
        equal(other.runtime_id.casefold(), first.runtime_id.casefold(), "the runtime id")
        await other.start()
        equal(await state_of(first), "Running", "the state, over the first handle")
        await first.close()
        equal(await state_of(other), "Running", "the state, when the first handle was closed")
        await other.terminate()
        equal((await other.wait()).exit_type, "ForcedExit", "the type of the exit")


@within(running_system, Control.LINUX)
async def a_system_ends_with_its_last_handle(rig: Rig, system: System) -> None:
    other = await rig.backend.open(system.id)
    await system.close()
    equal(await is_listed(rig), True, "whether the system is there, with a handle")
    await other.close()
    equal(await is_listed(rig), False, "whether the system is there, without a handle")


@scenario(Control.LINUX)
async def a_system_outlives_its_handles_if_its_document_says_so(rig: Rig) -> None:
    async with running_system(rig, linux_options(rig, survive_process=True)) as system:
        await system.close()
        async with opened(rig) as again:
            equal(await state_of(again), "Running", "the state")
            await again.terminate()
    equal(await is_listed(rig), False, "whether the system is there that was ended")


@scenario(Control.LINUX)
async def a_system_that_has_ended_can_be_opened_while_a_handle_is_left(rig: Rig) -> None:
    async with running_system(rig) as system:
        await system.terminate()
        await system.wait()
        async with opened(rig) as other:
            equal((await other.wait()).exit_type, "ForcedExit", "the type of the exit, over the other handle")
            equal(await state_of(other), "Stopped", "the state")
            with refused("HCS_E_SYSTEM_ALREADY_STOPPED"):
                await other.terminate()
    with refused("HCS_E_SYSTEM_NOT_FOUND"):
        await rig.backend.open(rig.own("vm1"))
