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
those of a network that no other endpoint of the backend has, with the gateway and the name server in it.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Callable
from typing import Final, TypeVar
from uuid import uuid4

import anyio.lowlevel

from uvm._names import guid_key
from uvm._repr import counted
from uvm.backend import JSON
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.json import SchemaError, dumps, from_json
from uvm.schema.network import HostComputeEndpoint, HostComputeNamespace

T = TypeVar("T")

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
#: The addresses of slirp's gateway and name server, and of the guest, in their network.
_GATEWAY, _NAME_SERVER, _GUEST = 2, 3, 15


class QEMUNetwork:
    """The host's networks (:class:`~uvm.backend.HostNetwork`).

    A namespace that does not exist is ERROR_NOT_FOUND: HCN has no code of its own for it.

    :param new_id: returns a fresh GUID.
    """

    def __init__(self, new_id: Callable[[], str] = lambda: str(uuid4())) -> None:
        self._new_id = new_id
        self._namespaces: dict[str, JSON] = {}
        self._endpoints: dict[str, JSON] = {}
        self._attached: dict[str, str] = {}
        self._subnets: dict[str, int] = {}

    def __repr__(self) -> str:
        counts = counted(len(self._namespaces), "namespaces"), counted(len(self._endpoints), "endpoints")
        return f"<QEMUNetwork: {', '.join(counts)}>"

    def attachments(self) -> dict[str, str]:
        """Return the VM of each attached endpoint."""
        return dict(self._attached)

    # For the adapters.

    def attach(self, endpoint_id: str, vm_id: str, operation: str) -> JSON:
        """Connect an endpoint to an adapter, and return the options of its ``netdev``; empty for none.

        :raises HostError: HCN_E_ENDPOINT_NOT_FOUND, or HCN_E_ENDPOINT_ALREADY_ATTACHED.
        """
        key = guid_key(endpoint_id)
        if key not in self._endpoints:
            raise HostError(operation, HResult.HCN_E_ENDPOINT_NOT_FOUND, endpoint_id)
        if key in self._attached:
            text = f"to VM {self._attached[key]}"
            raise HostError(operation, HResult.HCN_E_ENDPOINT_ALREADY_ATTACHED, text)
        self._attached[key] = vm_id
        return _netdev(from_json(HostComputeEndpoint, self._endpoints[key]))

    def detach(self, endpoint_id: str) -> None:
        """Disconnect an endpoint; do nothing if it is not connected."""
        self._attached.pop(guid_key(endpoint_id), None)

    # HostNetwork.

    async def namespace(self, namespace_id: str) -> JSON:
        """Return a namespace's document; ERROR_NOT_FOUND if there is none."""
        await anyio.lowlevel.checkpoint()
        return _copy(self._namespace(namespace_id))

    async def endpoint(self, endpoint: str) -> JSON:
        """Return an endpoint's document, found by id or by name; HCN_E_ENDPOINT_NOT_FOUND."""
        await anyio.lowlevel.checkpoint()
        return _copy(self._endpoint(endpoint))

    async def namespace_endpoints(self, namespace_id: str) -> list[JSON]:
        """Return the documents of the endpoints in a namespace, in the order in which they were added."""
        await anyio.lowlevel.checkpoint()
        self._namespace(namespace_id)
        return [_copy(each) for each in self._members(namespace_id)]

    async def add_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Put an endpoint into a namespace; HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS if it is in one."""
        await anyio.lowlevel.checkpoint()
        namespace, endpoint = self._namespace(namespace_id), self._endpoint(endpoint_id)
        if guid_key(endpoint.get("HostComputeNamespace", "")) in self._namespaces:
            code = HResult.HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS
            raise HostError(f"add endpoint {endpoint_id}", code)
        # Behind those that are in it already.
        key = guid_key(endpoint["ID"])
        self._endpoints[key] = {**self._endpoints.pop(key), "HostComputeNamespace": namespace["ID"]}

    async def remove_namespace_endpoint(self, namespace_id: str, endpoint_id: str) -> None:
        """Remove an endpoint from a namespace; ERROR_NOT_FOUND if it is not in it."""
        await anyio.lowlevel.checkpoint()
        self._namespace(namespace_id)
        endpoint = self._endpoint(endpoint_id)
        if endpoint not in self._members(namespace_id):
            text = "it is not in the namespace"
            raise HostError(f"remove endpoint {endpoint_id}", HResult.ERROR_NOT_FOUND, text)
        del endpoint["HostComputeNamespace"]

    async def create_namespace(self, document: JSON) -> JSON:
        """Create a namespace, without endpoints; HCN_E_INVALID_JSON, or ERROR_ALREADY_EXISTS."""
        await anyio.lowlevel.checkpoint()
        operation = "create namespace"
        made = self._checked(HostComputeNamespace, document, operation, self._namespaces)
        if made.get("Resources"):
            raise HostError(operation, HResult.E_INVALIDARG, "endpoints are added later")
        self._namespaces[guid_key(made["ID"])] = made
        return _copy(made)

    async def delete_namespace(self, namespace_id: str) -> None:
        """Delete a namespace, without its endpoints; do nothing if it does not exist."""
        await anyio.lowlevel.checkpoint()
        for each in self._members(namespace_id):
            del each["HostComputeNamespace"]
        self._namespaces.pop(guid_key(namespace_id), None)

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
        made = self._checked(HostComputeEndpoint, document, operation, self._endpoints)
        if made.get("HostComputeNamespace"):
            raise HostError(operation, HResult.E_INVALIDARG, "HostComputeNamespace is read-only")
        made["HostComputeNetwork"] = network_id
        made.setdefault("MacAddress", _some_mac_address())
        if network_id in (RESTRICTED, OPEN):
            self._address(made, operation)
        self._endpoints[guid_key(made["ID"])] = made
        return _copy(made)

    async def delete_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint, if it exists; HCN_E_ENTITY_HAS_REFERENCES while an adapter connects to it."""
        await anyio.lowlevel.checkpoint()
        key = guid_key(endpoint_id)
        if key in self._attached:
            text = f"VM {self._attached[key]} has an adapter for it"
            raise HostError(f"delete endpoint {endpoint_id}", HResult.HCN_E_ENTITY_HAS_REFERENCES, text)
        self._endpoints.pop(key, None)
        self._subnets.pop(key, None)

    def _checked(
        self,
        cls: type[HostComputeNamespace] | type[HostComputeEndpoint],
        document: JSON,
        operation: str,
        there: dict[str, JSON],
    ) -> JSON:
        """Return a copy of a document, with an id that nothing has."""
        try:
            made = {**_copy(document), "ID": document.get("ID") or self._new_id()}
            from_json(cls, made)
        except (SchemaError, TypeError, AttributeError) as error:
            raise HostError(operation, HResult.HCN_E_INVALID_JSON, str(error)) from None
        if guid_key(made["ID"]) in there:
            raise HostError(f"{operation} {made['ID']}", HResult.ERROR_ALREADY_EXISTS)
        return made

    def _address(self, endpoint: JSON, operation: str) -> None:
        """Add the addresses of a network of its own to an endpoint that has none, and check those it has."""
        if not endpoint.get("IpConfigurations"):
            subnet = self._subnet(guid_key(endpoint["ID"]), operation)
            endpoint["IpConfigurations"] = [{"IpAddress": str(subnet[_GUEST]), "PrefixLength": _PREFIX}]
            endpoint.setdefault("Dns", {"ServerList": [str(subnet[_NAME_SERVER])]})
            endpoint.setdefault(
                "Routes", [{"NextHop": str(subnet[_GATEWAY]), "DestinationPrefix": "0.0.0.0/0"}]
            )
        try:
            _netdev(from_json(HostComputeEndpoint, endpoint))
        except ValueError as error:
            raise HostError(operation, HResult.E_INVALIDARG, str(error)) from None

    def _subnet(self, key: str, operation: str) -> ipaddress.IPv4Network:
        taken = set(self._subnets.values())
        number = next((number for number in range(_SUBNETS) if number not in taken), None)
        if number is None:
            raise HostError(
                operation, HResult.ERROR_NO_SYSTEM_RESOURCES, f"{_SUBNETS} endpoints have networks"
            )
        self._subnets[key] = number
        first = int(_FIRST_SUBNET.network_address) + number * _FIRST_SUBNET.num_addresses
        return ipaddress.IPv4Network((first, _PREFIX))

    def _namespace(self, namespace_id: str) -> JSON:
        found = self._namespaces.get(guid_key(namespace_id))
        if found is None:
            raise HostError(f"open namespace {namespace_id}", HResult.ERROR_NOT_FOUND)
        return found

    def _members(self, namespace_id: str) -> list[JSON]:
        key = guid_key(namespace_id)
        return [e for e in self._endpoints.values() if guid_key(e.get("HostComputeNamespace") or "") == key]

    def _endpoint(self, endpoint: str) -> JSON:
        found = self._endpoints.get(guid_key(endpoint))
        if found is None:
            found = next((each for each in self._endpoints.values() if each.get("Name") == endpoint), None)
        if found is None:
            raise HostError(f"open endpoint {endpoint}", HResult.HCN_E_ENDPOINT_NOT_FOUND)
        return found


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
        # Nothing of the host is run for it, and no device of the kernel is opened.
        name = network.removeprefix(_TAP)
        return {"type": "tap", "ifname": name, "script": "no", "downscript": "no", "vhost": False}
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


def _copy(document: JSON) -> JSON:
    copied: JSON = json.loads(dumps(document))
    return copied
