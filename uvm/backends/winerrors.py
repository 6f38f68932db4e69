"""Windows error codes: of Python's exceptions, and of refusals that are as good as success."""

from __future__ import annotations

from typing import Final

from uvm.errors import HostError
from uvm.hresult import HResult, hresult_from_win32

NOTHING_THERE: Final = frozenset({HResult.ERROR_FILE_NOT_FOUND, HResult.ERROR_PATH_NOT_FOUND})


class tolerating:
    """A context manager that treats refusals with one of these HRESULTs as success."""

    def __init__(self, *codes: int) -> None:
        self._codes = codes

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        return isinstance(error, HostError) and error.hresult in self._codes


def code_of(error: OSError) -> int:
    """Return the Windows code of an error; 0 if it has none, as on other systems."""
    code: int | None = getattr(error, "winerror", None)
    return code or 0


def host_error(operation: str, error: OSError) -> HostError:
    """Return a HostError for an error; E_FAIL if it has no Windows code."""
    code = hresult_from_win32(code_of(error)) or HResult.E_FAIL
    return HostError(operation, code, error.strerror or str(error))
