"""What of a message may be shown: secrets are hidden, and foreign text can do a terminal or a log no harm."""

from __future__ import annotations

import json
from typing import Any, Final

from uvm.schema.json import dumps

__all__ = ["HIDDEN", "MAX_SHOWN", "printable", "scrub"]

#: Fields whose values are secrets, or too long to read. Lower case: the OCI specification's.
HIDDEN: Final = frozenset(
    {
        "Cookie",
        "CredentialSpec",
        "EncodedSecurityPolicy",
        "EncodedUVMHashEnvelopeReference",
        "EncodedUVMReference",
        "Environment",
        "Fragment",
        "LaunchData",
        "annotations",
        "env",
    }
)

#: How many characters of foreign text are shown.
MAX_SHOWN: Final = 2000

#: Fields that hold a document as JSON text, which may hold secrets in its turn.
_DOCUMENTS: Final = frozenset({"ContainerConfig", "ProcessParameters"})

#: No message of the protocol nests as deeply; what does is not worth the stack.
_MAX_DEPTH: Final = 100
_MASK: Final = "(hidden)"


def scrub(value: Any, depth: int = 0) -> Any:
    """Give a JSON value with its secrets replaced by ``(hidden)``; the value itself is not changed.

    Documents that are JSON text inside a string are looked into as well, and hidden whole where they cannot
    be read.
    """
    if depth > _MAX_DEPTH:
        return _MASK
    if isinstance(value, dict):
        return {name: _field(name, each, depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        return [scrub(each, depth + 1) for each in value]
    return value


def _field(name: str, value: Any, depth: int) -> Any:
    if name in HIDDEN and value:
        return _MASK
    if name in _DOCUMENTS and isinstance(value, str) and value:
        return _document(value, depth)
    return scrub(value, depth)


def _document(text: str, depth: int) -> str:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return _MASK
    return dumps(scrub(document, depth)) if isinstance(document, dict) else _MASK


def printable(text: str, limit: int = MAX_SHOWN) -> str:
    """Give text from the guest as one line for a log or a message: escaped, and at most so many characters.

    Whatever is not printable is escaped: control characters, line ends, and those that reorder text.
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(map(_escaped, shown))[:limit]
    return shown if len(text) <= limit else f"{shown}... ({len(text):,} characters)"


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
