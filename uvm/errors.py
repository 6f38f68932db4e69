"""The error tree. Everything that this library raises on purpose is a :class:`UVMError`.

A message says what was asked, what happened, and what holds now.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from uvm._errorroot import E, UVMError, WireError, copied
from uvm.hresult import HResult, hresult, hresult_name

__all__ = [
    "AccessDeniedError",
    "AlreadyReleasedError",
    "AnswerLostError",
    "ArchiveError",
    "BridgeClosedError",
    "ErrorRecord",
    "ExitStatus",
    "GuestError",
    "GuestFileError",
    "HostError",
    "HostPathError",
    "NoSpaceError",
    "NotAttachedError",
    "NotSupportedError",
    "OptionsError",
    "OrphanError",
    "OutputLimitError",
    "ProcessError",
    "ProcessTimeoutError",
    "RPCCode",
    "RPCError",
    "RefusedError",
    "UVMError",
    "UVMErrorGroup",
    "UndoFailedError",
    "UnknownOptionError",
    "UndoUnknownError",
    "UnknownOutcomeError",
    "VMExitedError",
    "VMStateError",
    "WireError",
]


def is_refusal(error: BaseException) -> bool:
    """Return whether an exception says that nothing was changed."""
    # A closed bridge says by its kind whether the request had been sent.
    return isinstance(error, UVMError) and not isinstance(error, UnknownOutcomeError | VMExitedError)


def own(error: E) -> E:
    """Return a copy of an exception for one caller of several, with the original as its cause."""
    copy = copied(error)
    copy.__cause__ = error
    return copy


class OptionsError(UVMError, ValueError):
    """Options or arguments cannot work. Raised before anything is created or sent."""


class UnknownOptionError(OptionsError, TypeError):
    """No option, or field of another value, has that name; the message suggests one that is like it.

    :ivar name: the keyword that was passed.
    """

    def __init__(self, of: str, name: str, similar: str = "") -> None:
        super().__init__(f"{of} has no {name!r}" + (f"; did you mean {similar}?" if similar else ""))
        self.name = name


class ProcessError(UVMError):
    """A process did not end as the caller wants it to; what it wrote is not lost.

    :ivar cmd: what was run; empty for a container's own process, which its specification names.
    :ivar stdout: its output as far as it came; text if the caller asked for that.
    :ivar stderr: its error output as far as it came.
    """

    def __init__(
        self, message: str, cmd: tuple[str, ...], stdout: bytes | str = b"", stderr: bytes | str = b""
    ) -> None:
        super().__init__(message)
        self.cmd = cmd
        self.stdout = stdout
        self.stderr = stderr


class OutputLimitError(ProcessError):
    """A process wrote more output than the caller allows, and was killed."""


class ProcessTimeoutError(ProcessError, TimeoutError):
    """A process ran longer than the caller allows, and was killed."""


class GuestFileError(UVMError):
    """A guest could not do what was asked of its files: the message has what its program says."""


class ArchiveError(GuestFileError):
    """What a guest sent as its files is not unpacked: it is broken, too large, or leads elsewhere."""


class NoSpaceError(UVMError):
    """Every slot for the device is in use, or the device is larger than any slot; or the host has no room."""


class NotAttachedError(UVMError, LookupError):
    """The device that was named is not attached to this VM."""


class AlreadyReleasedError(UVMError):
    """The lease was released before; a second release is an error, so that double frees show."""


class NotSupportedError(UVMError):
    """The operating system, the build or the guest lacks what the operation needs; the message names it."""


class AccessDeniedError(UVMError, PermissionError):
    """The VM's options or the host deny access, for instance to a writable share."""


class HostPathError(UVMError):
    """A host path does not exist, or is of the wrong kind.

    :ivar path: the path as the caller spelled it.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class VMStateError(UVMError):
    """The VM is in another state than the operation needs: not started yet, or started already."""


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """One record of HCS's own account of an error (``ErrorEvents`` of an HCS result document)."""

    message: str
    provider: str = ""
    event_id: int = 0
    source: str = ""


_SYSTEM_GONE: Final = frozenset(
    {HResult.HCS_E_TERMINATED, HResult.HCS_E_SYSTEM_NOT_FOUND, HResult.HCS_E_SYSTEM_ALREADY_STOPPED}
)


class RefusedError(UVMError):
    """The host or the guest refused, and changed nothing.

    :ivar operation: what was asked, for instance ``modify VirtualMachine/Devices/...``.
    :ivar hresult: the code as an unsigned 32-bit number, an :class:`~uvm.hresult.HResult` if it is known.
    :ivar name: the symbolic name of the code.
    :ivar text: the message of the host or the guest.
    :ivar records: its own error records.
    """

    _ANSWERED: ClassVar[str] = ""

    def __init__(
        self, operation: str, code: int, text: str = "", records: tuple[ErrorRecord, ...] = ()
    ) -> None:
        self.operation = operation
        self.hresult: int = hresult(code)
        self.name: str = hresult_name(code)
        self.text = text
        self.records = records
        detail = "; ".join([*([text] if text else []), *(r.message for r in records)])
        said = f"{self._ANSWERED}{self.name} (0x{self.hresult:08X})"
        super().__init__(f"{operation}: {said}" + (f": {detail}" if detail else ""))


class HostError(RefusedError):
    """The host (HCS, HCN) refused, and changed nothing. Codes of HCS are 0x8037xxxx."""

    @property
    def system_gone(self) -> bool:
        """Whether HCS reports that the compute system itself has exited, rather than refusing.

        A guest reports the like (0xC037xxxx) of its containers, also through HCS; that does not count.
        """
        return self.hresult in _SYSTEM_GONE


class GuestError(RefusedError):
    """The guest refused, and changed nothing. Codes of guests are 0xC037xxxx."""

    _ANSWERED = "the guest answered "


class RPCCode(enum.IntEnum):
    """Why a call over ttrpc was refused: the codes of gRPC (``google.rpc.Code``)."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RPCError(UVMError):
    """A call over ttrpc, as to a network configuration proxy, was refused.

    :ivar operation: the call, for instance ``NetworkConfigProxy.ConfigureNetworking``.
    :ivar code: a code of gRPC, an :class:`RPCCode` if it is known.
    :ivar name: the name of the code.
    :ivar text: the message that came with it.
    """

    def __init__(self, operation: str, code: int, text: str = "") -> None:
        self.operation = operation
        known = RPCCode._value2member_map_.get(code)
        self.code: int = code if known is None else RPCCode(code)
        self.name: str = f"code {code}" if known is None else RPCCode(code).name
        self.text = text
        super().__init__(f"{operation}: {self.name}" + (f": {text}" if text else ""))


class UnknownOutcomeError(UVMError):
    """The outcome is unknown: the answer was lost, timed out or was cancelled.

    The slot concerned is quarantined: no other device gets it while the VM runs.
    """


class UVMErrorGroup(ExceptionGroup[Exception], UVMError):
    """Several parts of what was asked failed: their errors, in order.

    It can be caught by its own class, as any :class:`UVMError`, or in parts with ``except*``.
    """

    def __str__(self) -> str:
        # Not the group's, which ends with the number of its parts.
        return self.message

    def derive(self, excs: Sequence[Exception]) -> UVMErrorGroup:  # type: ignore[override]
        """Return a group of a part of the errors."""
        return type(self)(self.message, excs)


def together(what: str, errors: Sequence[Exception]) -> Exception:
    """Return one or more errors of what was asked as one."""
    if len(errors) == 1:
        return errors[0]
    return UVMErrorGroup(f"{what}: {'; and '.join(map(str, errors))}", errors)


class UndoFailedError(UVMErrorGroup):
    """An operation failed, and rolling it back failed as well: both errors, in order.

    A device whose roll-back was refused is known to be attached, in whole or in part: an orphan, listed in
    ``vm.orphans``. If the outcome is unknown instead, it is an :class:`UndoUnknownError`.
    """

    @staticmethod
    def of(error: BaseException, undo_error: BaseException, *, is_orphan: bool = False) -> UndoFailedError:
        """Return the error of an operation on a device and that of its undo as one.

        :param is_orphan: it is listed as an orphan, also if the outcome of its undo is unknown.
        """
        errors: list[Exception] = []
        for each in (error, undo_error):
            errors += each.exceptions if isinstance(each, UndoFailedError) else [_as_exception(each)]
        said = f"{error}; and undoing it failed: {undo_error}"
        if is_refusal(undo_error):
            return UndoFailedError(f"{said}; it stays attached, as an orphan (vm.orphans)", errors)
        holds = (
            "it may be attached, as an orphan (vm.orphans)"
            if is_orphan
            else "its slot is quarantined (vm.quarantined)"
        )
        return UndoUnknownError(f"{said}; {holds}", errors)


class UndoUnknownError(UndoFailedError, UnknownOutcomeError):
    """An operation failed, and whether it was rolled back is unknown.

    The slot is in ``vm.quarantined``; a directory mounted in a container, in ``vm.orphans``.
    """


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else UnknownOutcomeError(repr(error))


class OrphanError(UVMError):
    """Nothing was attached: an orphan is at that path, and its removal failed again (``__cause__``)."""


class BridgeClosedError(UVMError):
    """The connection to the guest is closed; ``__cause__`` is the cause, if it is known.

    A request that fails with this, and not with :class:`AnswerLostError`, was not sent: nothing was changed.
    """


class AnswerLostError(BridgeClosedError, UnknownOutcomeError):
    """The connection to the guest closed between a request and its answer: the outcome is unknown."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a VM ended (``SystemExitStatus`` of the HCS schema).

    :ivar exit_type: HCS's ``ExitType``: GracefulExit, ForcedExit, UnexpectedExit, Reset, ...
    :ivar code: the HRESULT of the exit; 0 if the VM ended as requested.
    """

    exit_type: str
    code: int = 0
    detail: dict[str, Any] | None = field(default=None, repr=False, hash=False)

    def __str__(self) -> str:
        return self.exit_type if not self.code else f"{self.exit_type} ({hresult_name(self.code)})"


class VMExitedError(UVMError):
    """The VM has exited, so this can no longer be done.

    :ivar status: how it exited; None if that is unknown.
    """

    def __init__(self, message: str, status: ExitStatus | None = None) -> None:
        super().__init__(message if status is None else f"{message} (exit: {status})")
        self.status = status
