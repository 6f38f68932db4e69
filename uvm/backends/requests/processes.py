"""Processes that the host starts over its own connection: what they are asked, and their status."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from uvm.backend import JSON
from uvm.backends.requests.request import read_document
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.json import to_json
from uvm.schema.process import CloseHandle, ConsoleSize, ProcessModifyRequest, ProcessStatus

#: The streams that a request closes, by HCS's names.
_HANDLES: Final = {
    "StdIn": ("stdin",),
    "StdOut": ("stdout",),
    "StdErr": ("stderr",),
    "All": ("stdin", "stdout", "stderr"),
}


def read_change(document: JSON, operation: str) -> ConsoleSize | CloseHandle:
    """Return what a ``ProcessModifyRequest`` asks for; HCS_E_INVALID_JSON if that is nothing known."""
    request = read_document(ProcessModifyRequest, document, operation)
    if request.operation == "ConsoleSize" and request.console_size is not None:
        return request.console_size
    closing = request.close_handle
    if request.operation == "CloseHandle" and closing is not None and closing.handle in _HANDLES:
        return closing
    raise HostError(operation, HResult.HCS_E_INVALID_JSON, f"Operation {request.operation!r}")


def streams_of(closing: CloseHandle, there: Container[str], operation: str) -> list[str]:
    """Return the streams to close, of those that a process has; ERROR_NOT_FOUND if it has none of them."""
    found = [each for each in _HANDLES[closing.handle] if each in there]
    if not found:
        raise HostError(operation, HResult.ERROR_NOT_FOUND, f"it has no {closing.handle}")
    return found


def process_status(pid: int, exit_code: int | None, *, exited: bool) -> JSON:
    """Return a ``ProcessStatus``.

    :param exit_code: None while the process runs, and if the VM exited before it was known.
    """
    status = ProcessStatus(process_id=pid, exited=exited, exit_code=exit_code or 0)
    if exited and exit_code is None:
        status.last_wait_result = HResult.HCS_E_SYSTEM_ALREADY_STOPPED - (1 << 32)
    return to_json(status)
