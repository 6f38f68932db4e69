"""Network namespaces and adapters."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import strategies as st

from tests.devices.machine import DeviceMachine, add, ledger_of, release
from tests.devices.scripts import steps_of_script
from uvm.devices.base import Device
from uvm.devices.network import (
    Adapter,
    AdapterKey,
    Adapters,
    GuestAdapter,
    Namespaces,
    encap_overhead,
    lcow_adapter,
)
from uvm.errors import OptionsError
from uvm.schema.guest import LCOWNetworkAdapter
from uvm.schema.json import from_json, to_json
from uvm.schema.network import Dns, EndpointPolicy, HostComputeEndpoint, HostComputeNamespace, SchemaVersion

ENDPOINT = HostComputeEndpoint(
    id="e1", host_compute_namespace="n1", mac_address="00-15", schema_version=SchemaVersion(major=2)
)
KEY = AdapterKey("n1", "e1")


class AdaptersMachine(DeviceMachine):
    os: Literal["linux", "windows"] = "linux"
    build = 26100
    supported = True

    def make_device(self) -> Device[Any, Any, Any, Any]:
        return Adapters(self.os, self.build, self.supported)

    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        endpoint = data.draw(st.sampled_from(["e1", "e2"]))
        nic = data.draw(st.sampled_from(["g1", "g2", "g3", "g4"]))
        return AdapterKey("n", endpoint), Adapter(
            nic, HostComputeEndpoint(id=endpoint, host_compute_namespace="n", mac_address=nic)
        )


class LinuxAdaptersMachine(AdaptersMachine):
    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        if data.draw(st.booleans()):
            return super().draw_request(data)
        nic = data.draw(st.sampled_from(["g1", "g2", "g5"]))
        settings = LCOWNetworkAdapter(namespace_id="n", id=nic, vpci_assigned=True)
        return AdapterKey("n", "", nic), GuestAdapter(settings)


class WindowsAdaptersMachine(AdaptersMachine):
    os = "windows"


class OldWindowsAdaptersMachine(AdaptersMachine):
    os = "windows"
    build = 17134


class UnawareLinuxAdaptersMachine(AdaptersMachine):
    supported = False


TestAdapters = LinuxAdaptersMachine.TestCase
TestWindowsAdapters = WindowsAdaptersMachine.TestCase
TestOldWindowsAdapters = OldWindowsAdaptersMachine.TestCase
TestUnawareLinuxAdapters = UnawareLinuxAdaptersMachine.TestCase


class NamespacesMachine(DeviceMachine):
    os: Literal["linux", "windows"] = "windows"

    def make_device(self) -> Device[Any, Any, Any, Any]:
        return Namespaces(self.os, True)

    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        namespace = f"n{data.draw(st.integers(0, 9))}"
        return namespace, HostComputeNamespace(id=namespace, namespace_id=data.draw(st.integers(0, 1)))


class LinuxNamespacesMachine(NamespacesMachine):
    os = "linux"


TestNamespaces = NamespacesMachine.TestCase
TestLinuxNamespaces = LinuxNamespacesMachine.TestCase


def test_the_recorded_script() -> None:
    namespaces, adapters = ledger_of(Namespaces("linux", True)), ledger_of(Adapters("linux", 26100, True))
    tickets: dict[str, list[Any]] = {}
    nics = 0
    for op, requests, step in steps_of_script("lcow_network"):
        if "error" in step:
            continue  # it is the facade that refuses a second namespace, and an unknown one
        if op["op"] == "netns_add":
            namespace, sent = add(
                namespaces, op["namespace"]["ID"], from_json(HostComputeNamespace, op["namespace"])
            )
            tickets[op["namespace"]["ID"]] = [namespace]
        elif op["op"] == "endpoint_add":
            endpoint = from_json(HostComputeEndpoint, op["endpoint"])
            key = AdapterKey(op["namespace"], endpoint.id)
            if adapters.get(key) is None:
                nics += 1
            ticket, sent = add(adapters, key, Adapter(f"nic-{nics}", endpoint))
            tickets[op["namespace"]].append(ticket)
        else:
            namespace, *members = tickets.pop(op["namespace"], [None])
            sent = [request for ticket in members for request in release(adapters, ticket)]
            sent += release(namespaces, namespace) if namespace else []
        assert sent == requests
    assert len(namespaces) == len(adapters) == 0


def test_a_windows_guest_is_told_of_a_namespace_with_the_whole_document() -> None:
    ledger = ledger_of(Namespaces("windows", True))
    namespace = HostComputeNamespace(id="n1", type="Host", schema_version=SchemaVersion(major=2))
    document = {"ID": "n1", "Type": "Host", "SchemaVersion": {"Major": 2, "Minor": 0}}
    ticket, sent = add(ledger, "n1", namespace)
    told = {"RequestType": "Add", "ResourceType": "NetworkNamespace", "Settings": document}
    assert sent == [{"to": "guest", "doc": told}]
    assert release(ledger, ticket) == [{"to": "guest", "doc": {**told, "RequestType": "Remove"}}]


@pytest.mark.parametrize(("os", "supported"), [("linux", True), ("linux", False), ("windows", False)])
def test_other_guests_are_told_nothing_of_namespaces(
    os: Literal["linux", "windows"], supported: bool
) -> None:
    ledger = ledger_of(Namespaces(os, supported))
    ticket, sent = add(ledger, "n1", HostComputeNamespace(id="n1"))
    assert (sent, release(ledger, ticket)) == ([], [])


def test_a_windows_adapter_is_announced_connected_and_confirmed() -> None:
    ledger = ledger_of(Adapters("windows", 17763, True))
    ticket, sent = add(ledger, KEY, Adapter("g", ENDPOINT))
    endpoint = {
        "ID": "e1",
        "HostComputeNamespace": "n1",
        "MacAddress": "00-15",
        "Dns": {},
        "Health": {"Extra": {}},
        "SchemaVersion": {"Major": 2, "Minor": 0},
    }
    path = "VirtualMachine/Devices/NetworkAdapters/g"
    on_host = {"EndpointId": "e1", "MacAddress": "00-15"}
    assert sent == [
        {
            "to": "guest",
            "doc": {
                "RequestType": "Add",
                "ResourceType": "Network",
                "Settings": {"AdapterId": "g", "RequestType": "PreAdd", "Settings": endpoint},
            },
        },
        {"to": "host", "doc": {"ResourcePath": path, "RequestType": "Add", "Settings": on_host}},
        {
            "to": "guest",
            "doc": {
                "RequestType": "Add",
                "ResourceType": "Network",
                "Settings": {"AdapterId": "g", "RequestType": "Add"},
            },
        },
    ]
    assert release(ledger, ticket) == [
        {
            "to": "guest",
            "doc": {"RequestType": "Remove", "Settings": {"AdapterId": "g", "RequestType": "Remove"}},
        },
        {"to": "host", "doc": {"ResourcePath": path, "RequestType": "Remove", "Settings": on_host}},
    ]


def test_an_old_windows_guest_knows_the_adapter_by_another_field() -> None:
    ledger = ledger_of(Adapters("windows", 17134, True))
    ticket, sent = add(ledger, KEY, Adapter("g", ENDPOINT))
    removed = release(ledger, ticket)
    told = [r["doc"]["Settings"] for r in [*sent, *removed] if r["to"] == "guest"]
    assert [(s["AdapterInstanceId"], s["RequestType"]) for s in told] == [
        ("g", "PreAdd"),
        ("g", "Add"),
        ("g", "Remove"),
    ]


def test_each_step_of_a_windows_add_has_an_undo_of_its_own() -> None:
    ledger = ledger_of(Adapters("windows", 26100, True))
    _, change = ledger.acquire(KEY, Adapter("g", ENDPOINT))
    assert change.operation is not None
    undos = [step.undo and to_json(step.undo.request) for step in ledger.begin(change.operation)]
    assert undos == [
        {"RequestType": "Remove", "Settings": {"AdapterId": "g", "RequestType": "Remove"}},
        {
            "ResourcePath": "VirtualMachine/Devices/NetworkAdapters/g",
            "RequestType": "Remove",
            "Settings": {"EndpointId": "e1", "MacAddress": "00-15"},
        },
        None,
    ]


def test_a_linux_guest_without_namespaces_is_told_nothing_of_adapters() -> None:
    ledger = ledger_of(Adapters("linux", 26100, False))
    ticket, sent = add(ledger, KEY, Adapter("g", ENDPOINT))
    assert [r["to"] for r in [*sent, *release(ledger, ticket)]] == ["host", "host"]


def test_the_domain_leads_the_search_list_and_names_are_lower_case() -> None:
    dns = Dns(domain="Example.COM", search=["A.local"], server_list=["FE80::1%Eth", "8.8.8.8"])
    adapter = lcow_adapter("g", HostComputeEndpoint(dns=dns), policy_based_routing=True)
    assert adapter.dns_suffix == "example.com,a.local"
    assert adapter.dns_server_list == "fe80::1%eth,8.8.8.8"
    assert adapter.policy_based_routing


def test_policy_based_routing_is_told() -> None:
    _, sent = add(ledger_of(Adapters("linux", 26100, True, True)), KEY, Adapter("g", ENDPOINT))
    assert sent[1]["doc"]["Settings"]["PolicyBasedRouting"] is True


def overhead(settings: Any) -> HostComputeEndpoint:
    return HostComputeEndpoint(id="e1", policies=[EndpointPolicy(type="EncapOverhead", settings=settings)])


def test_the_last_overhead_policy_counts() -> None:
    endpoint = overhead({"Overhead": 50})
    endpoint.policies += [*overhead({"Overhead": 60}).policies, EndpointPolicy(type="ACL", settings={})]
    assert encap_overhead(endpoint) == 60
    assert encap_overhead(overhead({})) == encap_overhead(HostComputeEndpoint()) == 0


@pytest.mark.parametrize("settings", [None, 5, {"Overhead": "50"}, {"Overhead": -1}, {"Overhead": 65536}])
def test_a_malformed_overhead_policy_is_refused_before_anything_is_sent(settings: Any) -> None:
    ledger = ledger_of(Adapters("linux", 26100, True))
    with pytest.raises(OptionsError, match="the endpoint e1 has an EncapOverhead policy"):
        ledger.acquire(KEY, Adapter("g", overhead(settings)))
    assert ledger.acquire(KEY, Adapter("g", ENDPOINT))[0].entry.slot == "g"


def test_an_adapter_id_belongs_to_one_adapter() -> None:
    ledger = ledger_of(Adapters("linux", 26100, True))
    add(ledger, KEY, Adapter("G", ENDPOINT))
    with pytest.raises(OptionsError, match="e2 was not added: another adapter has the id g"):
        ledger.acquire(AdapterKey("n1", "e2"), Adapter("g", ENDPOINT))
