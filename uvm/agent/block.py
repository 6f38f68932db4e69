"""Block devices: disks found by the numbers that requests name.

SCSI controller N of the VM is the virtio-scsi at PCI address 00:(0x10+N).0; a fifth one, at 00:14.0, has the
VPMEM devices, read-only, each at the LUN of its number. A mapping on one is a disk of that controller as
well, with the serial number ``pmem-NUMBER-OFFSET``. The kernel probes nothing by itself (see
:mod:`uvm.agent.modules`): a disk that sysfs does not show is looked for with a scan of its LUN, or of all of
those that the controller reports, which the kernel ends once it knows the device. Its block device comes a
little later, and its node may be there before it can be opened (ENXIO); both are tried again until the
deadline.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from uvm.agent.attempts import attempts
from uvm.agent.modules import Modules
from uvm.agent.refused import Refused

#: The controller of the VPMEM devices; those before it are the SCSI controllers of requests.
VPMEM_CONTROLLER: Final = 4

#: How long a disk that the host has attached may take to appear, in seconds.
APPEARS_SECONDS: Final = 30.0
#: Many may look at the same time.
_LONGEST_PAUSE_SECONDS: Final = 0.1


class Slot(NamedTuple):
    """The place of a disk: its controller, and its LUN."""

    controller: int
    lun: int

    def __str__(self) -> str:
        return f"{self.controller}:{self.lun}"


class _Place(NamedTuple):
    """Where a disk is looked for: the LUNs of a controller that are scanned, and what finds it then."""

    controller: int
    luns: str
    device: Callable[[], str | None]
    name: str


class Disks:
    """The disks of the VM.

    :param sys: the root of sysfs.
    :param dev: the directory of the device nodes.
    """

    def __init__(self, modules: Modules, sys: str = "/sys", dev: str = "/dev") -> None:
        self._modules, self._sys, self._dev = modules, sys, dev
        self._hosts: dict[int, str] = {}

    def find(self, slot: Slot, partition: int = 0) -> str | None:
        """Return the path of a disk, or of a partition of it; None if the kernel does not show it."""
        return self._path(self._at(slot), partition)

    def wait(self, slot: Slot, partition: int = 0, seconds: float = APPEARS_SECONDS) -> str:
        """Return the path of a disk, or of a partition of it, once it can be opened.

        :raises Refused: there is none.
        """
        part = f" with a partition {partition}" if partition else ""
        place = _Place(slot.controller, str(slot.lun), lambda: self._at(slot), f"{slot}{part}")
        return self._wait(place, partition, seconds)

    def eject(self, slot: Slot) -> None:
        """Release a disk, before the host detaches it; do nothing if there is none.

        :raises Refused: it is in use.
        """
        self._eject(self._at(slot))

    def wait_vpmem(self, number: int, offset: int | None = None, seconds: float = APPEARS_SECONDS) -> str:
        """Return the path of a VPMEM device, ``/dev/pmemN``, once it can be opened.

        :param offset: that of a mapping, whose own disk is meant then.
        :raises Refused: there is none.
        """
        slot = Slot(VPMEM_CONTROLLER, number)
        if offset is not None:
            what = f"mapping at {offset} of /dev/pmem{number}"
            return self._wait(
                _Place(VPMEM_CONTROLLER, "-", lambda: self._mapped(number, offset), what), 0, seconds
            )
        what, link = f"/dev/pmem{number}", f"{self._dev}/pmem{number}"
        device = self._wait(_Place(VPMEM_CONTROLLER, str(number), lambda: self._at(slot), what), 0, seconds)
        if not os.path.islink(link) or os.readlink(link) != device:
            _unlink(link)
            # Another request for the same device may have been first.
            with contextlib.suppress(FileExistsError):
                os.symlink(device, link)
        return link

    def eject_vpmem(self, number: int, offset: int | None = None) -> None:
        """Release a VPMEM device, or a mapping on one; do nothing if there is none.

        :raises Refused: it is in use.
        """
        if offset is None:
            self.eject(Slot(VPMEM_CONTROLLER, number))
            _unlink(f"{self._dev}/pmem{number}")
        else:
            self._eject(self._mapped(number, offset))

    def _wait(self, place: _Place, partition: int, seconds: float) -> str:
        self._modules.need("virtio_scsi", "sd_mod")
        for _ in attempts(seconds, _LONGEST_PAUSE_SECONDS):
            if place.device() is None:
                self._scan(place)
            path = self._path(place.device(), partition)
            if path is not None and _opens(path):
                if size_of(path):
                    return path
                # Its capacity could not be read: disks that come at once disturb each other's first commands.
                self._ask_again(place)
        raise Refused(f"there is no disk {place.name}")

    def _ask_again(self, place: _Place) -> None:
        """Have the kernel read the capacity of a disk."""
        with contextlib.suppress(FileNotFoundError):
            _write(f"{place.device()}/rescan", "1")

    def _path(self, device: str | None, partition: int = 0) -> str | None:
        """Return the node of a SCSI device's disk, or of a partition of it; None if there is none yet."""
        names = _listed(f"{device}/block") if device else []
        if not names:
            return None
        name = names[0]
        if partition:
            # Each partition is a directory of its disk's.
            if not os.path.isdir(f"{device}/block/{name}/{name}{partition}"):
                return None
            name = f"{name}{partition}"
        return f"{self._dev}/{name}"

    def _eject(self, device: str | None) -> None:
        if device is None:
            return
        path = self._path(device)
        if path is not None:
            _check_unused(path)
        with contextlib.suppress(FileNotFoundError):
            _write(f"{device}/delete", "1")

    def _at(self, slot: Slot) -> str | None:
        """Return the SCSI device of a slot in sysfs; None if the kernel knows none."""
        host = self._host(slot.controller)
        path = f"{self._sys}/bus/scsi/devices/{host.removeprefix('host')}:0:0:{slot.lun}"
        return path if host and os.path.isdir(path) else None

    def _mapped(self, number: int, offset: int) -> str | None:
        """Return the SCSI device of a mapping, which has its serial number; None if the kernel knows none."""
        host, serial = self._host(VPMEM_CONTROLLER).removeprefix("host"), f"pmem-{number}-{offset}".encode()
        devices = f"{self._sys}/bus/scsi/devices"
        for name in _listed(devices) if host else []:
            if name.startswith(f"{host}:0:0:") and _serial(f"{devices}/{name}") == serial:
                return f"{devices}/{name}"
        return None

    def _scan(self, place: _Place) -> None:
        host = self._host(place.controller)
        if host:
            _write(f"{self._sys}/class/scsi_host/{host}/scan", f"0 0 {place.luns}")

    def _host(self, controller: int) -> str:
        """Return the kernel's name of a controller, which stays; empty if there is none."""
        if controller in self._hosts:
            return self._hosts[controller]
        pci = f"{self._sys}/bus/pci/devices/0000:00:{0x10 + controller:02x}.0"
        for device in _listed(pci):
            if device.startswith("virtio"):
                for host in _listed(f"{pci}/{device}"):
                    if host.startswith("host"):
                        self._hosts[controller] = host
                        return host
        return ""


def size_of(device: str) -> int:
    """Return the size of a block device in bytes."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _serial(device: str) -> bytes:
    try:
        with open(f"{device}/vpd_pg80", "rb") as file:
            return file.read()[4:].strip()
    except OSError:
        # It is no disk, or one that is being removed.
        return b""


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return False
        raise
    return True


def _check_unused(path: str) -> None:
    """Refuse a disk that is mounted or mapped: the kernel would drop it under its users."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Refused(f"the device is busy: {path} is mounted or mapped") from None


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
