"""SCSI disks: attached on the host, and mounted in the guest.

Two machines, one on top of the other, because one disk can be mounted several times:

- :class:`Attachments`. The key is what makes two requests one disk (:class:`DiskKey`); a member is the path
  that is sent; the slot is the lowest free LUN over all controllers. ADD: host Add. REMOVE: guest
  ``SCSIDevice`` Remove (Linux: the guest ejects the disk first; Windows has no such request), then host
  Remove.
- :class:`Mounts`. The key is the attachment's slot with the configuration of the mount (:class:`MountKey`);
  the slot is a number and a guest path (:class:`MountPlace`). The path is no part of the key: the same mount
  at another path is the one that is there. ADD: guest Add. REMOVE: guest Remove.
  A mount holds a ticket of its attachment.

Source: hcsshim ``internal/uvm/scsi`` (``manager.go``, ``attach.go``, ``mount.go``, ``backend.go``).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from contextlib import suppress
from enum import StrEnum
from functools import cache
from itertools import product, starmap
from typing import Any, NamedTuple

from attrs import evolve, field, fields_dict, frozen

from uvm._checks import U32, Checked, each, flag, go, items_or_value, path, text, whole
from uvm._names import GuestOS, PathFlavour, guest_path, guest_path_key, host_path_key
from uvm._repr import call_of
from uvm.devices.base import REMOVE, Operation, Step, in_guest, on_host
from uvm.devices.kinds import FirstComeDevice, PresentOrAbsent
from uvm.devices.slots import Slots
from uvm.errors import NoSpaceError, NotSupportedError, OptionsError
from uvm.schema import guest, requests
from uvm.schema.devices import Attachment
from uvm.schema.requests import scsi_attachment_path

LUNS_PER_CONTROLLER = 64


class DiskType(StrEnum):
    """What a disk is on the host (``AttachmentType`` of the HCS schema)."""

    VIRTUAL_DISK = "VirtualDisk"
    PASS_THRU = "PassThru"
    EXTENSIBLE_VIRTUAL_DISK = "ExtensibleVirtualDisk"


class DiskKey(NamedTuple):
    """What makes two requests for a disk one.

    :ivar path: the key of the host path; of an extensible virtual disk, its :func:`evd_name`.
    :ivar evd_type: the type of an extensible virtual disk, else empty.
    """

    path: str
    type: DiskType = DiskType.VIRTUAL_DISK
    evd_type: str = ""
    read_only: bool = False


class ScsiSlot(NamedTuple):
    """A place on a SCSI controller."""

    controller: int
    lun: int

    def __str__(self) -> str:
        return f"SCSI controller {self.controller}, LUN {self.lun}"


#: Every slot, in the order in which they are taken.
_SLOTS = tuple(
    starmap(ScsiSlot, product(range(len(requests.SCSI_CONTROLLER_GUIDS)), range(LUNS_PER_CONTROLLER)))
)


def parse_evd(path: str) -> tuple[str, str]:
    """Split the path of an extensible virtual disk, ``evd://<type>/<path>``, in type and path.

    The scheme may be missing, as in hcsshim.

    :raises OptionsError: it has no type or no path.
    """
    evd_type, slash, mount_path = path.removeprefix("evd://").partition("/")
    if not (evd_type and slash):
        raise OptionsError(
            f"{path!r} is not the path of an extensible virtual disk, which is evd://<type>/<path>; "
            "nothing was attached"
        )
    return evd_type, mount_path


def evd_name(path: str, flavour: PathFlavour) -> str:
    """Return one name for all spellings of the path of an extensible virtual disk.

    What follows the type is its provider's to read: only an absolute path of the host is folded.
    """
    evd_type, _, mount_path = path.removeprefix("evd://").partition("/")
    with suppress(OptionsError):
        mount_path = host_path_key(mount_path, flavour)
    return f"evd://{evd_type}/{mount_path}"


def shown_path(key: DiskKey, path: str) -> str:
    """Return the path of a disk, so that look-ups take it."""
    return f"evd://{key.evd_type}/{path}" if key.evd_type else path


class Attachments(FirstComeDevice[DiskKey, str, ScsiSlot]):
    """The disks on a VM's SCSI controllers.

    :param os: the guest's; a Linux guest ejects a disk before it is detached.
    :param controllers: how many there are, 0 to 4.
    :param reserved: slots that are taken for good, for instance by the boot disk.
    """

    def __init__(self, os: GuestOS, controllers: int = 4, reserved: Iterable[ScsiSlot] = ()) -> None:
        self._linux = os == "linux"
        self._slots: Slots = Slots(
            controllers * LUNS_PER_CONTROLLER,
            (controller * LUNS_PER_CONTROLLER + lun for controller, lun in reserved),
        )

    def place(self, key: DiskKey, member: str) -> ScsiSlot:
        """Take the lowest free slot.

        :raises NoSpaceError: every slot is taken.
        """
        try:
            return _SLOTS[self._slots.take()]
        except NoSpaceError as e:
            raise NoSpaceError(f"{member} was not attached: no SCSI slot is free ({e})") from None

    def occupy(self, slot: ScsiSlot) -> None:
        """Take a slot in which a disk is already."""
        self._slots.occupy(slot.controller * LUNS_PER_CONTROLLER + slot.lun)

    def vacate(self, key: DiskKey, slot: ScsiSlot) -> None:
        """Free the slot."""
        self._slots.free(slot.controller * LUNS_PER_CONTROLLER + slot.lun)

    def describe(self, key: DiskKey, slot: ScsiSlot, value: str) -> tuple[str, str]:
        """Return what it is, and where."""
        return f"disk {shown_path(key, value)}", str(slot)

    def steps(self, operation: Operation[DiskKey, str, ScsiSlot, str]) -> tuple[Step, ...]:
        """Attach on the host; or eject in a Linux guest, then detach on the host."""
        entry = operation.entry
        if operation.kind is REMOVE:
            return _detach(entry.slot, self._linux)
        key = entry.key
        attachment = Attachment(
            type=key.type,
            path=operation.value,
            read_only=key.read_only,
            extensible_virtual_disk_type=key.evd_type,
        )
        return (on_host(requests.ADD, _path(entry.slot), attachment),)


# There are 256 slots and requests are never changed, so these are made once and shared by all VMs.


@cache
def _path(slot: ScsiSlot) -> str:
    return scsi_attachment_path(*slot)


@cache
def _detach(slot: ScsiSlot, eject: bool) -> tuple[Step, ...]:
    host = on_host(requests.REMOVE, _path(slot))
    if not eject:
        return (host,)
    device = guest.SCSIDevice(controller=slot.controller, lun=slot.lun)
    return in_guest(requests.REMOVE, guest.RESOURCE_SCSI_DEVICE, device), host


@frozen(kw_only=True)
class Mount(Checked):
    """How a disk is mounted in the guest. All but ``guest_path`` is for Linux guests, save the ReFS format.

    :ivar partition: which partition, from 1; 0 is the whole disk.
    :ivar encrypted: through dm-crypt.
    :ivar options: mount flags and data; their order means nothing.
    :ivar ensure_filesystem: format with ``filesystem`` unless that is what it holds already.
    :ivar filesystem: for instance ``ext4``; empty for the guest's choice.
    :ivar block_device: have the block device itself at the guest path.
    :ivar format_with_refs: format the scratch disk of a confidential Windows container with ReFS.
    :ivar guest_path: the path in the guest; empty for a generated one.
    """

    partition: int = field(default=0, metadata=go(None, whole(U32)))
    encrypted: bool = field(default=False, metadata=go(None, flag))
    options: tuple[str, ...] = field(default=(), converter=items_or_value, metadata=go(None, each(text)))
    ensure_filesystem: bool = field(default=False, metadata=go(None, flag))
    filesystem: str = field(default="", metadata=go(None, text))
    block_device: bool = field(default=False, metadata=go(None, flag))
    format_with_refs: bool = field(default=False, metadata=go(None, flag))
    guest_path: str = field(default="", converter=path, metadata=go(None, text))

    __repr__ = call_of


_LINUX_ONLY = tuple(name for name in fields_dict(Mount) if name not in ("format_with_refs", "guest_path"))


class MountKey(NamedTuple):
    """What makes two mounts one.

    :ivar read_only: the attachment is.
    :ivar mount: normalised by :func:`mount_key`: the options are sorted, and there is no guest path.
    """

    slot: ScsiSlot
    read_only: bool = False
    mount: Mount = Mount()


class MountPlace(NamedTuple):
    """The place of a mount: its number, which makes the generated paths, and its guest path."""

    number: int
    path: str


def mount_key(slot: ScsiSlot, mount: Mount, read_only: bool) -> MountKey:
    """Return the key of a mount of the disk at a slot; `read_only` is the attachment's."""
    return MountKey(slot, read_only, evolve(mount, options=sorted(mount.options), guest_path=""))


def check_mount(os: GuestOS, slot: ScsiSlot, mount: Mount) -> None:
    """Refuse what the guest cannot mount.

    :raises OptionsError: the guest path is no absolute one.
    :raises NotSupportedError: a Windows guest has only controller 0, and few options.
    """
    if mount.guest_path:
        guest_path(mount.guest_path, os)
    if os == "linux":
        if mount.format_with_refs:
            raise NotSupportedError("a Linux guest does not support format_with_refs of a mount")
        return
    if slot.controller != 0:
        raise NotSupportedError(
            f"a Windows guest mounts disks of SCSI controller 0 only, and this one would be at "
            f"controller {slot.controller}, LUN {slot.lun}"
        )
    if wrong := [name for name in _LINUX_ONLY if getattr(mount, name)]:
        raise NotSupportedError(f"a Windows guest does not support {', '.join(wrong)} of a mount")


class Mounts(PresentOrAbsent[MountKey, str, MountPlace]):
    """The mounts of SCSI disks in a guest. A member is the guest path asked for, or ``""`` for any."""

    def __init__(self, os: GuestOS) -> None:
        self._os = os
        self._indexes = Slots()
        self._paths: dict[str, MountKey] = {}

    def check_free(self, guest_path: str, refusal: str) -> None:
        """Refuse a guest path at which a disk is mounted.

        :raises OptionsError: with ``refusal`` at the beginning of its message.
        """
        if owner := self._paths.get(guest_path_key(guest_path, self._os)):
            raise OptionsError(
                f"{refusal}: {guest_path} is where the disk at controller {owner.slot.controller}, "
                f"LUN {owner.slot.lun} is mounted"
            )

    def place(self, key: MountKey, member: str) -> MountPlace:
        """Take the lowest free number, and the path asked for or one made of the number.

        :raises OptionsError: the path asked for is in use.
        """
        if member:
            self.check_free(member, "the disk was not mounted")
            place = MountPlace(self._indexes.take(), guest_path(member, self._os))
        else:
            place = self._generated()
        self._paths[guest_path_key(place.path, self._os)] = key
        return place

    def _generated(self) -> MountPlace:
        """Take the lowest number whose path no mount was asked for at."""
        skipped = []
        while True:
            index = self._indexes.take()
            path = f"/run/mounts/scsi/m{index}" if self._os == "linux" else rf"c:\mounts\scsi\m{index}"
            if guest_path_key(path, self._os) not in self._paths:
                break
            skipped.append(index)
        for taken in skipped:
            self._indexes.free(taken)
        return MountPlace(index, path)

    def vacate(self, key: MountKey, slot: MountPlace) -> None:
        """Free the number and the path."""
        self._indexes.free(slot.number)
        del self._paths[guest_path_key(slot.path, self._os)]

    def describe(self, key: MountKey, slot: MountPlace, value: str | bool) -> tuple[str, str]:
        """Return what it is, and where."""
        return f"mount of the disk at {key.slot}", slot.path

    def steps(self, operation: Operation[MountKey, str, MountPlace, bool]) -> tuple[Step, ...]:
        """Mount the disk in the guest, or unmount it, which says less than the mount did."""
        key, mount, path = operation.key, operation.key.mount, operation.slot.path
        removing = operation.kind is REMOVE
        resource_type = guest.RESOURCE_MAPPED_VIRTUAL_DISK
        if mount.format_with_refs and not removing:
            resource_type = guest.RESOURCE_MAPPED_VIRTUAL_DISK_FOR_CONTAINER_SCRATCH
        if self._os == "windows":
            disk = guest.WCOWMappedVirtualDisk(container_path=path, lun=key.slot.lun)
            return (in_guest(operation.kind.value, resource_type, disk),)
        mounted = guest.LCOWMappedVirtualDisk(
            mount_path=path,
            controller=key.slot.controller,
            lun=key.slot.lun,
            partition=mount.partition,
            read_only=key.read_only,
            block_dev=mount.block_device,
        )
        if not removing:
            mounted.encrypted = mount.encrypted
            mounted.options = list(mount.options)
            mounted.ensure_filesystem = mount.ensure_filesystem
            mounted.filesystem = mount.filesystem
        return (in_guest(operation.kind.value, resource_type, mounted),)

    def dump(self) -> Hashable:
        """Return the numbers that are taken, as bits, and the mount at each path."""
        return self._indexes.dump(), tuple(sorted(self._paths.items()))

    def load(self, state: Any) -> None:
        """Load what :meth:`dump` returned."""
        indexes, paths = state
        self._indexes.load(indexes)
        self._paths = dict(paths)
