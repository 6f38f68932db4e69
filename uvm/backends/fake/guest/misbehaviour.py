"""Misbehaviour of the guest on demand: rules that say which of its answers come out wrong, and how.

What the guest does with a request, and how it refuses one, is the matter of
:class:`~uvm.backends.fake.Faults`; this is about the bytes that it sends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, Unpack

from attrs import define, field

from uvm._wire.frames import HEADER_SIZE, Kind
from uvm.backends.fake.calls import Call
from uvm.backends.fake.rules import Matching, Rule, Rules


@define(eq=False)
class Reply:
    """What is about to be sent: an answer or, as the operation ``notification``, news of a container.

    :ivar call: what is answered.
    :ivar frame: the message as it should be.
    :ivar frames: what is going to be sent.
    :ivar ending: what happens then.
    """

    call: Call
    frame: bytes
    frames: list[bytes] = field(init=False)
    delay_seconds: float = field(default=0.0, init=False)
    ending: Literal["", "drop", "panic"] = field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        self.frames = [self.frame]


#: What a rule does to a reply that it chose.
Spoil: TypeAlias = Callable[[Reply], None]


class Misbehaviour(Rules[Spoil]):
    """The rules of one backend. They are matched as those of faults are, with ``operation`` the name of the
    procedure (``modify``, ``execute process``, ``wait for process``, ...) or ``notification``; answers are
    counted in the order in which they are sent. ::

        backend.misbehaviour.twice(operation="modify", nth=2)
        backend.misbehaviour.silent(operation="notification", vm="vm1")
    """

    def slow(self, seconds: float, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send late. What the request asked for has been done in time."""

        def spoil(reply: Reply) -> None:
            reply.delay_seconds += seconds

        return self._add(spoil, matching)

    def silent(self, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Never send: an answer that does not come, a container whose exit is not told."""
        return self.replace(lambda frame: [], **matching)

    def twice(self, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send it twice."""
        return self.replace(lambda frame: [frame, frame], **matching)

    def wrong_procedure(self, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Answer as if something else had been asked."""
        return self.replace(lambda frame: [bytes([frame[0], frame[1] ^ 0x0F]) + frame[2:]], **matching)

    def unknown_id(self, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Answer a request that was never made."""
        return self.replace(lambda frame: [_with_field(frame, 8, 8, 1 << 63)], **matching)

    def unknown_kind(self, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send a request, which only hosts do."""

        def changed(frame: bytes) -> list[bytes]:
            message_type = int.from_bytes(frame[:4], "little") & 0x0FFFFFFF
            return [_with_field(frame, 0, 4, Kind.REQUEST | message_type)]

        return self.replace(changed, **matching)

    def garbage(self, data: bytes = b"\xff" * 64, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send other bytes in its place."""
        return self.replace(lambda frame: [data], **matching)

    def oversize(self, size_bytes: int = 0xFFFFFFFF, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send a header that announces a message of that size."""
        return self.replace(lambda frame: [_with_field(frame, 4, 4, size_bytes)[:HEADER_SIZE]], **matching)

    def bad_json(self, payload: bytes = b'{"Result":', **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send a body that is no JSON, or not what it should be, in a sound message."""
        size = HEADER_SIZE + len(payload)
        return self.replace(
            lambda frame: [_with_field(frame, 4, 4, size)[:HEADER_SIZE] + payload], **matching
        )

    def flood(self, count: int, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send it so many times."""
        return self.replace(lambda frame: [frame] * count, **matching)

    def drop(self, *, after_bytes: int = 0, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Lose the connection after so many bytes of it."""

        def spoil(reply: Reply) -> None:
            reply.frames = [frame[:after_bytes] for frame in reply.frames[:1] if after_bytes]
            reply.ending = "drop"

        return self._add(spoil, matching)

    def panic(self, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Die in place of sending: the last words on the log are no JSON, and the VM exits unexpectedly."""

        def spoil(reply: Reply) -> None:
            reply.frames = []
            reply.ending = "panic"

        return self._add(spoil, matching)

    def replace(self, change: Callable[[bytes], list[bytes]], **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send what a function makes of the message."""

        def spoil(reply: Reply) -> None:
            reply.frames = [made for frame in reply.frames for made in change(frame)]

        return self._add(spoil, matching)

    def apply(self, reply: Reply) -> None:
        """Spoil an answer as the rules say."""
        if self._rules:
            for rule in self._choose(reply.call):
                rule.action(reply)


def _with_field(frame: bytes, offset: int, size: int, value: int) -> bytes:
    """Change a field of a message's header."""
    return frame[:offset] + value.to_bytes(size, "little") + frame[offset + size :]
