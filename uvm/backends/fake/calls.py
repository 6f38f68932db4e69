"""A call on the fake as a value, which the request log keeps and rules match; and JSON of callers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar

from attrs import define, field

from uvm._repr import Value
from uvm.backends.requests.request import copy_json
from uvm.errors import HostError
from uvm.hresult import HResult

T = TypeVar("T")

#: What a call is to. ``lifecycle`` is create, open, start and their kind; ``query`` asks for properties.
To = Literal["grant", "revoke", "host", "guest", "lifecycle", "network", "query"]


@define(repr=False)
class Call(Value):
    """One call. It belongs to the request log: do not change it, nor its document.

    :ivar seq: the number of the call, from 1, over all VMs of a backend.
    :ivar vm: the id of the VM; empty if the call concerns none.
    :ivar operation: ``modify``, ``create``, ``start``, ``connect``, ``grant``, ...
    :ivar document: what was sent, as a JSON value.
    :ivar resource: the resource path (host) or resource type (guest) of a modify request.
    :ivar request_type: its request type.
    """

    seq: int
    to: To
    vm: str
    operation: str
    document: Any = field(default=None, repr=False)
    resource: str = ""
    request_type: str = ""

    def __str__(self) -> str:
        path = self.document["path"] if self.operation in ("grant", "revoke") else ""
        words = (self.operation, self.request_type, self.resource or path)
        return " ".join(word for word in words if word)


class Machine(Protocol):
    """What a fault needs of the VM that a call goes to."""

    def crash(self) -> None:
        """Exit unexpectedly; do nothing if the VM has exited."""

    def add_exit_hook(self, hook: Callable[[], None]) -> None:
        """Call a hook at the exit, or at once if the VM has exited."""

    def remove_exit_hook(self, hook: Callable[[], None]) -> None:
        """Remove a hook."""


def copy_document(document: Any, operation: str) -> Any:
    """Return a copy of a document of the caller; HCS_E_INVALID_JSON if it is no JSON value."""
    try:
        return copy_json(document)
    except (ValueError, RecursionError) as e:
        raise HostError(operation, HResult.HCS_E_INVALID_JSON, str(e)) from None
