"""The messages of the two services, as hcsshim v0.8.16 and its newest version have them.

``NetworkConfigProxy`` is what the proxy serves, ``ComputeAgent`` what it calls back. The services are in no
package, so that their names on the wire are bare.

The two versions differ in the field that names an endpoint: today it is an ``Any`` of containerd's typeurl,
whose value is JSON, and in v0.8.16 the endpoint's name, under the same number. Both are bytes, and
:func:`endpoint_of` reads either. ``UnregisterComputeAgent``, ``AssignPCI`` and ``RemovePCI`` are newer.

Source: hcsshim ``internal/ncproxyttrpc/networkconfigproxy.proto``,
``internal/computeagent/computeagent.proto`` and ``internal/uvm/computeagent.go``.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

from attrs import frozen

from uvm._ttrpc.protobuf import AnyMessage, Message, decode, encode, int32, nested, octets, string, uint32
from uvm._wire.frames import parse
from uvm.errors import RPCCode, RPCError, WireError
from uvm.schema.json import SchemaError, dumps, from_json
from uvm.schema.network import HostComputeEndpoint, ProxyEndpoint

NETWORK_CONFIG_PROXY: Final = "NetworkConfigProxy"
COMPUTE_AGENT: Final = "ComputeAgent"


@frozen
class Empty(Message):
    """The answer of a call that returns nothing."""


@frozen
class RegisterComputeAgent(Message):
    """Ask the proxy to call a compute agent back for a container."""

    agent_address: str = string(1)
    container_id: str = string(2)


@frozen
class UnregisterComputeAgent(Message):
    """Ask the proxy to forget the compute agent of a container."""

    container_id: str = string(1)


class RequestType(enum.IntEnum):
    """What :class:`ConfigureNetworking` asks for."""

    SETUP = 0
    TEARDOWN = 1


@frozen
class ConfigureNetworking(Message):
    """Ask the proxy to set up, or tear down, the adapters of a container (:class:`RequestType`)."""

    container_id: str = string(1)
    request_type: int = int32(2)


@frozen
class IovSettings(Message):
    """The SR-IOV settings of an adapter."""

    offload_weight: int = uint32(1)
    queue_pairs_requested: int = uint32(2)
    interrupt_moderation: int = uint32(3)


@frozen
class AddNIC(Message):
    """Ask the agent to add an adapter."""

    container_id: str = string(1)
    nic_id: str = string(2)
    endpoint: bytes = octets(3)


@frozen
class ModifyNIC(Message):
    """Ask the agent to change the SR-IOV settings of an adapter."""

    nic_id: str = string(1)
    endpoint: bytes = octets(2)
    iov_policy_settings: IovSettings | None = nested(3, IovSettings)


@frozen
class DeleteNIC(Message):
    """Ask the agent to remove an adapter."""

    container_id: str = string(1)
    nic_id: str = string(2)
    endpoint: bytes = octets(3)


@frozen
class AssignPCI(Message):
    """Ask the agent to assign a PCI device; `nic_id` is its GUID on the VM's VMBus, empty for a fresh one."""

    container_id: str = string(1)
    device_id: str = string(2)
    virtual_function_index: int = uint32(3)
    nic_id: str = string(4)


@frozen
class AssignedPCI(Message):
    """The answer to :class:`AssignPCI`: the device's GUID on the VM's VMBus."""

    id: str = string(1)


@frozen
class RemovePCI(Message):
    """Ask the agent to remove an assigned device."""

    container_id: str = string(1)
    device_id: str = string(2)
    virtual_function_index: int = uint32(3)


#: An endpoint of HCN, or one that only the proxy knows.
Endpoint: TypeAlias = HostComputeEndpoint | ProxyEndpoint

#: The names of types in an ``Any``, as hcsshim registers them.
_HCN_ENDPOINT: Final = "ncproxy/hcn/HostComputeEndpoint"
_PROXY_ENDPOINT: Final = "ncproxy/ncproxynetworking/Endpoint"
_NO_ENDPOINTS: Final = frozenset({"ncproxy/hcn/HostComputeNetwork", "ncproxy/ncproxynetworking/Network"})

#: A field whose first byte is below it is an ``Any``; names of endpoints begin with no control character.
_FIRST_OF_A_NAME: Final = 0x20


def endpoint_field(endpoint: Endpoint) -> bytes:
    """Return an endpoint in the form of today's hcsshim."""
    url = _HCN_ENDPOINT if isinstance(endpoint, HostComputeEndpoint) else _PROXY_ENDPOINT
    return encode(AnyMessage(url, dumps(endpoint).encode()))


def endpoint_of(field: bytes, operation: str) -> Endpoint:
    """Return the endpoint in a field; of one in the form of v0.8.16 it has the name alone.

    :param operation: the call, for errors.
    :raises RPCError: it is none.
    """
    try:
        if field[0] >= _FIRST_OF_A_NAME:
            return HostComputeEndpoint(name=field.decode())
        named = decode(AnyMessage, field)
        kind = _kind_of(named.type_url, operation)
        return from_json(kind, parse(named.value))
    except (WireError, SchemaError, UnicodeDecodeError) as error:
        text = f"the endpoint cannot be read: {error}"
        raise RPCError(operation, RPCCode.UNKNOWN, text) from error


def _kind_of(type_url: str, operation: str) -> type[Endpoint]:
    if type_url == _HCN_ENDPOINT:
        return HostComputeEndpoint
    if type_url == _PROXY_ENDPOINT:
        return ProxyEndpoint
    if type_url in _NO_ENDPOINTS:
        raise RPCError(operation, RPCCode.INVALID_ARGUMENT, "invalid request endpoint type")
    raise RPCError(operation, RPCCode.UNKNOWN, f"type with url {type_url}: not found")
