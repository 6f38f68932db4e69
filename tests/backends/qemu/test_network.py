"""Networks of a Linux host: namespaces and endpoints, and what adapters reach by them."""

from __future__ import annotations

from typing import Any

import pytest

from uvm.backend import JSON
from uvm.backends.qemu.network import QEMUNetwork
from uvm.errors import HostError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

_A, _B = "aaaaaaaa-0000-0000-0000-000000000001", "bbbbbbbb-0000-0000-0000-000000000002"


def _refused(code: HResult, text: str = "") -> Any:
    return pytest.raises(HostError, match=f"{code.name}.*{text}")


async def _netdev(document: JSON, network: str = "open") -> JSON:
    there = QEMUNetwork()
    made = await there.create_endpoint(network, document)
    return there.attach(made["ID"], "vm1", "test")


async def test_an_endpoint_without_addresses_gets_a_network_that_no_other_has() -> None:
    network = QEMUNetwork()
    first = await network.create_endpoint("restricted", {"ID": _A})
    second = await network.create_endpoint("open", {"ID": _B})
    assert first["IpConfigurations"] == [{"IpAddress": "10.64.0.15", "PrefixLength": 24}]
    assert first["Routes"] == [{"NextHop": "10.64.0.2", "DestinationPrefix": "0.0.0.0/0"}]
    assert first["Dns"]["ServerList"] == ["10.64.0.3"]
    assert second["IpConfigurations"][0]["IpAddress"] == "10.64.1.15"
    assert first["MacAddress"].startswith("52-54-00-")
    assert first["MacAddress"] != second["MacAddress"]
    await network.delete_endpoint(_A)
    third = await network.create_endpoint("open", {})
    assert third["IpConfigurations"][0]["IpAddress"] == "10.64.0.15"


async def test_a_network_is_free_again_if_the_endpoint_is_refused() -> None:
    network = QEMUNetwork()
    with _refused(HResult.E_INVALIDARG):
        await network.create_endpoint("open", {"Dns": {"ServerList": ["words"]}})
    made = await network.create_endpoint("open", {})
    assert made["IpConfigurations"][0]["IpAddress"] == "10.64.0.15"


async def test_the_default_routes_of_a_namespace_differ_in_their_metric_and_the_first_has_none() -> None:
    network = QEMUNetwork()
    namespace = (await network.create_namespace({}))["ID"]
    own = [{"NextHop": "10.64.1.2", "DestinationPrefix": "10.0.0.0/8"}]
    documents: list[JSON] = [{"ID": _A}, {"ID": _B}, {"Routes": own}, {"Routes": []}]
    for document in documents:
        made = await network.create_endpoint("restricted", document)
        await network.add_namespace_endpoint(namespace, made["ID"])
    first = {"NextHop": "10.64.0.2", "DestinationPrefix": "0.0.0.0/0"}
    second = {"NextHop": "10.64.1.2", "DestinationPrefix": "0.0.0.0/0"}
    assert await _routes(network, namespace) == [[first], [{**second, "Metric": 1025}], own, []]
    await network.remove_namespace_endpoint(namespace, _A)
    assert (await network.endpoint(_A))["Routes"] == [first]
    assert await _routes(network, namespace) == [[second], own, []]
    await network.add_namespace_endpoint(namespace, _A)
    assert (await network.endpoint(_A))["Routes"] == [{**first, "Metric": 1024}]


async def _routes(network: QEMUNetwork, namespace: str) -> list[Any]:
    return [each.get("Routes") for each in await network.namespace_endpoints(namespace)]


async def test_the_addresses_of_an_endpoint_are_those_of_its_network() -> None:
    found = await _netdev(
        {
            "IpConfigurations": [{"IpAddress": "192.168.7.9", "PrefixLength": 24}],
            "Routes": [{"NextHop": "192.168.7.1", "DestinationPrefix": "0.0.0.0/0"}],
            "Dns": {"ServerList": ["192.168.7.1"]},
        }
    )
    assert (found["net"], found["host"], found["dns"]) == ("192.168.7.0/24", "192.168.7.1", "192.168.7.1")
    assert (found["dhcpstart"], found["restrict"]) == ("192.168.7.9", False)


async def test_addresses_that_no_network_has_are_refused() -> None:
    for address, length in (("fe80::1", 64), ("words", 24), ("10.0.0.1", 30), ("10.0.0.1", 99)):
        with _refused(HResult.E_INVALIDARG):
            await _netdev({"IpConfigurations": [{"IpAddress": address, "PrefixLength": length}]})
    # A name server elsewhere is the guest's to ask for.
    found = await _netdev(
        {"Dns": {"ServerList": ["9.9.9.9"]}, "IpConfigurations": [{"IpAddress": "10.1.1.9"}]}
    )
    assert found["dns"] == "10.1.1.3"


@pytest.mark.parametrize("network", ["nothing", "tap:", "tap:a/b", "tap:a,vhost=on", "tap:" + "n" * 16, ""])
async def test_a_network_that_there_is_not_is_refused(network: str) -> None:
    with _refused(HResult.HCN_E_NETWORK_NOT_FOUND):
        await QEMUNetwork().create_endpoint(network, {})


async def test_endpoints_are_found_by_id_in_any_case_and_by_name() -> None:
    network = QEMUNetwork()
    made = await network.create_endpoint("none", {"ID": _A, "Name": "eth0"})
    for wanted in (_A, _A.upper(), "eth0"):
        assert await network.endpoint(wanted) == made
    with _refused(HResult.HCN_E_ENDPOINT_NOT_FOUND):
        await network.endpoint(_B)


async def test_an_endpoint_is_in_one_namespace_at_a_time() -> None:
    network = QEMUNetwork()
    first, second = [(await network.create_namespace({}))["ID"] for _ in range(2)]
    for each in (_A, _B):
        await network.create_endpoint("none", {"ID": each})
    await network.add_namespace_endpoint(first, _B)
    await network.add_namespace_endpoint(first, _A)
    assert [each["ID"] for each in await network.namespace_endpoints(first)] == [_B, _A]
    with _refused(HResult.HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS):
        await network.add_namespace_endpoint(second, _A)
    with _refused(HResult.ERROR_NOT_FOUND):
        await network.remove_namespace_endpoint(second, _A)
    await network.remove_namespace_endpoint(first, _A)
    await network.add_namespace_endpoint(second, _A)
    await network.delete_namespace(second)
    await network.delete_namespace(second)
    assert "HostComputeNamespace" not in await network.endpoint(_A)
    with _refused(HResult.ERROR_NOT_FOUND):
        await network.namespace_endpoints(second)


async def test_what_cannot_be_created_is_refused() -> None:
    network = QEMUNetwork()
    made = await network.create_namespace({})
    with _refused(HResult.ERROR_ALREADY_EXISTS):
        await network.create_namespace({"ID": made["ID"].upper()})
    with _refused(HResult.HCN_E_INVALID_JSON):
        await network.create_namespace({"NamespaceId": "seven"})
    with _refused(HResult.E_INVALIDARG):
        await network.create_namespace({"Resources": [{"Type": "Endpoint", "Data": {"ID": _A}}]})
    with _refused(HResult.E_INVALIDARG):
        await network.create_endpoint("none", {"HostComputeNamespace": made["ID"]})
    with _refused(HResult.HCN_E_INVALID_JSON):
        await network.create_endpoint("none", "words")  # type: ignore[arg-type]


async def test_an_endpoint_that_an_adapter_connects_to_is_not_deleted() -> None:
    network = QEMUNetwork()
    await network.create_endpoint("none", {"ID": _A})
    assert network.attach(_A, "vm1", "test") == {}
    with _refused(HResult.HCN_E_ENTITY_HAS_REFERENCES, "vm1"):
        await network.delete_endpoint(_A)
    network.detach(_A)
    await network.delete_endpoint(_A)
    await network.delete_endpoint(_A)


async def test_documents_are_the_callers_own() -> None:
    network = QEMUNetwork()
    made = await network.create_endpoint("open", {"ID": _A})
    made["IpConfigurations"].clear()
    assert (await network.endpoint(_A))["IpConfigurations"]
