r"""Block CIMs of a Windows guest: images on disks, which the guest merges and mounts as one volume.

The key is the folded host path of the first disk: of the merged image, or of the one that there is. The slot
is the GUID of the volume, whose path in the guest is ``\\?\Volume{GUID}\``. A member is what is mounted
there. A volume depends on its disks, which are attached read-only and not mounted themselves. ADD: guest
``WCOWBlockCims`` Add, with the LUN of each disk. REMOVE: guest Remove, by the GUID alone. hcsshim takes the
first disk for the whole; here other images on the same first disk are refused.

Source: hcsshim ``internal/uvm/cimfs.go``, ``internal/layers/wcow_parse.go``.
"""

from __future__ import annotations

import json
import ntpath
from collections.abc import Iterable
from typing import Final

from attrs import field, frozen

from uvm._arguments import items_of
from uvm._checks import Checked, check_fields, each, go, instance, items_or_value, optional, text
from uvm._names import guid_key, text_of
from uvm._repr import Value, counted
from uvm.devices.base import REMOVE, Operation, Step, in_guest
from uvm.devices.kinds import FirstComeDevice, Named
from uvm.errors import OptionsError
from uvm.schema import guest

#: The images are on block devices (hcsshim ``pkg/cimfs``: ``CimMountBlockDeviceCim``).
_BLOCK_DEVICE: Final = 0x10
#: The options of containerd's mounts of the type ``BlockCIM``.
_PARENTS, _MERGED, _TYPE = "parentCimPaths=", "mergedCIMPath=", "blockCIMType="
_TYPES: Final = ("device", "file")


@frozen(repr=False)
class BlockCIM(Checked):
    """An image (CIM) on a disk of the host.

    :ivar disk_path: the disk: a VHD.
    :ivar name: the name of the image on it.
    """

    disk_path: str = field(converter=text_of, metadata=go("BlockPath", text))
    name: str = field(metadata=go("CimName", text))

    @classmethod
    def of(cls, cim_path: str) -> BlockCIM:
        """Return the image at a path such as containerd's: that of its disk, and its name."""
        return cls(*ntpath.split(cim_path))


@frozen(repr=False)
class BlockCIMLayer(Checked):
    """All read-only layers of a Windows container, as images on disks.

    :ivar cims: the image of each layer, top-most first.
    :ivar merged: the image that merges them; of a single layer there is none.
    """

    cims: tuple[BlockCIM, ...] = field(converter=items_or_value, metadata=go(None, each(instance(BlockCIM))))
    merged: BlockCIM | None = field(default=None, metadata=go(None, optional(instance(BlockCIM))))

    def __attrs_post_init__(self) -> None:
        check_fields(self)
        if not self.cims:
            raise OptionsError("BlockCIMLayer needs one image at least")
        if (self.merged is None) is not (len(self.cims) == 1):
            raise OptionsError(
                "BlockCIMLayer.merged is the image that merges several, and a single one has none; "
                f"{counted(len(self.cims), 'cims')} were passed, and merged={self.merged}"
            )

    @property
    def mounted(self) -> tuple[BlockCIM, ...]:
        """The images in the order in which the guest takes them: the merged one first."""
        return self.cims if self.merged is None else (self.merged, *self.cims)

    @classmethod
    def from_mount(cls, options: Iterable[str]) -> BlockCIMLayer:
        """Return the layers of a mount of containerd's type ``BlockCIM``, by the options of that.

        :raises OptionsError: they name no layers, or say that these are no block CIMs.
        """
        given = items_of(options, "options")
        parents = _paths(_option(given, _PARENTS) or "[]")
        if (kind := _option(given, _TYPE)) not in _TYPES:
            raise OptionsError(f"{_TYPE} is {' or '.join(_TYPES)}, not {kind!r}")
        # That of a single layer is not used.
        merged = _option(given, _MERGED) if len(parents) > 1 else ""
        return cls([BlockCIM.of(each) for each in parents], BlockCIM.of(merged) if merged else None)


def _paths(listed: str) -> list[str]:
    try:
        paths = json.loads(listed)
    except ValueError:
        paths = None
    if not isinstance(paths, list) or not all(isinstance(each, str) for each in paths):
        raise OptionsError(f"{_PARENTS}{listed} is no JSON list of paths")
    return paths


def _option(options: Iterable[str], prefix: str) -> str:
    return next((each.removeprefix(prefix) for each in options if each.startswith(prefix)), "")


def volume_path(volume_guid: str) -> str:
    """Return the path of a volume in a Windows guest."""
    return f"\\\\?\\Volume{{{volume_guid}}}\\"


@frozen(repr=False)
class MountedCIMs(Value):
    """What is to be mounted as a volume; equal to the same images, whichever the volume and the container.

    :ivar cims: each image: the key of its disk, and its name.
    :ivar luns: the LUN of each disk, on SCSI controller 0.
    :ivar container_id: the container that they are for, as a security policy counts them.
    """

    cims: tuple[tuple[str, str], ...]
    luns: tuple[int, ...] = field(eq=False)
    volume_guid: str = field(eq=False)
    container_id: str = field(eq=False)


class BlockCIMs(Named[str, MountedCIMs, MountedCIMs], FirstComeDevice[str, MountedCIMs, str]):
    """The volumes of block CIMs in a Windows guest."""

    def __init__(self) -> None:
        super().__init__(guid_key)

    def place(self, key: str, member: MountedCIMs) -> str:
        """Take the GUID of the volume, which is fresh."""
        self._slots.take(member.volume_guid)
        return member.volume_guid

    def describe(self, key: str, slot: str, value: MountedCIMs) -> tuple[str, str]:
        """Return what it is, and where."""
        return f"volume of {counted(len(value.cims), 'block CIMs')} on {key}", volume_path(slot)

    def steps(self, operation: Operation[str, MountedCIMs, str, MountedCIMs]) -> tuple[Step, ...]:
        """Mount the images in the guest, or unmount them."""
        settings = guest.CWCOWBlockCIMMounts(volume_guid=operation.slot)
        if operation.kind is not REMOVE:
            wanted = operation.value
            settings.block_cims = [
                guest.BlockCIMDevice(cim_name=name, lun=lun)
                for (_, name), lun in zip(wanted.cims, wanted.luns, strict=True)
            ]
            settings.mount_flags = _BLOCK_DEVICE
            settings.container_id = wanted.container_id
        return (in_guest(operation.kind.value, guest.RESOURCE_BLOCK_CIMS, settings),)
