"""The Windows error codes in what Python raises."""

from __future__ import annotations

from typing import Final

from uvm.backends.hcs.windows.dlls import hresult_from_win32
from uvm.errors import HostError

#: ERROR_FILE_NOT_FOUND and ERROR_PATH_NOT_FOUND.
NOTHING_THERE: Final = frozenset({0x80070002, 0x80070003})
_E_FAIL: Final = 0x80004005


def code_of(error: OSError) -> int:
    """Give the Windows code of an error; 0 where it has none, as elsewhere than on Windows."""
    code: int | None = getattr(error, "winerror", None)
    return code or 0


def host_error(operation: str, error: OSError) -> HostError:
    """Make a HostError of an error; E_FAIL where it has no Windows code."""
    hresult = hresult_from_win32(code_of(error)) or _E_FAIL
    return HostError(operation, hresult, error.strerror or str(error))
