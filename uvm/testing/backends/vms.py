"""Scenarios: everything that utility VMs do, without faults."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from uvm._names import GuestOS
from uvm._vm.ending import VMState
from uvm._vm.layers import WCOWLayer
from uvm._vm.pods.pod import Pod
from uvm._vm.vm import UtilityVM
from uvm.backend import JSON
from uvm.devices.blockcims import BlockCIM, BlockCIMLayer
from uvm.devices.scsi import Mount
from uvm.errors import AlreadyReleasedError, HostError, HostPathError, RefusedError, VMExitedError
from uvm.schema.common import MIB
from uvm.testing.backends.checks import Attempt, check, equal, raises, refused
from uvm.testing.backends.lifecycle import Kind, Lifecycle, Resources, devices
from uvm.testing.backends.rig import Control, Rig
from uvm.testing.backends.scenario import scenario, variants, within
from uvm.testing.backends.world import options_of, running_vm

_ATTACHABLE = (Control.FILES, Control.NETWORKS, Control.DEVICES)
#: The option by which HCS connects to the guest.
_RELAYED = {"external_guest_connection": False}
#: A security policy that allows all, base64.
POLICY = "eyJhbGxvd19hbGwiOiB0cnVlfQ=="
#: The document of a Windows container.
_CONTAINER = {"Container": {"Storage": {"Path": "C:\\c1"}}}


async def compare(rig: Rig, vm: UtilityVM) -> None:
    """Wait until a VM is at rest, and check that the ledgers, the host and the guest agree."""
    await vm.settled()
    if Control.AUDIT in rig.controls:
        equal(rig.host.differences(vm), [], "the differences between the ledgers and the VM")


# From creation to exit.


@variants(
    Control.AUDIT,
    *_ATTACHABLE,
    a_linux_vm_runs_from_creation_to_exit={"os": "linux"},
    a_linux_vm_whose_guest_hcs_connects_to_runs_from_creation_to_exit={"os": "linux", "relayed": True},
    a_windows_vm_runs_from_creation_to_exit={"os": "windows"},
    a_windows_vm_whose_guest_hcs_connects_to_runs_from_creation_to_exit={"os": "windows", "relayed": True},
)
async def _run_from_creation_to_exit(rig: Rig, **kind: Any) -> None:
    lifecycle = Lifecycle(rig, Kind(**kind), Resources(rig.host))
    await lifecycle.run()
    equal(lifecycle.errors, [], "what failed")


@scenario(Control.LINUX, Control.WINDOWS, Control.PROGRAMS)
async def concurrent_vms_do_not_disturb_each_other(rig: Rig) -> None:
    async with (
        running_vm(rig, "linux") as first,
        running_vm(rig, "windows", id=rig.own("vm2")) as second,
        running_vm(rig, "linux", id=rig.own("vm3")) as third,
    ):
        await second.terminate()
        for vm in (first, third):
            equal((await vm.run(["echo", "hello"])).stdout, b"hello\n", f"the output of {vm.id}")


# Devices.


@variants(
    *_ATTACHABLE,
    all_devices_of_a_linux_vm_are_attached_and_released_at_once={"os": "linux"},
    all_devices_of_a_windows_vm_are_attached_and_released_at_once={"os": "windows"},
)
async def _attach_all_at_once(rig: Rig, os: GuestOS) -> None:
    acquiring = devices(os, Resources(rig.host)).values()
    async with running_vm(rig, os) as vm:
        async with anyio.create_task_group() as tasks:
            attempts = [Attempt.begin(tasks, acquire, vm) for acquire in acquiring]
        equal([each.error for each in attempts if each.error], [], "what failed to attach")
        await compare(rig, vm)
        async with anyio.create_task_group() as tasks:
            for attempt in attempts:
                tasks.start_soon(attempt.result.release)
        await compare(rig, vm)
        equal(vm.quarantined, (), "what is withheld")


@within(running_vm, Control.LINUX, Control.FILES)
async def many_disks_are_attached_mounted_and_released_at_once(rig: Rig, vm: UtilityVM) -> None:
    paths = [rig.host.put_file(f"disk{number}.vhdx") for number in range(32)]
    async with anyio.create_task_group() as tasks:
        attempts = [Attempt.begin(tasks, partial(vm.scsi.attach, path, mount=Mount())) for path in paths]
    equal([each.error for each in attempts if each.error], [], "what failed to attach")
    equal(len({each.result.guest_path for each in attempts}), 32, "different places in the guest")
    await compare(rig, vm)
    async with anyio.create_task_group() as tasks:
        for attempt in attempts:
            tasks.start_soon(attempt.result.release)
    await compare(rig, vm)


@within(running_vm, Control.LINUX, Control.FILES)
async def a_disk_stays_until_the_last_of_its_leases_is_released(rig: Rig, vm: UtilityVM) -> None:
    path = rig.host.put_file("disk.vhdx")
    first, second = await vm.scsi.attach(path), await vm.scsi.attach(path)
    await first.release()
    check(vm.scsi.find(path) is not None, "the disk is attached")
    with raises(AlreadyReleasedError):
        await first.release()
    await second.release()
    equal(vm.scsi.find(path), None, "the slot of the disk")
    await compare(rig, vm)


@variants(
    Control.NETWORKS,
    Control.PIPES,
    a_proxy_sets_up_the_network_of_a_linux_vm={"os": "linux"},
    a_proxy_sets_up_the_network_of_a_windows_vm={"os": "windows"},
    a_proxy_sets_up_the_network_of_a_vm_whose_guest_hcs_connects_to={"os": "linux", **_RELAYED},
)
async def _set_up_by_a_proxy(rig: Rig, os: GuestOS, **options: Any) -> None:
    # The protobuf package, which only this needs, may be missing.
    from uvm.testing.ncproxy import FakeNetworkProxy

    network, path, agent = rig.host.put_network(2), rig.host.pipe_path("proxy"), rig.host.pipe_path("agent")
    names = [str(endpoint["Name"]) for endpoint in network.endpoints]
    async with (
        FakeNetworkProxy(rig.backend, path, {"pod": names}),
        running_vm(rig, os, network_config_proxy=path, **options) as vm,
    ):
        setup = vm.network_setup("pod", agent_address=agent)
        for _ in range(2):
            await setup.setup(network.id)
            equal([adapter.endpoint_name for adapter in vm.network.adapters], names, "the adapters")
            await compare(rig, vm)
            await setup.teardown(network.id)
            equal((vm.network.namespaces, vm.network.adapters), ((), ()), "what is left of the network")
            await compare(rig, vm)
        with refused("ERROR_FILE_NOT_FOUND"):
            await rig.backend.pipes.dial(agent)


@variants(
    Control.FILES,
    layers_share_a_vpmem_device={},
    unpacked_layers_have_a_vpmem_device_each={"vpmem_multi_mapping": False},
)
async def _add_layers(rig: Rig, **options: Any) -> None:
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


@variants(
    Control.WINDOWS,
    Control.FILES,
    block_cims_are_a_volume_of_a_windows_vm={},
    block_cims_are_a_volume_of_a_windows_vm_whose_guest_hcs_connects_to=_RELAYED,
)
async def _mount_block_cims(rig: Rig, **options: Any) -> None:
    merged, top, base = (BlockCIM(rig.host.put_file(f"{name}.vhd"), name) for name in ("m", "top", "base"))
    layer, scratch = BlockCIMLayer([top, base], merged=merged), rig.host.put_file("scratch.vhdx")
    async with running_vm(rig, "windows", **options) as vm:
        volume = await vm.block_cims.mount(layer)
        await compare(rig, vm)
        root = await vm.mount_layers("c1", [layer], scratch)
        equal([each.references for each in vm.block_cims.volumes], [2], "the leases of the volume")
        await compare(rig, vm)
        await volume.release()
        await compare(rig, vm)
        await root.release()
        equal((vm.block_cims.volumes, vm.scsi.disks), ((), ()), "what is left of them")
        # No image is on a disk that is not there.
        with raises(HostPathError):
            await vm.block_cims.mount(BlockCIMLayer([BlockCIM(rig.host.path_of("none.vhd"), "none")]))
        await compare(rig, vm)


# The guest.


async def _converse(vm: UtilityVM) -> None:
    """Have a process echo its input, and end the input."""
    data = bytes(range(256)) * 1024
    async with vm.open_process(["cat"]) as process, anyio.create_task_group() as tasks:
        stdin, stdout = process.stdin, process.stdout
        tasks.start_soon(stdin.send, data)
        heard = b""
        while len(heard) < len(data):
            heard += await stdout.receive()
        equal(heard, data, "the output of cat for 256 KiB")
        await stdin.send_eof()
        equal(await process.wait(), 0, "the exit code of cat at the end of its input")


@variants(
    Control.PROGRAMS,
    processes_run_in_a_linux_guest={"os": "linux"},
    processes_run_in_a_windows_guest={"os": "windows"},
    processes_run_in_a_linux_guest_that_hcs_connects_to={"os": "linux", **_RELAYED},
    processes_run_in_a_windows_guest_that_hcs_connects_to={"os": "windows", **_RELAYED},
)
async def _run(rig: Rig, os: GuestOS, **options: Any) -> None:
    async with running_vm(rig, os, **options) as vm:
        equal((await vm.run(["echo", "hello"])).stdout, b"hello\n", "the output of echo")
        await _converse(vm)
        equal((await vm.run(["false"])).exit_code, 1, "the exit code of false")
        async with vm.open_process(["sleep", "3600"], terminal=True, size=(24, 80)) as process:
            await process.resize(50, 132)
            check(await process.kill(), "the process is killed")
            check(await process.wait() != 0, "the process did not exit by itself")
            check(not await process.kill(), "the process is not killed again")
        async with vm.open_process(["cat"]) as process:
            await vm.terminate()
            with raises(VMExitedError):
                await process.wait()


@variants(
    Control.PROGRAMS,
    *_ATTACHABLE,
    a_container_runs_on_its_layers={},
    a_container_that_hcs_hosts_runs_on_its_layers=_RELAYED,
)
async def _run_on_layers(rig: Rig, **options: Any) -> None:
    resources = Resources(rig.host)
    spec = {"ociVersion": "1.1.0", "process": {"args": ["echo", "hello"], "cwd": "/"}, "linux": {}}
    async with running_vm(rig, **options) as vm:
        root = await vm.mount_layers("c1", [resources.layer], resources.scratch)
        async with vm.create_container(f"{vm.id}-c1", spec, root=root) as container:
            await container.start()
            async with container.open_init(stderr=False) as init:
                output = [piece async for piece in init.stdout]
                equal(b"".join(output), b"hello\n", "the output")
                equal(await init.wait(), 0, "the exit code")
            await container.wait()
        await root.release()
        await compare(rig, vm)


@variants(
    Control.PROGRAMS,
    *_ATTACHABLE,
    containers_of_a_pod_run_from_specifications_and_end_one_by_one={},
    containers_of_a_pod_that_hcs_hosts_run_from_specifications_and_end_one_by_one=_RELAYED,
)
async def _run_pod(rig: Rig, **options: Any) -> None:
    resources = Resources(rig.host)
    process = {"args": ["cat"], "cwd": "/"}
    plain: JSON = {"ociVersion": "1.1.0", "process": process, "linux": {}}
    mounted = plain | {
        "mounts": [
            {"destination": "/data", "type": "bind", "source": resources.shared, "options": ["rbind"]},
            {"destination": "/disk", "type": "virtual-disk", "source": resources.disk},
        ],
        "windows": {"devices": [{"id": resources.device, "idType": "vpci-instance-id"}]},
    }
    pods = Pod.create(options_of(rig, "linux", **options), backend=rig.backend, network=resources.namespace)
    async with pods as pod:
        scratch = rig.host.put_file("other.vhdx")
        other = await pod.run_container(plain, [resources.layer], scratch, id=rig.own("c2"), stdin=True)
        before = pod.vm.devices()
        async with pod.run_container(
            mounted, [resources.layer], resources.scratch, id=rig.own("c1"), stdin=True
        ) as container:
            await compare(rig, pod.vm)
            equal(len(container.resources.leases), 3, "the leases of mounts and devices")
            equal((await container.run(["echo", "hello"])).stdout, b"hello\n", "the output of echo")
        equal(pod.vm.devices(), before, "what is attached after the end of one container")
        equal((await other.run(["echo", "on"])).stdout, b"on\n", "the output of echo in the other")
        # What is not there is found before anything is attached.
        with raises(HostPathError):
            await pod.run_container(mounted, [rig.host.path_of("none.vhd")], resources.scratch)
        equal(pod.vm.devices(), before, "what is attached after a failure")
        await pod.end()
        await compare(rig, pod.vm)


@variants(
    Control.PROGRAMS,
    Control.POLICIES,
    Control.AUDIT,
    *_ATTACHABLE,
    containers_are_brought_up_one_at_a_time_under_a_policy={},
    containers_that_hcs_hosts_are_brought_up_one_at_a_time_under_a_policy=_RELAYED,
)
async def _bring_up_in_order(rig: Rig, **options: Any) -> None:
    resources = Resources(rig.host)
    spec = {"ociVersion": "1.1.0", "process": {"args": ["sleep", "3600"], "cwd": "/"}, "linux": {}}
    enforced = {"security_policy": POLICY, "security_policy_enabled": True, "vpmem_count": 0, **options}
    turns: list[str] = []

    async def bring_up(vm: UtilityVM, name: str, scratch: str) -> None:
        async with vm.container_creation():
            turns.append(name)
            root = await vm.mount_layers(name, [resources.layer], scratch)
            container = await vm.create_container(name, spec, root=root)
            turns.append(name)
        await container.aclose()
        await root.release()

    async with running_vm(rig, **enforced) as vm:
        # The guest takes no other ids of containers.
        with raises(RefusedError):
            await vm.create_container(f"{vm.id}-short", spec)
        disks = (resources.scratch, rig.host.put_file("other.vhdx"))
        scratches = {secrets.token_hex(32): disk for disk in disks}
        async with anyio.create_task_group() as tasks:
            for name, scratch in scratches.items():
                tasks.start_soon(bring_up, vm, name, scratch)
        check(turns[0] == turns[1] != turns[2] == turns[3], f"the containers are brought up in turn: {turns}")
        await compare(rig, vm)


@variants(
    Control.PROGRAMS,
    a_windows_container_runs_commands={"os": "windows"},
    a_windows_container_that_hcs_hosts_runs_commands={"os": "windows", **_RELAYED},
)
async def _run_in_windows_container(rig: Rig, **options: Any) -> None:
    async with running_vm(rig, **options) as vm, vm.create_container(f"{vm.id}-c1", _CONTAINER) as container:
        await container.start()
        equal((await container.run(["echo", "hello"])).stdout, b"hello\n", "the output")
        check("Memory" in await container.statistics(), "the statistics include the memory")
        async with container.open_process(["sleep", "3600"]) as process:
            listed = [each.process_id for each in await container.processes()]
            equal(listed, [process.pid], "the processes")
            check(await process.kill(), "the process is killed")
            check(await process.wait() != 0, "the process did not exit by itself")
        await container.shutdown()
        equal((await container.wait()).type, "GracefulExit", "the type of the exit")


@scenario(Control.WINDOWS, Control.PROGRAMS)
async def containers_that_hcs_hosts_end_with_their_vm(rig: Rig) -> None:
    relayed = running_vm(rig, "windows", **_RELAYED)
    async with relayed as vm, vm.create_container(f"{vm.id}-c1", _CONTAINER) as container:
        await container.start()
        async with anyio.create_task_group() as tasks:
            waiting = Attempt.begin(tasks, container.wait)
            await vm.create_container(f"{vm.id}-c2", _CONTAINER)
            await vm.terminate()
        check(isinstance(waiting.error, VMExitedError), f"the error of the wait: {waiting.error!r}")
        equal(container.exit, None, "the exit of the container")


@variants(
    Control.WINDOWS,
    Control.FILES,
    Control.NETWORKS,
    Control.PROGRAMS,
    containers_of_a_windows_pod_run_from_their_specifications={},
    containers_of_a_windows_pod_whose_guest_hcs_connects_to_run_from_their_specifications=_RELAYED,
)
async def _run_windows_pod(rig: Rig, **options: Any) -> None:
    host, pipe = rig.host, "\\\\.\\pipe\\"
    shared, disk, network = host.put_directory("shared"), host.put_file("data.vhdx"), host.put_network(1)
    layers = [WCOWLayer(host.put_directory("layer"), "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11")]
    spec = {
        "process": {"args": ["echo", "hello"]},
        "mounts": [
            {"source": shared, "destination": "C:\\shared", "options": ["ro"]},
            {"source": disk, "destination": "C:\\data", "type": "virtual-disk"},
            {"source": f"{pipe}uvm-conformance", "destination": f"{pipe}mapped"},
            {"source": f"uvm://{pipe}own", "destination": f"{pipe}own"},
        ],
        "windows": {"resources": {"memory": {"limit": 256 * MIB}, "cpu": {"maximum": 5000}}},
    }
    pods = Pod.create(options_of(rig, "windows", **options), backend=rig.backend, network=network.id)
    async with pods as pod:
        first = await pod.run_container(spec, layers, host.put_file("scratch1.vhdx"))
        second = await pod.run_container(spec, layers, host.put_file("scratch2.vhdx"))
        await compare(rig, pod.vm)
        for container in (first, second):
            check(container.init is not None, "the container has a process of its own")
            assert container.init is not None
            equal((await container.init.communicate()).stdout, b"hello\n", "the output")
            equal((await container.wait()).type, "GracefulExit", "the type of the exit")
        await first.aclose()
        await compare(rig, pod.vm)
        equal(len(pod.vm.scsi.disks), 2, "the disks of the container that is left")
        with raises(HostPathError):
            missing = {"mounts": [{"source": host.path_of("none"), "destination": "C:\\none"}]}
            await pod.run_container(missing, layers, host.put_file("scratch1.vhdx"))
        await second.aclose()
        equal((pod.vm.scsi.disks, pod.vm.pipes.pipes), ((), ()), "what is left of the containers")
        await compare(rig, pod.vm)


# Changes and queries.


@scenario(Control.LINUX)
async def memory_changes_and_statistics_show_it(rig: Rig) -> None:
    async with running_vm(rig, allow_overcommit=False) as vm:
        before = await vm.assigned_memory_bytes()
        await vm.update_memory(before // 2)
        check(await vm.assigned_memory_bytes() < before, "less memory is assigned")
        statistics = await vm.stats()
        check(statistics.memory is not None, "the statistics include the memory")
        check(statistics.working_set_bytes > 0, "the VM uses memory")
    async with running_vm(rig, allow_overcommit=True) as vm:
        check((await vm.stats()).working_set_bytes > 0, "a virtually backed VM uses memory, too")


@within(running_vm, Control.LINUX, Control.FILES)
async def a_paused_vm_is_saved_and_resumed(rig: Rig, vm: UtilityVM) -> None:
    await vm.pause()
    equal(vm.state, VMState.PAUSED, "the state")
    await vm.save(rig.host.path_of("saved.vmrs"))
    await vm.resume()
    equal(vm.state, VMState.RUNNING, "the state")
    equal((await vm.shutdown()).exit_type, "GracefulExit", "the type of the exit")


# The exit.


@within(running_vm, Control.LINUX, Control.FILES)
async def a_closed_vm_leaves_nothing_on_the_host(rig: Rig, vm: UtilityVM) -> None:
    path = rig.host.put_file("disk.vhdx")
    await vm.scsi.attach(path, mount=Mount())
    await vm.close()
    equal(vm.state, VMState.CLOSED, "the state")
    if Control.AUDIT in rig.controls:
        equal(rig.host.leftovers(), [], "what is left on the host")
    with raises(VMExitedError):
        await vm.scsi.attach(path)
    await vm.close()


async def _check_exit(rig: Rig, end: Callable[[UtilityVM], Awaitable[object]], exit_type: str) -> None:
    """Check that waiters and callers learn of the exit."""
    async with running_vm(rig) as vm:
        async with anyio.create_task_group() as tasks:
            waiting = Attempt.begin(tasks, vm.wait)
            await end(vm)
        equal(waiting.result.exit_type, exit_type, "the type of the exit")
        equal(vm.state, VMState.EXITED, "the state")
        with raises(VMExitedError):
            await vm.stats()
        equal(await vm.terminate(), waiting.result, "the exit, once more")


ENDS = variants(
    a_vm_that_shuts_down_has_exited={"end": UtilityVM.shutdown, "exit_type": "GracefulExit"},
    a_vm_that_is_terminated_has_exited={"end": UtilityVM.terminate, "exit_type": "ForcedExit"},
    a_vm_that_is_made_to_crash_has_exited={"end": UtilityVM.crash, "exit_type": "UnexpectedExit"},
)(_check_exit)


@scenario(Control.LINUX, Control.EXIT)
async def a_vm_that_exits_by_itself_has_exited(rig: Rig) -> None:
    async def crash(vm: UtilityVM) -> None:
        rig.host.crash(vm.id)

    await _check_exit(rig, crash, "UnexpectedExit")


@scenario(Control.LINUX)
async def a_vm_left_running_can_be_opened_and_terminated(rig: Rig) -> None:
    created = UtilityVM.create(options_of(rig, "linux", survive_process=True), backend=rig.backend)
    async with created as vm:
        await vm.start()
        vm.detach()
    system = await rig.backend.open(rig.own("vm1"))
    equal((await system.properties())["State"], "Running", "the state")
    await system.terminate()
    await system.close()


@within(running_vm, Control.LINUX)
async def an_id_that_is_in_use_is_refused_and_the_other_vm_goes_on(rig: Rig, vm: UtilityVM) -> None:
    with raises(HostError):
        async with UtilityVM.create(options_of(rig, "linux"), backend=rig.backend):
            check(False, "the VM is not created")
    equal((await vm.properties())["State"], "Running", "the state of the other VM")


@scenario(Control.LINUX)
async def a_vm_that_was_not_started_is_closed(rig: Rig) -> None:
    async with UtilityVM.create(options_of(rig, "linux"), backend=rig.backend) as vm:
        equal(vm.state, VMState.CREATED, "the state")
    equal(vm.state, VMState.CLOSED, "the state")
