"""The request log: every request that reached the fake, in order, and its outcome."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal, get_args

import anyio
from attrs import define

from uvm._checks import checked, choice, number
from uvm._repr import Value, showing
from uvm.backends.fake.calls import Call, To
from uvm.backends.fake.filters import Filter
from uvm.errors import RefusedError, UnknownOutcomeError
from uvm.hresult import hresult_name
from uvm.schema.secrets import scrub

#: ``pending``: no answer yet; ``lost``: the answer did not reach the caller; ``failed``: raised an exception
#: that is neither a refusal nor a cancellation, such as a connection that closed.
Outcome = Literal["pending", "ok", "refused", "lost", "cancelled", "failed"]

_AT_LEAST_ONE: Final = number("a whole number: a request log keeps one entry at least", 1, kind=int)

#: How much of a document is printed; requests fit, documents of whole VMs do not.
_WIDTH: Final = 400


@define(eq=False, repr=False)
class Entry(Value):
    """A call, and its outcome once that is known.

    :ivar code: the result code of a refusal.
    :ivar applied: the call was carried out, even if the answer was lost.
    """

    call: Call
    outcome: Outcome = "pending"
    code: int | None = None
    error: str = ""
    applied: bool = False

    @property
    def seq(self) -> int:
        """The number of the call."""
        return self.call.seq

    @property
    def vm(self) -> str:
        """The id of the VM; empty if the call concerns none."""
        return self.call.vm

    @property
    def to(self) -> To:
        """What the call was to: the host, the guest, ..."""
        return self.call.to

    @property
    def document(self) -> Any:
        """What was sent. It belongs to the request log: do not change it."""
        return self.call.document

    def __str__(self) -> str:
        what = str(self.call).removeprefix("modify ")
        return what if self.to in ("grant", "revoke") else f"{self.to} {what}"

    def render(self) -> str:
        """Return the entry as one line. Security policies and environments are left out."""
        call = self.call
        document = call.document
        if call.operation == "modify" and isinstance(document, dict):
            document = document.get("Settings")
        text = json.dumps(scrub(document), ensure_ascii=False) if document is not None else ""
        if len(text) > _WIDTH:
            text = f"{text[:_WIDTH]}... ({len(text):,} characters)"
        # The document has the path of a grant.
        what = call.operation if call.to in ("grant", "revoke") else str(call).removeprefix("modify ")
        outcome = self.outcome if self.code is None else f"{self.outcome} {hresult_name(self.code)}"
        parts = (f"{call.seq:>5} {call.vm or '-'} {call.to:<9} {what}", text, f"-> {outcome}")
        return " ".join(part for part in parts if part)


@showing("entries", "dropped")
class RequestLog:
    """The requests of all VMs of a backend, oldest first.

    :param max_entries: how many are kept; older ones are dropped and counted in ``dropped``.
    """

    def __init__(self, max_entries: int = 10_000) -> None:
        checked(max_entries, _AT_LEAST_ONE, "request_log_entries")
        self._entries: deque[Entry] = deque(maxlen=max_entries)
        self._seq = 0
        self._listeners: list[Callable[[Entry], None]] = []
        self.dropped: int = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries))

    def entries(
        self,
        *,
        to: To | Iterable[To] | None = None,
        vm: str | None = None,
        operation: str | None = None,
        resource: str | None = None,
        request_type: str | None = None,
        outcome: Outcome | None = None,
    ) -> list[Entry]:
        """Return the entries that fit all that is not None; ``resource`` may hold ``*`` and ``?``.

        :raises OptionsError: no call can fit.
        """
        wanted = Filter(to, vm, operation, resource, request_type)
        wanted.check_fits_any()
        if outcome is not None:
            checked(outcome, choice(*get_args(Outcome)), "outcome")
        return [
            entry for entry in self._entries if outcome in (None, entry.outcome) and wanted.fits(entry.call)
        ]

    def render(self, entries: Iterable[Entry] | None = None) -> str:
        """Return entries (all, by default), one line each."""
        return "\n".join(entry.render() for entry in (self if entries is None else entries))

    def listen(self, listener: Callable[[Entry], None]) -> Callable[[], None]:
        """Call a listener with every entry once its outcome is known; call the result to remove it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def clear(self) -> None:
        """Remove all entries; numbers continue."""
        self._entries.clear()
        self.dropped = 0

    def _begin(
        self, to: To, vm: str, operation: str, document: Any, resource: str = "", request_type: str = ""
    ) -> Entry:
        """Log a call that begins."""
        self._seq += 1
        entry = Entry(Call(self._seq, to, vm, operation, document, resource, request_type))
        self.dropped += len(self._entries) == self._entries.maxlen
        self._entries.append(entry)
        return entry

    def _finish(self, entry: Entry, error: BaseException | None, *, applied: bool) -> None:
        """Log the outcome of a call."""
        entry.applied = applied
        if error is None:
            entry.outcome = "ok"
        else:
            entry.outcome, entry.code, entry.error = _failure(error)
        if self._listeners:
            for listener in list(self._listeners):
                listener(entry)


def _failure(error: BaseException) -> tuple[Outcome, int | None, str]:
    """Return the outcome, the code and the text of a call that raised."""
    if isinstance(error, RefusedError):
        return "refused", error.hresult, str(error)
    if isinstance(error, UnknownOutcomeError):
        return "lost", None, str(error)
    if isinstance(error, anyio.get_cancelled_exc_class()):
        return "cancelled", None, ""
    return "failed", None, f"{type(error).__name__}: {error}"
