"""Block CIMs, mounted as volumes of a Windows guest.

A lease has the volume and its disks. The disks are released once the volume is known to be gone, by the tasks
of the VM; as long as that is unknown, they stay attached.
"""

from __future__ import annotations

from functools import partial

from attrs import define, frozen

from uvm._async import opens
from uvm._buses.context import Bus, Context
from uvm._buses.holds import Hold, released_by_one
from uvm._buses.lease import Lease, leases_of, released_on_failure
from uvm._buses.scsi import ScsiBus, ScsiLease
from uvm._checks import checked, instance, text
from uvm._repr import Value
from uvm.devices.blockcims import BlockCIMLayer, BlockCIMs, MountedCIMs, volume_path
from uvm.errors import AlreadyReleasedError


@define(eq=False, repr=False)
class BlockCIMLease(Lease):
    """Block CIMs that are mounted as a volume, with their disks.

    :ivar volume_guid: the GUID of the volume, which is the id of the layer.
    :ivar guest_path: the path of the volume in the guest.
    """

    volume_guid: str
    guest_path: str
    #: In the order in which they are released.
    _disks: tuple[Hold[object], ...]

    @property
    def _all_holds(self) -> tuple[Hold[object], ...]:
        return (self._hold, *self._disks)

    async def release(self) -> None:
        """Unmount the volume, unless others have it, and then release its disks.

        As of :meth:`uvm.Lease.release`: what is refused may be released again, which goes on from there.

        :raises AlreadyReleasedError: a release of it has succeeded before.
        :raises UnknownOutcomeError: whether the volume is mounted, or a disk is attached, is unknown.
        """
        if self._hold.link.exited.is_set():
            return
        if self._hold.reported and self.released:
            raise AlreadyReleasedError(f"{self!r} was released before")
        self._reclaim()
        if self._hold.reported:
            for hold in self._disks:
                hold.drop()
        else:
            ended = self._hold.released
            self._hold.drop()
            await released_by_one([self._hold])
            # The end of the volume has released them for no caller.
            self._reclaim()
            if ended:
                # What was refused then is tried again.
                for hold in self._disks:
                    hold.drop()
        held = (hold for hold in self._disks if not hold.reported)
        await released_by_one(held, f"releasing the disks of {self.guest_path}")

    def _reclaim(self) -> None:
        for hold in self._all_holds:
            hold.reclaim()

    def give_up(self) -> None:
        """Release the lease without waiting, unless it was released; what is refused is an orphan."""
        if not self._hold.released:
            self._hold.abandon()
            return
        for hold in self._disks:
            hold.abandon()


@frozen(repr=False)
class BlockCIMVolume(Value):
    """Block CIMs that are mounted as a volume.

    :ivar volume_guid: the GUID of the volume.
    :ivar guest_path: its path in the guest.
    :ivar cims: the names of the images, the merged one first.
    :ivar references: how many leases it has.
    :ivar orphaned: it is an orphan.
    """

    volume_guid: str
    guest_path: str
    cims: tuple[str, ...]
    references: int
    orphaned: bool = False


class BlockCIMBus(Bus):
    """The volumes of block CIMs that are mounted in a Windows guest."""

    _ledgers = ("volumes",)

    def __init__(self, context: Context, scsi: ScsiBus) -> None:
        super().__init__(context)
        self._scsi = scsi
        self._volumes = self._drive(
            BlockCIMs(), claims=lambda t: [context.in_guest(volume_path(t.entry.slot))]
        )

    @property
    def volumes(self) -> tuple[BlockCIMVolume, ...]:
        """The volumes that are mounted."""
        return tuple(
            BlockCIMVolume(
                entry.slot,
                volume_path(entry.slot),
                tuple(name for _, name in mounted.cims),
                *self._volumes.standing(entry),
            )
            for entry, mounted in self._volumes.attached()
        )

    @opens
    async def mount(self, layer: BlockCIMLayer, *, container_id: str = "") -> BlockCIMLease:
        """Attach the disks of block CIMs and mount these as one volume. Await it, or enter it.

        The same again, however its paths are spelled, is the same volume, with one more reference.

        :param container_id: the container that they are for, which a security policy may ask for. Of a volume
            that is there it is not looked at.
        :raises OptionsError: a path is no absolute one, or other images are mounted from the first disk.
        :raises NoSpaceError: there is no slot for a disk.
        :raises HostPathError: a disk is not there, or is a directory.
        :raises NotSupportedError: the guest is Linux.
        :raises GuestError: the guest refused.
        """
        context = self._context
        context.need_guest("block CIMs", "windows")
        checked(layer, instance(BlockCIMLayer), "layer")
        checked(container_id, text, "container_id")
        context.link.check_running()
        cims = [((await context.named(each.disk_path)).key, each.name) for each in layer.mounted]
        guid = context.backend.new_id()
        key = cims[0][0]
        await self._volumes.clear(key)
        self._check_same(key, MountedCIMs(tuple(cims), (), guid, container_id))
        for each in layer.mounted:
            await context.file_size(each.disk_path)
        attach = [partial(self._attach, each.disk_path) for each in layer.mounted]
        disks = await leases_of(attach)
        with released_on_failure(disks):
            wanted = MountedCIMs(tuple(cims), tuple(disk.lun for disk in disks), guid, container_id)
            self._check_same(key, wanted)
            hold = self._volumes.acquire(key, wanted)
        hold.below = tuple(disk._hold for disk in reversed(disks))
        await hold
        return BlockCIMLease(hold, hold.slot, volume_path(hold.slot), hold.below)

    async def _attach(self, path: str) -> ScsiLease:
        return await self._scsi.attach(path, read_only=True)

    def _check_same(self, key: str, wanted: MountedCIMs) -> None:
        refusal = f"no block CIM was mounted: of {key} others are"
        BlockCIMs.check_same(self._volumes.ledger.get(key), wanted, refusal)
