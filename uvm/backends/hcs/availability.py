"""Whether HCS can be used on this machine, and if not, what is missing and what to do about it.

:func:`uvm.open_backend` asks whether there is HCS (:func:`absence`), the backend whether it can be used
(:func:`availability`); ``python -m uvm doctor`` tells the same and more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, Protocol

from attrs import frozen

from uvm.errors import UVMError
from uvm.schema.common import RS5

if TYPE_CHECKING:
    from uvm.backends.hcs.windows.surroundings import ServiceState

#: ``missing``: HCS cannot be used; ``limited``: something else cannot; ``unknown``: nobody can tell.
Status = Literal["ok", "missing", "limited", "unknown"]

_ADMINISTRATORS, _HYPERV_ADMINISTRATORS = "S-1-5-32-544", "S-1-5-32-578"

_NOT_INSTALLED: Final = "computecore.dll is not there: HCS is not installed"
_TURN_ON: Final = (
    "turn it on as an administrator and restart: 'Enable-WindowsOptionalFeature -Online -FeatureName "
    "VirtualMachinePlatform' (or Microsoft-Hyper-V-All) on Windows 10 and 11, "
    "'Install-WindowsFeature Hyper-V, Containers' on Windows Server"
)


@frozen
class Finding:
    """What a check found.

    :ivar text: what there is.
    :ivar remedy: what to do about it, where it is not ``ok``.
    """

    status: Status
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


class Surroundings(Protocol):
    """The machine, as far as the checks look at it."""

    @property
    def system(self) -> str:
        """The operating system: ``sys.platform``. Only on ``win32`` is anything else asked."""

    @property
    def bits(self) -> int:
        """How wide the addresses of this Python are."""

    def build(self) -> int:
        """Give the build number of Windows."""

    def machine(self) -> str:
        """Give the processor's architecture."""

    def has_library(self, name: str) -> bool:
        """Tell whether Windows has a DLL of its own, which this Python may all the same not load."""

    def missing_functions(self, library: str) -> list[str] | None:
        """Name the functions that we use and that a DLL lacks; None where there is no such DLL."""

    def service(self, name: str) -> ServiceState | None:
        """Look at a service; None where it is not installed."""

    def is_member(self, sid: str) -> bool:
        """Tell whether we act as a member of a group."""

    def virtualization_in_firmware(self) -> bool:
        """Tell whether the firmware gives virtualization to Windows."""

    def has_hyperv_sockets(self) -> bool:
        """Tell whether Python's own sockets know AF_HYPERV."""

    def has_file(self, path: str) -> bool:
        """Tell whether there is a file."""


@frozen
class Check:
    """Something to look at.

    :ivar name: what it is about, in a word or two.
    :ivar decisive: where this is missing, what comes after it cannot be looked at.
    """

    name: str
    probe: Callable[[Surroundings], Finding]
    decisive: bool = False

    def run(self, where: Surroundings) -> Finding:
        """Look at it; what cannot be looked at is ``unknown``."""
        try:
            return self.probe(where)
        except UVMError as e:
            return Finding("unknown", f"it cannot be told: {e}")


def _system(where: Surroundings) -> Finding:
    if where.system == "win32":
        return Finding("ok", "Windows")
    return Finding("missing", f"HCS needs Windows, and this is {where.system}")


def _installed(where: Surroundings) -> Finding:
    if where.has_library("computecore"):
        return Finding("ok", "computecore.dll is there")
    return Finding("missing", _NOT_INSTALLED, _TURN_ON)


def _build(where: Surroundings) -> Finding:
    build = where.build()
    # The first with computecore.dll.
    if build >= RS5:
        return Finding("ok", f"build {build}")
    needed = f"HCS needs build {RS5} (Windows 10 1809, Windows Server 2019)"
    return Finding("missing", f"Windows build {build} is too old: {needed}", "update Windows")


def _cffi(where: Surroundings) -> Finding:
    if importlib.util.find_spec("_cffi_backend") is not None:
        return Finding("ok", "installed")
    return Finding("missing", "the package cffi is not installed", "run 'python -m pip install cffi'")


def _computecore(where: Surroundings) -> Finding:
    if where.bits != 64:
        # Such a program does not see the DLL.
        return Finding(
            "missing", f"HCS has no DLL for a Python of {where.bits} bits", "install a 64-bit Python"
        )
    return find_library(where, "computecore", Finding("missing", _NOT_INSTALLED, _TURN_ON))


def find_library(where: Surroundings, library: str, absent: Finding) -> Finding:
    """Look for a DLL and its functions.

    :param absent: what to say where there is no such DLL.
    """
    missing = where.missing_functions(library)
    if missing is None:
        return absent
    if not missing:
        return Finding("ok", f"{library}.dll has every function that is used")
    lacks = f"{library}.dll lacks {', '.join(sorted(missing))}, which cannot be used"
    return Finding("limited", lacks, "update Windows where they are needed")


def _service(where: Surroundings) -> Finding:
    state = where.service("vmcompute")
    if state is None:
        return Finding("missing", "there is no Hyper-V Host Compute Service (vmcompute)", _TURN_ON)
    if state == "running":
        return Finding("ok", "the Hyper-V Host Compute Service (vmcompute) is running")
    return Finding(
        "limited",
        "the Hyper-V Host Compute Service (vmcompute) is not running",
        "start it as an administrator if VMs cannot be created: 'Start-Service vmcompute'",
    )


def _rights(where: Surroundings) -> Finding:
    if where.is_member(_ADMINISTRATORS):
        return Finding("ok", "this process has an administrator's rights")
    if where.is_member(_HYPERV_ADMINISTRATORS):
        # The create documents let only SYSTEM and administrators listen, as hcsshim's do.
        return Finding(
            "limited",
            "the user is one of the Hyper-V Administrators, who may use HCS but not listen for guests",
            "run it as an administrator, or create VMs with external_guest_connection=False",
        )
    return Finding(
        "missing",
        "this process has not the rights to use HCS",
        "run it as an administrator, or put the user into the group Hyper-V Administrators and sign in again",
    )


_WINDOWS: Final = Check("Windows", _system, decisive=True)

#: Whether there is HCS at all, which any Python can look at.
_PRESENCE: Final = (_WINDOWS, Check("HCS", _installed))

#: What HCS needs to be used.
REQUIREMENTS: Final[tuple[Check, ...]] = (
    _WINDOWS,
    Check("cffi", _cffi, decisive=True),
    Check("Windows build", _build),
    Check("HCS", _computecore),
    Check("HCS service", _service),
    Check("rights", _rights),
)


def availability(where: Surroundings | None = None) -> list[str]:
    """Say what is missing for HCS to be used here, and what to do about each; an empty list where nothing is.

    :param where: what to look at instead of this machine.
    """
    return _missing(REQUIREMENTS, where)


def absence(where: Surroundings | None = None) -> list[str]:
    """Say why there is no HCS on this machine; an empty list where there is, though it may not be usable.

    :param where: what to look at instead of this machine.
    """
    return _missing(_PRESENCE, where)


def _missing(checks: tuple[Check, ...], where: Surroundings | None) -> list[str]:
    where = where or surroundings()
    problems = []
    for check in checks:
        found = check.run(where)
        if found.status == "missing":
            problems.append(str(found))
            if check.decisive:
                break
    return problems


def surroundings() -> Surroundings:
    """Give this machine."""
    from uvm.backends.hcs.windows.surroundings import ThisMachine

    return ThisMachine()
