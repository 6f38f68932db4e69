"""Checks whether HCS can be used on this machine; if not, what is missing and what to do about it.

:func:`uvm.open_backend` asks whether HCS is present (:func:`absence`), the backend whether it can be used
(:func:`availability`); ``python -m uvm doctor`` reports the same and more.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from uvm.backends.checks import Check, Finding, missing
from uvm.schema.common import RS5

if TYPE_CHECKING:
    from uvm.backends.hcs.windows.environment import Environment

_ADMINISTRATORS, _HYPERV_ADMINISTRATORS = "S-1-5-32-544", "S-1-5-32-578"

_NOT_INSTALLED: Final = "there is no computecore.dll: HCS is not installed"
_TURN_ON: Final = (
    "turn it on as an administrator and restart: 'Enable-WindowsOptionalFeature -Online -FeatureName "
    "VirtualMachinePlatform' (or Microsoft-Hyper-V-All) on Windows 10 and 11, "
    "'Install-WindowsFeature Hyper-V, Containers' on Windows Server"
)


def _system(environment: Environment) -> Finding:
    if environment.system == "win32":
        return Finding("ok", "Windows")
    return Finding("missing", f"HCS needs Windows, and this is {environment.system}")


def _installed(environment: Environment) -> Finding:
    if environment.has_library("computecore"):
        return Finding("ok", "there is a computecore.dll")
    return Finding("missing", _NOT_INSTALLED, _TURN_ON)


def _build(environment: Environment) -> Finding:
    build = environment.build()
    # The first with computecore.dll.
    if build >= RS5:
        return Finding("ok", f"build {build}")
    needed = f"HCS needs build {RS5} (Windows 10 1809, Windows Server 2019)"
    return Finding("missing", f"Windows build {build} is too old: {needed}", "update Windows")


def _cffi(environment: Environment) -> Finding:
    if importlib.util.find_spec("_cffi_backend") is not None:
        return Finding("ok", "installed")
    return Finding("missing", "the package cffi is not installed", "run 'python -m pip install cffi'")


def _computecore(environment: Environment) -> Finding:
    if environment.bits != 64:
        # A 32-bit program does not see the DLL.
        return Finding(
            "missing", f"HCS has no DLL for a Python of {environment.bits} bits", "install a 64-bit Python"
        )
    return find_library(environment, "computecore", Finding("missing", _NOT_INSTALLED, _TURN_ON))


def find_library(environment: Environment, library: str, absent: Finding) -> Finding:
    """Check for a DLL and its functions.

    :param absent: the result if there is no such DLL.
    """
    lacking = environment.missing_functions(library)
    if lacking is None:
        return absent
    if not lacking:
        return Finding("ok", f"{library}.dll has every function that is used")
    lacks = f"{library}.dll lacks {', '.join(sorted(lacking))}, which cannot be used"
    return Finding("limited", lacks, "update Windows if they are needed")


def _service(environment: Environment) -> Finding:
    state = environment.service("vmcompute")
    if state is None:
        return Finding("missing", "there is no Hyper-V Host Compute Service (vmcompute)", _TURN_ON)
    if state == "running":
        return Finding("ok", "the Hyper-V Host Compute Service (vmcompute) is running")
    return Finding(
        "limited",
        "the Hyper-V Host Compute Service (vmcompute) is not running",
        "start it as an administrator if VMs cannot be created: 'Start-Service vmcompute'",
    )


def _rights(environment: Environment) -> Finding:
    if environment.is_member(_ADMINISTRATORS):
        return Finding("ok", "this process has an administrator's rights")
    if environment.is_member(_HYPERV_ADMINISTRATORS):
        # The create documents let only SYSTEM and administrators listen, as hcsshim's do.
        return Finding(
            "limited",
            "the user is one of the Hyper-V Administrators, who may use HCS but not listen for guests",
            "run it as an administrator, or create VMs with external_guest_connection=False",
        )
    return Finding(
        "missing",
        "this process does not have the rights to use HCS",
        "run it as an administrator, or put the user into the group Hyper-V Administrators and sign in again",
    )


_WINDOWS: Final = Check("Windows", _system, decisive=True)

#: Whether HCS is present; any Python can check this.
_PRESENCE: Final = (_WINDOWS, Check("HCS", _installed))

#: What HCS needs.
REQUIREMENTS: Final[tuple[Check[Environment], ...]] = (
    _WINDOWS,
    Check("cffi", _cffi, decisive=True),
    Check("Windows build", _build),
    Check("HCS", _computecore),
    Check("HCS service", _service),
    Check("rights", _rights),
)


def availability(environment: Environment | None = None) -> list[str]:
    """Return what HCS lacks here, each with what to do about it; an empty list if it can be used.

    :param environment: what to check instead of this machine.
    """
    return missing(REQUIREMENTS, environment or this_machine())


def absence(environment: Environment | None = None) -> list[str]:
    """Return why HCS is not present on this machine; an empty list if it is, even if it cannot be used.

    :param environment: what to check instead of this machine.
    """
    return missing(_PRESENCE, environment or this_machine())


def this_machine() -> Environment:
    """Return this machine."""
    from uvm.backends.hcs.windows.environment import Environment

    return Environment()
