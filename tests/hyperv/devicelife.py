"""Scenarios: devices of VMs from attachment to release, as a service has them, without control of the host.

After each the VM has nothing attached, no orphan, no quarantined slot, and the files on the host are free.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from uvm import Mount, UtilityVM
from uvm._buses.lease import Releasable
from uvm._names import GuestOS
from uvm.testing.backends import Control, Rig
from uvm.testing.backends.checks import check, equal
from uvm.testing.backends.scenario import variants, within
from uvm.testing.backends.world import running_vm

#: How often each comes and goes: a slot that is not free again shows.
ROUNDS = 3
AT_ONCE = 16

Acquire = Callable[[], Awaitable[Releasable]]


async def _nothing_attached(vm: UtilityVM) -> None:
    await vm.settled()
    devices = vm.devices()
    there = (devices.disks, devices.layers, devices.plan9_shares, devices.adapters)
    equal(there, ((), (), (), ()), "what is attached after all was released")
    equal((vm.orphans, vm.quarantined), ((), ()), "orphans and quarantined slots")


async def _come_and_go(vm: UtilityVM, *acquire: Acquire) -> None:
    """Acquire all at once and release all at once, a few times."""
    for _ in range(ROUNDS):
        leases: list[Releasable] = []

        async def hold(one: Acquire, leases: list[Releasable] = leases) -> None:
            leases.append(await one())

        async with anyio.create_task_group() as tasks:
            for one in acquire:
                tasks.start_soon(hold, one)
        async with anyio.create_task_group() as tasks:
            for lease in leases:
                tasks.start_soon(lease.release)
        await _nothing_attached(vm)


async def _free(rig: Rig, *paths: str) -> None:
    """Check that files are not in use: they can be removed."""
    for path in paths:
        await rig.backend.files.remove(path)
        equal(await rig.backend.files.stat(path), None, f"what was removed: {path}")


@variants(
    Control.FILES,
    a_vhd_comes_and_goes_and_its_file_is_free={"name": "data.vhd"},
    a_vhdx_comes_and_goes_and_its_file_is_free={"name": "data.vhdx"},
    a_read_only_disk_comes_and_goes_and_its_file_is_free={"name": "data.vhdx", "read_only": True},
)
async def _disk(rig: Rig, name: str, read_only: bool = False) -> None:
    path = rig.host.put_file(name)
    options = ("ro",) if read_only else ()
    async with running_vm(rig) as vm:
        mount = Mount(options=options)
        await _come_and_go(vm, partial(vm.scsi.attach, path, read_only=read_only, mount=mount))
        await _free(rig, path)


@within(running_vm, Control.LINUX, Control.FILES)
async def disks_come_and_go_at_once(rig: Rig, vm: UtilityVM) -> None:
    paths = [rig.host.put_file(f"disk{number}.vhdx") for number in range(AT_ONCE)]
    await _come_and_go(vm, *(partial(vm.scsi.attach, path, mount=Mount()) for path in paths))
    await _free(rig, *paths)


@variants(
    Control.FILES,
    layers_in_one_vpmem_device_come_and_go={},
    layers_in_vpmem_devices_of_their_own_come_and_go={"vpmem_multi_mapping": False},
)
async def _layers(rig: Rig, **options: Any) -> None:
    paths = [rig.host.put_file(f"layer{number}.vhd", size_bytes=4 << 20) for number in range(4)]
    async with running_vm(rig, **options) as vm:
        await _come_and_go(vm, *(partial(vm.vpmem.add, path) for path in paths))
    await _free(rig, *paths)


@variants(
    Control.FILES,
    directories_come_and_go_in_a_linux_vm={"os": "linux", "place": "/mnt/{}"},
    directories_come_and_go_in_a_windows_vm={"os": "windows", "place": "C:\\mnt\\{}"},
)
async def _directories(rig: Rig, os: GuestOS, place: str) -> None:
    paths = [rig.host.put_directory(f"shared{number}") for number in range(4)]
    async with running_vm(rig, os) as vm:
        await _come_and_go(vm, *(partial(vm.share, path, place.format(n)) for n, path in enumerate(paths)))


@variants(
    Control.NETWORKS,
    the_adapters_of_a_namespace_come_and_go_in_a_linux_vm={"os": "linux"},
    the_adapters_of_a_namespace_come_and_go_in_a_windows_vm={"os": "windows"},
)
async def _adapters(rig: Rig, os: GuestOS) -> None:
    network = rig.host.put_network(2)
    async with running_vm(rig, os) as vm:
        await _come_and_go(vm, partial(vm.network.setup, network.id))


@within(running_vm, Control.LINUX)
async def the_memory_changes_while_the_vm_runs_and_is_paused(rig: Rig, vm: UtilityVM) -> None:
    for size_bytes in (768 << 20, 512 << 20):
        await vm.update_memory(size_bytes)
    await vm.pause()
    await vm.resume()
    check((await vm.stats()).working_set_bytes > 0, "the VM has a working set")


@within(running_vm, Control.LINUX, Control.FILES)
async def a_vm_that_is_terminated_leaves_its_files_free(rig: Rig, vm: UtilityVM) -> None:
    disk, layer = rig.host.put_file("data.vhdx"), rig.host.put_file("layer.vhd")
    await vm.scsi.attach(disk, mount=Mount())
    await vm.vpmem.add(layer)
    await vm.share(rig.host.put_directory("shared"), "/mnt/shared")
    await vm.terminate()
    await vm.close()
    await _free(rig, disk, layer)
