"""The answers that a caller can get other than success: a refusal, or none at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from uvm.backends.fake.calls import Call
from uvm.errors import GuestError, HostError, UnknownOutcomeError, UVMError


def refusal(call: Call, code: int | BaseException, text: str = "") -> BaseException:
    """Make the exception that refuses a call: the guest's or the host's, or the one that is given."""
    if isinstance(code, BaseException):
        return code
    refused = GuestError if call.to == "guest" else HostError
    return refused(str(call), code, text)


async def lost_answer(
    call: Call, proceed: Callable[[], Awaitable[object]], *, applied: bool
) -> UnknownOutcomeError:
    """Carry a call out, or not, and give what its caller gets who never hears of it.

    A refusal is an answer too, and gets lost; it becomes the cause.
    """
    refused: UVMError | None = None
    if applied:
        try:
            await proceed()
        except UVMError as e:
            refused = e
    lost = UnknownOutcomeError(f"{call}: the answer was lost")
    lost.__cause__ = refused
    return lost
