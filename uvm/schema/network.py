"""Documents of HCN (Host Compute Network): namespaces, endpoints and their policies.

Unlike HCS's, HCN's documents always carry their structures (``Dns``, ``Health``, ``SchemaVersion``),
as hcsshim's ``hcn`` package writes them.
"""

from __future__ import annotations

from typing import Any

from attrs import define

from uvm.schema.field import named

ENCAP_OVERHEAD = "EncapOverhead"
IOV = "Iov"


@define(kw_only=True)
class SchemaVersion:
    """A version of the HCN schema; 2.0 is the one in use."""

    major: int = named("Major", default=0, always=True)
    minor: int = named("Minor", default=0, always=True)


@define(kw_only=True)
class IpConfig:
    """An address of an endpoint."""

    ip_address: str = named("IpAddress", default="")
    prefix_length: int = named("PrefixLength", default=0)


@define(kw_only=True)
class Route:
    """A route of an endpoint, or of the adapter of a Linux guest."""

    next_hop: str = named("NextHop", default="")
    destination_prefix: str = named("DestinationPrefix", default="")
    metric: int = named("Metric", default=0)


@define(kw_only=True)
class Dns:
    """Name resolution of an endpoint."""

    domain: str = named("Domain", default="")
    search: list[str] = named("Search", factory=list)
    server_list: list[str] = named("ServerList", factory=list)
    options: list[str] = named("Options", factory=list)


@define(kw_only=True)
class Health:
    """The health of an endpoint."""

    data: Any = named("Data", default=None)
    extra: dict[str, Any] = named("Extra", factory=dict, always=True)


@define(kw_only=True)
class EndpointPolicy:
    """A policy of an endpoint; ``settings`` depends on the type."""

    type: str = named("Type", default="", always=True)
    settings: Any = named("Settings", default=None)


@define(kw_only=True)
class IovPolicySetting:
    """Settings of an ``Iov`` policy."""

    iov_offload_weight: int = named("IovOffloadWeight", default=0)
    queue_pairs_requested: int = named("QueuePairsRequested", default=0)
    interrupt_moderation: int = named("InterruptModeration", default=0)


@define(kw_only=True)
class HostComputeEndpoint:
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


@define(kw_only=True)
class NamespaceResource:
    """A member of a namespace; ``type`` is ``Container`` or ``Endpoint``, ``data`` holds its ``ID``."""

    type: str = named("Type", default="", always=True)
    data: Any = named("Data", default=None, always=True)


@define(kw_only=True)
class HostComputeNamespace:
    """A namespace (a network compartment): ``Host``, ``HostDefault``, ``Guest`` or ``GuestDefault``."""

    id: str = named("ID", default="")
    namespace_id: int = named("NamespaceId", default=0)
    type: str = named("Type", default="")
    resources: list[NamespaceResource] = named("Resources", factory=list)
    schema_version: SchemaVersion = named("SchemaVersion", factory=SchemaVersion, always=True)
