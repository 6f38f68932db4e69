"""Networks of a Linux host, as HCN documents: what the endpoints of adapters reach.

How it works
------------

There is no service behind it: namespaces and endpoints are kept in memory, for one backend. Endpoints are
created in a network, which says what an adapter reaches:

============  ====================================================================================
network       an adapter reaches
============  ====================================================================================
`none`        nothing: its cable is not plugged in
`restricted`  a gateway and a name server inside of QEMU, and nothing behind them (the default)
`open`        what the user of this process reaches: the internet, and also the host's own loopback,
              its local network and metadata services of clouds
`tap:NAME`    what the tap device of that name is connected to, which the user has set up
============  ====================================================================================

QEMU's user networking (slirp) is a network of its own for each adapter. An endpoint without addresses gets
those of a network that no other endpoint of the backend has, with the gateway and the name server in it. Each
gets a default route; of those in a namespace all but the first get it with a metric, as a guest takes one
default route of each metric: it uses the first's, and by policy each adapter's own.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from heapq import heappop, heappush
from typing import Final
from uuid import uuid4

import anyio.lowlevel

from uvm._names import guid_key
from uvm.backend import JSON
from uvm.backends.requests.networks import NetworkTable
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.json import from_json
from uvm.schema.network import HostComputeEndpoint

NONE: Final = "none"
RESTRICTED: Final = "restricted"
OPEN: Final = "open"
_TAP: Final = "tap:"
#: The longest name of an interface, IFNAMSIZ without the end.
_MAX_INTERFACE: Final = 15
#: The networks that endpoints get, one each: 10.64.0.0/24 and those after it.
_FIRST_SUBNET: Final = ipaddress.IPv4Network("10.64.0.0/24")
_SUBNETS: Final = 1 << 14
_PREFIX: Final = 24
#: The metrics of the default routes that are not the first of their namespace.
_FIRST_METRIC: Final = 1024
#: The addresses of slirp's gateway and name server, and of the guest, in their network.
_GATEWAY, _NAME_SERVER, _GUEST = 2, 3, 15


class QEMUNetwork:
    """The host's networks (:class:`~uvm.backend.HostNetwork`).

    A namespace that does not exist is ERROR_NOT_FOUND: HCN has no code of its own for it.

    :param new_id: returns a fresh GUID.
    """

    def __init__(self, new_id: Callable[[], str] = lambda: str(uuid4())) -> None:
        self._table = NetworkTable(new_id)
        # The numbers of the networks of endpoints, and those below them that are free: a heap.
        self._subnets: dict[str, int] = {}
        self._free: list[int] = []

    def __repr__(self) -> str:
        return f"<QEMUNetwork: {self._table}>"

    def attachments(self) -> dict[str, str]:
        """Return the VM of each attached endpoint."""
        return self._table.attachments()

    # For the adapters.

    def attach(self, endpoint_id: str, vm_id: str, operation: str) -> JSON:
        """Connect an endpoint to an adapter, and return the options of its ``netdev``; empty for none.

        :raises HostError: HCN_E_ENDPOINT_NOT_FOUND, or HCN_E_ENDPOINT_ALREADY_ATTACHED.
        """
        self._table.attach(endpoint_id, vm_id, operation)
        return _netdev(from_json(HostComputeEndpoint, self._table.endpoint(endpoint_id)))

    def detach(self, endpoint_id: str) -> None:
        """Disconnect an endpoint; do nothing if it is not connected."""
        self._table.detach(endpoint_id)

    def kept(self, endpoint_id: str) -> JSON:
        """Return the document of an endpoint, as :meth:`restore` takes it."""
        return self._table.endpoint(endpoint_id)

    def restore(self, endpoint: JSON, vm_id: str) -> None:
        """Have an endpoint that an adapter of a VM is connected to, in another process; no other is kept."""
        with suppress(HostError):
            self._table.add_endpoint(endpoint, f"open {vm_id}")
            self._take_number(endpoint)
            self._table.attach(endpoint["ID"], vm_id, f"open {vm_id}")

    def _take_number(self, endpoint: JSON) -> None:
        """Have the network that an endpoint got in another process, unless it is another's here."""
        addresses = from_json(HostComputeEndpoint, endpoint).ip_configurations
        first = int(ipaddress.ip_address(addresses[0].ip_address)) if addresses else 0
        number, guest = divmod(first - int(_FIRST_SUBNET.network_address), _FIRST_SUBNET.num_addresses)
        if guest != _GUEST or not 0 <= number < _SUBNETS or number in self._subnets.values():
            return
        known = len(self._subnets) + len(self._free)
        self._free = sorted({*self._free, *range(known, number)} - {number})
        self._subnets[guid_key(endpoint["ID"])] = number

    # HostNetwork.

    async def namespace(self, namespace_id: str) -> JSON:
        """Return a namespace's document; ERROR_NOT_FOUND if there is none."""
        await anyio.lowlevel.checkpoint()
        return self._table.namespace(namespace_id)

    async def endpoint(self, endpoint: str) -> JSON:
        """Return an endpoint's document, found by id or by name; HCN_E_ENDPOINT_NOT_FOUND."""
        await anyio.lowlevel.checkpoint()
        return self._routed(self._table.endpoint(endpoint))

    async def namespace_endpoints(self, namespace_id: str) -> list[JSON]:
        """Return the documents of the endpoints in a namespace, in the order in which they were added."""
        await anyio.lowlevel.checkpoint()
        return [self._routed(each) for each in self._table.members(namespace_id)]

    async def add_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Put an endpoint into a namespace; HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS if it is in one."""
        await anyio.lowlevel.checkpoint()
        self._table.join(namespace_id, endpoint_id)

    async def remove_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Remove an endpoint from a namespace; ERROR_NOT_FOUND if it is not in it."""
        await anyio.lowlevel.checkpoint()
        self._table.leave(namespace_id, endpoint_id)

    async def create_namespace(self, document: JSON) -> JSON:
        """Create a namespace, without endpoints; refuse as :meth:`NetworkTable.create_namespace` does."""
        await anyio.lowlevel.checkpoint()
        return self._table.create_namespace(document)

    async def delete_namespace(self, namespace_id: str) -> None:
        """Delete a namespace, without its endpoints; do nothing if it does not exist."""
        await anyio.lowlevel.checkpoint()
        self._table.delete_namespace(namespace_id)

    async def create_endpoint(self, network_id: str, document: JSON) -> JSON:
        """Create an endpoint in a network; what its document leaves out it gets.

        :param network_id: ``"none"``, ``"restricted"``, ``"open"``, or ``"tap:NAME"``.
        :raises HostError: HCN_E_NETWORK_NOT_FOUND; HCN_E_INVALID_JSON; ERROR_ALREADY_EXISTS; E_INVALIDARG if
            the document names a namespace.
        """
        await anyio.lowlevel.checkpoint()
        operation = f"create endpoint in network {network_id}"
        if not _is_network(network_id):
            text = "there are none, restricted, open, and tap:NAME for a tap device of the host"
            raise HostError(operation, HResult.HCN_E_NETWORK_NOT_FOUND, text)
        complete = partial(self._complete, network_id, operation)
        return self._routed(self._table.create_endpoint(document, operation, complete))

    async def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint, if it exists; HCN_E_ENTITY_HAS_REFERENCES while an adapter connects to it."""
        await anyio.lowlevel.checkpoint()
        self._table.delete_endpoint(endpoint_id)
        number = self._subnets.pop(guid_key(endpoint_id), None)
        if number is not None:
            heappush(self._free, number)

    def _complete(self, network_id: str, operation: str, endpoint: JSON) -> None:
        """Add to an endpoint what its document leaves out, and check its addresses: E_INVALIDARG."""
        endpoint["HostComputeNetwork"] = network_id
        endpoint.setdefault("MacAddress", _some_mac_address())
        if network_id not in (RESTRICTED, OPEN):
            return
        number = None
        if not endpoint.get("IpConfigurations"):
            number = self._free_number(operation)
            subnet = _subnet(number)
            endpoint["IpConfigurations"] = [{"IpAddress": str(subnet[_GUEST]), "PrefixLength": _PREFIX}]
            endpoint.setdefault("Dns", {"ServerList": [str(subnet[_NAME_SERVER])]})
        try:
            _netdev(from_json(HostComputeEndpoint, endpoint))
        except ValueError as error:
            raise HostError(operation, HResult.E_INVALIDARG, str(error)) from None
        if number is not None:
            self._subnets[guid_key(endpoint["ID"])] = number
            if self._free:
                heappop(self._free)

    def _free_number(self, operation: str) -> int:
        """Return the lowest number that no network has: ERROR_NO_SYSTEM_RESOURCES if all are taken."""
        number = self._free[0] if self._free else len(self._subnets)
        if number == _SUBNETS:
            text = f"{_SUBNETS} endpoints have networks"
            raise HostError(operation, HResult.ERROR_NO_SYSTEM_RESOURCES, text)
        return number

    def _routed(self, endpoint: JSON) -> JSON:
        """Return a document of an endpoint, with the default route that it gets unless it has routes."""
        number = self._subnets.get(guid_key(endpoint["ID"]))
        if number is not None and "Routes" not in endpoint:
            gateway = str(_subnet(number)[_GATEWAY])
            route: JSON = {"NextHop": gateway, "DestinationPrefix": "0.0.0.0/0"}
            if not self._table.comes_first(endpoint["ID"]):
                route["Metric"] = _FIRST_METRIC + number
            endpoint["Routes"] = [route]
        return endpoint


def _subnet(number: int) -> ipaddress.IPv4Network:
    first = int(_FIRST_SUBNET.network_address) + number * _FIRST_SUBNET.num_addresses
    return ipaddress.IPv4Network((first, _PREFIX))


def _is_network(network_id: str) -> bool:
    if network_id in (NONE, RESTRICTED, OPEN):
        return True
    name = network_id.removeprefix(_TAP)
    # As the kernel has it of names of interfaces.
    return name != network_id and 0 < len(name) <= _MAX_INTERFACE and not set(name) & set("/: \t\n\0,=")


def _netdev(endpoint: HostComputeEndpoint) -> JSON:
    """Return the options of an endpoint's ``netdev``; empty if it has none.

    :raises ValueError: its addresses are none that QEMU has a network for.
    """
    network = endpoint.host_compute_network
    if network == NONE:
        return {}
    if network.startswith(_TAP):
        # No device of the kernel is opened for it.
        return {"type": "tap", "ifname": network.removeprefix(_TAP), "vhost": False}
    options: JSON = {"type": "user", "restrict": network == RESTRICTED, "ipv6": False}
    for address in endpoint.ip_configurations[:1]:
        guest = ipaddress.IPv4Interface(f"{address.ip_address}/{address.prefix_length or _PREFIX}")
        if guest.network.num_addresses < 1 << 4:
            raise ValueError(f"{guest.network} has no room for a gateway and a name server")
        gateway = next((route.next_hop for route in endpoint.routes if route.next_hop), "")
        server = next(iter(endpoint.dns.server_list), "")
        options |= {
            "net": str(guest.network),
            "host": gateway or str(guest.network[_GATEWAY]),
            "dhcpstart": str(guest.ip),
        }
        if server and ipaddress.IPv4Address(server) in guest.network:
            options["dns"] = server
        else:
            options["dns"] = str(guest.network[_NAME_SERVER])
    return options


def _some_mac_address() -> str:
    """Return an address of QEMU's prefix, as HCN writes them."""
    return "52-54-00-" + "-".join(f"{byte:02X}" for byte in secrets.token_bytes(3))
