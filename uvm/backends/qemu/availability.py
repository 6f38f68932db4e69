"""Checks whether QEMU can run VMs on this machine; if not, what is missing and what to do about it.

:func:`uvm.open_backend` asks whether QEMU is present (:func:`absence`), the backend whether it can be used
(:func:`availability`); ``python -m uvm doctor`` reports the same and more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvm.backends.checks import Check, Finding, missing
from uvm.backends.qemu.guestimage.packages import install
from uvm.errors import NotSupportedError, UVMError

if TYPE_CHECKING:
    from uvm.backends.qemu.environment import Environment

#: The oldest QEMU that this was tried with.
_OLDEST: Final = (7, 2)
_DEVICES: Final = (
    *("pcie-root-port", "pvpanic-pci", "scsi-hd", "virtio-9p-pci", "virtio-net-pci", "virtio-rng-pci"),
    *("virtio-scsi-pci", "virtio-serial-pci", "virtserialport"),
)
#: The shared memory in which one VM of the default size fits.
_MEMORY_MB: Final = 1024

_NO_QEMU: Final = Finding("missing", "there is no qemu-system-x86_64", f"install it: {install('qemu')}")


def _system(environment: Environment) -> Finding:
    if environment.system != "linux":
        return Finding("missing", f"VMs with QEMU need Linux, and this is {environment.system}")
    if environment.machine == "x86_64":
        return Finding("ok", "Linux on x86_64")
    return Finding("missing", f"VMs with QEMU need x86_64, and this is {environment.machine}")


def _installed(environment: Environment) -> Finding:
    if environment.has_program("qemu-system-x86_64"):
        return Finding("ok", "there is a qemu-system-x86_64")
    return _NO_QEMU


def _version(environment: Environment) -> Finding:
    found = environment.qemu_version()
    if found is None:
        return Finding("unknown", "qemu-system-x86_64 does not say its version", "run it by hand: --version")
    text = f"QEMU {found[0]}.{found[1]}"
    if found >= _OLDEST:
        return Finding("ok", text)
    needed = f"{text} is too old: {_OLDEST[0]}.{_OLDEST[1]} is the oldest that is supported"
    return Finding("missing", needed, "update it; Debian 12, Ubuntu 23.04 and Fedora 38 have a newer one")


def _devices(environment: Environment) -> Finding:
    lacking = sorted({*_DEVICES} - environment.qemu_devices())
    if not lacking:
        return Finding("ok", "every device that is used")
    text = f"this QEMU lacks the devices {', '.join(lacking)}"
    return Finding("missing", text, f"install all of it: {install('qemu')}")


def _setpriv(environment: Environment) -> Finding:
    if environment.has_program("setpriv"):
        return Finding("ok", "setpriv ends QEMU with the process that started it")
    return Finding("missing", "there is no setpriv", f"install it: {install('setpriv')}")


def _directories(environment: Environment) -> Finding:
    try:
        environment.check_directories()
    except UVMError as e:
        text, _, remedy = str(e).partition("; ")
        return Finding("missing", text, remedy)
    return Finding("ok", "VMs and guest images have theirs")


def _image(environment: Environment) -> Finding:
    try:
        selected = environment.selected()
    except NotSupportedError as e:
        text, _, remedy = str(e).partition("; ")
        return Finding("missing", text, remedy)
    return Finding("ok", f"Linux {selected.release}, {selected.python}, {selected.busybox}")


def _runtime(environment: Environment) -> Finding:
    for name in ("crun", "runc"):
        if environment.has_program(name):
            return Finding("ok", name)
    text = "there is neither crun nor runc: guests run no containers"
    return Finding("limited", text, f"install one: {install('crun')}")


def _shares(environment: Environment) -> Finding:
    try:
        lacking = environment.kernel_without_shares()
    except NotSupportedError:
        return Finding("unknown", "there is no kernel to look at")
    if not lacking:
        return Finding("ok", "the guest's kernel has 9p")
    return Finding(
        "limited",
        f"{lacking}, the guest's kernel, has no 9p, as those that are made for clouds: no Plan9 shares",
        f"install another one: {install('kernel')}; or without installing it: 'uvm image build --fetch'",
    )


def _acceleration(environment: Environment) -> Finding:
    found = environment.acceleration()
    if found is None:
        return Finding("ok", "there is a /dev/kvm; whether guests run with it is tried with the first VM")
    if found.name == "kvm":
        return Finding("ok", "guests run with KVM")
    return Finding(
        "limited",
        f"guests are emulated (TCG), which is slow: {found.reason}",
        "run no hostile code in them: QEMU's emulation is no security boundary",
    )


def _memory(environment: Environment) -> Finding:
    free = environment.available_memory_mb()
    if free >= _MEMORY_MB:
        return Finding("ok", f"{free} MB of memory are available")
    return Finding(
        "limited",
        f"{free} MB of memory are available: the memory of VMs may not fit",
        "close other programs; in a container, allow it more (docker run --memory)",
    )


_LINUX: Final = Check("Linux", _system, decisive=True)
_QEMU: Final = Check("QEMU", _installed, decisive=True)

#: Whether QEMU is present.
_PRESENCE: Final = (_LINUX, _QEMU)

#: What a QEMU that is there needs to run.
_SOUNDNESS: Final = (
    Check("QEMU version", _version),
    Check("QEMU devices", _devices),
)

#: What VMs with QEMU need.
REQUIREMENTS: Final[tuple[Check[Environment], ...]] = (
    *_PRESENCE,
    *_SOUNDNESS,
    Check("setpriv", _setpriv),
    Check("directories", _directories),
    Check("guest image", _image),
)

#: What they can do without.
OPTIONAL: Final[tuple[Check[Environment], ...]] = (
    Check("container runtime", _runtime),
    Check("shares", _shares),
    Check("acceleration", _acceleration),
    Check("memory", _memory),
)


def availability(environment: Environment | None = None) -> list[str]:
    """Return what QEMU lacks here, each with what to do about it; an empty list if it can be used.

    :param environment: what to check instead of this machine.
    """
    return missing(REQUIREMENTS, environment or this_machine())


def absence(environment: Environment | None = None) -> list[str]:
    """Return why QEMU is not present on this machine; an empty list if it is, even if it cannot be used.

    :param environment: what to check instead of this machine.
    """
    return missing(_PRESENCE, environment or this_machine())


def faults(environment: Environment) -> list[str]:
    """Return what is wrong with the QEMU of a machine, each with what to do about it."""
    return missing(_SOUNDNESS, environment)


def this_machine() -> Environment:
    """Return this machine."""
    from uvm.backends.qemu.environment import Environment

    return Environment()
