"""SCSI: disks attached to the VM, and mounted in its guest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, TypeAlias

from attrs import define, fields_dict, frozen

from uvm._arguments import member_of
from uvm._async import opens
from uvm._buses.access import Grant, HostName, Need, grant_of
from uvm._buses.context import Bus, Context, on_host
from uvm._buses.holds import Hold
from uvm._buses.lease import Lease
from uvm._checks import checked, flag
from uvm._names import HostPath, text_of
from uvm._repr import Value
from uvm.devices.base import Entry
from uvm.devices.scsi import (
    Attachments,
    DiskKey,
    DiskType,
    Mount,
    MountKey,
    MountPlace,
    Mounts,
    ScsiSlot,
    check_mount,
    evd_name,
    mount_key,
    parse_evd,
    shown_path,
)
from uvm.errors import OptionsError
from uvm.schema.template import TemplateDisk, TemplateMount

#: What a template has of a mount under the name that it has there.
_SAVED_OF_MOUNT: Final = tuple(name for name in fields_dict(Mount) if name != "guest_path")

_MountEntry: TypeAlias = Entry[MountKey, str, MountPlace, bool]


@define(eq=False, repr=False)
class ScsiLease(Lease):
    """A disk that is attached, and mounted if that was asked for.

    :ivar host_path: the disk on the host, links resolved; or ``evd://TYPE/PATH``.
    :ivar controller: the SCSI controller, 0 to 3.
    :ivar lun: the LUN on it, 0 to 63.
    :ivar guest_path: its mount in the guest; empty without one.
    """

    host_path: str
    controller: int
    lun: int
    guest_path: str = ""


@frozen(repr=False)
class ScsiDisk(Value):
    """A disk that is attached.

    :ivar host_path: the disk on the host, links resolved; or ``evd://TYPE/PATH``.
    :ivar controller: the SCSI controller, 0 to 3.
    :ivar lun: the LUN on it, 0 to 63.
    :ivar mounts: the paths in the guest at which it is mounted.
    :ivar references: how many leases it has, those of its mounts included.
    :ivar orphaned: it, or a mount of it, is an orphan, and no lease has it.
    """

    host_path: str
    controller: int
    lun: int
    read_only: bool
    type: DiskType
    mounts: tuple[str, ...]
    references: int
    orphaned: bool = False


class ScsiBus(Bus):
    """The SCSI controllers of a VM: up to 4, with 64 disks each."""

    _ledgers = ("mounts", "disks")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        plan = context.plan
        reserved = (ScsiSlot(*slot) for slot in plan.reserved_scsi)
        self._disks = self._drive(
            Attachments(plan.os, plan.scsi_controllers, reserved), "scsi", lambda t: [on_host(t.key.path)]
        )
        self._places = Mounts(plan.os)
        self._mounts = self._drive(self._places, "scsi", lambda t: [context.in_guest(t.entry.slot.path)])

    @property
    def disks(self) -> tuple[ScsiDisk, ...]:
        """The disks that are attached, without those that the VM was created with."""
        mounts: defaultdict[ScsiSlot, list[_MountEntry]] = defaultdict(list)
        for mount, _ in self._mounts.attached():
            mounts[mount.key.slot].append(mount)
        return tuple(self._disk(entry, path, mounts[entry.slot]) for entry, path in self._disks.attached())

    def _disk(
        self, entry: Entry[DiskKey, str, ScsiSlot, str], path: str, mounts: list[_MountEntry]
    ) -> ScsiDisk:
        # A mount is one reference to its disk, whatever the number of leases of the mount.
        references = self._disks.references(entry) + sum(self._mounts.references(m) - 1 for m in mounts)
        return ScsiDisk(
            shown_path(entry.key, path),
            *entry.slot,
            entry.key.read_only,
            entry.key.type,
            tuple(mount.slot.path for mount in mounts),
            references,
            not references and (self._disks.is_orphaned(entry) or any(map(self._mounts.is_orphaned, mounts))),
        )

    def _mounted(self, slot: ScsiSlot) -> list[_MountEntry]:
        """Return the mounts of the disk at a slot."""
        mounts = (mount for mount, _ in self._mounts.ledger.named(slot))
        return sorted(mounts, key=lambda mount: mount.number)

    @opens
    async def attach(
        self,
        path: HostPath,
        *,
        read_only: bool = False,
        type: DiskType | str = DiskType.VIRTUAL_DISK,
        mount: Mount | None = None,
        grant_access: Grant = True,
    ) -> ScsiLease:
        r"""Attach a disk, and mount it in the guest if asked to. Await it, or enter it.

        The same disk again, however its path is spelled and by links as well, is the same attachment, and the
        same mount of it the same mount, with one more reference; a second mount with another explicit path
        gets the path of the first.

        :param path: a VHD or VHDX file, a physical disk (``\\.\PHYSICALDRIVE2``), or
            ``evd://TYPE/PATH`` for an extensible virtual disk.
        :param type: a member of :class:`~uvm.devices.scsi.DiskType`, or its value.
        :param grant_access: grant the VM access to the path first, if it is a new attachment;
            ``uvm.backend.VM_GROUP`` grants it to every VM, for good, and the disk has to be `read_only`.
        :raises OptionsError: the path is no absolute one, or its mount is not possible.
        :raises NoSpaceError: every slot is taken.
        :raises HostPathError: there is no such file, or it is a directory.
        :raises NotSupportedError: this guest does not support such a mount.
        :raises OrphanError: an orphan occupies that disk or guest path, and cannot be removed.
        """
        self._context.link.check_running()
        type, read_only = member_of(DiskType, type, "type"), checked(read_only, flag, "read_only")
        grant_access = grant_of(grant_access, read_only=read_only)
        if not isinstance(mount, Mount | None):
            raise OptionsError(
                f"{path} was not attached: mount must be a Mount(guest_path=...), not {mount!r}"
            )
        named, evd_type = await self._named(path, type)
        key = DiskKey(named.key, type, evd_type, read_only)
        claims = [on_host(named.key)]
        if mount is not None and mount.guest_path:
            claims.append(self._context.in_guest(mount.guest_path))
        await self._disks.clear(key, *claims)
        if mount is not None:
            self._check_mount(key, named.path, mount)
        if type is DiskType.VIRTUAL_DISK and self._disks.ledger.get(key) is None:
            await self._context.file_size(named.path)
        need = None if evd_type else Need(self._context.access, named, grant_access)
        disk = self._disks.acquire(
            key,
            named.path,
            need=need,
            names=named.names,
            then=None if mount is None else partial(self._mount, mount=mount, read_only=key.read_only),
        )
        shown = shown_path(key, named.path)
        if mount is None:
            return ScsiLease(await disk, shown, *disk.slot)
        mounted: Hold[MountPlace] = await disk.through()
        return ScsiLease(mounted, shown, *disk.slot, mounted.slot.path)

    def _adopt(self, disks: Iterable[TemplateDisk]) -> None:
        """Enter the disks of a clone and their mounts, as its template had them, with one reference each."""
        for disk in disks:
            type, evd_type = DiskType(disk.type), disk.extensible_virtual_disk_type
            name = evd_name(f"evd://{evd_type}/{disk.path}", self._context.host.paths) if evd_type else ""
            name = name or self._context.key(disk.path)
            key, slot = DiskKey(name, type, evd_type, disk.read_only), ScsiSlot(disk.controller, disk.lun)
            need = self._context.access.adopted(disk.path)
            hold = self._disks.adopt(key, disk.path, disk.path, names=(name,), slot=slot, need=need)
            for number, each in enumerate(disk.mounts):
                # The first mount has the disk's own reference.
                parent = self._disks.acquire(key, disk.path, names=(name,)) if number else hold
                mount = Mount(**{name: getattr(each, name) for name in _SAVED_OF_MOUNT})
                mounted = mount_key(slot, mount, disk.read_only)
                self._mounts.adopt(mounted, each.guest_path, True, parent=parent, names=(slot,))

    def _saved(self) -> list[TemplateDisk]:
        """Return the disks with their mounts, for clones."""
        return [
            TemplateDisk(
                controller=entry.slot.controller,
                lun=entry.slot.lun,
                path=path,
                type=entry.key.type,
                extensible_virtual_disk_type=entry.key.evd_type,
                read_only=entry.key.read_only,
                mounts=[
                    TemplateMount(
                        guest_path=mount.slot.path,
                        **{name: _listed(getattr(mount.key.mount, name)) for name in _SAVED_OF_MOUNT},
                    )
                    for mount in self._mounted(entry.slot)
                ],
            )
            for entry, path in self._disks.attached()
        ]

    async def _named(self, path: HostPath, type: DiskType) -> tuple[HostName, str]:
        """Return the name of a disk, and the type of an extensible one."""
        if type is not DiskType.EXTENSIBLE_VIRTUAL_DISK:
            return await self._context.named(path), ""
        text = text_of(path)
        evd_type, sent = parse_evd(text)
        return HostName(sent, (evd_name(text, self._context.host.paths),)), evd_type

    def _check_mount(self, key: DiskKey, path: str, mount: Mount) -> None:
        """Refuse, before anything is sent, a mount that is not possible."""
        entry = self._disks.ledger.get(key)
        check_mount(self._context.plan.os, ScsiSlot(0, 0) if entry is None else entry.slot, mount)
        wanted = None if entry is None else mount_key(entry.slot, mount, key.read_only)
        if mount.guest_path and (wanted is None or self._mounts.ledger.get(wanted) is None):
            self._places.check_free(mount.guest_path, f"{path} was not attached")

    def _mount(self, disk: Hold[ScsiSlot], mount: Mount, read_only: bool) -> Hold[MountPlace]:
        # Which controller a new disk is at is known only now.
        check_mount(self._context.plan.os, disk.slot, mount)
        key = mount_key(disk.slot, mount, read_only)
        return self._mounts.acquire(key, mount.guest_path, parent=disk, names=(disk.slot,))

    async def detach(self, path: HostPath, *, read_only: bool | None = None) -> None:
        """Release the oldest lease of a disk, by any path that :meth:`attach` took for it.

        :raises OptionsError: the path is no absolute one.
        :raises NotAttachedError: it is not attached.
        """
        holds: list[Hold[object]] = []
        for disk in self._find(path, read_only):
            for mount in self._mounted(disk.slot):
                holds += self._mounts.oldest_on(mount.key)
            holds += self._disks.oldest_on(disk.key)
        await self._release_oldest(holds, f"{path} is not attached to {self._context.vm_id} over SCSI")

    def _find(self, path: HostPath, read_only: bool | None) -> list[Entry[DiskKey, str, ScsiSlot, str]]:
        """Return what is attached of the disks that a path was taken for, the newest first."""
        text, ledger = text_of(path), self._disks.ledger
        wanted = (True, False) if read_only is None else (checked(read_only, flag, "read_only"),)
        try:
            name = self._context.key(text)
        except OptionsError:
            # The path of an extensible virtual disk is no path of the host.
            name = evd_name(text, self._context.host.paths)
            if not text.startswith("evd://") and not ledger.named(name):
                raise
        return [entry for entry, _ in ledger.named(name) if entry.key.read_only in wanted]

    def find(self, path: HostPath, *, read_only: bool | None = None) -> ScsiSlot | None:
        """Return the slot of a disk, by any path that :meth:`attach` took for it; None if it is not attached.

        The host is not asked: a link that has another target now is still the disk that it was attached for;
        if it was for several that are attached, the newest.

        :raises OptionsError: the path is no absolute one.
        """
        return next((entry.slot for entry in self._find(path, read_only)), None)

    def guest_path(self, path: HostPath, *, read_only: bool | None = None) -> str:
        """Return the path of a disk's mount in the guest, found as by :meth:`find`; of several, the first.

        :raises OptionsError: the path is no absolute one.
        :raises NotAttachedError: it is not attached, or not mounted.
        """
        for disk in self._find(path, read_only):
            for mount in self._mounted(disk.slot):
                return mount.slot.path
        raise self._missing(f"{path} is not mounted in {self._context.vm_id} over SCSI")


def _listed(value: Any) -> Any:
    """Return a value of a mount as JSON has it."""
    return [*value] if isinstance(value, tuple) else value
