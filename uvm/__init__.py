"""Create and drive utility VMs: Hyper-V through the Host Compute Service, or a faithful in-memory fake.

Everything public that most users need is here, loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvm._guest.container import Container as Container
    from uvm._guest.process import Process as Process
    from uvm._guest.run import CompletedProcess as CompletedProcess
    from uvm._guest.run import OutputLimitError as OutputLimitError
    from uvm._guest.timeouts import GuestTimeouts as GuestTimeouts
    from uvm._vm.layers import LCOWLayer as LCOWLayer
    from uvm._vm.layers import WCOWLayer as WCOWLayer
    from uvm._vm.vm import UtilityVM as UtilityVM
    from uvm._vm.vm import VMState as VMState
    from uvm.backend import Backend as Backend
    from uvm.backend import Concurrency as Concurrency
    from uvm.backend import HostInfo as HostInfo
    from uvm.backends import open_backend as open_backend
    from uvm.backends.fake import FakeBackend as FakeBackend
    from uvm.devices.scsi import DiskType as DiskType
    from uvm.devices.scsi import Mount as Mount
    from uvm.errors import AccessDeniedError as AccessDeniedError
    from uvm.errors import AlreadyReleasedError as AlreadyReleasedError
    from uvm.errors import AnswerLostError as AnswerLostError
    from uvm.errors import BridgeClosedError as BridgeClosedError
    from uvm.errors import ExitStatus as ExitStatus
    from uvm.errors import GuestError as GuestError
    from uvm.errors import HostError as HostError
    from uvm.errors import HostPathError as HostPathError
    from uvm.errors import NoSpaceError as NoSpaceError
    from uvm.errors import NotAttachedError as NotAttachedError
    from uvm.errors import NotSupportedError as NotSupportedError
    from uvm.errors import OptionsError as OptionsError
    from uvm.errors import UndoFailedError as UndoFailedError
    from uvm.errors import UnknownOutcomeError as UnknownOutcomeError
    from uvm.errors import UVMError as UVMError
    from uvm.errors import VMExitedError as VMExitedError
    from uvm.errors import VMStateError as VMStateError
    from uvm.options import BlockCIMBootFiles as BlockCIMBootFiles
    from uvm.options import HvSocketService as HvSocketService
    from uvm.options import LCOWOptions as LCOWOptions
    from uvm.options import PCIDevice as PCIDevice
    from uvm.options import RegistryValue as RegistryValue
    from uvm.options import VmbFSBootFiles as VmbFSBootFiles
    from uvm.options import WCOWOptions as WCOWOptions

__version__ = "0.1.0"

#: Per public name, the module that defines it.
_HOMES = {
    "uvm.backends": ("open_backend",),
    "uvm.backend": ("Backend", "Concurrency", "HostInfo"),
    "uvm.backends.fake": ("FakeBackend",),
    "uvm.devices.scsi": ("DiskType", "Mount"),
    "uvm.errors": (
        "AccessDeniedError",
        "AlreadyReleasedError",
        "AnswerLostError",
        "BridgeClosedError",
        "ExitStatus",
        "GuestError",
        "HostError",
        "HostPathError",
        "NoSpaceError",
        "NotAttachedError",
        "NotSupportedError",
        "OptionsError",
        "UVMError",
        "UndoFailedError",
        "UnknownOutcomeError",
        "VMExitedError",
        "VMStateError",
    ),
    "uvm._guest.container": ("Container",),
    "uvm._guest.process": ("Process",),
    "uvm._guest.run": ("CompletedProcess", "OutputLimitError"),
    "uvm._guest.timeouts": ("GuestTimeouts",),
    "uvm._vm.layers": ("LCOWLayer", "WCOWLayer"),
    "uvm.options": (
        "BlockCIMBootFiles",
        "HvSocketService",
        "LCOWOptions",
        "PCIDevice",
        "RegistryValue",
        "VmbFSBootFiles",
        "WCOWOptions",
    ),
    "uvm._vm.vm": ("UtilityVM", "VMState"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AccessDeniedError",
    "AlreadyReleasedError",
    "AnswerLostError",
    "Backend",
    "BlockCIMBootFiles",
    "BridgeClosedError",
    "CompletedProcess",
    "Concurrency",
    "Container",
    "DiskType",
    "ExitStatus",
    "FakeBackend",
    "GuestError",
    "GuestTimeouts",
    "HostError",
    "HostInfo",
    "HostPathError",
    "HvSocketService",
    "LCOWLayer",
    "LCOWOptions",
    "Mount",
    "NoSpaceError",
    "NotAttachedError",
    "NotSupportedError",
    "OptionsError",
    "OutputLimitError",
    "PCIDevice",
    "Process",
    "RegistryValue",
    "UVMError",
    "UndoFailedError",
    "UnknownOutcomeError",
    "UtilityVM",
    "VMExitedError",
    "VMState",
    "VMStateError",
    "VmbFSBootFiles",
    "WCOWLayer",
    "WCOWOptions",
    "open_backend",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
