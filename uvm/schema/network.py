"""Documents of HCN (Host Compute Network): namespaces, endpoints and their policies.

Unlike HCS's, HCN's documents always carry their structures (``Dns``, ``Health``, ``SchemaVersion``),
as hcsshim's ``hcn`` package writes them.
"""

from __future__ import annotations

from typing import Any

from msgspec import field

from uvm.schema.json import Model, always

ENCAP_OVERHEAD = "EncapOverhead"
IOV = "Iov"


class SchemaVersion(Model):
    """A version of the HCN schema; 2.0 is the one in use."""

    major: int = always(0)
    minor: int = always(0)


class IpConfig(Model):
    """An address of an endpoint."""

    ip_address: str = ""
    prefix_length: int = 0


class Route(Model):
    """A route of an endpoint, or of the adapter of a Linux guest."""

    next_hop: str = ""
    destination_prefix: str = ""
    metric: int = 0


class Dns(Model):
    """Name resolution of an endpoint."""

    domain: str = ""
    search: list[str] = []
    server_list: list[str] = []
    options: list[str] = []


class Health(Model):
    """The health of an endpoint."""

    data: Any = None
    extra: dict[str, Any] = always(dict)


class EndpointPolicy(Model):
    """A policy of an endpoint; ``settings`` depends on the type."""

    type: str = always("")
    settings: Any = None


class IovPolicySetting(Model):
    """Settings of an ``Iov`` policy."""

    iov_offload_weight: int = 0
    queue_pairs_requested: int = 0
    interrupt_moderation: int = 0


class HostComputeEndpoint(Model):
    """An endpoint: an adapter's place on a network."""

    id: str = field(name="ID", default="")
    name: str = ""
    host_compute_network: str = ""
    host_compute_namespace: str = ""
    policies: list[EndpointPolicy] = []
    ip_configurations: list[IpConfig] = []
    dns: Dns = always(Dns)
    routes: list[Route] = []
    mac_address: str = ""
    flags: int = 0
    health: Health = always(Health)
    schema_version: SchemaVersion = always(SchemaVersion)


class NamespaceResource(Model):
    """A member of a namespace; ``type`` is ``Container`` or ``Endpoint``, ``data`` holds its ``ID``."""

    type: str = always("")
    data: Any = always(None)


class HostComputeNamespace(Model):
    """A namespace (a network compartment): ``Host``, ``HostDefault``, ``Guest`` or ``GuestDefault``."""

    id: str = field(name="ID", default="")
    namespace_id: int = 0
    type: str = ""
    resources: list[NamespaceResource] = []
    schema_version: SchemaVersion = always(SchemaVersion)


class PCIDeviceDetails(Model):
    """The PCI device behind an endpoint of a proxy."""

    device_id: str = always("", name="DeviceID")
    virtual_function_index: int = always(0)


class DeviceDetails(Model):
    """The device behind an endpoint of a proxy."""

    pci_device_details: PCIDeviceDetails | None = always(None, name="PCIDeviceDetails")


class ProxyEndpointSettings(Model):
    """The settings of an endpoint of a proxy."""

    name: str = always("")
    mac_address: str = always("", name="Macaddress")
    ip_address: str = always("", name="IPAddress")
    ip_address_prefix_length: int = always(0, name="IPAddressPrefixLength")
    network_name: str = always("")
    default_gateway: str = always("")
    device_details: DeviceDetails | None = always(None)


class ProxyEndpoint(Model):
    """An endpoint that only a network configuration proxy knows (hcsshim ``internal/ncproxy/networking``).

    As Go writes it, every name is there, and what is absent is null.
    """

    endpoint_name: str = always("")
    namespace_id: str = always("", name="NamespaceID")
    settings: ProxyEndpointSettings | None = always(None)
