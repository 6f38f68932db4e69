"""A request of the host, and how it is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from uvm._errorroot import WireError
from uvm._wire.frames import parse
from uvm.agent.refused import Refused, coded
from uvm.agent.settings import Settings
from uvm.hresult import HResult

JSON: TypeAlias = dict[str, Any]

#: The id by which a host means the guest itself, in place of a container's.
GUEST: Final = "00000000-0000-0000-0000-000000000000"

#: The line of an error record where there is none.
_NO_LINE: Final = 0xFFFFFFFF
#: The most of a text that an answer repeats: all of a message has to fit into 64 KiB.
_MOST_TEXT: Final = 4096


class Request:
    """A request as it came; it is answered once, in the loop.

    :ivar procedure: what is asked for; it may be unknown.
    :ivar body: its JSON object; empty if it cannot be read, which :meth:`read` refuses.
    :ivar container_id: the container that it is for; :data:`GUEST` is the guest itself.
    """

    __slots__ = ("_payload", "_problem", "_reply", "body", "container_id", "id", "procedure")

    procedure: int
    id: int
    container_id: str

    def __init__(
        self, procedure: int, request_id: int, payload: bytes, reply: Callable[[Request, JSON], None]
    ) -> None:
        self.procedure, self.id, self._payload, self._reply = procedure, request_id, payload, reply
        self.body: JSON = {}
        self._problem = ""
        try:
            self.body = parse(payload)
        except WireError as error:
            self._problem = str(error)
        found = self.body.get("ContainerId")
        self.container_id = found if isinstance(found, str) else ""

    def read(self) -> Settings:
        """Return the fields of the request.

        :raises Refused: it is no JSON object.
        """
        if self._problem:
            raise self._invalid(f'in message "{shortened(self._payload)}"', self._problem)
        return Settings(self.body)

    def document(self, name: str, values: Settings) -> JSON:
        """Return a document that a field holds as text.

        :raises Refused: it is no JSON object.
        """
        text = values.text(name).encode(errors="replace")
        try:
            return parse(text)
        except WireError as error:
            raise self._invalid(f'for {name} "{shortened(text)}"', str(error)) from None

    def _invalid(self, what: str, problem: str) -> Refused:
        error = coded(HResult.ERROR_VMCOMPUTE_INVALID_JSON, problem)
        return Refused(f"failed to unmarshal JSON {what}: {error}", error.result)

    def answer(self, fields: Mapping[str, Any] | None = None) -> None:
        """Answer with success."""
        self._send({"Result": 0, **(fields or {})})

    def refuse(self, error: Refused) -> None:
        """Answer with a failure."""
        result = error.result - (1 << 32) if error.result >> 31 else error.result
        text = str(error)[:_MOST_TEXT]
        record = {
            "Result": result,
            "Message": text,
            "ModuleName": "gcs",
            "FileName": "",
            "Line": _NO_LINE,
        }
        self._send({"Result": result, "ErrorMessage": text, "ErrorRecords": [record]})

    def _send(self, body: JSON) -> None:
        activity_id = self.body.get("ActivityId")
        if activity_id and isinstance(activity_id, str):
            body["ActivityId"] = activity_id[:_MOST_TEXT]
        self._reply(self, body)


def shortened(payload: bytes) -> str:
    """Return a text as an answer repeats it."""
    text = payload[:_MOST_TEXT].decode(errors="replace")
    return text if len(payload) <= _MOST_TEXT else f"{text[: _MOST_TEXT // 4]}..."
