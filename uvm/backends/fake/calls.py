"""A call on the fake as a value: what the request log keeps and what the rules of faults look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from attrs import frozen

#: Who is asked. ``lifecycle`` is create, open, start and their kind; ``query`` asks for properties.
To = Literal["grant", "revoke", "host", "guest", "lifecycle", "network", "query"]


@frozen
class Call:
    """One call. The document belongs to the request log: nobody changes it.

    :ivar seq: the number of the call, from 1, over all VMs of a backend.
    :ivar vm: the id of the VM; empty where the call concerns none.
    :ivar operation: ``modify``, ``create``, ``start``, ``connect``, ``grant``, ...
    :ivar document: what was sent, as a JSON value.
    :ivar resource: the resource path (host) or resource type (guest) of a modify request.
    :ivar request_type: its request type.
    """

    seq: int
    to: To
    vm: str
    operation: str
    document: Any = None
    resource: str = ""
    request_type: str = ""

    def __str__(self) -> str:
        words = (self.operation, self.request_type, self.resource)
        return " ".join(word for word in words if word)


class Machine(Protocol):
    """What a fault needs of the VM that a call goes to."""

    def crash(self) -> None:
        """End unexpectedly; nothing happens where it has ended."""

    def add_exit_hook(self, hook: Callable[[], None]) -> None:
        """Have the hook called at the exit, or now where that was before."""

    def remove_exit_hook(self, hook: Callable[[], None]) -> None:
        """Forget a hook."""


def copy_json(value: Any) -> Any:
    """Copy a JSON value, so that what the caller changes later changes nothing here.

    :raises ValueError: it is not a JSON value; the message says where.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"a key is {key!r}, not a string")
        return {key: copy_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [copy_json(item) for item in value]
    raise ValueError(f"{type(value).__name__} is no JSON type")
