"""Strings from and for the DLLs: UTF-16, JSON, and HCS's error records."""

from __future__ import annotations

import json
from typing import Any, TypeVar
from uuid import UUID

from uvm.backends.hcs.dlls import CData, Library
from uvm.errors import ErrorRecord, HostError, OptionsError
from uvm.hresult import HResult

T = TypeVar("T")


def wide(library: Library[Any], text: str) -> CData:
    """Return a C string; its memory is freed with the returned object.

    :raises OptionsError: `text` contains a NUL, at which C would cut it.
    """
    if "\0" in text:
        raise OptionsError(f"{text!r} contains a NUL character; nothing was sent")
    return library.ffi.new("char16_t[]", text)


def take(library: Library[Any], pointer: CData) -> str:
    """Return the text of a string that the DLL allocated, and free it; NULL is the empty string."""
    if pointer == library.ffi.NULL:
        return ""
    try:
        text: str = library.ffi.string(pointer)
        return text
    finally:
        library.free(pointer)


def guid(text: str, what: str) -> UUID:
    """Return the GUID in a text of the caller's.

    :param what: what an error calls it.
    :raises OptionsError: it is none.
    """
    try:
        return UUID(text)
    except ValueError:
        raise OptionsError(f"{what} must be a GUID, not {text!r}; nothing was sent") from None


def compose(document: Any, operation: str) -> str:
    """Return a document as JSON; HCS_E_INVALID_JSON if it cannot be encoded."""
    try:
        return json.dumps(document, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise HostError(operation, HResult.HCS_E_INVALID_JSON, str(e)) from None


def parse(text: str, operation: str) -> Any:
    """Return HCS's answer, decoded; None for an empty text."""
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise HostError(
            operation, HResult.HCS_E_INVALID_JSON, f"the host's answer is not JSON: {e}"
        ) from None


def parse_object(text: str, operation: str) -> dict[str, Any]:
    """Return an answer that must be an object; an empty text, or null, is an empty one.

    :raises HostError: HCS_E_INVALID_JSON: it is something else.
    """
    answer = parse(text, operation)
    if answer is not None and not isinstance(answer, dict):
        raise _unexpected(operation, "an object", text)
    return answer or {}


def parse_list(text: str, operation: str, of: type[T]) -> list[T]:
    """Return an answer that must be a list of `of`; an empty text, or null, is an empty one.

    :raises HostError: HCS_E_INVALID_JSON: it is something else.
    """
    answer = parse(text, operation)
    if answer is not None and not (isinstance(answer, list) and all(isinstance(a, of) for a in answer)):
        raise _unexpected(operation, f"a list of {of.__name__}", text)
    return answer or []


def _unexpected(operation: str, wanted: str, text: str) -> HostError:
    return HostError(
        operation, HResult.HCS_E_INVALID_JSON, f"the host's answer is not {wanted}: {text[:200]}"
    )


def check(operation: str, hresult: int, document: str = "") -> None:
    """Raise HCS's refusal if `hresult` is one.

    :param document: HCS's ``ResultError`` (or HCN's record) in JSON, if there is one.
    """
    if hresult < 0:
        raise refusal(operation, hresult, document)


def refusal(operation: str, hresult: int, document: str = "") -> HostError:
    """Return the exception for an HRESULT and HCS's error document."""
    try:
        account = json.loads(document) if document else {}
    except (ValueError, RecursionError):
        account = None
    if not isinstance(account, dict):
        return HostError(operation, hresult, document)
    events = account.get("ErrorEvents")
    records = tuple(_record(e) for e in events if isinstance(e, dict)) if isinstance(events, list) else ()
    # HCN's records name the message differently.
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
