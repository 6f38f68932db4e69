"""Misbehaviour of the guest on demand: rules that spoil the bytes that it sends.

What the guest does with a request is changed by :class:`~uvm.backends.fake.Faults`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, Unpack

from attrs import define, field

from uvm._checks import U32, checked, function, instance, whole
from uvm._checks import seconds as check_seconds
from uvm._repr import showing
from uvm._wire.frames import HEADER_SIZE, Kind
from uvm.backends.fake.calls import Call
from uvm.backends.fake.filters import MESSAGES
from uvm.backends.fake.rules import Matching, Rule, Rules


@showing("call")
@define(eq=False, repr=False)
class Reply:
    """A message about to be sent: an answer or, as the operation ``notification``, the exit of a container.

    :ivar call: the request that is answered.
    :ivar frame: the message as it should be.
    :ivar frames: the bytes that will be sent.
    :ivar ending: what happens then.
    """

    call: Call
    frame: bytes
    frames: list[bytes] = field(init=False)
    delay_seconds: float = field(default=0.0, init=False)
    ending: Literal["", "drop", "panic"] = field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        self.frames = [self.frame]


#: Changes a reply that a rule chose.
Spoil: TypeAlias = Callable[[Reply], None]


class Misbehaviour(Rules[Spoil]):
    """The rules of one backend. They are matched as those of faults are, with ``operation`` the name of the
    procedure (``modify``, ``execute process``, ``wait for process``, ...) or ``notification``; answers are
    counted in the order in which they are sent. ::

        backend.misbehaviour.twice(operation="modify", nth=2)
        backend.misbehaviour.silent(operation="notification", vm="vm1")
    """

    _calls = MESSAGES

    def slow(self, seconds: float, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send late. The request was carried out in time."""
        checked(seconds, check_seconds, "seconds")

        def spoil(reply: Reply) -> None:
            reply.delay_seconds += seconds

        return self._add(spoil, matching)

    def silent(self, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send nothing: no answer comes, or the exit of a container is not reported."""
        return self.replace(lambda frame: [], **matching)

    def twice(self, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send it twice."""
        return self.replace(lambda frame: [frame, frame], **matching)

    def wrong_procedure(self, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Answer another procedure."""
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
        checked(data, instance(bytes), "data")
        return self.replace(lambda frame: [data], **matching)

    def oversize(self, size_bytes: int = 0xFFFFFFFF, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send a header that announces a message of that size."""
        checked(size_bytes, whole(U32), "size_bytes")
        return self.replace(lambda frame: [_with_field(frame, 4, 4, size_bytes)[:HEADER_SIZE]], **matching)

    def bad_json(self, payload: bytes = b'{"Result":', **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send a body that is no JSON, or not what it should be, in a sound message."""
        size = HEADER_SIZE + len(checked(payload, instance(bytes), "payload"))
        return self.replace(
            lambda frame: [_with_field(frame, 4, 4, size)[:HEADER_SIZE] + payload], **matching
        )

    def flood(self, count: int, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send it that many times."""
        checked(count, whole(U32), "count")
        return self.replace(lambda frame: [frame] * count, **matching)

    def drop(self, *, after_bytes: int = 0, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Lose the connection after that many bytes of the message."""
        checked(after_bytes, whole(U32), "after_bytes")

        def spoil(reply: Reply) -> None:
            reply.frames = [frame[:after_bytes] for frame in reply.frames[:1] if after_bytes]
            reply.ending = "drop"

        return self._add(spoil, matching)

    def panic(self, **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Crash instead of sending: the last output on the log is no JSON, and the VM exits unexpectedly."""

        def spoil(reply: Reply) -> None:
            reply.frames = []
            reply.ending = "panic"

        return self._add(spoil, matching)

    def replace(self, change: Callable[[bytes], list[bytes]], **matching: Unpack[Matching]) -> Rule[Spoil]:
        """Send what a function returns for the message."""
        checked(change, function, "change")

        def spoil(reply: Reply) -> None:
            reply.frames = [made for frame in reply.frames for made in change(frame)]

        return self._add(spoil, matching)

    def _apply(self, reply: Reply) -> None:
        """Apply the rules to a message."""
        for rule in self._choose(reply.call):
            rule._action(reply)


def _with_field(frame: bytes, offset: int, size: int, value: int) -> bytes:
    """Return a message with a field of its header changed."""
    return frame[:offset] + value.to_bytes(size, "little") + frame[offset + size :]
