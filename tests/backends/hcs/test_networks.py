"""Namespaces and endpoints over the C API: names, errors, and what stays open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.backends.fake.support import expect_refusal
from tests.backends.hcs.harness import Host
from tests.backends.hcs.support import driven
from uvm.backend import HostNetwork
from uvm.errors import OptionsError
from uvm.hresult import HResult
from uvm.testing.backends.checks import until

pytestmark = pytest.mark.anyio


NAMESPACE = "aaaaaaaa-1111-2222-3333-444444444444"
FIRST = "bbbbbbbb-1111-2222-3333-444444444444"
SECOND = "cccccccc-1111-2222-3333-444444444444"
HOST_NETWORK = "eeeeeeee-1111-2222-3333-444444444444"
NOWHERE = "dddddddd-1111-2222-3333-444444444444"
#: A name that looks like an id.
HEXADECIMAL = "0123456789abcdef0123456789abcdef"

ACCOUNT = '{"Success": false, "Error": "the network is down", "ErrorCode": 2147500037}'


@asynccontextmanager
async def networked() -> AsyncIterator[tuple[Host, HostNetwork]]:
    """Yield a namespace with an endpoint, and another endpoint; check that calls leave nothing open."""
    async with driven() as (host, backend):
        network = host.fake.network
        network.add_network({"ID": HOST_NETWORK})
        network.add_namespace({"ID": NAMESPACE, "NamespaceId": 7})
        for endpoint_id, name in ((FIRST, "eth0"), (SECOND, HEXADECIMAL)):
            network.add_endpoint({"ID": endpoint_id, "Name": name})
        await network.add_namespace_endpoint(NAMESPACE, FIRST)
        yield host, backend.network
        # A call whose caller was cancelled may still go on.
        await until(lambda: not host.double.objects)
        assert not host.double.strings


Call = Callable[[HostNetwork], Awaitable[object]]

#: Each call, with the functions behind it in their order.
CALLS: dict[str, tuple[Call, tuple[str, ...]]] = {
    "namespace": (
        lambda network: network.namespace(NAMESPACE),
        ("HcnOpenNamespace", "HcnQueryNamespaceProperties"),
    ),
    "endpoint": (
        lambda network: network.endpoint(FIRST),
        ("HcnOpenEndpoint", "HcnQueryEndpointProperties"),
    ),
    "endpoint by name": (
        lambda network: network.endpoint("eth0"),
        ("HcnEnumerateEndpoints", "HcnOpenEndpoint", "HcnQueryEndpointProperties"),
    ),
    "endpoints": (
        lambda network: network.namespace_endpoints(NAMESPACE),
        (
            "HcnOpenNamespace",
            "HcnQueryNamespaceProperties",
            "HcnOpenEndpoint",
            "HcnQueryEndpointProperties",
        ),
    ),
    "add": (
        lambda network: network.add_namespace_endpoint(NAMESPACE, SECOND),
        ("HcnOpenNamespace", "HcnModifyNamespace"),
    ),
    "remove": (
        lambda network: network.remove_namespace_endpoint(NAMESPACE, FIRST),
        ("HcnOpenNamespace", "HcnModifyNamespace"),
    ),
    "create": (
        lambda network: network.create_namespace({"Type": "Host"}),
        ("HcnCreateNamespace", "HcnQueryNamespaceProperties"),
    ),
    "create under an id": (
        lambda network: network.create_namespace({"ID": NOWHERE}),
        ("HcnCreateNamespace", "HcnQueryNamespaceProperties"),
    ),
    "create endpoint": (
        lambda network: network.create_endpoint(HOST_NETWORK, {"ID": NOWHERE, "Name": "new"}),
        ("HcnOpenNetwork", "HcnCreateEndpoint", "HcnQueryEndpointProperties"),
    ),
    "delete endpoint": (lambda network: network.delete_endpoint(SECOND), ("HcnDeleteEndpoint",)),
    "delete": (lambda network: network.delete_namespace(NAMESPACE), ("HcnDeleteNamespace",)),
}
FAILURES = [(call, function) for call, (_, functions) in CALLS.items() for function in functions]


@pytest.mark.parametrize("call", CALLS)
async def test_every_call_closes_what_it_opens(call: str) -> None:
    async with networked() as (host, network):
        await CALLS[call][0](network)
        assert host.double.objects == 0
        assert host.double.strings == 0


@pytest.mark.parametrize(("call", "function"), FAILURES)
async def test_a_failing_call_gives_its_reason_and_leaves_nothing_open(call: str, function: str) -> None:
    async with networked() as (host, network):
        host.faults.at_once(function, HResult.E_FAIL, ACCOUNT)
        with expect_refusal(HResult.E_FAIL) as caught:
            await CALLS[call][0](network)
        assert caught.value.text == "the network is down"
        assert caught.value.name == "E_FAIL"
        assert (host.double.objects, host.double.strings) == (0, 0)
        # The fault applies once only.
        await CALLS[call][0](network)


@pytest.mark.parametrize(("call", "function"), FAILURES)
async def test_a_failure_without_an_account_is_one_too(call: str, function: str) -> None:
    async with networked() as (host, network):
        host.faults.at_once(function, HResult.E_FAIL)
        with expect_refusal(HResult.E_FAIL) as caught:
            await CALLS[call][0](network)
        assert caught.value.text == ""


@pytest.mark.parametrize(("call", "function"), FAILURES)
async def test_a_call_that_hangs_can_be_cancelled_and_closes_what_it_opened_later(
    call: str, function: str
) -> None:
    async with driven() as (host, backend):
        host.fake.network.add_network({"ID": HOST_NETWORK})
        host.fake.network.add_namespace({"ID": NAMESPACE, "NamespaceId": 7})
        host.fake.network.add_endpoint({"ID": FIRST, "Name": "eth0", "HostComputeNamespace": NAMESPACE})
        host.faults.never(function)
        with anyio.move_on_after(0.02) as scope:
            await CALLS[call][0](backend.network)
        assert scope.cancelled_caught


@pytest.mark.parametrize(
    "spelling",
    [str.lower, str.upper, "{{{}}}".format, lambda text: text.replace("-", "")],
    ids=["lower", "upper", "braces", "bare"],
)
async def test_ids_may_have_any_spelling(spelling: Callable[[str], str]) -> None:
    async with networked() as (_, network):
        assert (await network.namespace(spelling(NAMESPACE)))["ID"] == NAMESPACE
        assert (await network.endpoint(spelling(FIRST)))["ID"] == FIRST
        assert [e["ID"] for e in await network.namespace_endpoints(spelling(NAMESPACE))] == [FIRST]
        await network.delete_namespace(spelling(NAMESPACE))
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await network.namespace(spelling(NAMESPACE))


@pytest.mark.parametrize(("name", "endpoint_id"), [("eth0", FIRST), (HEXADECIMAL, SECOND)])
async def test_an_endpoint_is_found_by_its_name(name: str, endpoint_id: str) -> None:
    async with networked() as (_, network):
        document = await network.endpoint(name)
        assert (document["ID"], document["Name"]) == (endpoint_id, name)


@pytest.mark.parametrize("name", ["eth1", "ETH0", "", 'eth"0', NOWHERE])
async def test_an_endpoint_that_is_not_there_is_not_found(name: str) -> None:
    async with networked() as (_, network):
        with expect_refusal(HResult.HCN_E_ENDPOINT_NOT_FOUND):
            await network.endpoint(name)


async def test_an_endpoint_is_found_by_name_if_the_host_lists_all() -> None:
    async with networked() as (host, network):
        host.faults.later("HcnEnumerateEndpoints", 0, f'["{SECOND}", "{NOWHERE}", "{FIRST}"]')
        assert (await network.endpoint("eth0"))["ID"] == FIRST


async def test_endpoints_come_in_the_order_of_the_namespace() -> None:
    async with networked() as (_, network):
        await network.add_namespace_endpoint(NAMESPACE, SECOND)
        assert [e["ID"] for e in await network.namespace_endpoints(NAMESPACE)] == [FIRST, SECOND]
        await network.remove_namespace_endpoint(NAMESPACE, FIRST)
        await network.add_namespace_endpoint(NAMESPACE, FIRST)
        assert [e["ID"] for e in await network.namespace_endpoints(NAMESPACE)] == [SECOND, FIRST]


async def test_changes_arrive_at_the_host_and_its_refusals_here() -> None:
    async with networked() as (host, network):
        with expect_refusal(HResult.HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS) as caught:
            await network.add_namespace_endpoint(NAMESPACE, FIRST)
        assert FIRST in caught.value.operation
        assert NAMESPACE in caught.value.operation
        await network.remove_namespace_endpoint(NAMESPACE, FIRST)
        assert await host.fake.network.namespace_endpoints(NAMESPACE) == []
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await network.remove_namespace_endpoint(NAMESPACE, FIRST)
        with expect_refusal(HResult.HCN_E_ENDPOINT_NOT_FOUND):
            await network.add_namespace_endpoint(NAMESPACE, NOWHERE)


async def test_a_namespace_that_is_not_there_is_refused_but_deleted_in_silence() -> None:
    async with networked() as (host, network):
        for call in (
            network.namespace,
            network.namespace_endpoints,
            lambda each: network.add_namespace_endpoint(each, FIRST),
            lambda each: network.remove_namespace_endpoint(each, FIRST),
        ):
            with expect_refusal(HResult.ERROR_NOT_FOUND):
                await call(NOWHERE)
        await network.delete_namespace(NOWHERE)
        host.faults.at_once("HcnDeleteNamespace", HResult.ERROR_NOT_FOUND, ACCOUNT)
        await network.delete_namespace(NOWHERE)


@pytest.mark.parametrize(
    ("record", "hresult"),
    [
        (ACCOUNT, HResult.E_FAIL),
        ('{"Error": "gone", "ErrorCode": 2151350274}', HResult.HCN_E_ENDPOINT_NOT_FOUND),
        ('{"Error": "in part", "ErrorCode": 0}', HResult.E_FAIL),
        ("[]", HResult.E_FAIL),
        ("<no json>", HResult.E_FAIL),
    ],
)
@pytest.mark.parametrize("function", ["HcnOpenNamespace", "HcnModifyNamespace"])
async def test_an_error_record_means_failure_whatever_the_result(
    function: str, record: str, hresult: int
) -> None:
    async with networked() as (host, network):
        host.faults.later(function, 0, record)
        with expect_refusal(hresult):
            await network.add_namespace_endpoint(NAMESPACE, SECOND)


@pytest.mark.parametrize("name", ["", "eth0", NAMESPACE[:-1], NAMESPACE + "0", "\ud800"])
async def test_the_id_of_a_namespace_has_to_be_a_guid(name: str) -> None:
    async with networked() as (host, network):
        before = len(host.fake.request_log.entries())
        calls: tuple[Callable[[str], Awaitable[object]], ...] = (
            network.namespace,
            network.namespace_endpoints,
            network.delete_namespace,
            lambda each: network.add_namespace_endpoint(each, FIRST),
        )
        for call in calls:
            with pytest.raises(OptionsError, match="GUID"):
                await call(name)
        assert len(host.fake.request_log.entries()) == before


@pytest.mark.parametrize("answer", ["[]", '"text"', "5", "<no json>"])
async def test_a_document_that_is_none_is_refused(answer: str) -> None:
    async with networked() as (host, network):
        host.faults.later("HcnQueryNamespaceProperties", 0, answer)
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await network.namespace(NAMESPACE)
        host.faults.later("HcnQueryEndpointProperties", 0, answer)
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await network.endpoint(FIRST)


@pytest.mark.parametrize("answer", ["{}", '"text"', "[5]", '["no guid"]', "[null]", "<no json>"])
async def test_a_list_of_endpoints_that_is_none_is_refused(answer: str) -> None:
    async with networked() as (host, network):
        host.faults.later("HcnEnumerateEndpoints", 0, answer)
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await network.endpoint("eth0")


@pytest.mark.parametrize(
    "resources",
    [
        "5",
        "[5]",
        '[{"Type": "Endpoint"}]',
        '[{"Type": "Endpoint", "Data": {}}]',
        '[{"Type": "Endpoint", "Data": "text"}]',
        '[{"Type": "Endpoint", "Data": {"Id": null}}]',
    ],
)
async def test_resources_that_cannot_be_read_are_refused(resources: str) -> None:
    async with networked() as (host, network):
        host.faults.later("HcnQueryNamespaceProperties", 0, f'{{"Resources": {resources}}}')
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await network.namespace_endpoints(NAMESPACE)


@pytest.mark.parametrize(
    ("document", "ids"),
    [
        ("", []),
        ("null", []),
        ('{"Resources": null}', []),
        ('{"Resources": [{"Type": "Container", "Data": {"Id": "x"}}]}', []),
        (f'{{"Resources": [{{"Type": "Endpoint", "Data": {{"ID": "{FIRST}"}}}}]}}', [FIRST]),
    ],
)
async def test_what_a_namespace_holds_besides_endpoints_is_left_out(document: str, ids: list[str]) -> None:
    async with networked() as (host, network):
        host.faults.later("HcnQueryNamespaceProperties", 0, document)
        assert [e["ID"] for e in await network.namespace_endpoints(NAMESPACE)] == ids
