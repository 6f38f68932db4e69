r"""Containers from specifications in a Windows guest: what is attached, and what the guest is sent. Pure.

Theory of operation
-------------------

The type of a mount is empty, or that of a disk. By its source, :data:`SOURCES` has what is attached for it,
and :class:`WindowsPlan` where that is in the document::

    a path of the host            a VSMB share                                 a mapped directory
    virtual-disk, physical-disk,
    extensible-virtual-disk       a SCSI disk, mounted                         likewise, after the others
    sandbox://PATH                a directory, made in the VM's SandboxMounts  likewise
    \\.\pipe\NAME                 a pipe of the host, mapped into the VM       a mapped pipe
    uvm://\\.\pipe\NAME           nothing: a pipe of the VM itself             a mapped pipe

A PCI device is assigned to the VM, and named by the location paths that the guest has it at; class GUIDs and
location paths of the guest are named as they are. In a confidential VM the guest makes directories itself,
and takes the specification beside the document.

Source: hcsshim ``internal/hcsoci`` (``hcsdoc_wcow.go``, ``resources_wcow.go``, ``devices.go``),
``internal/uvm/pipes.go``, ``internal/oci/uvm.go``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from attrs import frozen

from uvm._checks import whole
from uvm._document.common import registry_value
from uvm._guest.resources import read_resources
from uvm._guest.specs import Command, check_text, check_writable, part, windows_container
from uvm._names import guest_path, guest_path_key, is_at_or_under, pipe_path
from uvm._vm.pods.plan import (
    BLOCK_DEVICE,
    DISKS,
    GUEST,
    HUGE_PAGES,
    PIPE,
    SANDBOX,
    SANDBOX_TMP,
    Attachment,
    Disk,
    GuestDirectory,
    GuestRoot,
    LocatedDevice,
    Member,
    OCIMount,
    Pipe,
    Share,
    confined,
    devices_in,
    items,
    mounts_of,
    refuse_device_twice,
    source_of,
)
from uvm.backend import JSON
from uvm.devices.scsi import DiskType, Mount, parse_evd
from uvm.devices.vpci import PCI_ID_TYPES
from uvm.errors import NotSupportedError, OptionsError
from uvm.options import ContainerAnnotations, container_annotations
from uvm.options.containerannotations import DEVICE_EXTENSIONS, HOST_PROCESS_ROOT
from uvm.schema import container as schema
from uvm.schema.common import (
    MIB,
    Layer,
    RegistryChanges,
    RegistryKey,
    RegistryValue,
    StorageQoS,
    Version,
)
from uvm.schema.json import to_json

_SANDBOX_MOUNTS: Final = "C:\\SandboxMounts"
#: What means more to ``cmd`` than itself; and the ends of names that Windows drops.
_NOT_A_NAME: Final = re.compile(r'["%&<>^|!*?:,;=()\x00-\x1f]|[ .](?=/|\Z)')
_I32: Final = (1 << 31) - 1

#: The types of ids of devices that are in the document as they are, and the field of each.
_NAMED_DEVICES: Final = {
    "class": "interface_class_guid",
    "vpci-class-guid": "interface_class_guid",
    "vpci-location-path": "location_path",
}
_LOCAL_DUMPS: Final = "Microsoft\\Windows\\Windows Error Reporting\\LocalDumps"
#: Where the file system of a host process container must not be (hcsshim ``internal/ospath``).
_OF_THE_VM: Final = ("C:\\Windows", "C:\\mounts", "C:\\EFI", _SANDBOX_MOUNTS)


@frozen
class VMFacts:
    """What of its VM the document of a Windows container depends on.

    :ivar id: the VM's id.
    :ivar processors: how many it has.
    :ivar confidential: it has a security policy.
    :ivar dumps: its option ``process_dump_location``.
    :ivar device_util: hcsshim's ``device-util.exe`` on the host; empty without it.
    """

    id: str
    processors: int
    confidential: bool = False
    dumps: str = ""
    device_util: str = ""


@frozen
class WindowsPlan:
    """What is to be done for a container (:class:`~uvm._vm.pods.plan.ContainerPlan`)."""

    spec: JSON
    member: Member
    facts: VMFacts
    mounts: tuple[OCIMount, ...]
    #: By the place of a mount in the list, what is attached for it, or where it is in the guest already.
    attached: dict[int, Attachment]
    sources: dict[int, str]
    devices: dict[int, LocatedDevice]
    init: Command | None
    annotations: ContainerAnnotations

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """What is attached: for mounts, then devices."""
        return (*self.attached.values(), *self.devices.values())

    def document(self, places: Sequence[str], root: GuestRoot) -> JSON:
        """Return the document of the container; in a confidential VM its specification as well."""
        sources = {**self.sources, **dict(zip(self.attached, places, strict=False))}
        located = dict(zip(self.devices, places[len(self.attached) :], strict=True))
        annotations = self.annotations
        made = schema.Container(
            storage=schema.Storage(
                path=root.path,
                layers=[Layer(id=id, path=path) for id, path in root.layers],
                qos=_qos(self.spec, annotations),
                privileged_container_root_path=_host_process_root(annotations),
            ),
            guest_os=schema.GuestOs(host_name=self.spec["hostname"]) if self.spec.get("hostname") else None,
            processor=_processor(self.spec, annotations, self.facts.processors),
            memory=_memory(self.spec, annotations),
            networking=_networking(self.spec, self.member),
            mapped_directories=self._directories(sources),
            mapped_pipes=self._pipes(sources),
            registry_changes=RegistryChanges(add_values=_registry(annotations, self.facts, self.member.id)),
            assigned_devices=_assigned(self.spec, located),
            isolation_type="HostProcess" if annotations.host_process else "",
        )
        hosted = schema.HostedSystem(schema_version=Version(major=2, minor=1), container=made)
        if not self.facts.confidential:
            return to_json(hosted)
        spec: JSON = json.loads(json.dumps(self.spec))
        spec["root"] = {**part(spec, "root"), "path": root.path}
        return to_json(schema.CWCOWHostedSystem(spec=spec, cwcow_hosted_system=hosted))

    def _directories(self, sources: Mapping[int, str]) -> list[schema.MappedDirectory]:
        # Disks come after the others.
        ordered = sorted(self.mounts, key=lambda each: isinstance(self.attached.get(each.index), Disk))
        return [
            schema.MappedDirectory(
                host_path=sources[each.index], container_path=each.destination, read_only=each.read_only
            )
            for each in ordered
            if not _is_pipe(each.destination)
        ]

    def _pipes(self, sources: Mapping[int, str]) -> list[schema.MappedPipe]:
        return [
            schema.MappedPipe(container_pipe_name=_name_of(each.destination), host_path=sources[each.index])
            for each in self.mounts
            if _is_pipe(each.destination)
        ]


def plan(spec: Mapping[str, Any], member: Member, facts: VMFacts) -> WindowsPlan:
    """Return what is to be done for a container in a Windows guest.

    :raises OptionsError: its specification cannot work.
    :raises NotSupportedError: it asks for what this library does not do.
    """
    own: JSON = json.loads(check_writable("the specification", dict(spec)))
    mounts = mounts_of(own, "windows")
    attached, sources = dict[int, Attachment](), dict[int, str]()
    for mount in mounts:
        wanted = _mount(mount, facts)
        if isinstance(wanted, str):
            sources[mount.index] = wanted
        else:
            attached[mount.index] = wanted
    devices, init = _devices(own, facts), _init(part(own, "process"))
    annotations = container_annotations(part(own, "annotations"))
    made = WindowsPlan(own, member, facts, mounts, attached, sources, devices, init, annotations)
    _check(own, annotations)
    # What cannot be in a document is refused before anything is attached.
    document = made.document([""] * len(made.attachments), GuestRoot(""))
    windows_container(document, confidential=facts.confidential)
    return made


def _check(spec: JSON, annotations: ContainerAnnotations) -> None:
    if part(spec, "root").get("readonly"):
        raise OptionsError("root.readonly of the specification: a Windows container's root is writable")
    if part(spec, "windows").get("credentialSpec"):
        raise NotSupportedError(
            "windows.credentialSpec of the specification: credentials of group managed service accounts are "
            "not handed to containers; leave it out"
        )
    if annotations.device_extensions:
        raise NotSupportedError(f"{DEVICE_EXTENSIONS}: device extensions are not read; leave it out")
    if spec.get("hostname"):
        check_text("hostname of the specification", spec["hostname"])


def _init(process: JSON) -> Command | None:
    """Return the container's own, first process; None if the specification has none.

    :raises OptionsError: it is no process of a Windows container.
    """
    line, args = process.get("commandLine") or None, process.get("args") or []
    if not args and line is None:
        return None
    env = process.get("env") or []
    for each in (*args, *env):
        check_text("process of the specification", each)
    size = part(process, "consoleSize")
    return Command(
        args or [line],
        env=dict(each.split("=", 1) for each in env if "=" in each),
        cwd=process.get("cwd") or None,
        user=part(process, "user").get("username") or None,
        terminal=process.get("terminal") is True,
        size=(size["height"], size["width"]) if size.get("height") and size.get("width") else None,
        command_line=line,
    )


# Mounts. Each function returns what is attached, or where it is in the guest already.

_Planned = Attachment | str


def _mount(mount: OCIMount, facts: VMFacts) -> _Planned:
    if mount.destination.startswith(BLOCK_DEVICE):
        raise OptionsError(f"{mount}: block devices are in Linux containers alone; name a directory")
    if mount.type not in TYPES:
        known = ", ".join(sorted(filter(None, TYPES)))
        raise OptionsError(
            f"{mount} is of the type {mount.type!r}, which a Windows guest has not: that of a directory, a "
            f"file or a pipe is empty, and those of disks are {known}"
        )
    return TYPES[mount.type](mount, facts)


def _by_source(mount: OCIMount, facts: VMFacts) -> _Planned:
    source = source_of(mount)
    if _is_pipe(source):
        return _host_pipe(mount)
    for prefix, planned in SOURCES.items():
        if source.startswith(prefix):
            return planned(mount, facts)
    _check_no_pipe(mount)
    return Share(source, mount.read_only)


def _is_pipe(path: str) -> bool:
    return path[: len(PIPE)].replace("/", "\\").casefold() == PIPE


def _name_of(pipe: str) -> str:
    """Return the name of a pipe, as Windows has it: ``//./pipe/a`` is ``a``, too."""
    return pipe_path(pipe)[len(PIPE) :]


def _check_pipe(mount: OCIMount) -> None:
    if not _is_pipe(mount.destination) or not mount.destination[len(PIPE) :].strip("\\/"):
        raise OptionsError(
            f"{mount}: its source {mount.source!r} is a pipe, and so has to be its destination: {PIPE}NAME"
        )


def _check_no_pipe(mount: OCIMount) -> None:
    if _is_pipe(mount.destination):
        raise OptionsError(f"{mount} is a pipe, and its source {mount.source!r} is none")


def _host_pipe(mount: OCIMount) -> _Planned:
    _check_pipe(mount)
    return Pipe(pipe_path(mount.source, f"the source of {mount}"))


def _in_vm(mount: OCIMount, facts: VMFacts) -> _Planned:
    source = mount.source.removeprefix(GUEST)
    if not _is_pipe(source):
        raise OptionsError(f"{mount}: of a Windows VM itself only pipes are mounted: {GUEST}{PIPE}NAME")
    _check_pipe(mount)
    return f"{PIPE}{facts.id.removesuffix('@vm')}\\{_name_of(source)}"


def _sandbox(mount: OCIMount, facts: VMFacts) -> _Planned:
    _check_no_pipe(mount)
    inside = confined(mount, SANDBOX, "windows")
    path = (_SANDBOX_MOUNTS + inside.replace("/", "\\")).rstrip("\\")
    key, root = (guest_path_key(each, "windows") for each in (path, _SANDBOX_MOUNTS))
    if _NOT_A_NAME.search(inside) or not is_at_or_under(key, root):
        raise OptionsError(f"{mount}: no directory of a VM is made under such a name: {mount.source!r}")
    return path if facts.confidential else GuestDirectory(path)


def _of_linux(mount: OCIMount, facts: VMFacts) -> _Planned:
    raise OptionsError(f"{mount}: its source {mount.source!r} is of Linux guests alone")


def _disk(type: DiskType, mount: OCIMount, facts: VMFacts) -> _Planned:
    path = source_of(mount)
    if type is DiskType.EXTENSIBLE_VIRTUAL_DISK:
        parse_evd(path)
    _check_no_pipe(mount)
    return Disk(path, type, mount.read_only, Mount())


#: By what a source begins with, what it takes.
SOURCES: Final[dict[str, Callable[[OCIMount, VMFacts], _Planned]]] = {
    SANDBOX: _sandbox,
    SANDBOX_TMP: _of_linux,
    HUGE_PAGES: _of_linux,
    GUEST: _in_vm,
}
#: By the type of a mount, what it takes.
TYPES: Final[dict[str, Callable[[OCIMount, VMFacts], _Planned]]] = {
    "": _by_source,
    **{name: partial(_disk, type) for name, type in DISKS.items()},
}


# Devices.


def _devices(spec: JSON, facts: VMFacts) -> dict[int, LocatedDevice]:
    """Return the devices that are to be assigned, by their places in the list.

    :raises OptionsError: one is of an unknown type, or there twice, or there is nothing to locate it with.
    """
    found = dict[int, LocatedDevice]()
    for index, each in enumerate(devices_in(spec, (*PCI_ID_TYPES, *_NAMED_DEVICES))):
        if each["idType"] in _NAMED_DEVICES:
            continue
        if not facts.device_util:
            raise OptionsError(
                f"windows.devices[{index}] of the specification is located in a Windows guest by hcsshim's "
                "device-util.exe; name that (Pod.create(device_util=)). Nothing was attached"
            )
        found[index] = LocatedDevice(each["id"], facts.device_util)
    refuse_device_twice(each.path for each in found.values())
    return found


def _assigned(spec: JSON, located: Mapping[int, str]) -> list[schema.Device]:
    """Return the devices of the document; of one that was assigned, each of its location paths."""
    made = []
    for index, each in enumerate(items(spec, "windows.devices")):
        if index in located:
            paths = located[index].split(",")
            made += [schema.Device(type="DeviceInstance", location_path=path) for path in paths]
            continue
        field = _NAMED_DEVICES[each["idType"]]
        type = "DeviceInstance" if field == "location_path" else ""
        made.append(schema.Device(type=type, **{field: each["id"]}))
    return made


# Resources. An annotation wins over what the specification says.


def _resources(spec: JSON, of: str) -> JSON:
    found = read_resources(part(spec, "windows.resources"), "windows").get(of)
    return found or {}


def _processor(spec: JSON, annotations: ContainerAnnotations, processors: int) -> schema.Processor:
    given = _resources(spec, "cpu")
    if given.get("affinity"):
        raise NotSupportedError("cpu.affinity: the processors of a container in a VM cannot be chosen")
    made = schema.Processor(
        count=min(annotations.processor_count or int(given.get("count") or 0), processors),
        maximum=annotations.processor_limit or int(given.get("maximum") or 0),
        weight=annotations.processor_weight or int(given.get("shares") or 0),
    )
    if sum(map(bool, (made.count, made.maximum, made.weight))) > 1:
        raise OptionsError(
            f"a Windows container has one of a count of processors ({made.count}), a maximum of them "
            f"({made.maximum}) and a weight ({made.weight})"
        )
    return made


def _memory(spec: JSON, annotations: ContainerAnnotations) -> schema.Memory | None:
    limit = _resources(spec, "memory").get("limit") or 0
    if 0 < limit < MIB:
        raise OptionsError(f"resources.memory.limit must be {MIB} bytes, 1 MiB, at least, not {limit}")
    size = annotations.memory_mb or limit // MIB
    return schema.Memory(size_in_mb=size) if size else None


def _qos(spec: JSON, annotations: ContainerAnnotations) -> StorageQoS | None:
    given = _resources(spec, "storage")
    made = StorageQoS(
        bandwidth_maximum=annotations.storage_qos_bandwidth_max or int(given.get("bps") or 0),
        iops_maximum=annotations.storage_qos_iops_max or int(given.get("iops") or 0),
    )
    if (allowed := whole(_I32)(max(made.bandwidth_maximum, made.iops_maximum))) is not None:
        raise OptionsError(f"bps and iops of resources.storage must be {allowed}")
    return made if made != StorageQoS() else None


def _networking(spec: JSON, member: Member) -> schema.Networking | None:
    given = part(spec, "windows.network")
    namespace = member.network or given.get("networkNamespace") or ""
    if not given and not namespace:
        return None
    searched = given.get("DNSSearchList") or []
    if not isinstance(searched, list):
        raise OptionsError("windows.network.DNSSearchList of the specification is no list")
    for each in searched:
        check_text("windows.network.DNSSearchList of the specification", each)
    return schema.Networking(
        namespace=namespace,
        allow_unqualified_dns_query=given.get("allowUnqualifiedDNSQuery") is True,
        dns_search_list=",".join(searched),
        network_shared_container_name=given.get("networkSharedContainerName") or "",
    )


# What is peculiar to Windows containers.


def _registry(annotations: ContainerAnnotations, facts: VMFacts, container_id: str) -> list[RegistryValue]:
    """Return the values of the registry: the time that services have to end, where dumps go, and others."""
    control = RegistryKey(hive="System", name="ControlSet001\\Control")
    # A process has the time that its signal waits for, not the guest's 5 s.
    waits = RegistryValue(key=control, name="WaitToKillServiceTimeout", type="String", string_value=str(_I32))
    return [
        waits,
        *_dumps(annotations, facts, container_id),
        *map(registry_value, annotations.registry_values),
    ]


def _dumps(annotations: ContainerAnnotations, facts: VMFacts, container_id: str) -> list[RegistryValue]:
    location = annotations.process_dump_location
    if location is None:
        location = facts.dumps
    if not location:
        return []
    check_text("the directory for dumps of processes", location)
    for suffix in ("{container_id}", "{CONTAINER_ID}"):
        if location.endswith(suffix):
            location = location.removesuffix(suffix) + container_id
    key = RegistryKey(hive="Software", name=_LOCAL_DUMPS)
    type, count = annotations.process_dump_type, annotations.process_dump_count
    return [
        RegistryValue(key=key, name="DumpFolder", type="String", string_value=location),
        RegistryValue(key=key, name="DumpType", type="DWord", dword_value=type),
        RegistryValue(key=key, name="DumpCount", type="DWord", dword_value=count),
    ]


def _host_process_root(annotations: ContainerAnnotations) -> str:
    """Return where a host process container has its file system, if not at the default place."""
    given = annotations.host_process_root
    if not given or not annotations.host_process:
        return ""
    path = guest_path(given, "windows", HOST_PROCESS_ROOT)
    key = guest_path_key(path, "windows")
    taken = (guest_path_key(each, "windows") for each in _OF_THE_VM)
    if path[1:3] != ":\\" or any(is_at_or_under(key, each) for each in taken):
        raise OptionsError(f"{HOST_PROCESS_ROOT} must be on a drive, and in no directory of the VM: {given}")
    return path
