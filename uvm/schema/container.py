"""Containers, in HCS or hosted in a VM, and the parts of their root file systems."""

from __future__ import annotations

from typing import Any

from uvm.schema.common import Layer, RegistryChanges, StorageQoS, Version
from uvm.schema.devices import HvSocketSystemConfig
from uvm.schema.field import Model, named


class GuestOs(Model):
    """The name of the container's host."""

    host_name: str = named("HostName", default="")


class MappedDirectory(Model):
    """A directory mapped into a Windows container or guest."""

    host_path: str = named("HostPath", default="")
    host_path_type: str = named("HostPathType", default="")
    container_path: str = named("ContainerPath", default="")
    read_only: bool = named("ReadOnly", default=False)


class MappedPipe(Model):
    """A named pipe of the host mapped into a container."""

    container_pipe_name: str = named("ContainerPipeName", default="")
    host_path: str = named("HostPath", default="")
    host_path_type: str = named("HostPathType", default="")


class Memory(Model):
    """Memory of a container, in MB."""

    size_in_mb: int = named("SizeInMB", default=0)


class Processor(Model):
    """Processors of a container: ``maximum`` in 1/10,000 of all, ``weight`` 0 to 10,000."""

    count: int = named("Count", default=0)
    maximum: int = named("Maximum", default=0)
    weight: int = named("Weight", default=0)


class Networking(Model):
    """Network of a container; ``namespace`` is an HCN namespace."""

    allow_unqualified_dns_query: bool = named("AllowUnqualifiedDnsQuery", default=False)
    dns_search_list: str = named("DnsSearchList", default="")
    network_shared_container_name: str = named("NetworkSharedContainerName", default="")
    namespace: str = named("Namespace", default="")
    network_adapters: list[str] = named("NetworkAdapters", factory=list)


class ContainerCredentialGuardState(Model):
    """Credentials (a group managed service account) of a container."""

    cookie: str = named("Cookie", default="", secret=True)
    rpc_endpoint: str = named("RpcEndpoint", default="")
    transport: str = named("Transport", default="")
    credential_spec: str = named("CredentialSpec", default="", secret=True)


class HvSocket(Model):
    """Hyper-V sockets of a container."""

    config: HvSocketSystemConfig | None = named("Config", default=None)
    enable_power_shell_direct: bool = named("EnablePowerShellDirect", default=False)


class Device(Model):
    """A host device in a container."""

    type: str = named("Type", default="")
    interface_class_guid: str = named("InterfaceClassGuid", default="")
    location_path: str = named("LocationPath", default="")


class Storage(Model):
    """Root file system of a container."""

    layers: list[Layer] = named("Layers", factory=list)
    path: str = named("Path", default="")
    qos: StorageQoS | None = named("QoS", default=None)
    privileged_container_root_path: str = named("PrivilegedContainerRootPath", default="")


class Container(Model):
    """A container."""

    guest_os: GuestOs | None = named("GuestOs", default=None)
    storage: Storage | None = named("Storage", default=None)
    mapped_directories: list[MappedDirectory] = named("MappedDirectories", factory=list)
    mapped_pipes: list[MappedPipe] = named("MappedPipes", factory=list)
    memory: Memory | None = named("Memory", default=None)
    processor: Processor | None = named("Processor", default=None)
    networking: Networking | None = named("Networking", default=None)
    hv_socket: HvSocket | None = named("HvSocket", default=None)
    container_credential_guard: ContainerCredentialGuardState | None = named(
        "ContainerCredentialGuard", default=None
    )
    registry_changes: RegistryChanges | None = named("RegistryChanges", default=None)
    assigned_devices: list[Device] = named("AssignedDevices", factory=list)
    additional_device_namespace: Any = named("AdditionalDeviceNamespace", default=None)
    isolation_type: str = named("IsolationType", default="")


class HostedSystem(Model):
    """A container inside a VM, in the guest's view."""

    schema_version: Version | None = named("SchemaVersion", default=None)
    container: Container | None = named("Container", default=None)
