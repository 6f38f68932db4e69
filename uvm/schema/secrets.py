"""What may be shown of a message: secrets are hidden, and foreign text is harmless to a terminal or a log."""

from __future__ import annotations

import json
from typing import Any, Final

from uvm.schema.json import dumps

#: Fields whose values are secrets, or too long to read. Lower case: the OCI specification's.
HIDDEN: Final = frozenset(
    {
        "Cookie",
        "CredentialSpec",
        "EncodedSecurityPolicy",
        "EncodedUVMHashEnvelopeReference",
        "EncodedUVMReference",
        "Entropy",
        "Environment",
        "Fragment",
        "LaunchData",
        "annotations",
        "env",
    }
)

#: How many characters of foreign text are shown.
MAX_SHOWN: Final = 2000

#: Fields that hold a document as JSON text, which may itself hold secrets.
_DOCUMENTS: Final = frozenset({"ContainerConfig", "ProcessParameters"})

#: No message of the protocol nests as deeply; deeper values are hidden, to spare the stack.
_MAX_DEPTH: Final = 100
_MASK: Final = "(hidden)"


def scrub(value: Any, depth: int = 0) -> Any:
    """Return a copy of a JSON value with its secrets replaced by ``(hidden)``.

    Documents that are JSON text inside a string are scrubbed as well, and hidden whole if they cannot be
    decoded.
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
        # Python reads more than JSON has, such as NaN.
        return dumps(scrub(document, depth)) if isinstance(document, dict) else _MASK
    except (ValueError, RecursionError):
        return _MASK


def printable(text: str, limit: int = MAX_SHOWN) -> str:
    """Return text from the guest as one line of at most `limit` characters, escaped, for a log or a message.

    All that is not printable is escaped: control characters, line ends, and those that reorder text.
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(map(_escaped, shown))[:limit]
    return shown if len(text) <= limit else f"{shown}... ({len(text):,} characters)"


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
