"""Scenarios: updates of VMs and containers that run, mounts in containers, templates and their clones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from attrs import evolve

from uvm._guest.container import Container
from uvm._names import GuestOS
from uvm._vm.cpugroups import create_cpu_group, delete_cpu_group
from uvm._vm.ending import VMState
from uvm._vm.vm import UtilityVM
from uvm.devices.scsi import Mount
from uvm.errors import BridgeClosedError, NotSupportedError, RefusedError
from uvm.options import WCOWOptions
from uvm.options.template import Template
from uvm.schema.common import MIB
from uvm.testing.backends.checks import check, equal, raises
from uvm.testing.backends.lifecycle import Resources
from uvm.testing.backends.rig import Control, Rig
from uvm.testing.backends.scenario import scenario, variants
from uvm.testing.backends.vms import compare
from uvm.testing.backends.world import options_of, running_vm

_RELAYED: Final = {"external_guest_connection": False}
_CPU_GROUP: Final = "io.microsoft.virtualmachine.cpugroup.id"
_PROCESSORS: Final[dict[GuestOS, dict[str, int]]] = {
    "linux": {"quota": 50_000, "period": 100_000, "shares": 512},
    "windows": {"maximum": 5_000, "shares": 50},
}

# Updates.


@variants(
    Control.UPDATES,
    Control.CALLS,
    a_linux_vm_is_updated_as_a_whole_or_not_at_all={"os": "linux"},
    a_windows_vm_is_updated_as_a_whole_or_not_at_all={"os": "windows"},
    a_vm_whose_guest_hcs_connects_to_is_updated_as_a_whole_or_not_at_all={"os": "linux", **_RELAYED},
)
async def _update(rig: Rig, os: GuestOS, **options: Any) -> None:
    async with running_vm(rig, os, allow_overcommit=False, **options) as vm:
        group = await create_cpu_group(rig.backend, [0])
        before = await vm.assigned_memory_bytes()
        rig.host.refuse(operation="modify", nth=3 + (os == "linux" and bool(options)))
        asked = {"memory": {"limit": before // 2}, "cpu": _PROCESSORS[os]}, {_CPU_GROUP: group.id}
        with raises(RefusedError):
            await vm.update(*asked)
        rig.host.undisturbed()
        equal(await vm.assigned_memory_bytes(), before, "the memory after an update that is refused")
        # The group of which the VM is no member can be deleted.
        await delete_cpu_group(rig.backend, group.id)
        group = await create_cpu_group(rig.backend, [0])
        await vm.update(asked[0], {_CPU_GROUP: group.id})
        equal(await vm.assigned_memory_bytes(), before // 2, "the memory after an update")
        with raises(RefusedError):
            await delete_cpu_group(rig.backend, group.id)
        await compare(rig, vm)
    await delete_cpu_group(rig.backend, group.id)


@asynccontextmanager
async def _running_container(vm: UtilityVM) -> AsyncIterator[Container]:
    linux = vm.os == "linux"
    spec = {"process": {"args": ["cat"], "cwd": "/"}, "linux": {}} if linux else {"Container": {}}
    async with vm.create_container(f"{vm.id}-c1", spec) as container:
        await container.start()
        if linux:
            await container.open_init(stdin=True)
        yield container


@variants(
    Control.UPDATES,
    Control.PROGRAMS,
    a_linux_container_is_updated={"os": "linux"},
    a_windows_container_is_updated={"os": "windows"},
    a_linux_container_that_hcs_hosts_is_updated={"os": "linux", **_RELAYED},
    a_windows_container_that_hcs_hosts_is_updated={"os": "windows", **_RELAYED},
)
async def _update_container(rig: Rig, os: GuestOS, **options: Any) -> None:
    async with running_vm(rig, os, **options) as vm, _running_container(vm) as container:
        processors = {"shares": 512}
        await container.update({"memory": {"limit": 64 * MIB}, "cpu": processors})
        # Less than its processes use; more than the VM has.
        impossible = 8192 if os == "linux" else 1 << 50
        with raises(RefusedError):
            await container.update({"memory": {"limit": impossible}})
        if os == "linux":
            usage = (await container.statistics())["memory"]["usage"]
            equal(usage["limit"], 64 * MIB, "the limit of the memory")
        await compare(rig, vm)


@variants(
    Control.FILES,
    a_directory_is_mounted_into_a_windows_container={"os": "windows"},
    a_directory_is_mounted_into_a_windows_container_that_hcs_hosts={"os": "windows", **_RELAYED},
)
async def _mount_in_container(rig: Rig, os: GuestOS, **options: Any) -> None:
    directory = rig.host.put_directory("data")
    async with running_vm(rig, os, **options) as vm, _running_container(vm) as container:
        async with vm.mount_in_container(container, directory, r"C:\data", read_only=True):
            await compare(rig, vm)
            with raises(RefusedError):
                await vm.mount_in_container(container, directory, r"C:\data", read_only=True)
        await compare(rig, vm)
        mount = await vm.mount_in_container(container, directory, r"C:\data")
        await container.aclose()
        await compare(rig, vm)
        await mount.release()
        equal(vm.orphans, (), "what has no caller")


# Templates and clones.


@scenario(Control.WINDOWS, Control.FILES, Control.NETWORKS, Control.PROGRAMS, timeouts=3)
async def clones_go_on_from_where_their_template_was_saved(rig: Rig) -> None:
    options = options_of(rig, "windows", template=True)
    assert isinstance(options, WCOWOptions)
    created = UtilityVM.create(options, backend=rig.backend)
    if "windows" not in (await rig.backend.host()).templates:
        with raises(NotSupportedError):
            await created.__aenter__()
        return
    resources = Resources(rig.host)
    async with created as vm:
        await vm.start()
        template = await _saved(vm, resources)
        await compare(rig, vm)
        for number in (1, 2):
            scratch = rig.host.path_of(f"clone{number}")
            of_clone = evolve(
                options,
                id=rig.own(f"clone{number}"),
                template=False,
                clone_of=template,
                scratch_directory=scratch,
            )
            await _live_as_a_clone(rig, of_clone, resources)
        await template.delete(rig.backend)


async def _saved(vm: UtilityVM, resources: Resources) -> Template:
    """Attach a device of each kind that a clone has, have a container run, and save the VM."""
    await vm.vsmb.add(resources.shared, read_only=True)
    await vm.scsi.attach(resources.disk, mount=Mount())
    await vm.network.setup(resources.namespace)
    container = await vm.create_container("c1", {"Container": {}})
    await container.start()
    process = await container.open_process(["sleep", "3600"])
    template = await vm.save_template()
    equal(vm.state, VMState.SAVED, "the state")
    with raises(BridgeClosedError):
        await process.wait()
    equal(vm.network.adapters, (), "the adapters of the template")
    return Template.from_json(template.as_json())


async def _live_as_a_clone(rig: Rig, options: WCOWOptions, resources: Resources) -> None:
    assert options.clone_of is not None
    async with UtilityVM.create(options, backend=rig.backend) as clone:
        await clone.start()
        equal((clone.is_clone, clone.template_id), (True, options.clone_of.vm_id), "what it is a clone of")
        await compare(rig, clone)
        async with clone.network.setup(resources.namespace):
            equal(len(clone.network.adapters), 1, "the adapters of the clone")
            await compare(rig, clone)
        async with clone.open_container("c1") as container:
            listed = [each.image_name for each in await container.processes()]
            check("sleep" in listed, f"the process of the template goes on: {listed}")
            equal((await container.run(["echo", "hello"])).stdout, b"hello\n", "the output")
        [disk] = clone.scsi.disks
        check(disk.host_path != resources.disk, "the writable disk is a copy")
        await clone.scsi.detach(disk.host_path)
        await clone.vsmb.remove(resources.shared, read_only=True)
        await compare(rig, clone)
