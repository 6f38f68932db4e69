"""What the annotations of an OCI specification say of its container, for those that make its document.

The guest reads others in the specification itself; :data:`uvm.options.annotations.READ_ELSEWHERE` has both.

Source: hcsshim internal/hcsoci/hcsdoc_wcow.go, devices.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from uvm._checks import I32
from uvm._repr import Value
from uvm.options import annotationvalues as values
from uvm.options.annotations import DISABLE_GMSA, HOST_PROCESS, expanded_annotations
from uvm.options.annotationvalues import Reader
from uvm.options.wcow import RegistryValue

_DUMP_TYPES: Final = {"mini": 1, "full": 2}


@frozen(kw_only=True, repr=False)
class ContainerAnnotations(Value):
    r"""What annotations say of a container; what they leave open is 0, empty or False.

    :ivar memory_mb: its memory, instead of that of its resources.
    :ivar processor_count: its processors, likewise.
    :ivar processor_limit: its share of them, in 1/10,000, likewise.
    :ivar processor_weight: its weight, likewise. Of these three a Windows container has one at most.
    :ivar storage_qos_bandwidth_max: bytes of storage traffic per second, at most, likewise.
    :ivar storage_qos_iops_max: storage operations per second, at most, likewise.
    :ivar process_dump_location: its directory for dumps of processes; None: that of the VM.
    :ivar process_dump_type: 1 for small dumps, 2 for full ones, as the registry of Windows has it.
    :ivar process_dump_count: how many dumps are kept.
    :ivar registry_values: more registry values. For tests.
    :ivar device_extensions: the host's files with device extensions for its document.
    :ivar disable_gmsa: it gets no group managed service account.
    :ivar host_process: it is a host process container.
    :ivar inherit_user: such a container runs as the user of its VM's service.
    :ivar host_process_root: its root file system in the VM; empty: ``C:\hpc``.
    """

    memory_mb: int = 0
    processor_count: int = 0
    processor_limit: int = 0
    processor_weight: int = 0
    storage_qos_bandwidth_max: int = 0
    storage_qos_iops_max: int = 0
    process_dump_location: str | None = None
    process_dump_type: int = _DUMP_TYPES["full"]
    process_dump_count: int = 10
    registry_values: tuple[RegistryValue, ...] = ()
    device_extensions: tuple[str, ...] = ()
    disable_gmsa: bool = False
    host_process: bool = False
    inherit_user: bool = False
    host_process_root: str = ""


def _dump_type(text: str) -> int:
    return _DUMP_TYPES[values.choice(*_DUMP_TYPES)(text or "full")]


def _dump_count(text: str) -> int:
    return values.whole(I32, 1)(text) if text else 10


_CONTAINER: Final = "io.microsoft.container."
DEVICE_EXTENSIONS: Final = f"{_CONTAINER}wcow.deviceextensions"
HOST_PROCESS_ROOT: Final = "microsoft.com/hostprocess-rootfs-location"
#: By annotation, the field that it sets.
OF_CONTAINERS: Final[dict[str, tuple[str, Reader]]] = {
    f"{_CONTAINER}memory.sizeinmb": ("memory_mb", values.u64),
    f"{_CONTAINER}processor.count": ("processor_count", values.i32),
    f"{_CONTAINER}processor.limit": ("processor_limit", values.i32),
    f"{_CONTAINER}processor.weight": ("processor_weight", values.i32),
    f"{_CONTAINER}storage.qos.bandwidthmaximum": ("storage_qos_bandwidth_max", values.i32),
    f"{_CONTAINER}storage.qos.iopsmaximum": ("storage_qos_iops_max", values.i32),
    f"{_CONTAINER}processdumplocation": ("process_dump_location", values.text),
    "io.microsoft.wcow.processdumptype": ("process_dump_type", _dump_type),
    "io.microsoft.wcow.processdumpcount": ("process_dump_count", _dump_count),
    f"{_CONTAINER}wcow.test-registry-annotation": ("registry_values", values.registry_values),
    DEVICE_EXTENSIONS: ("device_extensions", values.names),
    DISABLE_GMSA: ("disable_gmsa", values.flag),
    HOST_PROCESS: ("host_process", values.flag),
    "microsoft.com/hostprocess-inherit-user": ("inherit_user", values.flag),
    HOST_PROCESS_ROOT: ("host_process_root", values.text),
}


def container_annotations(annotations: Mapping[str, str]) -> ContainerAnnotations:
    """Return what annotations say of the container of their specification.

    :raises OptionsError: a value is not written as it has to be, or contradicts another; the annotation is
        named.
    """
    given = expanded_annotations(annotations)
    found = {
        field: values.read(name, reader, given[name])
        for name, (field, reader) in OF_CONTAINERS.items()
        if name in given
    }
    return ContainerAnnotations(**found)
