"""Requests that change a running system, and the paths of the resources they change.

A :class:`ModifySettingRequest` goes to HCS; a :class:`ModificationRequest` to the guest, over our own
connection or inside the former's ``guest_request``, which HCS relays.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, ClassVar

from msgspec import Struct, field
from msgspec.structs import astuple

from uvm._names import guid_key
from uvm.schema.json import Model

ADD = "Add"
REMOVE = "Remove"
PRE_ADD = "PreAdd"
UPDATE = "Update"

#: The resources of a container in a Windows guest (hcsshim internal/hcs/resourcepaths/silo.go).
CONTAINER_MEMORY = "Container/Memory/SizeInMB"
CONTAINER_PROCESSOR = "Container/Processor"
CONTAINER_DIRECTORIES = "Container/MappedDirectories"

#: VMBus GUIDs of the SCSI controllers, in order: version 5 GUIDs of the names "0" to "3" in the
#: namespace d422512d-2bf2-4752-809d-7b82b5fcb1b4.
SCSI_CONTROLLER_GUIDS = (
    "df6d0690-79e5-55b6-a5ec-c1e2f77f580a",
    "0110f83b-de10-5172-a266-78bca56bf50a",
    "b5d2d8d4-3a75-51bf-945b-3444dc6b8579",
    "305891a9-b251-5dfe-91a2-c25d9212275b",
)


class Resource(Struct, frozen=True):
    """A resource named by a path.

    :cvar PATH: the path, with a place for each field.
    """

    PATH: ClassVar[str]

    @property
    def path(self) -> str:
        """The resource path."""
        return self.PATH % astuple(self)


class ScsiAttachment(Resource, frozen=True):
    """A slot for a disk.

    :ivar controller: the VMBus GUID of its controller, as in the path.
    """

    PATH: ClassVar[str] = "VirtualMachine/Devices/Scsi/%s/Attachments/%d"
    controller: str
    lun: int

    @property
    def controller_number(self) -> int | None:
        """The number of the controller in the guest; None if its GUID is unknown."""
        guid = guid_key(self.controller)
        return SCSI_CONTROLLER_GUIDS.index(guid) if guid in SCSI_CONTROLLER_GUIDS else None


class VPMemDevice(Resource, frozen=True):
    """A VPMEM device."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/VirtualPMem/Devices/%d"
    device: int


class VPMemMapping(Resource, frozen=True):
    """A mapping at an offset of a packed VPMEM device."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/VirtualPMem/Devices/%d/Mappings/%d"
    device: int
    offset_bytes: int


class VSMBShares(Resource, frozen=True):
    """The SMB shares; the settings of a request name one."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/VirtualSmb/Shares"


class Plan9Shares(Resource, frozen=True):
    """The 9p shares; the settings of a request name one."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/Plan9/Shares"


class VirtualAdapter(Resource, frozen=True):
    """A network adapter."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/NetworkAdapters/%s"
    id: str


class VirtualPci(Resource, frozen=True):
    """A PCI device, by its GUID in the guest."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/VirtualPci/%s"
    vmbus_guid: str


class MappedPipe(Resource, frozen=True):
    """A mapped named pipe."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/MappedPipes/%s"
    host_path: str


class SerialPort(Resource, frozen=True):
    """A serial port."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/ComPorts/%d"
    number: int


class SocketService(Resource, frozen=True):
    """An entry of the Hyper-V socket service table."""

    PATH: ClassVar[str] = "VirtualMachine/Devices/HvSocket/HvSocketConfig/ServiceTable/%s"
    service_id: str


class MemorySize(Resource, frozen=True):
    """The size of the memory."""

    PATH: ClassVar[str] = "VirtualMachine/ComputeTopology/Memory/SizeInMB"


class CpuGroupAssignment(Resource, frozen=True):
    """The CPU group that the VM is in."""

    PATH: ClassVar[str] = "VirtualMachine/ComputeTopology/Processor/CpuGroup"


class CpuLimits(Resource, frozen=True):
    """The limits of the processors."""

    PATH: ClassVar[str] = "VirtualMachine/ComputeTopology/Processor/Limits"


def scsi_attachment_path(controller: int, lun: int) -> str:
    """Return the path of a disk, by the number of its controller and its LUN."""
    return ScsiAttachment.PATH % (SCSI_CONTROLLER_GUIDS[controller], lun)


def parse_resource_path(path: str) -> Resource | None:
    """Return the resource named by a path, the inverse of :attr:`Resource.path`; None if it is unknown."""
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


class ModifySettingRequest(Model):
    """A change on the host; ``settings`` depends on the path and the request type."""

    resource_path: str = ""
    request_type: str = ""
    settings: Any = None
    guest_request: Any = None


class ModificationRequest(Model):
    """A change in the guest; ``settings`` depends on the resource type."""

    request_type: str = ""
    resource_type: str = ""
    settings: Any = None


class NetworkModifyRequest(Model):
    """A change of a Windows guest's adapter, on Windows 10 1809 (build 17763) and newer."""

    adapter_id: str = ""
    request_type: str = ""
    settings: Any = None


class RS4NetworkModifyRequest(Model):
    """A change of a Windows guest's adapter, on builds before 17763."""

    adapter_instance_id: str = ""
    request_type: str = ""
    settings: Any = None


class ProcessorLimits(Model):
    """New limits of the processors: limit and reservation in 1/100,000, weight relative."""

    limit: int = 0
    weight: int = 0
    reservation: int = 0
    maximum_frequency_mhz: int = field(name="MaximumFrequencyMHz", default=0)


class CpuGroupProperty(Model):
    """A property of a CPU group."""

    property_code: int = 0
    property_value: int = 0


class CpuGroupAffinity(Model):
    """The logical processors of a CPU group."""

    logical_processor_count: int = 0
    logical_processors: list[int] = []


class CpuGroupConfig(Model):
    """A CPU group."""

    group_id: str = ""
    affinity: CpuGroupAffinity | None = None
    group_properties: list[CpuGroupProperty] = []
    hypervisor_group_id: int = 0


class CpuGroupConfigurations(Model):
    """The CPU groups of the host."""

    cpu_groups: list[CpuGroupConfig] = []


class CreateGroupOperation(Model):
    """Create a CPU group."""

    group_id: str = ""
    logical_processor_count: int = 0
    logical_processors: list[int] = []


class DeleteGroupOperation(Model):
    """Delete a CPU group."""

    group_id: str = ""


class HostProcessorModificationRequest(Model):
    """A change of the host's CPU groups: ``CreateGroup`` or ``DeleteGroup``."""

    operation: str = ""
    operation_details: Any = None


class ServiceSettingRequest(Model):
    """A change of the compute service itself; ``property_type`` names what of it, such as ``CpuGroup``."""

    property_type: str = ""
    settings: Any = None


class PauseOptions(Model):
    """The options of a pause."""

    suspension_level: str = ""
    hosted_notification: Any = None


class SaveOptions(Model):
    """The options of a save: how, and to which file."""

    save_type: str = ""
    save_state_file_path: str = ""
