"""How a request is refused."""

from __future__ import annotations

from uvm.hresult import HResult


class Refused(Exception):
    """A request that the guest does not carry out.

    :ivar result: the HRESULT of the answer; the text is its message.
    """

    result: int

    def __init__(self, text: str, result: int = HResult.E_FAIL) -> None:
        super().__init__(text)
        self.result = int(result)


def coded(result: int, text: str = "") -> Refused:
    """Return a refusal whose text says its code, as hcsshim's guest has it where it has no more to say."""
    return Refused(f"HRESULT 0x{result:x}: {text}" if text else f"HRESULT: 0x{result:x}", result)


def reason(error: OSError) -> str:
    """Return why a system call failed, as Go spells it."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
