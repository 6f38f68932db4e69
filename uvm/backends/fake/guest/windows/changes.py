"""What a fake Windows guest refuses of changes to a running container.

Its source is not public: the paths are those of hcsshim internal/hcs/resourcepaths/silo.go, the ranges
those of the HCS schema.
"""

from __future__ import annotations

from typing import Any, Final

from uvm.backend import JSON
from uvm.backends.fake.guest.state import GuestRequest
from uvm.errors import GuestError
from uvm.hresult import HResult
from uvm.schema.container import Processor
from uvm.schema.json import SchemaError, from_json, to_json
from uvm.schema.requests import ModifySettingRequest

_MAXIMUM: Final = 10_000


def read_change(document: JSON, failure: int) -> GuestRequest:
    """Return a ``ModifySettingRequest``, parsed; one without a type adds."""
    try:
        request = from_json(ModifySettingRequest, document, forbid_extra=True)
    except SchemaError as e:
        raise GuestError("modify", HResult.ERROR_VMCOMPUTE_INVALID_JSON, str(e)) from None
    return GuestRequest(request.request_type or "Add", request.resource_path, request.settings, failure)


def check_memory(request: GuestRequest, of_vm_mb: int) -> None:
    """Refuse a size of a container's memory that is none, or more than the VM has."""
    size = request.settings
    if type(size) is not int:
        raise request.refuse(HResult.ERROR_VMCOMPUTE_INVALID_JSON, "the size is a whole number of MB")
    if size <= 0 or size % 2:
        raise request.fail(f"a memory size is even and more than 0, not {size} MB")
    if size > of_vm_mb:
        raise request.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES, f"the VM has {of_vm_mb} MB")


def check_processor(request: GuestRequest, processors: int) -> list[tuple[str, Any]]:
    """Return the one setting of the processors that is changed."""
    wanted = request.parse(Processor)
    if wanted.count > processors:
        raise request.fail(f"the VM has {processors} processors, not {wanted.count}")
    if not (0 <= wanted.maximum <= _MAXIMUM and 0 <= wanted.weight <= _MAXIMUM and wanted.count >= 0):
        raise request.fail(f"Maximum and Weight are at most {_MAXIMUM}")
    changed = [*to_json(wanted).items()]
    if len(changed) != 1:
        raise request.fail("one of Count, Maximum and Weight is changed at a time")
    return changed
