"""The CPU groups of the fake host: which processors a group of VMs shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import define, field

from uvm._checks import guid
from uvm._names import guid_key, guid_text
from uvm._repr import showing
from uvm.backend import JSON
from uvm.backends.requests.request import read_document
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.guest import NULL_GUID
from uvm.schema.json import to_json
from uvm.schema.properties import PROPERTY_CPU_GROUP
from uvm.schema.requests import (
    CpuGroupAffinity,
    CpuGroupConfig,
    CpuGroupConfigurations,
    CreateGroupOperation,
    DeleteGroupOperation,
    HostProcessorModificationRequest,
    ServiceSettingRequest,
)

_OPERATION: Final = "modify the compute service"


@showing("groups")
@define(eq=False, repr=False)
class CpuGroups:
    """The CPU groups of a host.

    :ivar groups: by id, in lower case.
    """

    processors: int
    groups: dict[str, CpuGroupConfig] = field(factory=dict, init=False)

    def modify(self, document: JSON, used: Iterable[str]) -> None:
        """Create or delete a group.

        :param used: the groups that VMs are in.
        :raises HostError: HCS_E_INVALID_JSON; E_INVALIDARG for an id or processors that are none,
            ERROR_ALREADY_EXISTS; ERROR_HV_INVALID_CPU_GROUP_ID for a group that is not there, and
            ERROR_HV_INVALID_CPU_GROUP_STATE for one that VMs are in.
        """
        request = read_document(ServiceSettingRequest, document, _OPERATION)
        if request.property_type != PROPERTY_CPU_GROUP:
            raise _refused(HResult.HCS_E_INVALID_JSON, f"unknown property {request.property_type!r}")
        change = read_document(HostProcessorModificationRequest, request.settings, _OPERATION)
        match change.operation:
            case "CreateGroup":
                self._create(read_document(CreateGroupOperation, change.operation_details, _OPERATION))
            case "DeleteGroup":
                found = self.find(
                    read_document(DeleteGroupOperation, change.operation_details, _OPERATION).group_id
                )
                if found in {guid_key(each) for each in used}:
                    raise _refused(HResult.ERROR_HV_INVALID_CPU_GROUP_STATE, f"VMs are in {found}")
                del self.groups[found]
            case other:
                raise _refused(HResult.HCS_E_INVALID_JSON, f"unknown Operation {other!r}")

    def _create(self, wanted: CreateGroupOperation) -> None:
        key, processors = guid_key(wanted.group_id), wanted.logical_processors
        if guid(guid_text(wanted.group_id)) is not None or key == NULL_GUID:
            raise _refused(HResult.E_INVALIDARG, f"GroupId is {wanted.group_id!r}")
        if not processors or len({*processors}) != wanted.logical_processor_count:
            text = (
                f"LogicalProcessorCount is {wanted.logical_processor_count}, LogicalProcessors {processors}"
            )
            raise _refused(HResult.E_INVALIDARG, text)
        if not all(0 <= each < self.processors for each in processors):
            raise _refused(HResult.E_INVALIDARG, f"the host has processors 0 to {self.processors - 1}")
        if key in self.groups:
            raise _refused(HResult.ERROR_ALREADY_EXISTS, f"there is a group {key}")
        affinity = CpuGroupAffinity(
            logical_processor_count=len(processors), logical_processors=sorted(processors)
        )
        self.groups[key] = CpuGroupConfig(group_id=wanted.group_id, affinity=affinity)

    def find(self, group_id: str, operation: str = _OPERATION) -> str:
        """Return the key of a group; ERROR_HV_INVALID_CPU_GROUP_ID if there is none."""
        key = guid_key(group_id)
        if key not in self.groups:
            code = HResult.ERROR_HV_INVALID_CPU_GROUP_ID
            raise HostError(operation, code, f"there is no CPU group {group_id}")
        return key

    def document(self, group_ids: Iterable[str]) -> JSON:
        """Return the ``CpuGroupConfigurations`` of some groups."""
        found = [self.groups.get(guid_key(each)) or CpuGroupConfig(group_id=each) for each in group_ids]
        return {"CpuGroups": [], **to_json(CpuGroupConfigurations(cpu_groups=found))}


def _refused(code: HResult, text: str) -> HostError:
    return HostError(_OPERATION, code, text)
