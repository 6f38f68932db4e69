"""The documents that HCS and HCN themselves write: of errors, exits and ends of processes."""

from __future__ import annotations

import json
from typing import Any

from uvm.backend import JSON
from uvm.errors import ExitStatus, HostError

__all__ = ["error_document", "exit_document", "network_error_document", "process_status", "read", "write"]


def read(text: str) -> Any:
    """Read a document; None of nothing."""
    return json.loads(text) if text else None


def write(document: Any) -> str:
    """Write a document."""
    return json.dumps(document, separators=(",", ":"))


def error_document(error: HostError) -> str:
    """HCS's account of an error (``ResultError``)."""
    events = [
        {"Message": r.message, "Provider": r.provider, "EventId": r.event_id, "Source": r.source}
        for r in error.records
    ]
    return write({"Error": signed(error.hresult), "ErrorMessage": error.text, "ErrorEvents": events})


def network_error_document(error: HostError) -> str:
    """HCN's account of an error."""
    return write({"Success": False, "Error": error.text, "ErrorCode": error.hresult})


def exit_document(status: ExitStatus) -> str:
    """``SystemExitStatus``."""
    return write({**(status.detail or {}), "Status": signed(status.code), "ExitType": status.exit_type})


def process_status(pid: int, exit_code: int) -> JSON:
    """``ProcessStatus`` of a process that has exited."""
    return {"ProcessId": pid, "Exited": True, "ExitCode": exit_code, "LastWaitResult": 0}


def signed(hresult: int) -> int:
    """Give an HRESULT as the ``int32`` that it is in documents."""
    return hresult - ((hresult & 0x80000000) << 1)
