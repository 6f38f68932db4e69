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


H = TypeVar("H")

#: Takes a handle, an operation and a document (options, a query or settings).
Request: TypeAlias = Callable[[H, OperationHandle, CData], int]
#: Takes an id or a parent's handle, a document, an operation, a security descriptor and a place for a handle.
Creation: TypeAlias = Callable[[H, CData, OperationHandle, CData, CData], int]
#: Takes a handle, options, a context and a callback.
Registration: TypeAlias = Callable[[H, int, CData, CData], int]


class ComputeCore(Protocol):
    """computecore.dll: systems, processes and the operations on them (computecore.h)."""

    def HcsCreateOperation(self, context: CData, callback: CData, /) -> OperationHandle: ...
    def HcsCloseOperation(self, operation: OperationHandle, /) -> None: ...
    def HcsGetOperationResult(self, operation: OperationHandle, document: CData, /) -> int: ...
    def HcsGetOperationResultAndProcessInfo(
        self, operation: OperationHandle, information: CData, document: CData, /
    ) -> int: ...

    def HcsEnumerateComputeSystems(self, query: CData, operation: OperationHandle, /) -> int: ...

    HcsCreateComputeSystem: Creation[CData]

    def HcsOpenComputeSystem(self, system_id: CData, access: int, system: CData, /) -> int: ...
    def HcsCloseComputeSystem(self, system: SystemHandle, /) -> None: ...

    HcsStartComputeSystem: Request[SystemHandle]
    HcsShutDownComputeSystem: Request[SystemHandle]
    HcsTerminateComputeSystem: Request[SystemHandle]
    HcsCrashComputeSystem: Request[SystemHandle]
    HcsPauseComputeSystem: Request[SystemHandle]
    HcsResumeComputeSystem: Request[SystemHandle]
    HcsSaveComputeSystem: Request[SystemHandle]
    HcsGetComputeSystemProperties: Request[SystemHandle]

    def HcsModifyComputeSystem(
        self, system: SystemHandle, operation: OperationHandle, configuration: CData, identity: CData, /
    ) -> int: ...

    HcsSetComputeSystemCallback: Registration[SystemHandle]

    HcsCreateProcess: Creation[SystemHandle]

    def HcsOpenProcess(self, system: SystemHandle, pid: int, access: int, process: CData, /) -> int: ...
    def HcsCloseProcess(self, process: ProcessHandle, /) -> None: ...

    HcsTerminateProcess: Request[ProcessHandle]
    HcsSignalProcess: Request[ProcessHandle]

    def HcsGetProcessInfo(self, process: ProcessHandle, operation: OperationHandle, /) -> int: ...

    HcsGetProcessProperties: Request[ProcessHandle]
    HcsModifyProcess: Request[ProcessHandle]
    HcsSetProcessCallback: Registration[ProcessHandle]

    def HcsGetServiceProperties(self, query: CData, result: CData, /) -> int: ...
    def HcsModifyServiceSettings(self, settings: CData, result: CData, /) -> int: ...
    def HcsGrantVmAccess(self, vm_id: CData, path: CData, /) -> int: ...
    def HcsRevokeVmAccess(self, vm_id: CData, path: CData, /) -> int: ...


#: Takes a handle, a query and places for the properties and an error record.
NetworkQuery: TypeAlias = Callable[[CData, CData, CData, CData], int]


class ComputeNetwork(Protocol):
    """computenetwork.dll: networks, namespaces and endpoints (computenetwork.h)."""

    def HcnOpenNetwork(self, network_id: CData, network: CData, error: CData, /) -> int: ...
    def HcnCloseNetwork(self, network: CData, /) -> int: ...

    def HcnCreateNamespace(
        self, namespace_id: CData, settings: CData, namespace: CData, error: CData, /
    ) -> int: ...
    def HcnOpenNamespace(self, namespace_id: CData, namespace: CData, error: CData, /) -> int: ...
    def HcnModifyNamespace(self, namespace: CData, settings: CData, error: CData, /) -> int: ...

    HcnQueryNamespaceProperties: NetworkQuery

    def HcnDeleteNamespace(self, namespace_id: CData, error: CData, /) -> int: ...
    def HcnCloseNamespace(self, namespace: CData, /) -> int: ...

    def HcnEnumerateEndpoints(self, query: CData, endpoints: CData, error: CData, /) -> int: ...
    def HcnCreateEndpoint(
        self, network: CData, endpoint_id: CData, settings: CData, endpoint: CData, error: CData, /
    ) -> int: ...
    def HcnOpenEndpoint(self, endpoint_id: CData, endpoint: CData, error: CData, /) -> int: ...

    HcnQueryEndpointProperties: NetworkQuery

    def HcnDeleteEndpoint(self, endpoint_id: CData, error: CData, /) -> int: ...
    def HcnCloseEndpoint(self, endpoint: CData, /) -> int: ...


@frozen(eq=False, repr=False)
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
