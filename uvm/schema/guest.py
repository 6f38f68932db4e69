"""The settings of the guest's requests (hcsshim's ``guestresource``)."""

from __future__ import annotations

from typing import Any

from uvm.schema.common import Layer
from uvm.schema.field import Model, named
from uvm.schema.network import Route

NULL_GUID = "00000000-0000-0000-0000-000000000000"

#: Resource types of the requests to the guest.
RESOURCE_MAPPED_DIRECTORY = "MappedDirectory"
RESOURCE_SCSI_DEVICE = "SCSIDevice"
RESOURCE_MAPPED_VIRTUAL_DISK = "MappedVirtualDisk"
RESOURCE_MAPPED_VIRTUAL_DISK_FOR_CONTAINER_SCRATCH = "MappedVirtualDiskForContainerScratch"
RESOURCE_NETWORK = "Network"
RESOURCE_NETWORK_NAMESPACE = "NetworkNamespace"
RESOURCE_COMBINED_LAYERS = "CombinedLayers"
RESOURCE_CWCOW_COMBINED_LAYERS = "CWCOWCombinedLayers"
RESOURCE_VPMEM_DEVICE = "VPMemDevice"
RESOURCE_VPCI_DEVICE = "VPCIDevice"
RESOURCE_CONTAINER_CONSTRAINTS = "ContainerConstraints"
RESOURCE_HV_SOCKET = "HvSocket"
RESOURCE_SECURITY_POLICY = "SecurityPolicy"
RESOURCE_SECURITY_POLICY_FRAGMENT = "SecurityPolicyFragment"
RESOURCE_POD_CGROUP_MEMORY_LIMIT = "PodCgroupMemoryLimit"


class SCSIDevice(Model):
    """A SCSI device that the guest releases before the host detaches it."""

    controller: int = named("Controller", default=0)
    lun: int = named("Lun", default=0)


class LCOWMappedVirtualDisk(Model):
    """A disk mounted in a Linux guest; partition 0 is the whole disk."""

    mount_path: str = named("MountPath", default="")
    lun: int = named("Lun", default=0)
    controller: int = named("Controller", default=0)
    partition: int = named("Partition", default=0)
    read_only: bool = named("ReadOnly", default=False)
    encrypted: bool = named("Encrypted", default=False)
    options: list[str] = named("Options", factory=list)
    block_dev: bool = named("BlockDev", default=False)
    verity_info: Any = named("VerityInfo", default=None)
    ensure_filesystem: bool = named("EnsureFilesystem", default=False)
    filesystem: str = named("Filesystem", default="")


class WCOWMappedVirtualDisk(Model):
    """A disk mounted in a Windows guest."""

    container_path: str = named("ContainerPath", default="")
    lun: int = named("Lun", default=0)


class BlockCIMDevice(Model):
    """A block CIM: the name of the CIM on a disk."""

    cim_name: str = named("CimName", default="", always=True)
    lun: int = named("Lun", default=0, always=True)


class CWCOWBlockCIMMounts(Model):
    """Block CIMs mounted in a confidential Windows guest: the merged one, then layer n to 1."""

    block_cims: list[BlockCIMDevice] = named("BlockCIMs", factory=list)
    volume_guid: str = named("VolumeGUID", default=NULL_GUID, always=True)
    mount_flags: int = named("MountFlags", default=0)
    container_id: str = named("ContainerID", default="")


class LCOWMappedDirectory(Model):
    """A Plan9 share mounted in a Linux guest."""

    mount_path: str = named("MountPath", default="")
    port: int = named("Port", default=0)
    share_name: str = named("ShareName", default="")
    read_only: bool = named("ReadOnly", default=False)


class LCOWVPMemMappingInfo(Model):
    """The range of a layer on a packed VPMEM device."""

    device_offset_in_bytes: int = named("DeviceOffsetInBytes", default=0)
    device_size_in_bytes: int = named("DeviceSizeInBytes", default=0)


class LCOWMappedVPMemDevice(Model):
    """A VPMEM layer mounted in a Linux guest."""

    device_number: int = named("DeviceNumber", default=0)
    mount_path: str = named("MountPath", default="")
    mapping_info: LCOWVPMemMappingInfo | None = named("MappingInfo", default=None)
    verity_info: Any = named("VerityInfo", default=None)


class LCOWMappedVPCIDevice(Model):
    """A PCI device that a Linux guest waits for."""

    vmbus_guid: str = named("VMBusGUID", default="")


class LCOWIPConfig(Model):
    """An address of a network adapter."""

    ip_address: str = named("IPAddress", default="")
    prefix_length: int = named("PrefixLength", default=0)


class LCOWNetworkAdapter(Model):
    """A network adapter of a Linux guest and its configuration.

    ``dns_suffix`` is the search list and ``dns_server_list`` the servers, both joined with commas.
    """

    namespace_id: str = named("NamespaceID", default="")
    id: str = named("ID", default="")
    mac_address: str = named("MacAddress", default="")
    dns_suffix: str = named("DNSSuffix", default="")
    dns_server_list: str = named("DNSServerList", default="")
    encap_overhead: int = named("EncapOverhead", default=0)
    vpci_assigned: bool = named("VPCIAssigned", default=False)
    ip_configs: list[LCOWIPConfig] = named("IPConfigs", factory=list)
    routes: list[Route] = named("Routes", factory=list)
    policy_based_routing: bool = named("PolicyBasedRouting", default=False)
    enable_low_metric: bool = named("EnableLowMetric", default=False)


class LCOWCombinedLayers(Model):
    """The union of layers and a scratch directory: a container's root file system."""

    container_id: str = named("ContainerID", default="")
    container_root_path: str = named("ContainerRootPath", default="")
    layers: list[Layer] = named("Layers", factory=list)
    scratch_path: str = named("ScratchPath", default="")


class WCOWCombinedLayers(Model):
    """The layers of a Windows container's root file system; ``filter_type`` is ``UnionFS`` or ``WCIFS``."""

    container_root_path: str = named("ContainerRootPath", default="")
    layers: list[Layer] = named("Layers", factory=list)
    scratch_path: str = named("ScratchPath", default="")
    filter_type: str = named("FilterType", default="")


class CWCOWCombinedLayers(Model):
    """Combined layers of a confidential Windows guest, which are bound to a container."""

    container_id: str = named("ContainerID", default="")
    combined_layers: WCOWCombinedLayers = named("CombinedLayers", factory=WCOWCombinedLayers, always=True)


class LCOWContainerConstraints(Model):
    """Limits of a container, as OCI resources of the guest's kind."""

    windows: dict[str, Any] = named("Windows", factory=dict, always=True)
    linux: dict[str, Any] = named("Linux", factory=dict, always=True)


class ConfidentialOptions(Model):
    """The security policy and its enforcer, and the measurements of the VM; all base64."""

    enforcer_type: str = named("EnforcerType", default="")
    encoded_security_policy: str = named("EncodedSecurityPolicy", default="", secret=True)
    encoded_uvm_reference: str = named("EncodedUVMReference", default="")
    encoded_uvm_hash_envelope_reference: str = named("EncodedUVMHashEnvelopeReference", default="")


class SecurityPolicyFragment(Model):
    """A part of a security policy, and its media type."""

    fragment: str = named("Fragment", default="", secret=True)
    media_type: str = named("MediaType", default="")


class HvSocketAddress(Model):
    """The Hyper-V socket addresses (GUIDs) of the guest and its parent."""

    local_address: str = named("LocalAddress", default="")
    parent_address: str = named("ParentAddress", default="")


class SystemTime(Model):
    """A date of a time zone's change, as in Win32's ``SYSTEMTIME``."""

    year: int = named("Year", default=0)
    month: int = named("Month", default=0)
    day_of_week: int = named("DayOfWeek", default=0)
    day: int = named("Day", default=0)
    hour: int = named("Hour", default=0)
    minute: int = named("Minute", default=0)
    second: int = named("Second", default=0)
    milliseconds: int = named("Milliseconds", default=0)


class TimeZoneInformation(Model):
    """A time zone, as in Win32's ``TIME_ZONE_INFORMATION``; biases are in minutes."""

    bias: int = named("Bias", default=0)
    standard_name: str = named("StandardName", default="")
    standard_date: SystemTime | None = named("StandardDate", default=None)
    standard_bias: int = named("StandardBias", default=0)
    daylight_name: str = named("DaylightName", default="")
    daylight_date: SystemTime | None = named("DaylightDate", default=None)
    daylight_bias: int = named("DaylightBias", default=0)


class LogForwardServiceRPCRequest(Model):
    """A command to the log forwarding service of a Windows guest."""

    rpc_type: str = named("RPCType", default="")
    settings: str = named("Settings", default="")
