"""The table of requests: what is answered, refused, and in which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from uvm._wire.frames import Procedure
from uvm.agent.loop import Loop
from uvm.agent.refused import Refused
from uvm.agent.requests import GUEST, Request
from uvm.agent.service import CONTAINER, EVERY, Service
from uvm.hresult import HResult


class Rig:
    """A service in a loop, which is asked from here."""

    def __init__(self) -> None:
        self.bugs: list[BaseException] = []
        self.loop = Loop(self.bugs.append)
        self.service = Service(self.loop, self.bugs.append)

    def ask(self, procedure: int, body: Any, container_id: str = GUEST) -> dict[str, Any]:
        """Return the answer to a request."""
        payload = (
            body if isinstance(body, bytes) else json.dumps({"ContainerId": container_id, **body}).encode()
        )
        answers: list[dict[str, Any]] = []

        def reply(request: Request, answer: dict[str, Any]) -> None:
            answers.append(answer)
            self.loop.stop()

        self.loop.post(lambda: self.service.handle(Request(procedure, 1, payload, reply)))
        self.loop._running = True
        self.loop.run()
        (answer,) = answers
        return answer

    def modify(self, resource: str, action: str = "", settings: Any = None) -> dict[str, Any]:
        change = {"ResourceType": resource, "RequestType": action, "Settings": settings}
        return self.ask(Procedure.MODIFY_SETTINGS, {"Request": change})


@pytest.fixture
def rig() -> Rig:
    return Rig()


def code(answer: dict[str, Any]) -> int:
    return int(answer["Result"]) & 0xFFFFFFFF


def test_a_handler_gives_the_fields_of_the_answer_which_repeats_the_activity(rig: Rig) -> None:
    rig.service.add(Procedure.START, lambda request: {"Started": request.container_id}, CONTAINER)
    answer = rig.ask(Procedure.START, {"ActivityId": "a1"}, "c1")
    assert answer == {"Result": 0, "Started": "c1", "ActivityId": "a1"}


def test_a_request_can_be_answered_later(rig: Rig) -> None:
    def later(request: Request) -> None:
        rig.loop.later(0.001, lambda: request.answer({"Late": True}))

    rig.service.add(Procedure.START, later, EVERY)
    assert rig.ask(Procedure.START, {})["Late"]


def read_only(request: Request) -> dict[str, Any]:
    request.read()
    return {}


def raising(error: Exception) -> Callable[[Request], None]:
    def handler(request: Request) -> None:
        raise error

    return handler


@pytest.mark.parametrize("blocking", [False, True])
def test_a_refusal_has_its_code_and_text_also_from_a_worker(rig: Rig, blocking: bool) -> None:
    refused = Refused("it is busy", HResult.ERROR_NOT_FOUND)
    rig.service.add(Procedure.START, raising(refused), EVERY, blocking=blocking)
    answer = rig.ask(Procedure.START, {})
    assert (code(answer), answer["ErrorMessage"]) == (HResult.ERROR_NOT_FOUND, "it is busy")
    (record,) = answer["ErrorRecords"]
    assert (record["Message"], record["Result"]) == ("it is busy", answer["Result"])
    assert not rig.bugs


@pytest.mark.parametrize("blocking", [False, True])
def test_a_bug_is_reported_and_refuses_only_its_request(rig: Rig, blocking: bool) -> None:
    rig.service.add(Procedure.START, raising(KeyError("x")), EVERY, blocking=blocking)
    answer = rig.ask(Procedure.START, {})
    assert (code(answer), answer["ErrorMessage"]) == (HResult.E_FAIL, "KeyError: 'x'")
    assert [type(each) for each in rig.bugs] == [KeyError]


def test_resources_are_modified_by_type_and_action_with_their_settings_as_they_are(rig: Rig) -> None:
    asked: list[Any] = []
    rig.service.resources["Network", "Add"] = asked.append
    rig.service.resources["Network", "Remove"] = lambda settings: asked.append(("gone", settings))
    for action in ("", "Add", "Remove"):
        assert rig.modify("Network", action, {"MacAddress": "x"}) == {"Result": 0}
    assert asked == [{"MacAddress": "x"}, {"MacAddress": "x"}, ("gone", {"MacAddress": "x"})]


@pytest.mark.parametrize(
    ("resource", "action", "text"),
    [
        ("Nothing", "Add", "invalid ResourceType 'Nothing'"),
        ("Network", "Update", 'the RequestType "Update" is not supported'),
    ],
)
def test_what_there_is_no_function_for_is_refused(rig: Rig, resource: str, action: str, text: str) -> None:
    rig.service.resources["Network", "Add"] = lambda settings: None
    answer = rig.modify(resource, action)
    assert (code(answer), answer["ErrorMessage"]) == (HResult.E_FAIL, text)


@pytest.mark.parametrize("request_body", [{"Request": 7}, {"Request": {"ResourceType": 7}}])
def test_fields_of_another_kind_are_refused(rig: Rig, request_body: dict[str, Any]) -> None:
    assert code(rig.ask(Procedure.MODIFY_SETTINGS, request_body)) == HResult.ERROR_VMCOMPUTE_INVALID_JSON


@pytest.mark.parametrize("payload", [b"{", b"[]", b"\xff" * 100, b'{"a":' * 200])
def test_a_body_that_is_no_object_is_refused(rig: Rig, payload: bytes) -> None:
    rig.service.add(Procedure.START, read_only, EVERY)
    answer = rig.ask(Procedure.START, payload)
    assert code(answer) == HResult.ERROR_VMCOMPUTE_INVALID_JSON
    assert answer["ErrorMessage"].startswith('failed to unmarshal JSON in message "')


def test_an_answer_repeats_so_much_only_as_fits_into_a_message(rig: Rig) -> None:
    rig.service.add(Procedure.START, read_only, EVERY)
    huge = b"\\u0000" * 1_000_000
    assert len(json.dumps(rig.ask(Procedure.START, huge))) < 60_000
    assert len(json.dumps(rig.ask(Procedure.START, {"ActivityId": "\0" * 1_000_000}))) < 60_000


def test_containers_that_are_not_there_and_procedures_that_are_none_are_told_apart(rig: Rig) -> None:
    gone = rig.ask(Procedure.GET_PROPERTIES, {}, "c1")
    assert code(gone) == HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND
    assert gone["ErrorMessage"] == "HRESULT: 0xc037010e"
    unknown = rig.ask(0x00100F01, {})
    assert code(unknown) == HResult.E_NOTIMPL
    assert unknown["ErrorMessage"].endswith("function not supported, header type: 269487873")
