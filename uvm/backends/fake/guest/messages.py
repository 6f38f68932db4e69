"""Requests and answers of the fake guest, and how the real guests word their refusals.

Source: hcsshim internal/guest/bridge/bridge.go, internal/bridgeutils, and what its guest was seen to answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

from attrs import define, field

from uvm._wire.frames import GuestSide, Kind, Procedure, parse, procedure_name
from uvm.backend import JSON
from uvm.backends.fake.calls import Call
from uvm.errors import GuestError, WireError
from uvm.hresult import HResult
from uvm.schema.json import SchemaError, from_json

T = TypeVar("T")

#: What stands in an error record where the guest does not know the line.
_NO_LINE: Final = 0xFFFFFFFF


@define(eq=False)
class Incoming:
    """A request as it came.

    :ivar body: what is in it; empty where it cannot be read, and then ``problem`` says why.
    :ivar side: the connection that it came on.
    :ivar call: what the request log and the faults see.
    :ivar after: called when the answer is on its way.
    """

    procedure: int
    id: int
    payload: bytes = field(repr=False)
    side: GuestSide = field(repr=False)
    strict: bool
    body: JSON = field(init=False, factory=dict, repr=False)
    problem: str = field(init=False, default="")
    call: Call = field(init=False)
    after: Callable[[], None] | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        try:
            self.body = parse(self.payload)
        except WireError as e:
            self.problem = str(e)

    @property
    def operation(self) -> str:
        """What is asked, for a message."""
        return "modify" if self.procedure == Procedure.MODIFY_SETTINGS else procedure_name(self.procedure)

    @property
    def activity_id(self) -> str:
        """The id under which the host follows what it does; the answer repeats it."""
        found = self.body.get("ActivityId")
        return found if isinstance(found, str) else ""

    def read(self, cls: type[T]) -> T:
        """Read it as a message of one kind; a Windows guest refuses fields that it does not know.

        :raises GuestError: it is none.
        """
        if self.problem:
            self._unreadable(self.problem)
        return self.read_part(cls, self.body)

    def read_part(self, cls: type[T], value: Any) -> T:
        """Read a part of the message."""
        try:
            return from_json(cls, value, forbid_extra=self.strict)
        except SchemaError as e:
            self._unreadable(str(e))

    def read_text(self, cls: type[T], field_name: str, text: str) -> T:
        """Read a document that a message holds as text."""
        return self.read_document(cls, field_name, text, self.parse_text(field_name, text))

    def parse_text(self, field_name: str, text: str) -> JSON:
        """Take the JSON object out of a text."""
        try:
            return parse(text.encode(errors="replace"))
        except WireError as e:
            self._unreadable_text(field_name, text, str(e))

    def read_document(self, cls: type[T], field_name: str, text: str, document: Any) -> T:
        """Read a document that came as a text."""
        try:
            return from_json(cls, document, forbid_extra=self.strict)
        except SchemaError as e:
            self._unreadable_text(field_name, text, str(e))

    def _unreadable(self, problem: str) -> NoReturn:
        self._invalid(
            f'failed to unmarshal JSON in message "{self.payload.decode(errors="replace")}"', problem
        )

    def _unreadable_text(self, field_name: str, text: str, problem: str) -> NoReturn:
        self._invalid(f'failed to unmarshal JSON for {field_name} "{text}"', problem)

    def _invalid(self, what: str, problem: str) -> NoReturn:
        reject(
            self.operation,
            HResult.ERROR_VMCOMPUTE_INVALID_JSON,
            f"{what}: HRESULT 0x{HResult.ERROR_VMCOMPUTE_INVALID_JSON:x}: {problem}",
        )

    def answer(self, fields: JSON) -> JSON:
        """Make the body of an answer that says yes."""
        body: JSON = {"Result": 0, **fields}
        if self.activity_id:
            body["ActivityId"] = self.activity_id
        return body

    def refusal(self, error: GuestError) -> JSON:
        """Make the body of an answer that says no."""
        result = error.hresult - (1 << 32) if error.hresult >> 31 else error.hresult
        record = {
            "Result": result,
            "Message": error.text,
            "ModuleName": "gcs",
            "FileName": "",
            "Line": _NO_LINE,
        }
        body = self.answer({"ErrorMessage": error.text, "ErrorRecords": [record]})
        body["Result"] = result
        return body


def reject(operation: str, code: int, text: str) -> NoReturn:
    """Refuse with a code and a text."""
    raise GuestError(operation, code, text)


def hresult(operation: str, code: int) -> GuestError:
    """Make a refusal that has nothing to say beyond its code."""
    return GuestError(operation, code, f"HRESULT: 0x{code:x}")


def failure(operation: str, code: int, text: str) -> GuestError:
    """Make a refusal of which the code, too, is told in the text."""
    return GuestError(operation, code, f"HRESULT 0x{code:x}: {text}")


#: What hcsshim's guest calls the procedures that it knows.
_GO_NAMES: Final = {
    procedure.value: f"ComputeSystem{procedure.name.title().replace('_', '')}V1"
    for procedure in Procedure
    if procedure <= Procedure.DELETE_CONTAINER_STATE
}


def unknown_message(request: Incoming) -> NoReturn:
    """Refuse what the guest does not do, or not now."""
    name = _GO_NAMES.get(request.procedure) or str(Kind.REQUEST | request.procedure)
    raise failure(
        request.operation, HResult.E_NOTIMPL, f"bridge: function not supported, header type: {name}"
    )
