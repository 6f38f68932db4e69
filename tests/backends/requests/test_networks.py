"""Namespaces and endpoints: who is in which namespace and has which name, whatever comes and goes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvm.backend import JSON
from uvm.backends.requests.networks import NetworkTable
from uvm.errors import HostError
from uvm.hresult import HResult

NAMESPACES = ("one", "TWO")
ENDPOINTS = ("a", "B", "c")
VM = "vm1"


def table() -> NetworkTable:
    numbers = count()
    return NetworkTable(lambda: f"fresh-{next(numbers)}")


def ids(documents: list[JSON]) -> list[str]:
    return [document["ID"] for document in documents]


def nothing(document: JSON) -> None:
    """Add nothing to an endpoint."""


def code_of(call: Callable[..., Any], *arguments: Any) -> int:
    """Return the code that a call is refused with; 0 if it is not."""
    try:
        call(*arguments)
    except HostError as error:
        return error.hresult
    return 0


class Model:
    """The same as plain lists, which are looked through from the start; a namespace may yet be missing."""

    def __init__(self) -> None:
        self.namespaces: list[str] = []
        #: By id: the name, in the order of their coming.
        self.endpoints: dict[str, str] = {}
        #: By id: the namespace, in the order of their joining.
        self.members: dict[str, str] = {}
        self.attached: set[str] = set()

    def add_namespace(self, namespace: str, endpoint: str) -> int:
        if namespace in self.namespaces:
            return HResult.ERROR_ALREADY_EXISTS
        self.namespaces.append(namespace)
        return 0

    def add_endpoint(self, namespace: str, endpoint: str) -> int:
        if endpoint in self.endpoints:
            return HResult.ERROR_ALREADY_EXISTS
        self.endpoints[endpoint] = name_of(endpoint)
        self.members[endpoint] = namespace
        return 0

    def create_endpoint(self, namespace: str, endpoint: str) -> int:
        return self.add_endpoint("", endpoint)

    def join(self, namespace: str, endpoint: str) -> int:
        if code := self._missing(namespace, endpoint):
            return code
        if self.members[endpoint] in self.namespaces:
            return HResult.HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS
        self._move(endpoint, namespace)
        return 0

    def leave(self, namespace: str, endpoint: str) -> int:
        if code := self._missing(namespace, endpoint):
            return code
        if self.members[endpoint] != namespace:
            return HResult.ERROR_NOT_FOUND
        self._move(endpoint, "")
        return 0

    def delete_namespace(self, namespace: str, endpoint: str) -> int:
        if namespace in self.namespaces:
            self.namespaces.remove(namespace)
            for each in self.of(namespace):
                self._move(each, "")
        return 0

    def delete_endpoint(self, namespace: str, endpoint: str) -> int:
        if endpoint in self.attached:
            return HResult.HCN_E_ENTITY_HAS_REFERENCES
        self.endpoints.pop(endpoint, None)
        self.members.pop(endpoint, None)
        return 0

    def attach(self, namespace: str, endpoint: str) -> int:
        if endpoint not in self.endpoints:
            return HResult.HCN_E_ENDPOINT_NOT_FOUND
        if endpoint in self.attached:
            return HResult.HCN_E_ENDPOINT_ALREADY_ATTACHED
        self.attached.add(endpoint)
        return 0

    def detach(self, namespace: str, endpoint: str) -> int:
        self.attached.discard(endpoint)
        return 0

    def of(self, namespace: str) -> list[str]:
        return [endpoint for endpoint, each in self.members.items() if each == namespace]

    def _missing(self, namespace: str, endpoint: str) -> int:
        if namespace not in self.namespaces:
            return HResult.ERROR_NOT_FOUND
        return 0 if endpoint in self.endpoints else HResult.HCN_E_ENDPOINT_NOT_FOUND

    def _move(self, endpoint: str, namespace: str) -> None:
        self.members.pop(endpoint)
        self.members[endpoint] = namespace


def name_of(endpoint: str) -> str:
    """Return the name of an endpoint: all but one share theirs."""
    return "its own" if endpoint == "c" else "shared"


CHANGES: dict[str, Callable[[NetworkTable, str, str], Any]] = {
    "add_namespace": lambda table, namespace, _: table.add_namespace({"ID": namespace}, "test"),
    "add_endpoint": lambda table, namespace, endpoint: table.add_endpoint(
        {"ID": endpoint, "Name": name_of(endpoint), "HostComputeNamespace": namespace}, "test"
    ),
    "create_endpoint": lambda table, _, endpoint: table.create_endpoint(
        {"ID": endpoint, "Name": name_of(endpoint)}, "test", nothing
    ),
    # Ids are found in any case.
    "join": lambda table, namespace, endpoint: table.join(namespace.upper(), endpoint.upper()),
    "leave": lambda table, namespace, endpoint: table.leave(namespace.lower(), endpoint.lower()),
    "delete_namespace": lambda table, namespace, _: table.delete_namespace(namespace.upper()),
    "delete_endpoint": lambda table, _, endpoint: table.delete_endpoint(endpoint.upper()),
    "attach": lambda table, _, endpoint: table.attach(endpoint.upper(), VM, "test"),
    "detach": lambda table, _, endpoint: table.detach(endpoint.lower()),
}


@given(
    st.lists(
        st.tuples(st.sampled_from([*CHANGES]), st.sampled_from(NAMESPACES), st.sampled_from(ENDPOINTS)),
        min_size=20,
        max_size=60,
    )
)
def test_a_table_holds_and_refuses_what_plain_lists_do(changes: list[tuple[str, str, str]]) -> None:
    there, model = table(), Model()
    for change, namespace, endpoint in changes:
        expected = getattr(model, change)(namespace, endpoint)
        assert code_of(CHANGES[change], there, namespace, endpoint) == expected
        check_same(there, model)


def check_same(there: NetworkTable, model: Model) -> None:
    for namespace in model.namespaces:
        assert ids(there.members(namespace)) == model.of(namespace)
    for endpoint, namespace in model.members.items():
        assert there.endpoint(endpoint.upper()).get("HostComputeNamespace", "") == namespace
        assert there.comes_first(endpoint) == (not namespace or model.of(namespace)[0] == endpoint)
    for name in ("shared", "its own"):
        named = [endpoint for endpoint, each in model.endpoints.items() if each == name]
        if named:
            assert there.endpoint(name)["ID"] == named[0]
        else:
            assert code_of(there.endpoint, name) == HResult.HCN_E_ENDPOINT_NOT_FOUND
    assert there.attachments() == {endpoint.lower(): VM for endpoint in model.attached}


def test_a_table_from_which_all_went_keeps_nothing() -> None:
    there, fresh = table(), table()
    namespace = there.create_namespace({})["ID"]
    for name in ("eth0", "eth0", None):
        endpoint = there.create_endpoint({"Name": name}, "test", nothing)["ID"]
        there.join(namespace, endpoint)
        there.attach(endpoint, VM, "test")
        there.detach(endpoint)
        there.delete_endpoint(endpoint)
    there.delete_namespace(namespace)
    kept = [{**vars(each), "_new_id": None} for each in (there, fresh)]
    assert kept[0] == kept[1]


def test_what_names_no_id_gets_a_fresh_one() -> None:
    there = table()
    made = [there.create_namespace({"ID": missing}) for missing in ("", None)]
    made.append(there.create_endpoint({}, "test", nothing))
    assert ids(made) == ["fresh-0", "fresh-1", "fresh-2"]


NO_DOCUMENTS: tuple[Any, ...] = (
    "words",
    None,
    {"ID": 5},
    {"ID": " "},
    {"ID": "x", "SchemaVersion": "two"},
    {"ID": "x", "Other": {1, 2}},
)


@pytest.mark.parametrize("document", [*NO_DOCUMENTS, {}, {"ID": ""}, {"ID": None}])
def test_what_is_no_document_with_an_id_is_not_added(document: Any) -> None:
    there = table()
    for add in (there.add_namespace, there.add_endpoint):
        assert code_of(add, document, "test") == HResult.HCN_E_INVALID_JSON


@pytest.mark.parametrize("document", NO_DOCUMENTS)
def test_what_is_no_document_is_not_created(document: Any) -> None:
    there = table()
    assert code_of(there.create_namespace, document) == HResult.HCN_E_INVALID_JSON
    assert code_of(there.create_endpoint, document, "test", nothing) == HResult.HCN_E_INVALID_JSON


def test_nothing_is_created_in_or_with_another() -> None:
    there = table()
    resources = [{"Type": "Endpoint", "Data": {"ID": "a"}}]
    assert code_of(there.create_namespace, {"Resources": resources}) == HResult.E_INVALIDARG
    member = {"HostComputeNamespace": "one"}
    assert code_of(there.create_endpoint, member, "test", nothing) == HResult.E_INVALIDARG


def test_an_endpoint_is_created_as_the_host_completes_it_or_not_at_all() -> None:
    there = table()

    def complete(document: JSON) -> None:
        document["Flags"] = 1

    def refuse(document: JSON) -> None:
        raise HostError("test", HResult.E_INVALIDARG)

    assert there.create_endpoint({"ID": "a"}, "test", complete) == {"ID": "a", "Flags": 1}
    assert code_of(there.create_endpoint, {"ID": "b"}, "test", refuse) == HResult.E_INVALIDARG
    assert code_of(there.endpoint, "b") == HResult.HCN_E_ENDPOINT_NOT_FOUND


def test_documents_are_the_callers_own() -> None:
    there, document = table(), {"ID": "a", "Policies": [{"Type": "one"}]}
    there.add_endpoint(document, "test")
    document["Policies"] = []
    there.endpoint("a")["Policies"].clear()
    there.create_namespace({"ID": "one"}).clear()
    assert there.endpoint("a")["Policies"] == [{"Type": "one"}]
    assert there.namespace("one") == {"ID": "one"}
