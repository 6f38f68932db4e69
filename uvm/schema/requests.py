"""Requests that change a running system, and the paths of the resources they change.

A :class:`ModifySettingRequest` goes to HCS; a :class:`ModificationRequest` to the guest, over our own
connection or inside the former's ``guest_request``, which HCS relays.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, ClassVar

from attrs import astuple, define, frozen

from uvm.schema.field import named

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


# With slots, attrs would create each class twice, and both would be subclasses.
@frozen(slots=False)
class Resource:
    """A resource named by a path.

    :cvar PATH: the path, with a place for each field.
    """

    PATH: ClassVar[str]

    @property
    def path(self) -> str:
        """The resource path."""
        return self.PATH % astuple(self, recurse=False)


@frozen(slots=False)
class ScsiAttachment(Resource):
    """A slot for a disk.

    :ivar controller: the VMBus GUID of its controller, as in the path.
    """

    PATH: ClassVar[str] = "VirtualMachine/Devices/Scsi/%s/Attachments/%d"
    controller: str
    lun: int

    @property
    def controller_number(self) -> int | None:
        """The number of the controller in the guest; None if its GUID is unknown."""
        guid = self.controller.lower()
        return SCSI_CONTROLLER_GUIDS.index(guid) if guid in SCSI_CONTROLLER_GUIDS else None


@frozen(slots=False)
class VPMemDevice(Resource):
    """A VPMEM device."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/VirtualPMem/Devices/%d"
    device: int


@frozen(slots=False)
class VPMemMapping(Resource):
    """A mapping at an offset of a packed VPMEM device."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/VirtualPMem/Devices/%d/Mappings/%d"
    device: int
    offset_bytes: int


@frozen(slots=False)
class VSMBShares(Resource):
    """The SMB shares; the settings of a request name one."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/VirtualSmb/Shares"


@frozen(slots=False)
class Plan9Shares(Resource):
    """The 9p shares; the settings of a request name one."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/Plan9/Shares"


@frozen(slots=False)
class VirtualAdapter(Resource):
    """A network adapter."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/NetworkAdapters/%s"
    id: str


@frozen(slots=False)
class VirtualPci(Resource):
    """A PCI device, by its GUID in the guest."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/VirtualPci/%s"
    vmbus_guid: str


@frozen(slots=False)
class MappedPipe(Resource):
    """A mapped named pipe."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/MappedPipes/%s"
    host_path: str


@frozen(slots=False)
class SerialPort(Resource):
    """A serial port."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/ComPorts/%d"
    number: int


@frozen(slots=False)
class SocketService(Resource):
    """An entry of the Hyper-V socket service table."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/HvSocket/HvSocketConfig/ServiceTable/%s"
    service_id: str


@frozen(slots=False)
class MemorySize(Resource):
    """The size of the memory."""

    PATH: ClassVar[str] = "VirtualMachine/ComputeTopology/Memory/SizeInMB"


@frozen(slots=False)
class CpuGroupAssignment(Resource):
    """The CPU group that the VM is in."""

    PATH: ClassVar[str] = "VirtualMachine/ComputeTopology/Processor/CpuGroup"


@frozen(slots=False)
class CpuLimits(Resource):
    """The limits of the processors."""

    PATH: ClassVar[str] = "VirtualMachine/ComputeTopology/Processor/Limits"


MEMORY_SIZE_PATH = MemorySize.PATH
CPU_GROUP_PATH = CpuGroupAssignment.PATH
CPU_LIMITS_PATH = CpuLimits.PATH
PLAN9_SHARES_PATH = Plan9Shares.PATH
VSMB_SHARES_PATH = VSMBShares.PATH


def scsi_attachment_path(controller: int, lun: int) -> str:
    """Return the path of a disk, by the number of its controller and its LUN."""
    return ScsiAttachment.PATH % (SCSI_CONTROLLER_GUIDS[controller], lun)


def vpmem_device_path(device: int) -> str:
    """Return the path of a VPMEM device."""
    return VPMemDevice.PATH % device


def vpmem_mapping_path(device: int, offset_bytes: int) -> str:
    """Return the path of a mapping at an offset of a packed VPMEM device."""
    return VPMemMapping.PATH % (device, offset_bytes)


def network_adapter_path(adapter_id: str) -> str:
    """Return the path of a network adapter."""
    return VirtualAdapter.PATH % adapter_id


def virtual_pci_path(vmbus_guid: str) -> str:
    """Return the path of a PCI device, by its GUID in the guest."""
    return VirtualPci.PATH % vmbus_guid


def mapped_pipe_path(host_path: str) -> str:
    """Return the path of a mapped named pipe."""
    return MappedPipe.PATH % host_path


def hvsocket_service_path(service_id: str) -> str:
    """Return the path of an entry of the Hyper-V socket service table."""
    return SocketService.PATH % service_id


def parse_resource_path(path: str) -> Resource | None:
    """Return the resource named by a path, the inverse of the functions above; None if it is unknown."""
    for resource in Resource.__subclasses__():
        pattern, kinds = _pattern(resource.PATH)
        if found := pattern.fullmatch(path):
            return resource(*(kind(text) for kind, text in zip(kinds, found.groups(), strict=True)))
    return None


@cache
def _pattern(path: str) -> tuple[re.Pattern[str], list[type[int] | type[str]]]:
    """Return the pattern of a kind's paths and the types of its fields."""
    # A pipe has a host path, with separators.
    text = "(?s:(.+))" if path == MappedPipe.PATH else "([^/]+)"
    pattern = re.compile(path.replace("%s", text).replace("%d", "([0-9]{1,20})"))
    return pattern, [int if place == "%d" else str for place in re.findall("%[ds]", path)]


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
    """Create a CPU group."""

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
    """The reason for a pause."""

    reason: str = named("Reason", default="")


@define(kw_only=True)
class PauseOptions:
    """The options of a pause."""

    suspension_level: str = named("SuspensionLevel", default="")
    hosted_notification: PauseNotification | None = named("HostedNotification", default=None)


@define(kw_only=True)
class SaveOptions:
    """The options of a save: how, and to which file."""

    save_type: str = named("SaveType", default="")
    save_state_file_path: str = named("SaveStateFilePath", default="")
