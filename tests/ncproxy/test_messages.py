"""The messages of a network configuration proxy and its compute agents, of both generations of hcsshim."""

from __future__ import annotations

import json

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from uvm._ncproxy.messages import AddNIC, DeleteNIC, ModifyNIC, endpoint_field, endpoint_of
from uvm._ttrpc.protobuf import AnyMessage, Message, decode, encode, string
from uvm.errors import RPCCode, RPCError
from uvm.schema.network import (
    DeviceDetails,
    HostComputeEndpoint,
    PCIDeviceDetails,
    ProxyEndpoint,
    ProxyEndpointSettings,
)

#: As Go's typeurl marshals them: absent parts are null, and no name is missing.
GO_EMPTY = bytes.fromhex(
    "0a226e6370726f78792f6e6370726f78796e6574776f726b696e672f456e64706f696e74"
    "12347b22456e64706f696e744e616d65223a22222c224e616d6573706163654944223a22222c"
    "2253657474696e6773223a6e756c6c7d"
)
GO_ENDPOINT = (
    b'\n"ncproxy/ncproxynetworking/Endpoint\x12\xd2\x01{"EndpointName":"px","NamespaceID":"n1","Settings":'
    b'{"Name":"px","Macaddress":"","IPAddress":"10.0.0.2","IPAddressPrefixLength":24,"NetworkName":"",'
    b'"DefaultGateway":"","DeviceDetails":{"PCIDeviceDetails":null}}}'
)
ENDPOINT = ProxyEndpoint(
    endpoint_name="px",
    namespace_id="n1",
    settings=ProxyEndpointSettings(
        name="px", ip_address="10.0.0.2", ip_address_prefix_length=24, device_details=DeviceDetails()
    ),
)


@pytest.mark.parametrize(("field", "endpoint"), [(GO_EMPTY, ProxyEndpoint()), (GO_ENDPOINT, ENDPOINT)])
def test_an_endpoint_of_a_proxy_has_the_bytes_of_gos_typeurl(field: bytes, endpoint: ProxyEndpoint) -> None:
    assert endpoint_of(field, "AddNIC") == endpoint
    assert endpoint_field(endpoint) == field


@pytest.mark.parametrize(
    "endpoint",
    [
        HostComputeEndpoint(id="e", name="c1_eth0", mac_address="00-15-5D-52-C0-01"),
        ProxyEndpoint(
            settings=ProxyEndpointSettings(
                device_details=DeviceDetails(pci_device_details=PCIDeviceDetails(device_id=r"PCIP\VEN_1"))
            )
        ),
    ],
    ids=lambda endpoint: type(endpoint).__name__,
)
def test_an_endpoint_is_read_as_it_was_written(endpoint: HostComputeEndpoint | ProxyEndpoint) -> None:
    assert endpoint_of(endpoint_field(endpoint), "AddNIC") == endpoint


@pytest.mark.parametrize(("kind", "number"), [(AddNIC, 3), (ModifyNIC, 2), (DeleteNIC, 3)])
def test_the_name_of_an_endpoint_in_the_messages_of_hcsshim_0_8_16_is_read(
    kind: type[AddNIC | ModifyNIC | DeleteNIC], number: int
) -> None:
    name = "büro_eth0"
    data = bytes([number << 3 | 2, len(name.encode())]) + name.encode()
    assert endpoint_of(decode(kind, data).endpoint, "AddNIC") == HostComputeEndpoint(name=name)


def test_the_numbers_of_both_generations_are_the_same() -> None:
    @frozen
    class OldAddNIC(Message):
        container_id: str = string(1)
        nic_id: str = string(2)
        endpoint_name: str = string(3)

    assert decode(OldAddNIC, encode(AddNIC("c", "n", b"ep"))) == OldAddNIC("c", "n", "ep")


def any_of(url: str, value: object) -> bytes:
    return encode(AnyMessage(url, value if isinstance(value, bytes) else json.dumps(value).encode()))


@pytest.mark.parametrize(
    ("field", "code", "text"),
    [
        (any_of("ncproxy/hcn/HostComputeNetwork", {}), 3, "invalid request endpoint type"),
        (any_of("ncproxy/ncproxynetworking/Network", {}), 3, "invalid request endpoint type"),
        (any_of("x/y", {}), RPCCode.UNKNOWN, "type with url x/y: not found"),
        (any_of("", {}), 2, "type with url : not found"),
        (any_of("ncproxy/hcn/HostComputeEndpoint", b""), 2, "cannot be read"),
        (any_of("ncproxy/hcn/HostComputeEndpoint", b"{"), 2, "cannot be read"),
        (any_of("ncproxy/hcn/HostComputeEndpoint", b"[" * 100_000), 2, "cannot be read"),
        (any_of("ncproxy/hcn/HostComputeEndpoint", []), 2, "cannot be read"),
        (any_of("ncproxy/hcn/HostComputeEndpoint", {"Name": 5}), 2, "cannot be read"),
        (any_of("ncproxy/hcn/HostComputeEndpoint", b'"\xff"'), 2, "cannot be read"),
        (b"\x0a\x05x", 2, "cannot be read"),
        (b"\xff", 2, "cannot be read"),
    ],
)
def test_what_is_no_endpoint_is_refused_as_hcsshim_does(field: bytes, code: int, text: str) -> None:
    with pytest.raises(RPCError, match=text) as caught:
        endpoint_of(field, "AddNIC")
    assert caught.value.code == code


@given(field=st.binary(min_size=1, max_size=60))
def test_any_field_is_an_endpoint_or_refused(field: bytes) -> None:
    try:
        endpoint = endpoint_of(field, "AddNIC")
    except RPCError:
        return
    assert isinstance(endpoint, HostComputeEndpoint | ProxyEndpoint)
