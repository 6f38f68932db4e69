"""Containers, in HCS or hosted in a VM, and the parts of their root file systems."""

from __future__ import annotations

from typing import Any

from msgspec import field

from uvm.schema.common import Layer, RegistryChanges, StorageQoS, Version
from uvm.schema.devices import HvSocketSystemConfig
from uvm.schema.json import Model, Secret, always


class GuestOs(Model):
    """The name of the container's host."""

    host_name: str = ""


class MappedDirectory(Model):
    """A directory mapped into a Windows container or guest."""

    host_path: str = ""
    host_path_type: str = ""
    container_path: str = ""
    read_only: bool = False


class MappedPipe(Model):
    """A named pipe of the host mapped into a container."""

    container_pipe_name: str = ""
    host_path: str = ""
    host_path_type: str = ""


class Memory(Model):
    """Memory of a container, in MB."""

    size_in_mb: int = field(name="SizeInMB", default=0)


class Processor(Model):
    """Processors of a container: ``maximum`` in 1/10,000 of all, ``weight`` 0 to 10,000."""

    count: int = 0
    maximum: int = 0
    weight: int = 0


class Networking(Model):
    """Network of a container; ``namespace`` is an HCN namespace."""

    allow_unqualified_dns_query: bool = False
    dns_search_list: str = ""
    network_shared_container_name: str = ""
    namespace: str = ""
    network_adapters: list[str] = []


class ContainerCredentialGuardState(Model):
    """Credentials (a group managed service account) of a container."""

    cookie: Secret[str] = ""
    rpc_endpoint: str = ""
    transport: str = ""
    credential_spec: Secret[str] = ""


class HvSocket(Model):
    """Hyper-V sockets of a container."""

    config: HvSocketSystemConfig | None = None
    enable_power_shell_direct: bool = False


class Device(Model):
    """A host device in a container."""

    type: str = ""
    interface_class_guid: str = ""
    location_path: str = ""


class Storage(Model):
    """Root file system of a container."""

    layers: list[Layer] = []
    path: str = ""
    qos: StorageQoS | None = field(name="QoS", default=None)
    privileged_container_root_path: str = ""


class Container(Model):
    """A container."""

    guest_os: GuestOs | None = None
    storage: Storage | None = None
    mapped_directories: list[MappedDirectory] = []
    mapped_pipes: list[MappedPipe] = []
    memory: Memory | None = None
    processor: Processor | None = None
    networking: Networking | None = None
    hv_socket: HvSocket | None = None
    container_credential_guard: ContainerCredentialGuardState | None = None
    registry_changes: RegistryChanges | None = None
    assigned_devices: list[Device] = []
    additional_device_namespace: Any = None
    isolation_type: str = ""


class HostedSystem(Model):
    """A container inside a VM, in the guest's view."""

    schema_version: Version | None = None
    container: Container | None = None


class CWCOWHostedSystem(Model):
    """A container inside a confidential Windows VM, and its OCI specification, for the security policy."""

    spec: Secret[dict[str, Any]] = always(dict)
    cwcow_hosted_system: HostedSystem = always(HostedSystem, name="CWCOWHostedSystem")
