"""Texts on their way to and from the DLLs: UTF-16, JSON, and the account that HCS gives of an error."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from uvm.backends.hcs.dlls import CData, Library
from uvm.errors import ErrorRecord, HostError, OptionsError
from uvm.hresult import HResult

T = TypeVar("T")


def wide(library: Library[Any], text: str) -> CData:
    """Make a C string. It lives as long as what is given here.

    :raises OptionsError: there is a NUL in it, where C would end it.
    """
    if "\0" in text:
        raise OptionsError(f"{text!r} has a NUL in it; nothing was sent")
    return library.ffi.new("char16_t[]", text)


def take(library: Library[Any], pointer: CData) -> str:
    """Take over a string that the DLL handed out, and free it; NULL is the empty string."""
    if pointer == library.ffi.NULL:
        return ""
    try:
        text: str = library.ffi.string(pointer)
        return text
    finally:
        library.free(pointer)


def compose(document: Any, operation: str) -> str:
    """Write a document as JSON; HCS_E_INVALID_JSON for what is none."""
    try:
        return json.dumps(document, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise HostError(operation, HResult.HCS_E_INVALID_JSON, str(e)) from None


def parse(text: str, operation: str) -> Any:
    """Read the JSON that HCS answered with; no text is None."""
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise HostError(
            operation, HResult.HCS_E_INVALID_JSON, f"the host's own answer is no JSON: {e}"
        ) from None


def parse_object(text: str, operation: str) -> dict[str, Any]:
    """Read an answer that has to be an object; no text, or null, is one without members.

    :raises HostError: HCS_E_INVALID_JSON, it is something else.
    """
    answer = parse(text, operation)
    if answer is not None and not isinstance(answer, dict):
        raise _strange(operation, "an object", text)
    return answer or {}


def parse_list(text: str, operation: str, of: type[T]) -> list[T]:
    """Read an answer that has to be a list of such values; no text, or null, is one without any.

    :raises HostError: HCS_E_INVALID_JSON, it is something else.
    """
    answer = parse(text, operation)
    if answer is not None and not (isinstance(answer, list) and all(isinstance(a, of) for a in answer)):
        raise _strange(operation, f"a list of {of.__name__}", text)
    return answer or []


def _strange(operation: str, wanted: str, text: str) -> HostError:
    return HostError(
        operation, HResult.HCS_E_INVALID_JSON, f"the host's own answer is not {wanted}: {text[:200]}"
    )


def check(operation: str, hresult: int, document: str = "") -> None:
    """Raise what HCS refused with, if it did.

    :param document: HCS's ``ResultError`` (or HCN's record) in JSON, where it gave one.
    """
    if hresult < 0:
        raise refusal(operation, hresult, document)


def refusal(operation: str, hresult: int, document: str = "") -> HostError:
    """Put an HRESULT and HCS's account of it into an exception."""
    try:
        account = json.loads(document) if document else {}
    except (ValueError, RecursionError):
        return HostError(operation, hresult, document)
    if not isinstance(account, dict):
        return HostError(operation, hresult, document)
    events = account.get("ErrorEvents")
    records = tuple(_record(e) for e in events if isinstance(e, dict)) if isinstance(events, list) else ()
    # HCN's records have their text under another name.
    message = account.get("ErrorMessage") or account.get("Error")
    return HostError(operation, hresult, message if isinstance(message, str) else "", records)


def _record(event: dict[str, Any]) -> ErrorRecord:
    number = event.get("EventId")
    return ErrorRecord(
        message=str(event.get("Message") or ""),
        provider=str(event.get("Provider") or ""),
        event_id=number if isinstance(number, int) else 0,
        source=str(event.get("Source") or ""),
    )
