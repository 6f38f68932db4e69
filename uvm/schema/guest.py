"""The settings of the guest's requests (hcsshim's ``guestresource``)."""

from __future__ import annotations

from typing import Any

from msgspec import field

from uvm.schema.common import Layer
from uvm.schema.json import Model, Secret, always
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
RESOURCE_BLOCK_CIMS = "WCOWBlockCims"
RESOURCE_VPMEM_DEVICE = "VPMemDevice"
RESOURCE_VPCI_DEVICE = "VPCIDevice"
RESOURCE_CONTAINER_CONSTRAINTS = "ContainerConstraints"
RESOURCE_HV_SOCKET = "HvSocket"
RESOURCE_SECURITY_POLICY = "SecurityPolicy"
RESOURCE_SECURITY_POLICY_FRAGMENT = "SecurityPolicyFragment"
RESOURCE_POD_CGROUP_MEMORY_LIMIT = "PodCgroupMemoryLimit"
#: The suspension of all that runs in a Linux guest, for a template: not of hcsshim's guest, but of this
#: library's (:mod:`uvm.agent`). Add suspends, Remove resumes with :class:`LCOWResumption`.
RESOURCE_SUSPENSION = "Suspension"


class SCSIDevice(Model):
    """A SCSI device that the guest releases before the host detaches it."""

    controller: int = 0
    lun: int = 0


class LCOWMappedVirtualDisk(Model):
    """A disk mounted in a Linux guest; partition 0 is the whole disk."""

    mount_path: str = ""
    lun: int = 0
    controller: int = 0
    partition: int = 0
    read_only: bool = False
    encrypted: bool = False
    options: list[str] = []
    block_dev: bool = False
    verity_info: Any = None
    ensure_filesystem: bool = False
    filesystem: str = ""


class WCOWMappedVirtualDisk(Model):
    """A disk mounted in a Windows guest."""

    container_path: str = ""
    lun: int = 0


class BlockCIMDevice(Model):
    """A block CIM: the name of the CIM on a disk."""

    cim_name: str = always("")
    lun: int = always(0)


class CWCOWBlockCIMMounts(Model):
    """Block CIMs mounted in a Windows guest: the merged one, then layer n to 1."""

    block_cims: list[BlockCIMDevice] = field(name="BlockCIMs", default_factory=list)
    volume_guid: str = always(NULL_GUID, name="VolumeGUID")
    mount_flags: int = 0
    container_id: str = field(name="ContainerID", default="")


class LCOWMappedDirectory(Model):
    """A Plan9 share mounted in a Linux guest."""

    mount_path: str = ""
    port: int = 0
    share_name: str = ""
    read_only: bool = False


class LCOWVPMemMappingInfo(Model):
    """The range of a layer on a packed VPMEM device."""

    device_offset_in_bytes: int = 0
    device_size_in_bytes: int = 0


class LCOWMappedVPMemDevice(Model):
    """A VPMEM layer mounted in a Linux guest."""

    device_number: int = 0
    mount_path: str = ""
    mapping_info: LCOWVPMemMappingInfo | None = None
    verity_info: Any = None


class LCOWMappedVPCIDevice(Model):
    """A PCI device that a Linux guest waits for."""

    vmbus_guid: str = field(name="VMBusGUID", default="")


class LCOWIPConfig(Model):
    """An address of a network adapter."""

    ip_address: str = field(name="IPAddress", default="")
    prefix_length: int = 0


class LCOWNetworkAdapter(Model):
    """A network adapter of a Linux guest and its configuration.

    ``dns_suffix`` is the search list and ``dns_server_list`` the servers, both joined with commas.
    """

    namespace_id: str = field(name="NamespaceID", default="")
    id: str = field(name="ID", default="")
    mac_address: str = ""
    dns_suffix: str = field(name="DNSSuffix", default="")
    dns_server_list: str = field(name="DNSServerList", default="")
    encap_overhead: int = 0
    vpci_assigned: bool = field(name="VPCIAssigned", default=False)
    ip_configs: list[LCOWIPConfig] = field(name="IPConfigs", default_factory=list)
    routes: list[Route] = []
    policy_based_routing: bool = False
    enable_low_metric: bool = False


class LCOWCombinedLayers(Model):
    """The union of layers and a scratch directory: a container's root file system."""

    container_id: str = field(name="ContainerID", default="")
    container_root_path: str = ""
    layers: list[Layer] = []
    scratch_path: str = ""


class WCOWCombinedLayers(Model):
    """The layers of a Windows container's root file system; ``filter_type`` is ``UnionFS`` or ``WCIFS``."""

    container_root_path: str = ""
    layers: list[Layer] = []
    scratch_path: str = ""
    filter_type: str = ""


class CWCOWCombinedLayers(Model):
    """Combined layers of a confidential Windows guest, which are bound to a container."""

    container_id: str = field(name="ContainerID", default="")
    combined_layers: WCOWCombinedLayers = always(WCOWCombinedLayers)


class LCOWResumption(Model):
    """What runs in the Linux guest of a clone is resumed: random bytes, base64, and the time of the host."""

    entropy: Secret[str] = ""
    unix_nanoseconds: int = 0


class LCOWContainerConstraints(Model):
    """Limits of a container, as OCI resources of the guest's kind."""

    windows: dict[str, Any] = always(dict)
    linux: dict[str, Any] = always(dict)


class ConfidentialOptions(Model):
    """The security policy and its enforcer, and the measurements of the VM; all base64."""

    enforcer_type: str = ""
    encoded_security_policy: Secret[str] = ""
    encoded_uvm_reference: str = field(name="EncodedUVMReference", default="")
    encoded_uvm_hash_envelope_reference: str = field(name="EncodedUVMHashEnvelopeReference", default="")


class SecurityPolicyFragment(Model):
    """A part of a security policy, and its media type."""

    fragment: Secret[str] = ""
    media_type: str = ""


class HvSocketAddress(Model):
    """The Hyper-V socket addresses (GUIDs) of the guest and its parent."""

    local_address: str = ""
    parent_address: str = ""


class SystemTime(Model):
    """A date of a time zone's change, as in Win32's ``SYSTEMTIME``."""

    year: int = 0
    month: int = 0
    day_of_week: int = 0
    day: int = 0
    hour: int = 0
    minute: int = 0
    second: int = 0
    milliseconds: int = 0


class TimeZoneInformation(Model):
    """A time zone, as in Win32's ``TIME_ZONE_INFORMATION``; biases are in minutes."""

    bias: int = 0
    standard_name: str = ""
    standard_date: SystemTime | None = None
    standard_bias: int = 0
    daylight_name: str = ""
    daylight_date: SystemTime | None = None
    daylight_bias: int = 0


class LogForwardServiceRPCRequest(Model):
    """A command to the log forwarding service of a Windows guest."""

    rpc_type: str = field(name="RPCType", default="")
    settings: str = ""
