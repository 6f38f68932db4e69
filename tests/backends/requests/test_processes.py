"""Requests to processes that the host started, and their status."""

from __future__ import annotations

from typing import Any

import pytest

from uvm.backends.requests.processes import process_status, read_change, streams_of
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.process import CloseHandle, ConsoleSize


def test_a_change_is_a_size_or_a_handle_to_close() -> None:
    sized = {"Operation": "ConsoleSize", "ConsoleSize": {"Height": 24, "Width": 80}}
    assert read_change(sized, "modify") == ConsoleSize(height=24, width=80)
    closing = {"Operation": "CloseHandle", "CloseHandle": {"Handle": "All"}}
    assert read_change(closing, "modify") == CloseHandle(handle="All")


@pytest.mark.parametrize(
    "document",
    [
        {"Operation": "ConsoleSize"},
        {"Operation": "CloseHandle"},
        {"Operation": "CloseHandle", "CloseHandle": {"Handle": "StdLog"}},
        {"Operation": "Rename"},
    ],
)
def test_any_other_change_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(HostError) as caught:
        read_change(document, "modify")
    assert caught.value.hresult == HResult.HCS_E_INVALID_JSON


def test_all_means_the_streams_that_a_process_has() -> None:
    assert streams_of(CloseHandle(handle="All"), {"stdin", "stderr"}, "modify") == ["stdin", "stderr"]
    with pytest.raises(HostError, match="it has no StdOut"):
        streams_of(CloseHandle(handle="StdOut"), {"stdin", "stderr"}, "modify")


def test_an_exit_code_that_is_unknown_is_an_error_of_the_last_wait() -> None:
    assert process_status(7, None, exited=False) == {"ProcessId": 7}
    assert process_status(7, 3, exited=True) == {"ProcessId": 7, "Exited": True, "ExitCode": 3}
    unknown = process_status(7, None, exited=True)
    assert unknown["LastWaitResult"] & 0xFFFFFFFF == HResult.HCS_E_SYSTEM_ALREADY_STOPPED
