"""A container's root file system in a VM: its layers, its scratch space, and what the guest combines of them.

Source: hcsshim ``internal/layers`` (``lcow.go``, ``wcow_mount.go``). Unlike there, all layers are attached at
the same time, and released again if the mounting fails.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from attrs import define, field, frozen

from uvm._arguments import items_of
from uvm._async import Opening, errors_of
from uvm._buses.access import Grant, grant_of
from uvm._buses.context import Context
from uvm._buses.holds import Hold
from uvm._buses.lease import (
    Lease,
    LeaseState,
    ReleasedByTask,
    all_gone,
    leases_of,
    released_on_failure,
    state_of_all,
)
from uvm._buses.link import Link
from uvm._buses.scsi import ScsiLease
from uvm._buses.vpmem import VPMemLease
from uvm._buses.vsmb import VSMBLease
from uvm._checks import U32, Checked, checked, go, text, whole
from uvm._guest.specs import bundle_of, check_container_id
from uvm._guest.states import Deletion
from uvm._names import HostPath, guest_path, text_of
from uvm._repr import brief, counted
from uvm._vm.devices import Devices
from uvm.devices.blockcims import BlockCIMLayer
from uvm.devices.scsi import Mount
from uvm.errors import HostPathError, NoSpaceError, OptionsError, together
from uvm.options import LCOWOptions
from uvm.schema.common import Layer
from uvm.schema.container import Storage

L = TypeVar("L", bound=Lease)


@frozen(repr=False)
class LCOWLayer(Checked):
    """A read-only layer of a Linux container.

    :ivar path: its VHD on the host.
    :ivar partition: the partition that holds it, from 1; 0 for the whole disk.
    """

    path: str = field(converter=text_of, metadata=go(None, text))
    partition: int = field(default=0, metadata=go(None, whole(U32)))


@frozen(repr=False)
class WCOWLayer(Checked):
    """A read-only layer of a Windows container.

    :ivar path: its directory on the host.
    :ivar id: its GUID, as it was imported.
    """

    path: str = field(converter=text_of, metadata=go(None, text))
    id: str = field(metadata=go(None, text))


async def add_layer(vm: Devices, layer: LCOWLayer, grant_access: Grant) -> VPMemLease | ScsiLease:
    """Attach a layer to a Linux guest: over VPMEM, or over SCSI if it does not fit there.

    Also over SCSI: a partition, and every layer of a VM whose devices are to be physically backed.
    """
    options = vm._context.options
    if not options.fully_physically_backed and not layer.partition:
        try:
            return await vm.vpmem.add(layer.path, grant_access=grant_access)
        except NoSpaceError:
            pass
    mount = Mount(partition=layer.partition, options=("ro",))
    return await vm.scsi.attach(layer.path, read_only=True, mount=mount, grant_access=grant_access)


@define(eq=False, repr=False)
class RootFileSystem(ReleasedByTask):
    """A root file system in the guest, with its parts. It ends with :meth:`release`, or with the VM.

    Released are the combined root, then scratch and layers; then the container's state is deleted, if kept.

    :ivar root: its path in the guest.
    :ivar scratch_path: the directory in the guest for what is written.
    :ivar layers: the leases of its layers, top-most first.
    :ivar scratch: that of its scratch disk.
    """

    _operation = "unmount layers"

    _vm: Devices
    _container_id: str
    root: str
    scratch_path: str
    layers: tuple[Lease, ...]
    scratch: ScsiLease
    _combined: Lease
    #: Of a Windows container, the id and the path of each layer, as its document has them.
    _named: tuple[tuple[str, str], ...] = ()
    #: The deletion of its container's state, if that has failed.
    _failed_deletion: Deletion | None = field(default=None, init=False)

    def __repr__(self) -> str:
        parts = f"{counted(len(self.layers), 'layers')}, scratch {self.scratch.host_path}"
        return brief(f"<RootFileSystem of {self._link.vm_id}: {self.root}, {parts} ({self.state.value})>")

    @property
    def storage(self) -> Storage:
        """The part of a Windows container's document that names it."""
        return Storage(path=self.root, layers=[Layer(id=id, path=path) for id, path in self._named])

    @property
    def _link(self) -> Link:
        return self._vm._link

    def _state_of_parts(self) -> LeaseState:
        state = state_of_all(self._holds)
        if self._failed_deletion is not None and state in (LeaseState.RELEASED, LeaseState.GONE):
            return LeaseState.REFUSED
        return LeaseState.REFUSED if self._releasing.error and state is LeaseState.HELD else state

    @property
    def _holds(self) -> list[Hold[object]]:
        """Holds on its parts, in the order in which they are released."""
        return [hold for lease in self._parts for hold in lease._all_holds]

    @property
    def _parts(self) -> list[Lease]:
        return [self._combined, self.scratch, *self.layers]

    async def gone(self) -> None:
        """Wait until its root, scratch disk and layers are off the host; see :meth:`uvm.Lease.gone`."""
        await all_gone(self._holds)

    def _leave(self) -> None:
        """Have what is left of it released or listed as orphans, once the release in flight has failed."""
        if self._releasing.error is None:
            return
        combined, *others = self._parts
        if combined.state is LeaseState.REFUSED:
            # An orphan keeps what it was made of.
            combined._hold.below = tuple(lease._hold for lease in others)
            combined._leave()
            return
        for lease in others:
            lease._leave() if lease.state is LeaseState.REFUSED else lease.give_up()

    async def _take_apart(self) -> None:
        states, errors = self._link.states, list[Exception]()
        await states.closed(self._container_id)
        deletion = self._failed_deletion or states.pending(self._container_id)
        # Layers that the guest has combined cannot be unmounted.
        for leases in ([self._combined], [self.scratch, *self.layers]):
            held = (lease.release for lease in leases if not lease.released)
            errors = errors or await errors_of(held)
        errors = errors or [hold.error for hold in self._holds if isinstance(hold.error, Exception)]
        if deletion is not None and deletion.begun:
            errors += await errors_of([partial(self._deleted, deletion)])
        if errors:
            raise together(f"releasing {self.root}", errors)

    async def _deleted(self, deletion: Deletion) -> None:
        """Wait for the deletion of its container's state; if that failed before, try it again."""
        if self._failed_deletion is not None:
            await deletion.forget()
            self._failed_deletion = None
            return
        await deletion.done.wait()
        if deletion.error is not None:
            self._failed_deletion = deletion
            raise deletion.error


async def _with_scratch(
    vm: Devices, layers: Iterable[Callable[[], Awaitable[Lease]]], scratch_path: HostPath, mount: Mount
) -> tuple[list[Any], ScsiLease]:
    """Attach layers and a scratch disk, all at once: all of them, or none."""

    async def attach() -> Lease:
        return await vm.scsi.attach(scratch_path, mount=mount)

    added: list[Any] = await leases_of([*layers, attach])
    return added[:-1], added[-1]


async def _mount_lcow(
    vm: Devices,
    container_id: str,
    layers: Sequence[Any],
    scratch_path: HostPath,
    root: str,
    grant_access: Grant,
) -> RootFileSystem:
    options = vm._context.options
    encrypted = isinstance(options, LCOWOptions) and options.scratch_encryption
    root = root or bundle_of(container_id)
    # Checked before anything is sent.
    vm._link.check_running()
    await vm._link.states.settled(container_id)
    for path in (*(layer.path for layer in layers), scratch_path):
        await vm._context.file_size(path)
    mount = Mount(
        # hcsshim formats encrypted scratch disks with xfs.
        filesystem="xfs" if encrypted else "ext4",
        encrypted=encrypted,
        ensure_filesystem=True,
        guest_path=root,
    )
    adding = (partial(add_layer, vm, layer, grant_access) for layer in layers)
    added, scratch = await _with_scratch(vm, adding, scratch_path, mount)
    with released_on_failure([*added, scratch]):
        # The scratch disk may serve several containers, and this is the part of this one.
        upper = f"{scratch.guest_path}/scratch/{container_id}"
        combined = await vm.layers.combine(
            f"{root}/rootfs",
            [layer.guest_path for layer in added],
            scratch_path=upper,
            container_id=container_id,
        )
    return RootFileSystem(vm, container_id, combined.root, upper, tuple(added), scratch, combined)


async def check_layers(
    context: Context, layers: Sequence[LCOWLayer | WCOWLayer | BlockCIMLayer | HostPath], scratch: HostPath
) -> None:
    """Check that layers and a scratch disk are on the host.

    :raises HostPathError: one is not there, or is of the wrong kind.
    """
    for layer in layers:
        if isinstance(layer, WCOWLayer):
            if not await context.is_directory(layer.path):
                raise HostPathError(layer.path, "is a file, and a layer of Windows is a directory")
        elif isinstance(layer, BlockCIMLayer):
            for cim in layer.mounted:
                await context.file_size(cim.disk_path)
        else:
            await context.file_size(layer.path if isinstance(layer, LCOWLayer) else layer)
    await context.file_size(scratch)


async def _mount_wcow(
    vm: Devices, container_id: str, layers: Sequence[Any], scratch_path: HostPath
) -> RootFileSystem:
    options = vm.vsmb.default_options(read_only=True).replaced(take_backup_privilege=True)

    # Checked before anything is sent.
    vm._link.check_running()
    await check_layers(vm._context, layers, scratch_path)

    async def share(path: str) -> VSMBLease:
        return await vm.vsmb.add(path, options=options)

    sharing = (partial(share, layer.path) for layer in layers)
    added, scratch = await _with_scratch(vm, sharing, scratch_path, Mount())
    with released_on_failure([*added, scratch]):
        ids_and_paths = [(layer.id, lease.guest_path) for layer, lease in zip(layers, added, strict=True)]
        combined = await vm.layers.combine(
            scratch.guest_path, ids_and_paths, container_id=container_id, filter_type="WCIFS"
        )
    return RootFileSystem(
        vm,
        container_id,
        combined.root,
        scratch.guest_path,
        tuple(added),
        scratch,
        combined,
        tuple(ids_and_paths),
    )


async def _mount_block_cims(
    vm: Devices, container_id: str, layer: BlockCIMLayer, scratch_path: HostPath
) -> RootFileSystem:
    # A confidential guest formats the scratch disk itself.
    mount = Mount(format_with_refs=vm._context.options.security_policy_enabled)
    # Checked before anything is sent.
    vm._link.check_running()
    await check_layers(vm._context, [layer], scratch_path)
    volume = await vm.block_cims.mount(layer, container_id=container_id)
    with released_on_failure([volume]):
        scratch = await vm.scsi.attach(scratch_path, mount=mount)
    with released_on_failure([volume, scratch]):
        files = (volume.volume_guid, f"{volume.guest_path}Files")
        combined = await vm.layers.combine(
            scratch.guest_path, [files], container_id=container_id, filter_type="UnionFS"
        )
    of_document = ((volume.volume_guid, volume.guest_path),)
    return RootFileSystem(
        vm, container_id, combined.root, scratch.guest_path, (volume,), scratch, combined, of_document
    )


def mount_layers(
    vm: Devices,
    container_id: str,
    layers: Sequence[LCOWLayer | WCOWLayer | BlockCIMLayer | HostPath],
    scratch_path: HostPath,
    root: str,
    grant_access: Grant,
) -> Opening[RootFileSystem]:
    """Attach layers and a scratch disk and have the guest combine them: ``UtilityVM.mount_layers``."""
    check_container_id(container_id)
    vm._context.key(scratch_path)
    checked(root, text, "root")
    grant_access = grant_of(grant_access)
    given = [
        LCOWLayer(layer) if isinstance(layer, str | os.PathLike) else layer
        for layer in items_of(layers, "layers")
    ]
    linux = vm._context.plan.os == "linux"
    only = given[0] if len(given) == 1 else None
    kind = LCOWLayer if linux else WCOWLayer
    cims = only if isinstance(only, BlockCIMLayer) and not linux else None
    # A confidential Windows guest measures what it mounts, and takes no shares.
    measured = vm._context.options.security_policy_enabled and not linux
    if not given or not (cims or (all(isinstance(layer, kind) for layer in given) and not measured)):
        kinds = "one or more LCOWLayer" if linux else "one or more WCOWLayer, or one BlockCIMLayer"
        kinds = "one BlockCIMLayer, since it is confidential," if measured else kinds
        raise OptionsError(f"a root file system in {vm._context.vm_id} takes {kinds}; given were {given}")
    if linux:
        if root:
            guest_path(root, "linux", "root")
        mount = partial(_mount_lcow, vm, container_id, given, scratch_path, root, grant_access)
        return Opening(_mount(vm, mount))
    if root:
        raise OptionsError("the root of a Windows container is its scratch disk's mount; leave out root")
    if grant_access is not True:
        raise OptionsError(
            "layers of a Windows guest are shared, or have disks of the VM alone; leave out grant_access"
        )
    if cims is not None:
        return Opening(_mount(vm, partial(_mount_block_cims, vm, container_id, cims, scratch_path)))
    return Opening(_mount(vm, partial(_mount_wcow, vm, container_id, given, scratch_path)))


async def _mount(vm: Devices, mount: Callable[[], Awaitable[RootFileSystem]]) -> RootFileSystem:
    """Mount in a task of the VM, so that a caller who leaves has it taken apart in order."""
    vm._link.check_running()
    return await vm._link.carry_out("mount layers", mount, lambda mounted: mounted._releasing.begin())
