"""A Linux kernel as it is installed: its release, its architecture, and the form that QEMU starts soonest.

A ``vmlinuz`` of x86 (a bzImage) unpacks itself, which under TCG takes seconds; it is unpacked here instead,
and QEMU enters the ``vmlinux`` by PVH. Source: the kernel's Documentation/arch/x86/boot.rst and
Documentation/arch/arm64/booting.rst.
"""

from __future__ import annotations

import re
import struct

from attrs import field, frozen

from uvm.backends.qemu.guestimage.compression import unpack
from uvm.backends.qemu.guestimage.elf import Elf, ElfError


class KernelError(ValueError):
    """It is no kernel, or one in a form that is not known."""


@frozen
class Kernel:
    """A kernel.

    :ivar release: as ``uname -r`` has it.
    :ivar machine: the architecture, as ``uname -m`` has it.
    """

    release: str
    machine: str
    _file: bytes = field(repr=False)

    def bootable(self) -> bytes:
        """Return it as QEMU starts it soonest.

        :raises KernelError: it is damaged.
        :raises NotSupportedError: unpacking it takes a program that is not installed.
        """
        if not _is_bzimage(self._file):
            return _unpacked(self._file)
        vmlinux = _unpacked(_payload(self._file))
        try:
            return vmlinux if Elf(vmlinux).boots_by_pvh else self._file
        except ElfError as e:
            raise KernelError(f"what it holds is no kernel: {e}") from e


def read_kernel(data: bytes) -> Kernel:
    """Read a ``vmlinuz``, a ``vmlinux`` or an arm64 ``Image``.

    :raises KernelError: it is none.
    :raises NotSupportedError: unpacking it takes a program that is not installed.
    """
    if _is_bzimage(data):
        [version] = struct.unpack_from("<H", data, 0x20E)
        return Kernel(_word(data, 0x200 + version), "x86_64", data)
    plain = _unpacked(data)
    machine = _machine(plain)
    found = re.search(rb"Linux version (?=\d)", plain)
    if not found:
        raise KernelError("it does not say which version of Linux it is")
    return Kernel(_word(plain, found.end()), machine, data)


def _machine(plain: bytes) -> str:
    if plain[0x38:0x3C] == b"ARM\x64":
        return "aarch64"
    try:
        return Elf(plain).machine
    except ElfError:
        raise KernelError("it is no Linux kernel (vmlinuz, vmlinux or Image)") from None


def _is_bzimage(data: bytes) -> bool:
    return data[0x202:0x206] == b"HdrS" and len(data) > 0x250


def _payload(bzimage: bytes) -> bytes:
    start = ((bzimage[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    if start + offset + length > len(bzimage):
        raise KernelError("it is cut short")
    return bzimage[start + offset : start + offset + length]


def _unpacked(data: bytes) -> bytes:
    try:
        return unpack(data)
    except ValueError as e:
        raise KernelError(str(e)) from e


def _word(data: bytes, start: int) -> str:
    found = re.match(rb"[!-~]+", data[start : start + 128])
    if not found:
        raise KernelError("it does not say which version of Linux it is")
    return found[0].decode()
