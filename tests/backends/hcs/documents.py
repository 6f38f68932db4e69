"""The documents that HCS and HCN write: errors, exit statuses, process statuses."""

from __future__ import annotations

import json
from typing import Any

from uvm.backend import JSON
from uvm.errors import ExitStatus, HostError

__all__ = ["error_document", "exit_document", "network_error_document", "process_status", "read", "write"]


def read(text: str) -> Any:
    """Return the decoded document; None for an empty text."""
    return json.loads(text) if text else None


def write(document: Any) -> str:
    """Return a document as JSON."""
    return json.dumps(document, separators=(",", ":"))


def error_document(error: HostError) -> str:
    """Return HCS's record of an error (``ResultError``)."""
    events = [
        {"Message": r.message, "Provider": r.provider, "EventId": r.event_id, "Source": r.source}
        for r in error.records
    ]
    return write({"Error": signed(error.hresult), "ErrorMessage": error.text, "ErrorEvents": events})


def network_error_document(error: HostError) -> str:
    """Return HCN's record of an error."""
    return write({"Success": False, "Error": error.text, "ErrorCode": error.hresult})


def exit_document(status: ExitStatus) -> str:
    """Return a ``SystemExitStatus``."""
    return write({**(status.detail or {}), "Status": signed(status.code), "ExitType": status.exit_type})


def process_status(pid: int, exit_code: int) -> JSON:
    """Return the ``ProcessStatus`` of a process that has exited."""
    return {"ProcessId": pid, "Exited": True, "ExitCode": exit_code, "LastWaitResult": 0}


def signed(hresult: int) -> int:
    """Return an HRESULT as the ``int32`` that documents hold."""
    return hresult - ((hresult & 0x80000000) << 1)
