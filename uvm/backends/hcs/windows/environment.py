"""Facts about a Windows machine that need no HCS: DLLs, services, groups, the processor."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, Literal

from uvm.backends.hcs.dlls import FFI, CData, system_library
from uvm.backends.hcs.windows.dlls import advapi32, kernel32, ntdll, security_id
from uvm.backends.hcs.windows.facts import Facts

ServiceState = Literal["running", "stopped"]

_SC_MANAGER_CONNECT, _SERVICE_QUERY_STATUS = 0x1, 0x4
_SERVICE_RUNNING: Final = 4
_ERROR_SERVICE_DOES_NOT_EXIST: Final = 1060
_PF_VIRT_FIRMWARE_ENABLED: Final = 21


class Environment:
    """What the checks ask of this machine, by Windows's own DLLs, which are loaded when needed.

    :attr:`system` can be asked on any operating system; only on ``win32`` is anything else asked.
    """

    @property
    def system(self) -> str:
        """The operating system: ``sys.platform``."""
        return sys.platform

    @property
    def bits(self) -> int:
        """The width of this Python's addresses."""
        return sys.maxsize.bit_length() + 1

    def build(self) -> int:
        """Return the build number of Windows."""
        return Facts(kernel32(), ntdll()).build()

    def machine(self) -> str:
        """Return the processor's architecture."""
        return Facts(kernel32(), ntdll()).machine()

    def has_library(self, name: str) -> bool:
        """Return whether Windows has a DLL of its own, even if this Python cannot load it."""
        # A 32-bit program is shown another directory as System32.
        return os.path.isfile(system_library(f"{name}.dll", "System32" if self.bits == 64 else "Sysnative"))

    def missing_functions(self, library: str) -> list[str] | None:
        """Return the functions in use that a DLL lacks; None if there is no such DLL."""
        ffi = import_module(f"uvm.backends.hcs._bindings.{library}").ffi
        return missing_functions(ffi, system_library(f"{library}.dll"))

    def service(self, name: str) -> ServiceState | None:
        """Return the state of a service; None if it is not installed.

        :raises HostError: Windows refuses to answer.
        """
        ffi, functions = advapi32().ffi, advapi32().functions
        operation = f"query the service {name}"
        with self._opened(
            operation, functions.OpenSCManagerW(ffi.NULL, ffi.NULL, _SC_MANAGER_CONNECT)
        ) as all_:
            service = functions.OpenServiceW(all_, ffi.new("WCHAR[]", name), _SERVICE_QUERY_STATUS)
            if service == ffi.NULL and advapi32().last_error(-1)[0] == _ERROR_SERVICE_DOES_NOT_EXIST:
                return None
            with self._opened(operation, service):
                status = ffi.new("SERVICE_STATUS *")
                advapi32().require(operation, functions.QueryServiceStatus(service, status))
        return "running" if status.dwCurrentState == _SERVICE_RUNNING else "stopped"

    def is_member(self, sid: str) -> bool:
        """Return whether this process acts as a member of a group now: administrators may have to elevate.

        :raises HostError: Windows refuses to answer.
        """
        ffi, check = advapi32().ffi, advapi32().functions.CheckTokenMembership
        operation, answer = f"ask for membership in {sid}", ffi.new("BOOL *")
        with security_id(kernel32(), advapi32(), operation, sid) as group:
            advapi32().require(operation, check(ffi.NULL, group, answer))
        return bool(answer[0])

    def virtualization_in_firmware(self) -> bool:
        """Return whether the firmware makes virtualization available; not if a hypervisor already uses it."""
        return bool(kernel32().functions.IsProcessorFeaturePresent(_PF_VIRT_FIRMWARE_ENABLED))

    def has_hyperv_sockets(self) -> bool:
        """Return whether Python's own sockets support AF_HYPERV."""
        return hasattr(socket, "AF_HYPERV")

    def has_file(self, path: str) -> bool:
        """Return whether a file exists."""
        return os.path.isfile(path)

    @contextmanager
    def _opened(self, operation: str, handle: CData) -> Iterator[CData]:
        advapi32().require(operation, handle)
        try:
            yield handle
        finally:
            advapi32().functions.CloseServiceHandle(handle)


def missing_functions(ffi: FFI, path: str) -> list[str] | None:
    """Return the functions of a group of declarations that a DLL lacks; None if it cannot be loaded."""
    try:
        functions = ffi.dlopen(path)
    except OSError:
        return None
    return [name for name in dir(functions) if not _has(ffi, functions, name)]


def _has(ffi: FFI, functions: Any, name: str) -> bool:
    try:
        # cffi looks a function up on first use.
        getattr(functions, name)
    except ffi.error:
        return False
    return True
