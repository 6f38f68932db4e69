"""Block devices: disks found by the numbers that requests name.

SCSI controller N of the VM is the virtio-scsi at PCI address 00:(0x10+N).0; a fifth one, at 00:14.0, has the
VPMEM devices, read-only, each at the LUN of its number. The kernel probes nothing by itself (see
:mod:`uvm.agent.modules`): a disk that sysfs does not show is looked for with a scan of its LUN, which the
kernel ends once it knows the device. Its block device comes a little later, and its node may be there
before it can be opened (ENXIO); both are tried again until the deadline.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Final, NamedTuple

from uvm.agent.modules import Modules
from uvm.agent.refused import Refused

#: The controller of the VPMEM devices; those before it are the SCSI controllers of requests.
VPMEM_CONTROLLER: Final = 4

#: How long a disk that the host has attached may take to appear, in seconds.
APPEARS_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.005


class Slot(NamedTuple):
    """The place of a disk: its controller, and its LUN."""

    controller: int
    lun: int

    def __str__(self) -> str:
        return f"{self.controller}:{self.lun}"


class Disks:
    """The disks of the VM.

    :param sys: the root of sysfs.
    :param dev: the directory of the device nodes.
    """

    def __init__(self, modules: Modules, sys: str = "/sys", dev: str = "/dev") -> None:
        self._modules, self._sys, self._dev = modules, sys, dev

    def find(self, slot: Slot, partition: int = 0) -> str | None:
        """Return the path of a disk, or of a partition of it; None if the kernel does not show it."""
        device = self._device(slot)
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

    def wait(self, slot: Slot, partition: int = 0, seconds: float = APPEARS_SECONDS) -> str:
        """Return the path of a disk, or of a partition of it, once it can be opened.

        :raises Refused: there is none.
        """
        self._modules.need("virtio_scsi", "sd_mod")
        until = time.monotonic() + seconds
        while True:
            if self._device(slot) is None:
                self._scan(slot)
            path = self.find(slot, partition)
            if path is not None and _opens(path):
                return path
            if time.monotonic() > until:
                part = f" with a partition {partition}" if partition else ""
                raise Refused(f"there is no disk {slot}{part}")
            time.sleep(_PAUSE_SECONDS)

    def eject(self, slot: Slot) -> None:
        """Release a disk, before the host detaches it; do nothing if there is none.

        :raises Refused: it is in use.
        """
        device = self._device(slot)
        if device is None:
            return
        path = self.find(slot)
        if path is not None:
            _check_unused(path)
        with contextlib.suppress(FileNotFoundError):
            _write(f"{device}/delete", "1")

    def wait_vpmem(self, number: int) -> str:
        """Return the path of a VPMEM device, ``/dev/pmemN``, once it can be opened.

        :raises Refused: there is none.
        """
        device, path = self.wait(Slot(VPMEM_CONTROLLER, number)), self._vpmem(number)
        if not os.path.islink(path) or os.readlink(path) != device:
            self._unlink(path)
            # Another request for the same device may have been first.
            with contextlib.suppress(FileExistsError):
                os.symlink(device, path)
        return path

    def eject_vpmem(self, number: int) -> None:
        """Release a VPMEM device; do nothing if there is none.

        :raises Refused: it is in use.
        """
        self.eject(Slot(VPMEM_CONTROLLER, number))
        self._unlink(self._vpmem(number))

    def _vpmem(self, number: int) -> str:
        return f"{self._dev}/pmem{number}"

    def _unlink(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def _device(self, slot: Slot) -> str | None:
        """Return the SCSI device of a slot in sysfs; None if the kernel knows none."""
        host = self._host(slot.controller)
        path = f"{self._sys}/bus/scsi/devices/{host.removeprefix('host')}:0:0:{slot.lun}"
        return path if host and os.path.isdir(path) else None

    def _scan(self, slot: Slot) -> None:
        host = self._host(slot.controller)
        if host:
            _write(f"{self._sys}/class/scsi_host/{host}/scan", f"0 0 {slot.lun}")

    def _host(self, controller: int) -> str:
        """Return the kernel's name of a controller; empty if there is none."""
        pci = f"{self._sys}/bus/pci/devices/0000:00:{0x10 + controller:02x}.0"
        for device in _listed(pci):
            if device.startswith("virtio"):
                for host in _listed(f"{pci}/{device}"):
                    if host.startswith("host"):
                        return host
        return ""


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


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
