"""The host's networks."""

from __future__ import annotations

import pytest

from tests.backends.fake.support import JSON, expect_refusal
from uvm.backends.fake import FakeBackend, FakeNetwork
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

NAMESPACE = "AAAAAAAA-0000-0000-0000-000000000001"
ENDPOINT = "BBBBBBBB-0000-0000-0000-000000000001"


@pytest.fixture
def network() -> FakeNetwork:
    network = FakeBackend().network
    network.add_namespace({"ID": NAMESPACE, "Type": "Host"})
    network.add_endpoint({"ID": ENDPOINT, "Name": "first", "HostComputeNamespace": NAMESPACE})
    return network


def ids(documents: list[JSON]) -> list[str]:
    return [d["ID"] for d in documents]


async def test_an_endpoint_is_found_by_id_in_any_case_and_by_name(network: FakeNetwork) -> None:
    assert (await network.endpoint(ENDPOINT.lower()))["Name"] == "first"
    assert (await network.endpoint("first"))["ID"] == ENDPOINT


async def test_an_endpoint_joins_its_namespace_whichever_is_added_first(network: FakeNetwork) -> None:
    assert ids(await network.namespace_endpoints(NAMESPACE.lower())) == [ENDPOINT]
    network.add_endpoint({"ID": "early", "HostComputeNamespace": "later"})
    network.add_namespace({"ID": "later"})
    assert ids(await network.namespace_endpoints("later")) == ["early"]


async def test_what_is_not_there_is_not_found(network: FakeNetwork) -> None:
    with expect_refusal(HResult.ERROR_NOT_FOUND):
        await network.namespace("none")
    with expect_refusal(HResult.ERROR_NOT_FOUND):
        await network.namespace_endpoints("none")
    with expect_refusal(HResult.HCN_E_ENDPOINT_NOT_FOUND):
        await network.endpoint("none")
    with expect_refusal(HResult.ERROR_NOT_FOUND):
        await network.add_namespace_endpoint("none", ENDPOINT)
    with expect_refusal(HResult.HCN_E_ENDPOINT_NOT_FOUND):
        await network.add_namespace_endpoint(NAMESPACE, "none")


async def test_an_endpoint_is_in_one_namespace_at_a_time(network: FakeNetwork) -> None:
    network.add_namespace({"ID": "second"})
    with expect_refusal(HResult.HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS):
        await network.add_namespace_endpoint("second", ENDPOINT)
    await network.remove_namespace_endpoint(NAMESPACE, ENDPOINT)
    with expect_refusal(HResult.ERROR_NOT_FOUND):
        await network.remove_namespace_endpoint(NAMESPACE, ENDPOINT)
    await network.add_namespace_endpoint("second", ENDPOINT)
    assert (await network.endpoint(ENDPOINT))["HostComputeNamespace"] == "second"


async def test_deleting_a_namespace_leaves_its_endpoints(network: FakeNetwork) -> None:
    await network.delete_namespace(NAMESPACE)
    await network.delete_namespace(NAMESPACE)
    with expect_refusal(HResult.ERROR_NOT_FOUND):
        await network.namespace(NAMESPACE)
    assert "HostComputeNamespace" not in await network.endpoint(ENDPOINT)


async def test_nothing_is_added_twice(network: FakeNetwork) -> None:
    with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
        network.add_namespace({"ID": NAMESPACE.lower()})
    with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
        network.add_endpoint({"ID": ENDPOINT.lower()})


@pytest.mark.parametrize("document", [{}, {"ID": 5}, {"ID": ""}])
async def test_a_document_needs_an_id(network: FakeNetwork, document: JSON) -> None:
    with expect_refusal(HResult.HCN_E_INVALID_JSON):
        network.add_endpoint(document)
    with expect_refusal(HResult.HCN_E_INVALID_JSON):
        network.add_namespace(document)


async def test_a_document_that_was_given_out_can_be_changed_without_effect(network: FakeNetwork) -> None:
    (await network.endpoint(ENDPOINT))["Name"] = "changed"
    assert (await network.endpoint(ENDPOINT))["Name"] == "first"
