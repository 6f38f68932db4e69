"""The resources of the guest that the host modifies: which function carries out which request.

Each takes the settings of a request, as the host's JSON has them, and carries it out or raises
:class:`~uvm.agent.refused.Refused`, having changed nothing. They block, so they run in workers; those for
different resources run at the same time.

Source: hcsshim internal/guest/runtime/hcsv2/uvm.go and internal/guest/storage.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from uvm.agent import devicemapper
from uvm.agent.block import VPMEM_CONTROLLER, Disks, Slot, size_of
from uvm.agent.devicemapper import Mapper, Target, linear
from uvm.agent.filesystems import Filesystems
from uvm.agent.layers import combine
from uvm.agent.modules import Modules
from uvm.agent.network import Networks, parse_adapter
from uvm.agent.plan9 import mount_share
from uvm.agent.refused import Refused, reason
from uvm.agent.settings import Settings

_MOST_LUN: Final = 255
_MOST: Final = (1 << 32) - 1
_MOST_BYTES: Final = (1 << 63) - 1


class Resources:
    """What the host may modify in the guest.

    :ivar modules: the kernel's modules.
    :ivar networks: the adapters of the guest, for the containers that join their namespaces.
    """

    modules: Modules
    networks: Networks

    def __init__(self) -> None:
        self.modules = Modules()
        self.networks = Networks(self.modules)
        self._disks = Disks(self.modules)
        self._mapper = Mapper(self.modules)
        self._filesystems = Filesystems(self.modules)
        #: By the type of the resource, and that of the request.
        self.handlers: Mapping[tuple[str, str], Callable[[Any], None]] = {
            ("SCSIDevice", "Remove"): _reading(self._eject),
            ("MappedVirtualDisk", "Add"): _reading(self._mount_disk),
            ("MappedVirtualDisk", "Remove"): _reading(self._unmount_disk),
            ("VPMemDevice", "Add"): _reading(self._mount_vpmem),
            ("VPMemDevice", "Remove"): _reading(self._unmount_vpmem),
            ("MappedDirectory", "Add"): _reading(self._mount_share),
            ("MappedDirectory", "Remove"): _reading(self._unmount_share),
            ("CombinedLayers", "Add"): _reading(self._combine_layers),
            ("CombinedLayers", "Remove"): _reading(self._remove_layers),
            ("Network", "Add"): _reading(self._add_adapter),
            ("Network", "Remove"): _reading(self._remove_adapter),
        }

    def _eject(self, settings: Settings) -> None:
        self._disks.eject(_slot(settings))

    def _mount_disk(self, settings: Settings) -> None:
        slot, partition = _slot(settings), settings.number("Partition", _MOST)
        device = self._disks.wait(slot, partition)
        if not settings.text("MountPath"):
            return
        target, read_only = settings.path("MountPath"), settings.flag("ReadOnly")
        if settings.flag("Encrypted"):
            raise Refused(f"failed to mount encrypted device {device}: this guest has no dm-crypt")
        with contextlib.ExitStack() as undo:
            info = settings.part("VerityInfo") if read_only else None
            if info is not None:
                name = _disk_verity(slot, partition, info)
                device = self._map(undo, name, devicemapper.verity(device, info))
            if settings.flag("BlockDev"):
                os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
                os.symlink(device, target)
            else:
                kind = settings.text("Filesystem")
                if settings.flag("EnsureFilesystem"):
                    self._filesystems.ensure(device, kind)
                options = settings.texts("Options")
                self._filesystems.mount_device(
                    device, target, kind=kind, read_only=read_only, options=options
                )
            undo.pop_all()

    def _unmount_disk(self, settings: Settings) -> None:
        slot, partition = _slot(settings), settings.number("Partition", _MOST)
        if self._disks.find(slot, partition) is None:
            raise Refused(f"there is no disk {slot}")
        if not settings.text("MountPath"):
            return
        target = settings.path("MountPath")
        if settings.flag("BlockDev"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
        else:
            self._filesystems.unmount(target)
        info = settings.part("VerityInfo")
        if info is not None:
            self._unmap(_disk_verity(slot, partition, info))

    def _mount_vpmem(self, settings: Settings) -> None:
        number, target = settings.number("DeviceNumber", _MOST_LUN), settings.path("MountPath")
        mapping, info = settings.part("MappingInfo"), settings.part("VerityInfo")
        offset, size = _range(mapping)
        device = self._disks.wait_vpmem(number, offset)
        with contextlib.ExitStack() as undo:
            if offset is not None:
                # A mapping is counted in pages, its disk in sectors.
                size = min(size, size_of(device))
                device = self._map(undo, _vpmem_linear(number, mapping), linear(device, 0, size))
            if info is not None:
                device = self._map(undo, _vpmem_verity(number, info), devicemapper.verity(device, info))
            self._filesystems.mount_device(device, target, read_only=True)
            undo.pop_all()

    def _unmount_vpmem(self, settings: Settings) -> None:
        number = settings.number("DeviceNumber", _MOST_LUN)
        self._filesystems.unmount(settings.path("MountPath"))
        mapping, info = settings.part("MappingInfo"), settings.part("VerityInfo")
        if info is not None:
            self._unmap(_vpmem_verity(number, info))
        offset, _ = _range(mapping)
        if offset is not None:
            self._unmap(_vpmem_linear(number, mapping))
        # The host removes the device without another request to the guest.
        self._disks.eject_vpmem(number, offset)

    def _map(self, undo: contextlib.ExitStack, name: str, target: Target) -> str:
        path = self._mapper.create(name, target)
        undo.callback(self._unmap, name)
        return path

    def _unmap(self, name: str) -> None:
        # What used it is unmounted, and the same mapping may be made again while it is there.
        with contextlib.suppress(OSError):
            self._mapper.remove(name)

    def _mount_share(self, settings: Settings) -> None:
        name, target = settings.text("ShareName"), settings.path("MountPath")
        mount_share(self.modules, self._filesystems, name, target, settings.flag("ReadOnly"))

    def _unmount_share(self, settings: Settings) -> None:
        self._filesystems.unmount(settings.path("MountPath"))

    def _combine_layers(self, settings: Settings) -> None:
        layers = [layer.path("Path") for layer in settings.parts("Layers")]
        scratch = settings.path("ScratchPath") if settings.text("ScratchPath") else ""
        combine(self._filesystems, settings.path("ContainerRootPath"), layers, scratch)

    def _remove_layers(self, settings: Settings) -> None:
        self._filesystems.unmount(settings.path("ContainerRootPath"))

    def _add_adapter(self, settings: Settings) -> None:
        self.networks.add(settings.text("NamespaceID"), parse_adapter(settings))

    def _remove_adapter(self, settings: Settings) -> None:
        self.networks.remove(settings.text("NamespaceID"), settings.text("ID"))


def _reading(handler: Callable[[Settings], None]) -> Callable[[Any], None]:
    """Return a handler of a request's JSON, whose system calls that fail are refusals."""

    def modify(settings: Any) -> None:
        try:
            handler(Settings(settings))
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            raise Refused(f"{name}{reason(error)}") from error

    return modify


def _slot(settings: Settings) -> Slot:
    return Slot(settings.number("Controller", VPMEM_CONTROLLER - 1), settings.number("Lun", _MOST_LUN))


def _range(mapping: Settings | None) -> tuple[int | None, int]:
    """Return the offset and the size of a mapping; without one, no offset."""
    if mapping is None:
        return None, 0
    names = "DeviceOffsetInBytes", "DeviceSizeInBytes"
    offset, size = (mapping.number(name, _MOST_BYTES) for name in names)
    return offset, size


def _vpmem_linear(number: int, mapping: Settings | None) -> str:
    return "dm-linear-pmem{}-{}-{}".format(number, *_range(mapping))


def _vpmem_verity(number: int, info: Settings) -> str:
    return f"dm-verity-pmem{number}-{info.text('RootDigest')}"


def _disk_verity(slot: Slot, partition: int, info: Settings) -> str:
    return f"dm-verity-scsi-contr{slot.controller}-lun{slot.lun}-p{partition}-{info.text('RootDigest')}"
