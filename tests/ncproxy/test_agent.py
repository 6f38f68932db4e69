"""The compute agent answers as hcsshim's does, save for other containers, which it refuses."""

from __future__ import annotations

from typing import Any, cast

import pytest
from attrs import define, field

from uvm._ncproxy.agent import ComputeAgent
from uvm._ncproxy.messages import (
    AddNIC,
    AssignedPCI,
    AssignPCI,
    DeleteNIC,
    Empty,
    IovSettings,
    ModifyNIC,
    RemovePCI,
    endpoint_field,
)
from uvm._ncproxy.vm import VMOfAgent
from uvm._ttrpc.protobuf import AnyMessage, Message, encode
from uvm.errors import NotAttachedError, RPCCode, RPCError
from uvm.schema.guest import LCOWNetworkAdapter
from uvm.schema.json import to_json
from uvm.schema.network import HostComputeEndpoint, ProxyEndpoint, ProxyEndpointSettings

pytestmark = pytest.mark.anyio

HCN = endpoint_field(HostComputeEndpoint(id="e1", name="c1_eth0"))


def custom(**settings: Any) -> bytes:
    given = {"name": "vf1", "ip_address": "10.0.0.3", "ip_address_prefix_length": 24, **settings}
    return endpoint_field(
        ProxyEndpoint(endpoint_name="vf1", namespace_id="ns1", settings=ProxyEndpointSettings(**given))
    )


@define
class VM:
    """Notes what the agent does (:class:`~uvm._ncproxy.vm.VMOfAgent`)."""

    done: list[tuple[Any, ...]] = field(factory=list)

    async def add_adapter(self, endpoint: str, nic_id: str) -> None:
        if endpoint == "elsewhere":
            raise NotAttachedError("vm1 is not in the network namespace ns2")
        self.done.append(("add", endpoint, nic_id))

    async def update_adapter(self, endpoint: str, nic_id: str, iov: IovSettings) -> None:
        self.done.append(("update", endpoint, nic_id, iov))

    async def remove_adapter(self, endpoint: str) -> None:
        self.done.append(("remove", endpoint))

    async def add_guest_adapter(self, adapter: LCOWNetworkAdapter) -> None:
        self.done.append(("add in guest", to_json(adapter)))

    async def remove_guest_adapter(self, nic_id: str) -> None:
        self.done.append(("remove from guest", nic_id))

    async def assign_device(self, instance_path: str, function: int, vmbus_guid: str) -> str:
        self.done.append(("assign", instance_path, function, vmbus_guid))
        return vmbus_guid or "fresh"

    async def remove_device(self, instance_path: str, function: int) -> None:
        self.done.append(("remove device", instance_path, function))


async def ask(request: Message, vm: VM | None = None) -> Message:
    """Have the agent of the container c1 carry out a call."""
    methods = ComputeAgent("c1", cast(VMOfAgent, vm or VM())).services["ComputeAgent"]
    return await methods[type(request).__name__].carry_out(request)


ADAPTER = {"NamespaceID": "ns1", "ID": "n1", "VPCIAssigned": True}
ADDRESS = {"IPConfigs": [{"IPAddress": "10.0.0.3", "PrefixLength": 24}]}


@pytest.mark.parametrize(
    ("request_", "done"),
    [
        (AddNIC("c1", "n1", HCN), ("add", "c1_eth0", "n1")),
        (AddNIC("c1", "n1", b"old_eth0"), ("add", "old_eth0", "n1")),
        (AddNIC("c1", "n1", custom()), ("add in guest", {**ADAPTER, **ADDRESS})),
        (
            AddNIC("c1", "n1", custom(default_gateway="10.0.0.1")),
            (
                "add in guest",
                {
                    **ADAPTER,
                    **ADDRESS,
                    "Routes": [{"NextHop": "10.0.0.1", "DestinationPrefix": "0.0.0.0/0"}],
                },
            ),
        ),
        (DeleteNIC("c1", "n1", HCN), ("remove", "c1_eth0")),
        (DeleteNIC("c1", "n1", custom()), ("remove from guest", "n1")),
        (RemovePCI("c1", "PCI", 3), ("remove device", "PCI", 3)),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_asked_is_done(request_: Message, done: tuple[Any, ...]) -> None:
    vm = VM()
    assert await ask(request_, vm) == Empty()
    assert vm.done == [done]


@pytest.mark.parametrize(
    ("gateway", "prefix"),
    [("fe80::1", "::/0"), ("::ffff:10.0.0.1", "0.0.0.0/0"), ("192.168.0.1", "0.0.0.0/0")],
)
async def test_the_route_is_of_the_family_of_the_gateway(gateway: str, prefix: str) -> None:
    vm = VM()
    await ask(AddNIC("c1", "n1", custom(default_gateway=gateway)), vm)
    assert vm.done[0][1]["Routes"] == [{"NextHop": gateway, "DestinationPrefix": prefix}]


async def test_sr_iov_is_set_with_all_values() -> None:
    vm = VM()
    await ask(ModifyNIC("n1", HCN, IovSettings(0, 2, 300)), vm)
    assert vm.done == [("update", "c1_eth0", "n1", IovSettings(0, 2, 300))]


@pytest.mark.parametrize("nic_id", ["", "n2"])
async def test_a_device_is_assigned_under_the_id_of_its_adapter(nic_id: str) -> None:
    vm = VM()
    assert await ask(AssignPCI("c1", "PCI", 3, nic_id), vm) == AssignedPCI(nic_id or "fresh")
    assert vm.done == [("assign", "PCI", 3, nic_id)]


INVALID = RPCCode.INVALID_ARGUMENT
EMPTY = "received empty field in request"
NO_ENDPOINT = encode(AnyMessage("ncproxy/hcn/HostComputeNetwork", b"{}"))
OTHERS = "this agent serves the container 'c1', not 'c2'"


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (AddNIC("c1", "", HCN), INVALID, EMPTY),
        (AddNIC("c1", "n1", b""), INVALID, EMPTY),
        (DeleteNIC("c1", "", HCN), INVALID, EMPTY),
        (DeleteNIC("c1", "n1", b""), INVALID, EMPTY),
        (ModifyNIC("", HCN, IovSettings()), INVALID, EMPTY),
        (ModifyNIC("n1", b"", IovSettings()), INVALID, EMPTY),
        (ModifyNIC("n1", HCN), INVALID, EMPTY),
        (
            AddNIC("c1", "n1", custom(default_gateway="fe80::1%eth0")),
            RPCCode.UNKNOWN,
            "invalid gateway address: fe80::1%eth0",
        ),
        (AssignPCI("c1", ""), INVALID, EMPTY),
        (RemovePCI("c1", ""), INVALID, EMPTY),
        (AddNIC("c1", "n1", NO_ENDPOINT), INVALID, "invalid request endpoint type"),
        (DeleteNIC("c1", "n1", NO_ENDPOINT), INVALID, "invalid request endpoint type"),
        (
            ModifyNIC("n1", NO_ENDPOINT, IovSettings()),
            INVALID,
            "invalid request endpoint type",
        ),
        (AddNIC("c1", "n1", b"\x0a\x01"), RPCCode.UNKNOWN, "the endpoint cannot be read"),
        (
            ModifyNIC("n1", custom(), IovSettings()),
            RPCCode.UNKNOWN,
            "modifying ncproxy networking",
        ),
        (AddNIC("c1", "n1", custom(default_gateway="x")), RPCCode.UNKNOWN, "invalid gateway address: x"),
        (AddNIC("c1", "n1", custom(ip_address_prefix_length=129)), INVALID, "prefix length"),
        (AddNIC("c1", "n1", endpoint_field(ProxyEndpoint())), INVALID, EMPTY),
        (AssignPCI("c1", "PCI", 1 << 16), INVALID, "16 bits"),
        (AddNIC("c2", "n1", HCN), RPCCode.NOT_FOUND, OTHERS),
        (DeleteNIC("c2", "n1", HCN), RPCCode.NOT_FOUND, OTHERS),
        (AssignPCI("c2", "PCI"), RPCCode.NOT_FOUND, OTHERS),
        (RemovePCI("c2", "PCI"), RPCCode.NOT_FOUND, OTHERS),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_refused_is_not_done(request_: Message, code: RPCCode, text: str) -> None:
    vm = VM()
    with pytest.raises(RPCError) as caught:
        await ask(request_, vm)
    assert (caught.value.code, text in caught.value.text) == (code, True)
    assert vm.done == []


async def test_an_error_of_the_vm_is_passed_on_as_it_is() -> None:
    with pytest.raises(NotAttachedError):
        await ask(AddNIC("c1", "n1", b"elsewhere"))
