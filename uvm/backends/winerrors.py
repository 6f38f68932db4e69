"""Windows error codes: of Python's exceptions, and of refusals that are as good as success."""

from __future__ import annotations

import errno
from typing import Final

from uvm.errors import HostError
from uvm.hresult import HResult, hresult_from_win32

NOTHING_THERE: Final = frozenset({HResult.ERROR_FILE_NOT_FOUND, HResult.ERROR_PATH_NOT_FOUND})
CANT_RESOLVE_FILENAME: Final = 1921

#: Windows's codes for errno values, for other systems than Windows.
_WIN32_OF: Final = {
    errno.ENOENT: 2,
    errno.ENOTDIR: 3,
    errno.EACCES: 5,
    errno.EPERM: 5,
    errno.EROFS: 5,
    errno.EISDIR: 5,
    errno.EBUSY: 32,
    errno.ETXTBSY: 32,
    errno.EEXIST: 80,
    errno.ENOSPC: 112,
    errno.ENOTEMPTY: 145,
    errno.ENAMETOOLONG: 206,
    errno.ELOOP: CANT_RESOLVE_FILENAME,
}


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


def hresult_of(error: Exception) -> int:
    """Return the HRESULT of an error, by its Windows code or its errno; E_FAIL if it has none."""
    code = code_of(error) if isinstance(error, OSError) else 0
    code = code or _WIN32_OF.get(getattr(error, "errno", None) or 0, 0)
    return hresult_from_win32(code) or HResult.E_FAIL


def host_error(operation: str, error: OSError) -> HostError:
    """Return a HostError for an error: see :func:`hresult_of`."""
    return HostError(operation, hresult_of(error), error.strerror or str(error))
