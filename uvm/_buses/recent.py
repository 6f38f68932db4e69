"""The last requests that a VM has sent to its host and its guest, for people who look at it.

They are kept as they were sent, and read only where they are shown (:mod:`uvm._vm.requestsummary`): a
request costs no more than one entry of a short list.
"""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from attrs import define

from uvm.errors import is_refusal
from uvm.schema.requests import ModificationRequest

if TYPE_CHECKING:
    from uvm.backend import JSON

#: How many are kept.
KEPT: Final = 16

Receiver: TypeAlias = Literal["host", "guest"]
Outcome: TypeAlias = Literal["in flight", "ok", "refused", "unknown"]


@define(eq=False)
class Sent:
    """A request that was sent.

    :ivar why: what it failed with.
    """

    to: Receiver
    request: JSON | ModificationRequest
    at: datetime
    outcome: Outcome = "in flight"
    why: str = ""


async def noted(
    recent: list[Sent], to: Receiver, request: JSON | ModificationRequest, call: Awaitable[None]
) -> None:
    """Await the call that sends a request, and note the request and its outcome among the recent ones."""
    sent = Sent(to, request, datetime.now(UTC))
    recent.append(sent)
    del recent[:-KEPT]
    try:
        await call
    except BaseException as error:
        sent.outcome = "refused" if is_refusal(error) else "unknown"
        sent.why = str(error) or type(error).__name__
        raise
    sent.outcome = "ok"
