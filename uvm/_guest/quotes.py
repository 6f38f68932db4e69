"""What a guest quotes of what it was sent. Pure.

The Linux guest quotes a request that it cannot read, the whole of it, in its answer and in its log; with the
environments and policies in it::

    failed to unmarshal JSON for ContainerConfig "{...}": ...

What is quoted has quotation marks of its own, of the same kind, so that its end is known only in a text that
is complete: it is the last brace that a quotation mark follows.

Source: hcsshim internal/guest/bridge/bridge_v2.go and internal/guest/prot/protocol.go.
"""

from __future__ import annotations

import re
from typing import Any, Final

from attrs import define, field

#: What stands before a quoted document; the quotation marks are escaped where the text is JSON itself.
_BEFORE: Final = re.compile(r'unmarshal JSON[^"\\]{0,64}\\*"(?=\{)')
#: A quoted document, or the rest of one, to its end or that of the text.
_DOCUMENT: Final = re.compile(r'.*\}(?=\\*")|.*', re.DOTALL)
_HIDDEN: Final = "(hidden)"
#: More than what stands before a document.
_TAIL: Final = 256


def without_quotes(value: Any, *, cut_off: bool = False) -> Any:
    """Return a JSON value of the guest with ``(hidden)`` for the documents that its texts quote.

    The value itself is not changed.

    :param cut_off: it is a text whose end is missing.
    """
    if isinstance(value, str):
        return QuoteCleaner().clean(value, last=not cut_off) if "unmarshal JSON" in value else value
    if isinstance(value, dict):
        return {name: without_quotes(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_quotes(each) for each in value]
    return value


@define(eq=False, repr=False)
class QuoteCleaner:
    """Cleans one text that comes in pieces; what is not known to be no part of a document is hidden."""

    _tail: str = field(default="", init=False)
    _quoting: bool = field(default=False, init=False)

    def clean(self, piece: str, *, last: bool) -> str:
        """Return the next piece with ``(hidden)`` for what it has of documents.

        :param last: the text ends with it.
        """
        if self._quoting:
            return self._hide(piece, 0, last)
        text = self._tail + piece
        before = _BEFORE.search(text)
        if before is None:
            self._tail = text[-_TAIL:]
            return piece
        self._quoting = True
        return self._hide(text, before.end(), last)[len(self._tail) :]

    @staticmethod
    def _hide(text: str, start: int, last: bool) -> str:
        shown = text[:start] + _HIDDEN
        if last and (document := _DOCUMENT.match(text, start)):
            # A second document, whose end is missing, may follow.
            return shown + without_quotes(text[document.end() :])  # type: ignore[no-any-return]
        return shown
