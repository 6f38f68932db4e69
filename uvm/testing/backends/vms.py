"""Scenarios: utility VMs, with everything that they do, where nothing goes wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio

from uvm._vm.vm import UtilityVM, VMState
from uvm.devices.scsi import Mount
from uvm.errors import AlreadyReleasedError, HostError, VMExitedError
from uvm.schema.common import MIB
from uvm.testing.backends.checks import Attempt, check, equal, raises, until
from uvm.testing.backends.life import Kind, Life, at_rest, devices, put_things
from uvm.testing.backends.rig import Control, Rig
from uvm.testing.backends.scenario import scenario
from uvm.testing.backends.world import options_of, running_vm

_THINGS = (Control.FILES, Control.NETWORKS, Control.DEVICES)


async def compare(rig: Rig, vm: UtilityVM) -> None:
    """Wait until a VM is at rest, and look that the ledgers, the host and the guest agree."""
    await until(lambda: at_rest(vm))
    if Control.AUDIT in rig.controls:
        equal(rig.host.differences(vm), [], "what the ledgers say and what is there")


async def live(rig: Rig, kind: Kind) -> None:
    """Live a whole life in which nothing fails."""
    life = Life(rig, kind, put_things(rig))
    await life.live()
    equal(life.errors, [], "what failed")


# Whole lives.


@scenario(Control.LINUX, Control.AUDIT, *_THINGS)
async def a_linux_vm_lives(rig: Rig) -> None:
    await live(rig, Kind("linux"))


@scenario(Control.LINUX, Control.AUDIT, *_THINGS)
async def a_linux_vm_lives_whose_guest_hcs_connects_to(rig: Rig) -> None:
    await live(rig, Kind("linux", relayed=True))


@scenario(Control.WINDOWS, Control.AUDIT, *_THINGS)
async def a_windows_vm_lives(rig: Rig) -> None:
    await live(rig, Kind("windows"))


@scenario(Control.WINDOWS, Control.AUDIT, *_THINGS)
async def a_windows_vm_lives_whose_guest_hcs_connects_to(rig: Rig) -> None:
    await live(rig, Kind("windows", relayed=True))


@scenario(Control.LINUX, Control.WINDOWS, Control.PROGRAMS)
async def vms_beside_each_other_do_not_disturb_each_other(rig: Rig) -> None:
    async with (
        running_vm(rig, "linux") as first,
        running_vm(rig, "windows", id="vm2") as second,
        running_vm(rig, "linux", id="vm3") as third,
    ):
        await second.terminate()
        for vm in (first, third):
            equal((await vm.run(["echo", "hello"])).stdout, b"hello\n", f"what {vm.id} says")


# Devices.


async def _all_at_once(rig: Rig, os: str) -> None:
    things = put_things(rig)
    async with running_vm(rig, os) as vm:
        leases: list[Any] = []
        async with anyio.create_task_group() as tasks:
            attempts = [
                Attempt.begin(tasks, lambda acquire=acquire: acquire(vm))  # type: ignore[misc]
                for acquire in devices(os, things).values()
            ]
        equal([each.error for each in attempts if each.error], [], "what failed to attach")
        leases = [each.result for each in attempts]
        await compare(rig, vm)
        async with anyio.create_task_group() as tasks:
            for lease in leases:
                tasks.start_soon(lease.release)
        await compare(rig, vm)
        equal(vm.quarantined, (), "what is withheld")


@scenario(Control.LINUX, *_THINGS)
async def all_devices_of_a_linux_vm_come_and_go_at_once(rig: Rig) -> None:
    await _all_at_once(rig, "linux")


@scenario(Control.WINDOWS, *_THINGS)
async def all_devices_of_a_windows_vm_come_and_go_at_once(rig: Rig) -> None:
    await _all_at_once(rig, "windows")


@scenario(Control.LINUX, Control.FILES)
async def many_disks_are_attached_mounted_and_released_at_once(rig: Rig) -> None:
    paths = [rig.host.put_file(f"disk{number}.vhdx") for number in range(32)]
    async with running_vm(rig) as vm:
        async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
            attempts = [
                Attempt.begin(tasks, lambda path=path: vm.scsi.attach(path, mount=Mount()))  # type: ignore[misc]
                for path in paths
            ]
            for attempt in attempts:
                await attempt.wait()
                check(attempt.error is None, f"it is attached: {attempt.error}")
                stack.push_async_callback(attempt.result.release)
            equal(len({each.result.guest_path for each in attempts}), 32, "different places in the guest")
            await compare(rig, vm)
        await compare(rig, vm)


@scenario(Control.LINUX, Control.FILES)
async def a_disk_that_two_have_stays_until_both_released_it(rig: Rig) -> None:
    path = rig.host.put_file("disk.vhdx")
    async with running_vm(rig) as vm:
        first, second = await vm.scsi.attach(path), await vm.scsi.attach(path)
        await first.release()
        check(vm.scsi.find(path) is not None, "it is attached")
        with raises(AlreadyReleasedError):
            await first.release()
        await second.release()
        equal(vm.scsi.find(path), None, "where it is")
        await compare(rig, vm)


async def _plain_layer(rig: Rig, **options: Any) -> None:
    paths = [rig.host.put_file(f"layer{number}.vhd", size_bytes=4 * MIB) for number in range(3)]
    async with running_vm(rig, **options) as vm:
        leases = [await vm.vpmem.add(path) for path in paths]
        equal(len({lease.guest_path for lease in leases}), 3, "different places in the guest")
        await compare(rig, vm)
        await leases[1].release()
        leases[1] = await vm.vpmem.add(paths[1])
        await compare(rig, vm)
        for lease in leases:
            await lease.release()
        await compare(rig, vm)


@scenario(Control.LINUX, Control.FILES)
async def layers_share_a_vpmem_device(rig: Rig) -> None:
    await _plain_layer(rig)


@scenario(Control.LINUX, Control.FILES)
async def layers_have_a_vpmem_device_each_where_they_are_not_packed(rig: Rig) -> None:
    await _plain_layer(rig, vpmem_multi_mapping=False)


@scenario(Control.WINDOWS, Control.FILES)
async def files_of_one_directory_are_one_share(rig: Rig) -> None:
    paths = [rig.host.put_file(f"file{number}.txt") for number in range(3)]
    async with running_vm(rig, "windows") as vm:
        leases = [await vm.vsmb.add(path) for path in paths]
        equal(len({lease.name for lease in leases}), 1, "one share")
        await compare(rig, vm)
        for lease in leases:
            await lease.release()
        await compare(rig, vm)


# The guest.


async def _converse(vm: UtilityVM) -> None:
    """Have a process say again what it hears, and end its input when it has."""
    data = bytes(range(256)) * 1024
    async with vm.open_process(["cat"]) as process, anyio.create_task_group() as tasks:
        assert process.stdin is not None
        assert process.stdout is not None
        tasks.start_soon(process.stdin.send, data)
        heard = b""
        while len(heard) < len(data):
            heard += await process.stdout.receive()
        equal(heard, data, "what cat says of 256 KiB")
        await process.stdin.send_eof()
        equal(await process.wait(), 0, "how cat exits at the end of its input")


async def _run(rig: Rig, os: str, **options: Any) -> None:
    async with running_vm(rig, os, **options) as vm:
        equal((await vm.run(["echo", "hello"])).stdout, b"hello\n", "what echo says")
        await _converse(vm)
        equal((await vm.run(["false"])).exit_code, 1, "how false exits")
        async with vm.open_process(["sleep", "3600"], terminal=True, size=(24, 80)) as process:
            await process.resize(50, 132)
            check(await process.kill(), "it is killed")
            check(await process.wait() != 0, "it did not exit by itself")
            check(not await process.kill(), "it is not killed again")
        async with vm.open_process(["cat"]) as process:
            await vm.terminate()
            with raises(VMExitedError):
                await process.wait()


@scenario(Control.LINUX, Control.PROGRAMS)
async def processes_run_in_a_linux_guest(rig: Rig) -> None:
    await _run(rig, "linux")


@scenario(Control.WINDOWS, Control.PROGRAMS)
async def processes_run_in_a_windows_guest(rig: Rig) -> None:
    await _run(rig, "windows")


@scenario(Control.LINUX, Control.PROGRAMS)
async def processes_run_in_a_linux_guest_that_hcs_connects_to(rig: Rig) -> None:
    await _run(rig, "linux", external_guest_connection=False)


@scenario(Control.WINDOWS, Control.PROGRAMS)
async def processes_run_in_a_windows_guest_that_hcs_connects_to(rig: Rig) -> None:
    await _run(rig, "windows", external_guest_connection=False)


async def _run_on_layers(rig: Rig, **options: Any) -> None:
    things = put_things(rig)
    spec = {"ociVersion": "1.1.0", "process": {"args": ["echo", "hello"], "cwd": "/"}, "linux": {}}
    async with running_vm(rig, **options) as vm:
        root = await vm.mount_layers("c1", [things.layer], things.scratch)
        async with vm.create_container("c1", spec, root=root) as container:
            await container.start()
            async with container.open_init(stderr=False) as init:
                check(init.stdout is not None, "it has an output")
                assert init.stdout is not None
                equal(b"".join([each async for each in init.stdout]), b"hello\n", "what it says")
                equal(await init.wait(), 0, "how it exits")
            await container.wait()
        await root.release()
        await compare(rig, vm)


@scenario(Control.LINUX, Control.PROGRAMS, *_THINGS)
async def a_container_runs_on_its_layers(rig: Rig) -> None:
    await _run_on_layers(rig)


@scenario(Control.LINUX, Control.PROGRAMS, *_THINGS)
async def a_container_that_hcs_hosts_runs_on_its_layers(rig: Rig) -> None:
    await _run_on_layers(rig, external_guest_connection=False)


async def _run_in_windows_container(rig: Rig, **options: Any) -> None:
    document = {"Container": {"Storage": {"Path": "C:\\c1"}}}
    async with (
        running_vm(rig, "windows", **options) as vm,
        vm.create_container("c1", document) as container,
    ):
        await container.start()
        equal((await container.run(["echo", "hello"])).stdout, b"hello\n", "what it says")
        check("Memory" in await container.statistics(), "its statistics have the memory")
        async with container.open_process(["sleep", "3600"]) as process:
            listed = [each.process_id for each in await container.processes()]
            equal(listed, [process.pid], "its processes")
            check(await process.kill(), "it is killed")
            check(await process.wait() != 0, "it did not exit by itself")
        await container.shutdown()
        equal((await container.wait()).type, "GracefulExit", "how it exits")


@scenario(Control.WINDOWS, Control.PROGRAMS)
async def a_windows_container_runs_commands(rig: Rig) -> None:
    await _run_in_windows_container(rig)


@scenario(Control.WINDOWS, Control.PROGRAMS)
async def a_windows_container_that_hcs_hosts_runs_commands(rig: Rig) -> None:
    await _run_in_windows_container(rig, external_guest_connection=False)


@scenario(Control.WINDOWS, Control.PROGRAMS)
async def containers_that_hcs_hosts_go_with_their_vm(rig: Rig) -> None:
    document = {"Container": {"Storage": {"Path": "C:\\c1"}}}
    async with (
        running_vm(rig, "windows", external_guest_connection=False) as vm,
        vm.create_container("c1", document) as container,
    ):
        await container.start()
        async with anyio.create_task_group() as tasks:
            waiting = Attempt.begin(tasks, container.wait)
            await vm.create_container("c2", document)
            await vm.terminate()
            await waiting.wait()
        check(isinstance(waiting.error, VMExitedError), f"why the wait ended: {waiting.error!r}")
        equal(container.exit, None, "how it exited")


# Changes and questions.


@scenario(Control.LINUX)
async def memory_changes_and_statistics_tell(rig: Rig) -> None:
    async with running_vm(rig, allow_overcommit=False) as vm:
        before = await vm.assigned_memory_bytes()
        await vm.update_memory(before // 2)
        check(await vm.assigned_memory_bytes() < before, "less memory is assigned")
        statistics = await vm.stats()
        check(statistics.memory is not None, "the statistics have the memory")
        check(statistics.working_set_bytes > 0, "it occupies memory")
    async with running_vm(rig, allow_overcommit=True) as vm:
        check((await vm.stats()).working_set_bytes > 0, "one that is virtually backed does, too")


@scenario(Control.LINUX, Control.FILES)
async def a_paused_vm_is_saved_and_goes_on(rig: Rig) -> None:
    async with running_vm(rig) as vm:
        await vm.pause()
        equal(vm.state, VMState.PAUSED, "its state")
        await vm.save(rig.host.path_of("saved.vmrs"))
        await vm.resume()
        equal(vm.state, VMState.RUNNING, "its state")
        equal((await vm.shutdown()).exit_type, "GracefulExit", "how it exits")


# Its end.


@scenario(Control.LINUX, Control.FILES)
async def a_vm_that_is_closed_gives_everything_back(rig: Rig) -> None:
    path = rig.host.put_file("disk.vhdx")
    async with running_vm(rig) as vm:
        await vm.scsi.attach(path, mount=Mount())
        await vm.close()
        equal(vm.state, VMState.CLOSED, "its state")
        if Control.AUDIT in rig.controls:
            equal(rig.host.leftovers(), [], "what is left on the host")
        with raises(VMExitedError):
            await vm.scsi.attach(path)
        await vm.close()


async def _ends(rig: Rig, end: Callable[[UtilityVM], Awaitable[object]], *exit_types: str) -> None:
    """Whoever waits for a VM, or uses it, is told of its end."""
    async with running_vm(rig) as vm, anyio.create_task_group() as tasks:
        waiting = Attempt.begin(tasks, vm.wait)
        await end(vm)
        await waiting.wait()
        check(waiting.result.exit_type in exit_types, f"how it exited: {waiting.result}")
        equal(vm.state, VMState.EXITED, "its state")
        with raises(VMExitedError):
            await vm.stats()
        equal(await vm.terminate(), waiting.result, "how it exited, once more")


@scenario(Control.LINUX)
async def a_vm_that_shuts_down_has_exited(rig: Rig) -> None:
    await _ends(rig, lambda vm: vm.shutdown(), "GracefulExit")


@scenario(Control.LINUX)
async def a_vm_that_is_terminated_has_exited(rig: Rig) -> None:
    await _ends(rig, lambda vm: vm.terminate(), "ForcedExit")


@scenario(Control.LINUX)
async def a_vm_that_is_made_to_crash_has_exited(rig: Rig) -> None:
    await _ends(rig, lambda vm: vm.crash(), "UnexpectedExit")


@scenario(Control.LINUX, Control.EXIT)
async def a_vm_that_exits_by_itself_has_exited(rig: Rig) -> None:
    async def crash(vm: UtilityVM) -> None:
        rig.host.crash(vm.id)

    await _ends(rig, crash, "UnexpectedExit")


@scenario(Control.LINUX)
async def a_vm_that_is_left_running_can_be_opened_and_ended(rig: Rig) -> None:
    created = UtilityVM.create(options_of(rig, "linux", survive_process=True), backend=rig.backend)
    async with created as vm:
        await vm.start()
        vm.detach()
    system = await rig.backend.open("vm1")
    equal((await system.properties())["State"], "Running", "its state")
    await system.terminate()
    await system.close()


@scenario(Control.LINUX)
async def an_id_that_is_in_use_is_refused_and_the_other_vm_goes_on(rig: Rig) -> None:
    async with running_vm(rig) as vm:
        with raises(HostError):
            async with UtilityVM.create(options_of(rig, "linux"), backend=rig.backend):
                check(False, "it is not created")
        equal((await vm.properties())["State"], "Running", "the state of the other")


@scenario(Control.LINUX)
async def a_vm_that_was_not_started_is_closed(rig: Rig) -> None:
    async with UtilityVM.create(options_of(rig, "linux"), backend=rig.backend) as vm:
        equal(vm.state, VMState.CREATED, "its state")
    equal(vm.state, VMState.CLOSED, "its state")
