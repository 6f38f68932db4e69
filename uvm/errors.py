"""The error tree. Everything that this library raises on purpose is a :class:`UVMError`.

A message says what was asked, what happened, and what holds now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

__all__ = [
    "AccessDeniedError",
    "AlreadyReleasedError",
    "AnswerLostError",
    "BridgeClosedError",
    "ErrorRecord",
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
    "hresult_name",
]


class UVMError(Exception):
    """The root of everything that uvm raises."""


class OptionsError(UVMError, ValueError):
    """Options, or arguments, that cannot work. Raised before anything is created or sent."""


class NoSpaceError(UVMError):
    """Every slot that could hold the device is taken, or the device is larger than any slot."""


class NotAttachedError(UVMError, LookupError):
    """What was named is not attached to this VM."""


class AlreadyReleasedError(UVMError):
    """The lease was released before; releasing is not idempotent, so that double frees show."""


class NotSupportedError(UVMError):
    """The operating system, the build or the guest lacks what was asked; the message names it."""


class AccessDeniedError(UVMError, PermissionError):
    """The VM's options or the host deny it, for instance writable shares where those are denied."""


class HostPathError(UVMError):
    """A host path that does not exist, or is of the wrong kind.

    :ivar path: the path as it was given.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class VMStateError(UVMError):
    """The VM is not in a state in which this can be done (not started yet, started already)."""


@frozen
class ErrorRecord:
    """One record of HCS's own account of an error (``ErrorEvents`` of an HCS result document)."""

    message: str
    provider: str = ""
    event_id: int = 0
    source: str = ""


#: Symbolic names of the HRESULTs that HCS is known to give; host v2 codes are 0x8037xxxx.
_HRESULT_NAMES: dict[int, str] = {
    0x80004001: "E_NOTIMPL",
    0x80004005: "E_FAIL",
    0x80070002: "ERROR_FILE_NOT_FOUND",
    0x80070003: "ERROR_PATH_NOT_FOUND",
    0x80070005: "E_ACCESSDENIED",
    0x80070006: "E_HANDLE",
    0x8007000D: "ERROR_INVALID_DATA",
    0x80070020: "ERROR_SHARING_VIOLATION",
    0x80070032: "ERROR_NOT_SUPPORTED",
    0x80070050: "ERROR_FILE_EXISTS",
    0x80070057: "E_INVALIDARG",
    0x800700B7: "ERROR_ALREADY_EXISTS",
    0x8007010B: "ERROR_DIRECTORY",
    0x80070490: "ERROR_NOT_FOUND",
    0x800705AA: "ERROR_NO_SYSTEM_RESOURCES",
    0x80072740: "WSAEADDRINUSE",
    0x80370100: "HCS_E_TERMINATED_DURING_START",
    0x80370101: "HCS_E_IMAGE_MISMATCH",
    0x80370102: "HCS_E_HYPERV_NOT_INSTALLED",
    0x80370105: "HCS_E_INVALID_STATE",
    0x80370106: "HCS_E_UNEXPECTED_EXIT",
    0x80370107: "HCS_E_TERMINATED",
    0x80370108: "HCS_E_CONNECT_FAILED",
    0x80370109: "HCS_E_CONNECTION_TIMEOUT",
    0x8037010A: "HCS_E_CONNECTION_CLOSED",
    0x8037010B: "HCS_E_UNKNOWN_MESSAGE",
    0x8037010C: "HCS_E_UNSUPPORTED_PROTOCOL_VERSION",
    0x8037010D: "HCS_E_INVALID_JSON",
    0x8037010E: "HCS_E_SYSTEM_NOT_FOUND",
    0x8037010F: "HCS_E_SYSTEM_ALREADY_EXISTS",
    0x80370110: "HCS_E_SYSTEM_ALREADY_STOPPED",
    0x80370111: "HCS_E_PROTOCOL_ERROR",
    0x80370112: "HCS_E_INVALID_LAYER",
    0x80370113: "HCS_E_WINDOWS_INSIDER_REQUIRED",
    0x80370114: "HCS_E_SERVICE_NOT_AVAILABLE",
    0x80370115: "HCS_E_OPERATION_NOT_STARTED",
    0x80370116: "HCS_E_OPERATION_ALREADY_STARTED",
    0x80370117: "HCS_E_OPERATION_PENDING",
    0x80370118: "HCS_E_OPERATION_TIMEOUT",
    0x80370119: "HCS_E_OPERATION_SYSTEM_CALLBACK_ALREADY_SET",
    0x8037011A: "HCS_E_OPERATION_RESULT_ALLOCATION_FAILED",
    0x8037011B: "HCS_E_ACCESS_DENIED",
    0x8037011C: "HCS_E_GUEST_CRITICAL_ERROR",
    0x8037011D: "HCS_E_PROCESS_INFO_NOT_AVAILABLE",
    0x8037011E: "HCS_E_SERVICE_DISCONNECT",
    0x8037011F: "HCS_E_PROCESS_ALREADY_STOPPED",
    0x80370120: "HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION",
    0x80370121: "HCS_E_OPERATION_ALREADY_CANCELLED",
    0x803B0001: "HCN_E_NETWORK_NOT_FOUND",
    0x803B0002: "HCN_E_ENDPOINT_NOT_FOUND",
    0x803B0006: "HCN_E_ADAPTER_NOT_FOUND",
    0x803B0007: "HCN_E_PORT_NOT_FOUND",
    0x803B0010: "HCN_E_NETWORK_ALREADY_EXISTS",
    0x803B0013: "HCN_E_PORT_ALREADY_EXISTS",
    0x803B0014: "HCN_E_ENDPOINT_ALREADY_ATTACHED",
    0x803B0015: "HCN_E_REQUEST_UNSUPPORTED",
    0x803B001B: "HCN_E_INVALID_JSON",
    0x803B0026: "GCN_E_NETADAPTER_NOT_FOUND",
    0x803B0027: "GCN_E_NETCOMPARTMENT_NOT_FOUND",
    0x803B002B: "HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS",
    0x803B002C: "HCN_E_ENTITY_HAS_REFERENCES",
}


#: HCS_E_TERMINATED, HCS_E_SYSTEM_NOT_FOUND, HCS_E_SYSTEM_ALREADY_STOPPED.
_SYSTEM_GONE = frozenset({0x80370107, 0x8037010E, 0x80370110})


def hresult_name(code: int) -> str:
    """Give the symbolic name of an HRESULT, or its hexadecimal form where it has none here."""
    code &= 0xFFFFFFFF
    # A guest (and HCS v1) gives the same facility's codes with the NTSTATUS error severity.
    return _HRESULT_NAMES.get(code) or _HRESULT_NAMES.get(code & ~0x40000000) or f"0x{code:08X}"


class HostError(UVMError):
    """The host (HCS, HCN) refused, and changed nothing.

    :ivar operation: what was asked, for instance ``modify VirtualMachine/Devices/...``.
    :ivar hresult: the code as an unsigned 32-bit number; ``name`` is its symbolic name.
    :ivar records: HCS's own error records.
    """

    def __init__(
        self, operation: str, hresult: int, text: str = "", records: tuple[ErrorRecord, ...] = ()
    ) -> None:
        self.operation = operation
        self.hresult: int = hresult & 0xFFFFFFFF
        self.name: str = hresult_name(hresult)
        self.text = text
        self.records = records
        detail = "; ".join([*([text] if text else []), *(r.message for r in records)])
        super().__init__(
            f"{operation}: {self.name} (0x{self.hresult:08X})" + (f": {detail}" if detail else "")
        )

    @property
    def system_gone(self) -> bool:
        """Whether HCS says with it that the compute system itself has gone, not that it refuses.

        A guest says the like (0xC037xxxx) of its containers, also through HCS; that does not count.
        """
        return self.hresult in _SYSTEM_GONE


class GuestError(UVMError):
    """The guest refused, and changed nothing.

    :ivar operation: what was asked of it.
    :ivar result: its result code as an unsigned 32-bit number (guest codes are 0xC037xxxx).
    :ivar text: its message.
    """

    def __init__(self, operation: str, result: int, text: str = "") -> None:
        self.operation = operation
        self.result: int = result & 0xFFFFFFFF
        self.name: str = hresult_name(result)
        self.text = text
        super().__init__(
            f"{operation}: the guest answered {self.name} (0x{self.result:08X})"
            + (f": {text}" if text else "")
        )


class UnknownOutcomeError(UVMError):
    """Nobody knows whether it happened: the answer was lost, timed out or was cancelled.

    What it concerned is quarantined: its slot is not handed out again while the VM lives.
    """


class UndoFailedError(ExceptionGroup[Exception], UnknownOutcomeError):
    """Something failed, and taking back what had been done for it failed as well: both errors, in order.

    It can be caught as what it is, as any :class:`UVMError`, or in parts with ``except*``.
    """

    @classmethod
    def of(cls, error: BaseException, undo_error: BaseException) -> UndoFailedError:
        """Put an error together with the error of its undo."""
        errors: list[Exception] = []
        for each in (error, undo_error):
            errors += each.exceptions if isinstance(each, cls) else [_as_exception(each)]
        return cls(f"{error}; and undoing it failed: {undo_error}", errors)

    def __str__(self) -> str:
        # Not the group's, which ends with the number of its parts.
        return self.message

    def derive(self, excs: Sequence[Exception]) -> UndoFailedError:  # type: ignore[override]
        """Make a group of a part of the errors."""
        return UndoFailedError(self.message, excs)


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else UnknownOutcomeError(repr(error))


class BridgeClosedError(UVMError):
    """The connection to the guest is gone; the cause, where known, is ``__cause__``.

    What raises this and no :class:`AnswerLostError` was never sent, so that nothing was changed.
    """


class AnswerLostError(BridgeClosedError, UnknownOutcomeError):
    """The connection to the guest went while the guest was at it: nobody knows whether it was done."""


@frozen
class ExitStatus:
    """How a VM ended (``SystemExitStatus`` of the HCS schema).

    :ivar exit_type: HCS's ``ExitType``: GracefulExit, ForcedExit, UnexpectedExit, Reset, ...
    :ivar code: the HRESULT of the exit; 0 where it ended as it was asked to.
    """

    exit_type: str
    code: int = 0
    detail: dict[str, Any] | None = None

    def __str__(self) -> str:
        return self.exit_type if not self.code else f"{self.exit_type} ({hresult_name(self.code)})"


class VMExitedError(UVMError):
    """The VM has exited, so this can no longer be done.

    :ivar status: how it exited; None where nobody was told.
    """

    def __init__(self, message: str, status: ExitStatus | None = None) -> None:
        super().__init__(message if status is None else f"{message} (exit: {status})")
        self.status = status
