"""Requests and answers of the fake guest, and the texts of the real guests' refusals.

Source: hcsshim internal/guest/bridge/bridge.go, internal/bridgeutils, and answers seen of its guest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

from attrs import define, field

from uvm._wire.frames import GO_NAMES, GuestSide, Kind, Procedure, parse, procedure_name
from uvm.backend import JSON
from uvm.backends.fake.request_log import Entry
from uvm.errors import GuestError, WireError
from uvm.hresult import HResult
from uvm.schema.json import SchemaError, from_json

T = TypeVar("T")

#: The line of an error record if the guest does not know it.
_NO_LINE: Final = 0xFFFFFFFF


@define(eq=False, repr=False)
class Incoming:
    """A request as it came.

    :ivar body: its JSON object; empty if it cannot be read, and then ``problem`` is the reason.
    :ivar side: the connection that it came on.
    :ivar entry: its entry in the request log.
    :ivar after: called when the answer has been sent.
    """

    procedure: int
    id: int
    payload: bytes
    side: GuestSide
    strict: bool
    body: JSON = field(init=False, factory=dict)
    problem: str = field(init=False, default="")
    entry: Entry = field(init=False)
    after: Callable[[], None] | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        try:
            self.body = parse(self.payload)
        except WireError as e:
            self.problem = str(e)

    @property
    def operation(self) -> str:
        """The name of the request in a message."""
        return "modify" if self.procedure == Procedure.MODIFY_SETTINGS else procedure_name(self.procedure)

    @property
    def activity_id(self) -> str:
        """The id by which the host correlates its activities; the answer repeats it."""
        found = self.body.get("ActivityId")
        return found if isinstance(found, str) else ""

    def read(self, cls: type[T]) -> T:
        """Return the request as a message of one kind; a Windows guest refuses unknown fields.

        :raises GuestError: it is no such message.
        """
        return self.read_part(cls, self.body)

    def read_part(self, cls: type[T], value: Any) -> T:
        """Return a part of the message as a model."""
        if self.problem:
            self._unreadable(self.problem)
        try:
            return from_json(cls, value, forbid_extra=self.strict)
        except SchemaError as e:
            self._unreadable(str(e))

    def read_text(self, cls: type[T], field_name: str, text: str) -> T:
        """Return a document that a message holds as text."""
        return self.read_document(cls, field_name, text, self.parse_text(field_name, text))

    def parse_text(self, field_name: str, text: str) -> JSON:
        """Return the JSON object in a text."""
        try:
            return parse(text.encode(errors="replace"))
        except WireError as e:
            self._invalid(f'for {field_name} "{text}"', str(e))

    def read_document(self, cls: type[T], field_name: str, text: str, document: Any) -> T:
        """Return a document that came as a text."""
        try:
            return from_json(cls, document, forbid_extra=self.strict)
        except SchemaError as e:
            self._invalid(f'for {field_name} "{text}"', str(e))

    def _unreadable(self, problem: str) -> NoReturn:
        self._invalid(f'in message "{self.payload.decode(errors="replace")}"', problem)

    def _invalid(self, what: str, problem: str) -> NoReturn:
        code = HResult.ERROR_VMCOMPUTE_INVALID_JSON
        raise self.refuse(code, f"failed to unmarshal JSON {what}: HRESULT 0x{code:x}: {problem}")

    def refuse(self, code: int, text: str = "") -> GuestError:
        """Return the error that refuses the request; the text names the code by default."""
        return GuestError(self.operation, code, text or f"HRESULT: 0x{code:x}")

    def fail(self, code: int, text: str) -> GuestError:
        """Return the error that refuses the request, with the code in the text too."""
        return self.refuse(code, f"HRESULT 0x{code:x}: {text}")

    def answer(self, fields: JSON) -> JSON:
        """Return the body of an answer of success."""
        body: JSON = {"Result": 0, **fields}
        if self.activity_id:
            body["ActivityId"] = self.activity_id
        return body

    def refusal(self, error: GuestError) -> JSON:
        """Return the body of an answer of failure."""
        result = error.hresult - (1 << 32) if error.hresult >> 31 else error.hresult
        record = {
            "Result": result,
            "Message": error.text,
            "ModuleName": "gcs",
            "FileName": "",
            "Line": _NO_LINE,
        }
        return self.answer({"Result": result, "ErrorMessage": error.text, "ErrorRecords": [record]})


def unknown_message(request: Incoming) -> NoReturn:
    """Refuse what the guest does not do, or not now."""
    name = GO_NAMES.get(request.procedure) or str(Kind.REQUEST | request.procedure)
    raise request.fail(HResult.E_NOTIMPL, f"bridge: function not supported, header type: {name}")
