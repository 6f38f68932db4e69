"""Network namespaces, and the adapters in them.

Two machines: an adapter (:class:`Adapters`) is in a namespace (:class:`Namespaces`) and holds a ticket
of it.

- A namespace: the key is its folded id, the slot its id, a member is its HCN document. On a Windows guest ADD
  and REMOVE are guest ``NetworkNamespace`` Add and Remove with the whole document; on Linux nothing is sent,
  as the guest makes the namespace with its first adapter.
- An adapter: the key is the namespace's and the endpoint's folded id (:func:`adapter_key`); a member names
  the adapter and holds the endpoint's HCN document, which says the namespace of the key; the slot is the
  adapter's id.
  ADD on Linux: host Add, guest ``Network`` Add with the whole configuration.
  ADD on Windows: guest pre-add with the endpoint, host Add, guest Add.
  REMOVE: guest Remove, host Remove.
- An adapter in a Linux guest alone, whose device is there already, such as an assigned PCI device: the key is
  the namespace's and the adapter's folded id; ADD and REMOVE are those of the guest.

Source: hcsshim ``internal/uvm/network.go`` (``AddNetNS``, ``addNIC``, ``removeNIC``, ``AddNICInGuest``) and
``internal/protocol/guestresource/parse.go`` (``BuildLCOWNetworkAdapter``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from attrs import frozen

from uvm._names import GuestOS, guid_key, guid_text
from uvm._repr import Value
from uvm.devices.base import REMOVE, Operation, Step, in_guest, on_host
from uvm.devices.kinds import FirstComeDevice, Named, NamedByKey
from uvm.errors import OptionsError
from uvm.schema import guest, requests
from uvm.schema.common import RS5
from uvm.schema.devices import IovSettings, NetworkAdapter
from uvm.schema.network import ENCAP_OVERHEAD, HostComputeEndpoint, HostComputeNamespace
from uvm.schema.requests import NetworkModifyRequest, RS4NetworkModifyRequest, VirtualAdapter


class Namespaces(
    NamedByKey[HostComputeNamespace, HostComputeNamespace], FirstComeDevice[str, HostComputeNamespace, str]
):
    """The network namespaces of a VM.

    :param supported: the guest announced that it supports namespaces.
    """

    withheld = "the network namespace {} was not added: whether the guest still has it is unknown"

    def __init__(self, os: GuestOS, supported: bool) -> None:
        super().__init__()
        self._in_guest = os == "windows" and supported

    def spelling(self, key: str, member: HostComputeNamespace) -> str:
        """Return the id of the namespace."""
        return member.id

    def describe(self, key: str, slot: str, value: HostComputeNamespace) -> tuple[str, str]:
        """Return what it is, and where."""
        return "network namespace", slot

    def steps(
        self, operation: Operation[str, HostComputeNamespace, str, HostComputeNamespace]
    ) -> tuple[Step, ...]:
        """Add it to, or remove it from, a Windows guest."""
        if not self._in_guest:
            return ()
        return (in_guest(operation.kind.value, guest.RESOURCE_NETWORK_NAMESPACE, operation.value),)


class AdapterKey(NamedTuple):
    """An endpoint in a namespace, or an adapter in the guest alone, by their folded ids."""

    namespace_id: str
    endpoint_id: str
    nic_id: str = ""


def adapter_key(namespace_id: str, endpoint_id: str) -> AdapterKey:
    """Return the key of the adapter for an endpoint in a namespace, however their ids are spelled."""
    return AdapterKey(guid_key(namespace_id), guid_key(endpoint_id))


@frozen(repr=False)
class Adapter(Value):
    """A network adapter to be: its id and the endpoint that it connects to."""

    nic_id: str
    endpoint: HostComputeEndpoint

    def on_host(self, iov: IovSettings | None = None) -> NetworkAdapter:
        """Return the adapter as the host has it."""
        endpoint = self.endpoint
        return NetworkAdapter(endpoint_id=endpoint.id, mac_address=endpoint.mac_address, iov_settings=iov)

    @classmethod
    def joining(cls, nic_id: str, endpoint: HostComputeEndpoint, namespace_id: str) -> Adapter:
        """Return an adapter that puts an endpoint into a namespace, whichever its document names.

        hcsshim has the guest put it into the one of the document, or into none.
        """
        ids = {"id": guid_text(endpoint.id), "host_compute_namespace": namespace_id}
        return cls(guid_text(nic_id), endpoint.replaced(**ids))


@frozen(repr=False)
class GuestAdapter(Value):
    """An adapter to be in a Linux guest alone: its configuration, which names it and its namespace."""

    settings: guest.LCOWNetworkAdapter

    @property
    def nic_id(self) -> str:
        """The id of the adapter."""
        return self.settings.id


AnyAdapter: TypeAlias = Adapter | GuestAdapter


def encap_overhead(endpoint: HostComputeEndpoint) -> int:
    """Return the bytes that encapsulation takes from each packet, by the endpoint's last policy on it.

    :raises OptionsError: the policy's settings do not say a 16-bit number.
    """
    overhead = 0
    for policy in endpoint.policies:
        if policy.type != ENCAP_OVERHEAD:
            continue
        value = policy.settings.get("Overhead", 0) if isinstance(policy.settings, dict) else None
        if type(value) is not int or not 0 <= value <= 0xFFFF:
            raise OptionsError(
                f"the endpoint {endpoint.id} has an EncapOverhead policy without a 16-bit Overhead: "
                f"{policy.settings!r}"
            )
        overhead = value
    return overhead


def lcow_adapter(
    nic_id: str, endpoint: HostComputeEndpoint, policy_based_routing: bool
) -> guest.LCOWNetworkAdapter:
    """Return a Linux guest's configuration of an adapter.

    The guest takes ``DNSSuffix`` for the search list of its ``resolv.conf``; the domain comes first in it.

    :raises OptionsError: a policy is malformed.
    """
    dns = endpoint.dns
    return guest.LCOWNetworkAdapter(
        namespace_id=endpoint.host_compute_namespace,
        id=nic_id,
        mac_address=endpoint.mac_address,
        dns_suffix=_joined([*([dns.domain] if dns.domain else []), *dns.search]),
        dns_server_list=_joined(dns.server_list),
        encap_overhead=encap_overhead(endpoint),
        ip_configs=[
            guest.LCOWIPConfig(ip_address=address.ip_address, prefix_length=address.prefix_length)
            for address in endpoint.ip_configurations
        ],
        routes=endpoint.routes,
        policy_based_routing=policy_based_routing,
    )


def _leave_linux(nic_id: str, namespace_id: str) -> Step:
    """Return the step that removes an adapter from a Linux guest, which ignores one without its namespace."""
    left = guest.LCOWNetworkAdapter(namespace_id=namespace_id, id=nic_id)
    return in_guest(requests.REMOVE, guest.RESOURCE_NETWORK, left)


def _joined(names: Iterable[str]) -> str:
    return ",".join(name.lower() for name in names)


class Adapters(Named[AdapterKey, AnyAdapter, AnyAdapter], FirstComeDevice[AdapterKey, AnyAdapter, str]):
    """The network adapters of a VM.

    :param build: the host's Windows build.
    :param supported: the guest announced that it supports namespaces; to a Linux guest that did not, nothing
        is sent. To a Windows guest adapters are sent in any case, as by hcsshim.
    :param policy_based_routing: have a Linux guest route by policy.
    """

    def __init__(self, os: GuestOS, build: int, supported: bool, policy_based_routing: bool = False) -> None:
        super().__init__(fold=guid_key)
        self._linux = os == "linux"
        self._build = build
        self._supported = supported
        self._policy_based_routing = policy_based_routing

    def place(self, key: AdapterKey, member: AnyAdapter) -> str:
        """Take the adapter id.

        :raises OptionsError: another adapter has it, or the endpoint has a malformed policy.
        """
        if self._linux and isinstance(member, Adapter):
            encap_overhead(member.endpoint)
        if not self._slots.take(member.nic_id):
            what = f"the endpoint {key.endpoint_id}" if key.endpoint_id else "the adapter in the guest"
            raise OptionsError(f"{what} was not added: another adapter has the id {member.nic_id}")
        return member.nic_id

    def describe(self, key: AdapterKey, slot: str, value: AnyAdapter) -> tuple[str, str]:
        """Return what it is, and where."""
        if isinstance(value, GuestAdapter):
            return "adapter in the guest alone", f"adapter id {slot}"
        endpoint = value.endpoint
        return f"adapter of endpoint {endpoint.name or endpoint.id}", f"adapter id {slot}"

    def steps(self, operation: Operation[AdapterKey, AnyAdapter, str, AnyAdapter]) -> tuple[Step, ...]:
        """Connect on the host and configure in the guest, or the reverse."""
        nic_id, value = operation.slot, operation.value
        if isinstance(value, GuestAdapter):
            if operation.kind is REMOVE:
                return (_leave_linux(nic_id, value.settings.namespace_id),)
            return (in_guest(requests.ADD, guest.RESOURCE_NETWORK, value.settings),)
        endpoint = value.endpoint
        path = VirtualAdapter(nic_id).path
        adapter = value.on_host()
        off_host = on_host(requests.REMOVE, path, adapter)
        if operation.kind is REMOVE:
            return *self._leave(nic_id, endpoint), off_host
        add = on_host(requests.ADD, path, adapter, off_host)
        if not self._linux:
            (leave,) = self._leave(nic_id, endpoint)
            announced = self._change(nic_id, requests.PRE_ADD, endpoint)
            announce = in_guest(requests.ADD, guest.RESOURCE_NETWORK, announced, leave)
            connected = self._change(nic_id, requests.ADD)
            return announce, add, in_guest(requests.ADD, guest.RESOURCE_NETWORK, connected)
        if not self._supported:
            return (add,)
        configured = lcow_adapter(nic_id, endpoint, self._policy_based_routing)
        return add, in_guest(requests.ADD, guest.RESOURCE_NETWORK, configured)

    def _leave(self, nic_id: str, endpoint: HostComputeEndpoint) -> tuple[Step, ...]:
        """Return the steps that remove the adapter from the guest; also what undoes a Windows pre-add."""
        if not self._linux:
            # hcsshim's removal says no resource type, unlike its adds.
            return (in_guest(requests.REMOVE, "", self._change(nic_id, requests.REMOVE)),)
        return (_leave_linux(nic_id, endpoint.host_compute_namespace),) if self._supported else ()

    def _change(
        self, nic_id: str, request_type: str, settings: HostComputeEndpoint | None = None
    ) -> NetworkModifyRequest | RS4NetworkModifyRequest:
        """Return the change for a Windows guest, in the schema of the host's build."""
        # Older builds have another name for the id of an adapter.
        if self._build >= RS5:
            return NetworkModifyRequest(adapter_id=nic_id, request_type=request_type, settings=settings)
        return RS4NetworkModifyRequest(
            adapter_instance_id=nic_id, request_type=request_type, settings=settings
        )
