"""The two DLLs of the host's compute services: a typed Protocol for each, and how they are loaded.

``declarations`` holds the C side of the same functions. Functions of HCS and HCN return an HRESULT, negative
on failure; handles and pointers are cffi objects.
"""

from __future__ import annotations

import functools
import ntpath
import os
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

from attrs import frozen

from uvm.errors import NotSupportedError

#: A C value of cffi.
CData: TypeAlias = Any
#: The C types of one group of functions: an ``FFI`` of cffi.
FFI: TypeAlias = Any

L_co = TypeVar("L_co", covariant=True)


# The types of handles, for type checkers only: all of them are cffi pointers.
class OperationHandle:
    """``HCS_OPERATION``."""


class SystemHandle:
    """``HCS_SYSTEM``."""


class ProcessHandle:
    """``HCS_PROCESS``."""


class ComputeCore(Protocol):
    """computecore.dll: systems, processes and the operations on them (computecore.h)."""

    def HcsCreateOperation(self, context: CData, callback: CData, /) -> OperationHandle: ...
    def HcsCloseOperation(self, operation: OperationHandle, /) -> None: ...
    def HcsGetOperationResult(self, operation: OperationHandle, document: CData, /) -> int: ...
    def HcsGetOperationResultAndProcessInfo(
        self, operation: OperationHandle, information: CData, document: CData, /
    ) -> int: ...

    def HcsEnumerateComputeSystems(self, query: CData, operation: OperationHandle, /) -> int: ...
    def HcsCreateComputeSystem(
        self,
        system_id: CData,
        configuration: CData,
        operation: OperationHandle,
        security: CData,
        system: CData,
        /,
    ) -> int: ...
    def HcsOpenComputeSystem(self, system_id: CData, access: int, system: CData, /) -> int: ...
    def HcsCloseComputeSystem(self, system: SystemHandle, /) -> None: ...
    def HcsStartComputeSystem(
        self, system: SystemHandle, operation: OperationHandle, options: CData, /
    ) -> int: ...
    def HcsShutDownComputeSystem(
        self, system: SystemHandle, operation: OperationHandle, options: CData, /
    ) -> int: ...
    def HcsTerminateComputeSystem(
        self, system: SystemHandle, operation: OperationHandle, options: CData, /
    ) -> int: ...
    def HcsCrashComputeSystem(
        self, system: SystemHandle, operation: OperationHandle, options: CData, /
    ) -> int: ...
    def HcsPauseComputeSystem(
        self, system: SystemHandle, operation: OperationHandle, options: CData, /
    ) -> int: ...
    def HcsResumeComputeSystem(
        self, system: SystemHandle, operation: OperationHandle, options: CData, /
    ) -> int: ...
    def HcsSaveComputeSystem(
        self, system: SystemHandle, operation: OperationHandle, options: CData, /
    ) -> int: ...
    def HcsGetComputeSystemProperties(
        self, system: SystemHandle, operation: OperationHandle, query: CData, /
    ) -> int: ...
    def HcsModifyComputeSystem(
        self, system: SystemHandle, operation: OperationHandle, configuration: CData, identity: CData, /
    ) -> int: ...
    def HcsSetComputeSystemCallback(
        self, system: SystemHandle, options: int, context: CData, callback: CData, /
    ) -> int: ...

    def HcsCreateProcess(
        self,
        system: SystemHandle,
        parameters: CData,
        operation: OperationHandle,
        security: CData,
        process: CData,
        /,
    ) -> int: ...
    def HcsOpenProcess(self, system: SystemHandle, pid: int, access: int, process: CData, /) -> int: ...
    def HcsCloseProcess(self, process: ProcessHandle, /) -> None: ...
    def HcsTerminateProcess(
        self, process: ProcessHandle, operation: OperationHandle, options: CData, /
    ) -> int: ...
    def HcsSignalProcess(
        self, process: ProcessHandle, operation: OperationHandle, options: CData, /
    ) -> int: ...
    def HcsGetProcessInfo(self, process: ProcessHandle, operation: OperationHandle, /) -> int: ...
    def HcsGetProcessProperties(
        self, process: ProcessHandle, operation: OperationHandle, query: CData, /
    ) -> int: ...
    def HcsModifyProcess(
        self, process: ProcessHandle, operation: OperationHandle, settings: CData, /
    ) -> int: ...
    def HcsSetProcessCallback(
        self, process: ProcessHandle, options: int, context: CData, callback: CData, /
    ) -> int: ...

    def HcsGetServiceProperties(self, query: CData, result: CData, /) -> int: ...
    def HcsGrantVmAccess(self, vm_id: CData, path: CData, /) -> int: ...
    def HcsRevokeVmAccess(self, vm_id: CData, path: CData, /) -> int: ...


class ComputeNetwork(Protocol):
    """computenetwork.dll: namespaces and endpoints (computenetwork.h)."""

    def HcnOpenNamespace(self, namespace_id: CData, namespace: CData, error: CData, /) -> int: ...
    def HcnModifyNamespace(self, namespace: CData, settings: CData, error: CData, /) -> int: ...
    def HcnQueryNamespaceProperties(
        self, namespace: CData, query: CData, properties: CData, error: CData, /
    ) -> int: ...
    def HcnDeleteNamespace(self, namespace_id: CData, error: CData, /) -> int: ...
    def HcnCloseNamespace(self, namespace: CData, /) -> int: ...

    def HcnEnumerateEndpoints(self, query: CData, endpoints: CData, error: CData, /) -> int: ...
    def HcnOpenEndpoint(self, endpoint_id: CData, endpoint: CData, error: CData, /) -> int: ...
    def HcnQueryEndpointProperties(
        self, endpoint: CData, query: CData, properties: CData, error: CData, /
    ) -> int: ...
    def HcnCloseEndpoint(self, endpoint: CData, /) -> int: ...


@frozen(eq=False)
class Library(Generic[L_co]):
    """A loaded DLL.

    :ivar functions: its functions.
    :ivar ffi: its C types.
    :ivar free: frees a string that it allocated.
    """

    functions: L_co
    ffi: FFI
    free: Callable[[CData], object]


def system_library(name: str, directory: str = "System32") -> str:
    """Return the full path of one of Windows's own DLLs, so that no other DLL of that name is loaded."""
    return ntpath.join(os.environ.get("SYSTEMROOT", "C:\\Windows"), directory, name)


class LateFunctions:
    """The functions of one of Windows's own DLLs, looked up on first use, because old versions lack some.

    A missing function raises NotSupportedError; a missing DLL raises OSError on construction.
    """

    def __init__(self, ffi: FFI, name: str) -> None:
        self._name = name
        self._loaded = ffi.dlopen(system_library(name))
        self._error = ffi.error

    def __getattr__(self, function: str) -> Any:
        try:
            found = getattr(self._loaded, function)
        except (AttributeError, self._error):
            raise NotSupportedError(
                f"{self._name} of this Windows has no {function}; a newer Windows is needed"
            ) from None
        setattr(self, function, found)
        return found


@functools.cache
def windows_core() -> Library[ComputeCore]:
    """Load computecore.dll; OSError if Windows lacks it."""
    from uvm.backends.hcs._bindings import computecore, memory

    functions = LateFunctions(computecore.ffi, "computecore.dll")
    kernel = memory.ffi.dlopen(system_library("kernel32.dll"))
    return Library(cast(ComputeCore, functions), computecore.ffi, kernel.LocalFree)


@functools.cache
def windows_network() -> Library[ComputeNetwork]:
    """Load computenetwork.dll; OSError if Windows lacks it."""
    from uvm.backends.hcs._bindings import computenetwork, memory

    functions = LateFunctions(computenetwork.ffi, "computenetwork.dll")
    ole = memory.ffi.dlopen(system_library("ole32.dll"))
    return Library(cast(ComputeNetwork, functions), computenetwork.ffi, ole.CoTaskMemFree)
