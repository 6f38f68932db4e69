"""Windows error codes as exceptions."""

from __future__ import annotations

from typing import Final

from uvm.backends.hcs.dlls import FFI
from uvm.backends.hcs.windows.dlls import hresult_from_win32
from uvm.errors import HostError

__all__ = ["code_of", "host_error", "windows_error"]

_E_FAIL: Final = 0x80004005
#: The error of the call before.
_LAST: Final = -1


def windows_error(ffi: FFI, code: int = _LAST) -> OSError:
    """Make an OSError of a code: by default of what the last call of this thread left (``GetLastError``)."""
    number, text = ffi.getwinerror(code)
    return OSError(0, text, None, number)


def code_of(error: OSError) -> int:
    """Give the Windows code of an error; 0 where it has none, as elsewhere than on Windows."""
    code: int | None = getattr(error, "winerror", None)
    return code or 0


def host_error(operation: str, error: OSError) -> HostError:
    """Make a HostError of an error; E_FAIL where it has no Windows code."""
    hresult = hresult_from_win32(code_of(error)) or _E_FAIL
    return HostError(operation, hresult, error.strerror or str(error))
