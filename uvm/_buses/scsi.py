"""SCSI: disks attached to the VM, and mounted in its guest."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from attrs import define, frozen

from uvm._arguments import member_of
from uvm._async import opens
from uvm._buses.context import Bus, Context
from uvm._buses.driver import Hold
from uvm._buses.lease import Lease
from uvm.devices.base import Entry
from uvm.devices.scsi import (
    Attachments,
    DiskKey,
    DiskType,
    Mount,
    MountPlace,
    Mounts,
    ScsiSlot,
    check_mount,
    mount_key,
    parse_evd,
)
from uvm.errors import NotAttachedError, OptionsError, UVMError


@define(eq=False)
class ScsiLease(Lease):
    """A disk that is attached, and mounted where that was asked for.

    :ivar host_path: the disk on the host.
    :ivar controller: the SCSI controller, 0 to 3; :ivar lun: the LUN on it, 0 to 63.
    :ivar guest_path: where the guest mounted it; empty where it did not.
    """

    host_path: str
    controller: int
    lun: int
    guest_path: str = ""


@frozen
class ScsiDisk:
    """A disk that is attached.

    :ivar host_path: the disk on the host.
    :ivar controller: the SCSI controller, 0 to 3; :ivar lun: the LUN on it, 0 to 63.
    :ivar mounts: where the guest has mounted it.
    :ivar references: how many leases it has, those of its mounts included.
    """

    host_path: str
    controller: int
    lun: int
    read_only: bool
    type: DiskType
    mounts: tuple[str, ...]
    references: int


class ScsiBus(Bus):
    """The SCSI controllers of a VM: up to 4, with 64 disks each."""

    ledgers = ("mounts", "disks")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        plan = context.plan
        reserved = (ScsiSlot(*slot) for slot in plan.reserved_scsi)
        self._disks = self._drive(Attachments(plan.os, plan.scsi_controllers, reserved), "scsi")
        self._places = Mounts(plan.os)
        self._mounts = self._drive(self._places, "scsi")

    @property
    def disks(self) -> tuple[ScsiDisk, ...]:
        """The disks that are attached, without those that the VM was created with."""
        return tuple(map(self._disk, self._disks.attached()))

    def _disk(self, entry: Entry[DiskKey, None, ScsiSlot, bool]) -> ScsiDisk:
        mounts = [mount for mount in self._mounts.attached() if mount.key.slot == entry.slot]
        return ScsiDisk(
            entry.key.path,
            *entry.slot,
            entry.key.read_only,
            entry.key.type,
            tuple(mount.slot.path for mount in mounts),
            # A mount is one reference to its disk, whatever the number of leases of the mount.
            len(entry.holders) + sum(len(mount.holders) - 1 for mount in mounts),
        )

    def guest_paths(self) -> Iterable[str]:
        """Return where in the guest disks are mounted."""
        return (entry.slot.path for entry in self._mounts.ledger if entry.slot.path)

    @opens
    async def attach(
        self,
        path: str,
        *,
        read_only: bool = False,
        type: DiskType | str = DiskType.VIRTUAL_DISK,
        mount: Mount | None = None,
        grant_access: bool = True,
    ) -> ScsiLease:
        r"""Attach a disk, and mount it in the guest if asked to. Await it, or enter it.

        The same disk again is the same attachment, and the same mount of it the same mount, with one more
        reference; a second mount with another explicit path gets the path of the first.

        :param path: a VHD or VHDX file, a physical disk (``\\.\PHYSICALDRIVE2``), or
            ``evd://TYPE/PATH`` for an extensible virtual disk.
        :param type: a member of :class:`~uvm.devices.scsi.DiskType`, or its value.
        :param grant_access: give the VM access to the path first, where it is a new attachment.
        :raises NoSpaceError: every slot is taken.
        :raises HostPathError: there is no such file, or it is a directory.
        :raises NotSupportedError: this guest cannot mount in that way.
        """
        self._context.link.check_running()
        type = member_of(DiskType, type, "type")
        key = self._key(path, read_only, type)
        if mount is not None:
            self._check_mount(key, mount)
        if type is DiskType.VIRTUAL_DISK and self._disks.ledger.get(key) is None:
            await self._context.file_size(path)
        grants = grant_access and type is not DiskType.EXTENSIBLE_VIRTUAL_DISK
        before = partial(self._context.access.grant, path) if grants else None
        disk = await self._disks.acquire(key, None, before=before)
        slot = disk.slot
        if mount is None:
            return ScsiLease(disk, path, slot.controller, slot.lun)
        mounted = await self._mount(disk, mount, read_only)
        return ScsiLease(mounted, path, slot.controller, slot.lun, mounted.slot.path)

    @staticmethod
    def _key(path: str, read_only: bool, type: DiskType) -> DiskKey:
        if type is DiskType.EXTENSIBLE_VIRTUAL_DISK:
            evd_type, path = parse_evd(path)
            return DiskKey(path, type, evd_type, read_only)
        return DiskKey(path, type, "", read_only)

    def _check_mount(self, key: DiskKey, mount: Mount) -> None:
        """Refuse, before anything is sent, a mount that cannot be."""
        entry = self._disks.ledger.get(key)
        check_mount(self._context.plan.os, ScsiSlot(0, 0) if entry is None else entry.slot, mount)
        wanted = None if entry is None else mount_key(entry.slot, mount, key.read_only)
        if not mount.guest_path or (wanted is not None and self._mounts.ledger.get(wanted)):
            return
        if (owner := self._places.conflict(wanted, mount.guest_path)) is not None:
            raise OptionsError(
                f"{key.path} was not attached: {mount.guest_path} is where the disk at controller "
                f"{owner.slot.controller}, LUN {owner.slot.lun} is mounted"
            )

    async def _mount(self, disk: Hold[ScsiSlot], mount: Mount, read_only: bool) -> Hold[MountPlace]:
        try:
            # Only now is it known which controller a new disk is at.
            check_mount(self._context.plan.os, disk.slot, mount)
            key = mount_key(disk.slot, mount, read_only)
            mounted = self._mounts.start(key, mount.guest_path, parent=disk)
        except UVMError as error:
            await disk.give_back(error)
            raise
        await self._mounts.wait(mounted)
        return mounted

    async def detach(self, path: str, *, read_only: bool | None = None) -> None:
        """Give up the oldest reference to a disk, by its path on the host, its mount first.

        :raises NotAttachedError: it is not attached.
        """
        entry = self._find(path, read_only)
        if entry is not None:
            for mount in self._mounts.ledger:
                if mount.key.slot == entry.slot and await self._mounts.release_one(mount.key):
                    return
            if await self._disks.release_one(entry.key):
                return
        raise NotAttachedError(f"{path} is not attached to {self._context.vm_id} over SCSI")

    def _find(self, path: str, read_only: bool | None) -> Entry[DiskKey, None, ScsiSlot, bool] | None:
        for entry in self._disks.ledger:
            if entry.key.path == path and read_only in (None, entry.key.read_only):
                return entry if entry.applied is not None else None
        return None

    def find(self, path: str, *, read_only: bool | None = None) -> ScsiSlot | None:
        """Find where a disk is attached, by its path on the host; None where it is not."""
        entry = self._find(path, read_only)
        return None if entry is None else entry.slot

    def guest_path(self, path: str, *, read_only: bool | None = None) -> str:
        """Give where the guest has mounted a disk, by its path on the host; of several, the first.

        :raises NotAttachedError: it is not attached, or not mounted.
        """
        slot = self.find(path, read_only=read_only)
        for entry in self._mounts.ledger:
            if slot is not None and entry.key.slot == slot and entry.applied is not None:
                return entry.slot.path
        raise NotAttachedError(f"{path} is not mounted in {self._context.vm_id} over SCSI")
