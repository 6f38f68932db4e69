"""The requests that change a running system, and the paths of what they change.

A :class:`ModifySettingRequest` goes to HCS; a :class:`ModificationRequest` to the guest, over our own
connection or inside the former's ``guest_request``, which HCS relays.
"""

from __future__ import annotations

from typing import Any

from attrs import define

from uvm.schema.field import named

__all__ = [
    "ADD",
    "CPU_GROUP_PATH",
    "CPU_LIMITS_PATH",
    "CpuGroupAffinity",
    "CpuGroupConfig",
    "CpuGroupConfigurations",
    "CpuGroupProperty",
    "CreateGroupOperation",
    "DeleteGroupOperation",
    "HostProcessorModificationRequest",
    "MEMORY_SIZE_PATH",
    "ModificationRequest",
    "ModifySettingRequest",
    "NetworkModifyRequest",
    "PLAN9_SHARES_PATH",
    "PRE_ADD",
    "PauseNotification",
    "PauseOptions",
    "ProcessorLimits",
    "REMOVE",
    "RS4NetworkModifyRequest",
    "SCSI_CONTROLLER_GUIDS",
    "SaveOptions",
    "UPDATE",
    "VSMB_SHARES_PATH",
    "hvsocket_service_path",
    "mapped_pipe_path",
    "network_adapter_path",
    "scsi_attachment_path",
    "virtual_pci_path",
    "vpmem_device_path",
    "vpmem_mapping_path",
]

ADD = "Add"
REMOVE = "Remove"
PRE_ADD = "PreAdd"
UPDATE = "Update"

#: VMBus GUIDs of the SCSI controllers, in order: version 5 GUIDs of the names "0" to "3" in the
#: namespace d422512d-2bf2-4752-809d-7b82b5fcb1b4.
SCSI_CONTROLLER_GUIDS = (
    "df6d0690-79e5-55b6-a5ec-c1e2f77f580a",
    "0110f83b-de10-5172-a266-78bca56bf50a",
    "b5d2d8d4-3a75-51bf-945b-3444dc6b8579",
    "305891a9-b251-5dfe-91a2-c25d9212275b",
)

MEMORY_SIZE_PATH = "VirtualMachine/ComputeTopology/Memory/SizeInMB"
CPU_GROUP_PATH = "VirtualMachine/ComputeTopology/Processor/CpuGroup"
CPU_LIMITS_PATH = "VirtualMachine/ComputeTopology/Processor/Limits"
PLAN9_SHARES_PATH = "VirtualMachine/Devices/Plan9/Shares"
VSMB_SHARES_PATH = "VirtualMachine/Devices/VirtualSmb/Shares"


def scsi_attachment_path(controller: int, lun: int) -> str:
    """Give the path of a disk, by the number of its controller and its LUN."""
    return f"VirtualMachine/Devices/Scsi/{SCSI_CONTROLLER_GUIDS[controller]}/Attachments/{lun}"


def vpmem_device_path(device: int) -> str:
    """Give the path of a VPMEM device."""
    return f"VirtualMachine/Devices/VirtualPMem/Devices/{device}"


def vpmem_mapping_path(device: int, offset_bytes: int) -> str:
    """Give the path of what is mapped at an offset of a packed VPMEM device."""
    return f"VirtualMachine/Devices/VirtualPMem/Devices/{device}/Mappings/{offset_bytes}"


def network_adapter_path(adapter_id: str) -> str:
    """Give the path of a network adapter."""
    return f"VirtualMachine/Devices/NetworkAdapters/{adapter_id}"


def virtual_pci_path(vmbus_guid: str) -> str:
    """Give the path of a PCI device, by the GUID under which the guest sees it."""
    return f"VirtualMachine/Devices/VirtualPci/{vmbus_guid}"


def mapped_pipe_path(host_path: str) -> str:
    """Give the path of a mapped named pipe."""
    return f"VirtualMachine/Devices/MappedPipes/{host_path}"


def hvsocket_service_path(service_id: str) -> str:
    """Give the path of an entry of the Hyper-V socket service table."""
    return f"VirtualMachine/Devices/HvSocket/HvSocketConfig/ServiceTable/{service_id}"


@define(kw_only=True)
class ModifySettingRequest:
    """A change on the host; ``settings`` depends on the path and the request type."""

    resource_path: str = named("ResourcePath", default="")
    request_type: str = named("RequestType", default="")
    settings: Any = named("Settings", default=None)
    guest_request: Any = named("GuestRequest", default=None)


@define(kw_only=True)
class ModificationRequest:
    """A change in the guest; ``settings`` depends on the resource type."""

    request_type: str = named("RequestType", default="")
    resource_type: str = named("ResourceType", default="")
    settings: Any = named("Settings", default=None)


@define(kw_only=True)
class NetworkModifyRequest:
    """A change of a Windows guest's adapter, on Windows 10 1809 (build 17763) and newer."""

    adapter_id: str = named("AdapterId", default="")
    request_type: str = named("RequestType", default="")
    settings: Any = named("Settings", default=None)


@define(kw_only=True)
class RS4NetworkModifyRequest:
    """A change of a Windows guest's adapter, on builds before 17763."""

    adapter_instance_id: str = named("AdapterInstanceId", default="")
    request_type: str = named("RequestType", default="")
    settings: Any = named("Settings", default=None)


@define(kw_only=True)
class ProcessorLimits:
    """New limits of the processors: limit and reservation in 1/100,000, weight relative."""

    limit: int = named("Limit", default=0)
    weight: int = named("Weight", default=0)
    reservation: int = named("Reservation", default=0)
    maximum_frequency_mhz: int = named("MaximumFrequencyMHz", default=0)


@define(kw_only=True)
class CpuGroupProperty:
    """A property of a CPU group."""

    property_code: int = named("PropertyCode", default=0)
    property_value: int = named("PropertyValue", default=0)


@define(kw_only=True)
class CpuGroupAffinity:
    """The logical processors of a CPU group."""

    logical_processor_count: int = named("LogicalProcessorCount", default=0)
    logical_processors: list[int] = named("LogicalProcessors", factory=list)


@define(kw_only=True)
class CpuGroupConfig:
    """A CPU group."""

    group_id: str = named("GroupId", default="")
    affinity: CpuGroupAffinity | None = named("Affinity", default=None)
    group_properties: list[CpuGroupProperty] = named("GroupProperties", factory=list)
    hypervisor_group_id: int = named("HypervisorGroupId", default=0)


@define(kw_only=True)
class CpuGroupConfigurations:
    """The CPU groups of the host."""

    cpu_groups: list[CpuGroupConfig] = named("CpuGroups", factory=list)


@define(kw_only=True)
class CreateGroupOperation:
    """Make a CPU group."""

    group_id: str = named("GroupId", default="")
    logical_processor_count: int = named("LogicalProcessorCount", default=0)
    logical_processors: list[int] = named("LogicalProcessors", factory=list)


@define(kw_only=True)
class DeleteGroupOperation:
    """Delete a CPU group."""

    group_id: str = named("GroupId", default="")


@define(kw_only=True)
class HostProcessorModificationRequest:
    """A change of the host's CPU groups."""

    operation: str = named("Operation", default="")
    operation_details: Any = named("OperationDetails", default=None)


@define(kw_only=True)
class PauseNotification:
    """Why a VM is paused."""

    reason: str = named("Reason", default="")


@define(kw_only=True)
class PauseOptions:
    """How to pause a VM."""

    suspension_level: str = named("SuspensionLevel", default="")
    hosted_notification: PauseNotification | None = named("HostedNotification", default=None)


@define(kw_only=True)
class SaveOptions:
    """How and where to save a VM's state."""

    save_type: str = named("SaveType", default="")
    save_state_file_path: str = named("SaveStateFilePath", default="")
