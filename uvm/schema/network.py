"""Documents of HCN (Host Compute Network): namespaces, endpoints and their policies.

Unlike HCS's, HCN's documents always carry their structures (``Dns``, ``Health``, ``SchemaVersion``),
as hcsshim's ``hcn`` package writes them.
"""

from __future__ import annotations

from typing import Any

from uvm.schema.field import Model, named

ENCAP_OVERHEAD = "EncapOverhead"
IOV = "Iov"


class SchemaVersion(Model):
    """A version of the HCN schema; 2.0 is the one in use."""

    major: int = named("Major", default=0, always=True)
    minor: int = named("Minor", default=0, always=True)


class IpConfig(Model):
    """An address of an endpoint."""

    ip_address: str = named("IpAddress", default="")
    prefix_length: int = named("PrefixLength", default=0)


class Route(Model):
    """A route of an endpoint, or of the adapter of a Linux guest."""

    next_hop: str = named("NextHop", default="")
    destination_prefix: str = named("DestinationPrefix", default="")
    metric: int = named("Metric", default=0)


class Dns(Model):
    """Name resolution of an endpoint."""

    domain: str = named("Domain", default="")
    search: list[str] = named("Search", factory=list)
    server_list: list[str] = named("ServerList", factory=list)
    options: list[str] = named("Options", factory=list)


class Health(Model):
    """The health of an endpoint."""

    data: Any = named("Data", default=None)
    extra: dict[str, Any] = named("Extra", factory=dict, always=True)


class EndpointPolicy(Model):
    """A policy of an endpoint; ``settings`` depends on the type."""

    type: str = named("Type", default="", always=True)
    settings: Any = named("Settings", default=None)


class IovPolicySetting(Model):
    """Settings of an ``Iov`` policy."""

    iov_offload_weight: int = named("IovOffloadWeight", default=0)
    queue_pairs_requested: int = named("QueuePairsRequested", default=0)
    interrupt_moderation: int = named("InterruptModeration", default=0)


class HostComputeEndpoint(Model):
    """An endpoint: an adapter's place on a network."""

    id: str = named("ID", default="")
    name: str = named("Name", default="")
    host_compute_network: str = named("HostComputeNetwork", default="")
    host_compute_namespace: str = named("HostComputeNamespace", default="")
    policies: list[EndpointPolicy] = named("Policies", factory=list)
    ip_configurations: list[IpConfig] = named("IpConfigurations", factory=list)
    dns: Dns = named("Dns", factory=Dns, always=True)
    routes: list[Route] = named("Routes", factory=list)
    mac_address: str = named("MacAddress", default="")
    flags: int = named("Flags", default=0)
    health: Health = named("Health", factory=Health, always=True)
    schema_version: SchemaVersion = named("SchemaVersion", factory=SchemaVersion, always=True)


class NamespaceResource(Model):
    """A member of a namespace; ``type`` is ``Container`` or ``Endpoint``, ``data`` holds its ``ID``."""

    type: str = named("Type", default="", always=True)
    data: Any = named("Data", default=None, always=True)


class HostComputeNamespace(Model):
    """A namespace (a network compartment): ``Host``, ``HostDefault``, ``Guest`` or ``GuestDefault``."""

    id: str = named("ID", default="")
    namespace_id: int = named("NamespaceId", default=0)
    type: str = named("Type", default="")
    resources: list[NamespaceResource] = named("Resources", factory=list)
    schema_version: SchemaVersion = named("SchemaVersion", factory=SchemaVersion, always=True)
