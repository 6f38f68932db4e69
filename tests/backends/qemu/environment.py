"""Linux machines for the checks to look at."""

from __future__ import annotations

from attrs import define, field

from uvm.backends.qemu.accel import Accelerator
from uvm.backends.qemu.environment import Environment
from uvm.backends.qemu.guestimage.selection import Selection
from uvm.errors import HostPathError, NotSupportedError

DEVICES = {
    *("pcie-root-port", "pvpanic-pci", "scsi-hd", "virtio-9p-pci", "virtio-net-pci", "virtio-rng-pci"),
    *("virtio-scsi-pci", "virtio-serial-pci", "virtserialport"),
}
SELECTION = Selection(
    kernel="/boot/vmlinuz-6.1.0",
    release="6.1.0",
    modules="/lib/modules/6.1.0",
    python="/usr/bin/python3.11",
    busybox="/bin/busybox",
    runtime="/usr/bin/crun",
    machine="x86_64",
    guest_binary=None,
    service="uvm.agent.__main__",
    roots=(),
)


KVM = Accelerator("kvm", "it was tried")


@define
class ImaginedLinux(Environment):
    """A machine on which VMs run with KVM, unless something is removed from it.

    :ivar version: QEMU's.
    :ivar no_image: why no guest image can be built.
    :ivar silent: QEMU does not answer.
    :ivar without_shares: a kernel that has no 9p.
    :ivar no_directory: one that cannot be made.
    """

    system: str = "linux"
    machine: str = "x86_64"
    programs: set[str] = field(factory=lambda: {"qemu-system-x86_64", "setpriv", "crun"})
    version: tuple[int, int] | None = (8, 2)
    devices: set[str] = field(factory=DEVICES.copy)
    no_image: str = ""
    accelerator: Accelerator | None = KVM
    memory_mb: int = 4096
    silent: bool = False
    without_shares: str = ""
    no_directory: str = ""
    asked: list[str] = field(factory=list)

    def has_program(self, name: str) -> bool:
        self.asked.append(name)
        return name in self.programs

    def qemu_version(self) -> tuple[int, int] | None:
        self._ask("version")
        return self.version

    def qemu_devices(self) -> set[str]:
        self._ask("devices")
        return self.devices

    def selected(self) -> Selection:
        self._ask("selected")
        if self.no_image:
            raise NotSupportedError(self.no_image)
        return SELECTION

    def check_directories(self) -> None:
        if self.no_directory:
            raise HostPathError(self.no_directory, "it cannot be made; name another one")

    def kernel_without_shares(self) -> str:
        return self.without_shares

    def acceleration(self) -> Accelerator | None:
        self._ask("acceleration")
        return self.accelerator

    def available_memory_mb(self) -> int:
        self._ask("memory")
        return self.memory_mb

    def _ask(self, question: str) -> None:
        self.asked.append(question)
        if self.silent and question in ("version", "devices"):
            raise NotSupportedError("QEMU does not answer")
