"""The synchronous API is that of uvm, and its types are what the stub says."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_type_hints

import pytest

import uvm
import uvm.sync
from tests.api import surface
from tests.sync.stub import PATH, Stub
from uvm._sync.faces import HOOKS
from uvm._sync.names import names
from uvm._vm.keywords import CreationSettings

#: What is another kind of object there: files, and a value.
_ELSEWHERE = {
    uvm.ProcessInput: "ProcessInput",
    uvm.ProcessOutput: "ProcessOutput",
    uvm.Template: "delete_template",
}
_OWN = ("event_loop", "timeout")
#: For a task of the caller's alone.
_LEFT_OUT = {(uvm.GuestConnection, "serve")}


def test_the_stub_is_what_the_api_says() -> None:
    message = "the API has changed: run `python -m tests.sync.stub`"
    assert PATH.read_text("utf-8") == Stub().text(), message


def test_every_class_and_function_to_be_awaited_has_its_face_and_nothing_else_has() -> None:
    calls = [(cls, name) for cls, name in surface.calls() if cls not in _ELSEWHERE]
    expected = {name if cls is None else cls.__name__ for cls, name in calls}
    expected |= {each.__name__ for each in surface.protocols() if each is not uvm.FakeBackend}
    expected |= {"Lease", "open_backend", "create_vm", *_OWN, *_ELSEWHERE.values()}
    assert sorted(names()) == sorted(expected)


@pytest.mark.parametrize(
    ("cls", "name"), [call for call in surface.calls() if call[0] not in _ELSEWHERE and call not in _LEFT_OUT]
)
def test_a_call_takes_what_it_takes_to_be_awaited_and_says_what_it_does(cls: type | None, name: str) -> None:
    owner: Any = uvm if cls is None else cls
    face: Any = uvm.sync if cls is None else getattr(uvm.sync, cls.__name__)
    renamed = {"__aenter__": "__enter__", "__aexit__": "__exit__", "__anext__": "__next__"}
    if name in renamed:
        assert callable(getattr(face, renamed[name]))
        return
    there = getattr(owner, name)
    here = getattr(face, "close" if name == "aclose" and not hasattr(owner, "close") else name)
    assert here.__doc__ == there.__doc__
    assert [*inspect.signature(here).parameters.values()][0 if cls is None else 1 :] == [
        each.replace(annotation=inspect.signature(here).parameters[each.name].annotation)
        for each in [*inspect.signature(there).parameters.values()][0 if cls is None else 1 :]
    ]
    assert "Opening" not in str(inspect.signature(here))


@pytest.mark.parametrize("name", names())
def test_a_name_is_what_it_is_called(name: str) -> None:
    found = getattr(uvm.sync, name)
    assert found.__name__ == name
    assert name in dir(uvm.sync)
    assert found.__doc__
    if name not in (*_OWN, *_ELSEWHERE.values()):
        assert found.__module__ == "uvm.sync"


def test_there_is_no_other_name() -> None:
    with pytest.raises(AttributeError, match="LCOWOptions"):
        uvm.sync.LCOWOptions  # type: ignore[attr-defined]  # noqa: B018


def test_a_function_that_the_loop_awaits_is_called_in_a_thread() -> None:
    #: Called at once, in the thread of the loop, for what they return.
    inline = {"amend", "listen_at", "on_listening"}
    calls: list[Any] = [getattr(uvm if cls is None else cls, name) for cls, name in surface.calls()]
    parameters = [each for call in (*calls, uvm.Pool) for each in inspect.signature(call).parameters.values()]
    taken = {each.name for each in parameters if re.search("Callable|Hook|Handler", str(each.annotation))}
    taken |= {name for name, kind in get_type_hints(CreationSettings).items() if "Callable" in str(kind)}
    assert taken == {*HOOKS, *inline}
