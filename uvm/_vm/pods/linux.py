"""Containers from specifications in a Linux guest: what is attached, and what the guest is sent. Pure.

Theory of operation
-------------------

By the type of a mount, :data:`MOUNTS` has what is attached for it::

    bind, of a path of the host       a Plan9 share at /run/mounts/plan9/ID-mN
    bind, sandbox:// and its kind     nothing: the guest knows them, in the workloads of a pod
    virtual-disk, physical-disk,
    extensible-virtual-disk           a SCSI disk; its type is "none", or "bind" for the block device itself
    a file system of the kernel       nothing: tmpfs, proc and the like are mounted by the guest's runtime

and the document has the guest's path as the source of each, and the VMBus GUID as the id of each assigned
device. A workload joins the namespaces of its pod's sandbox. What a guest refuses is refused by the plan.

Source: hcsshim ``internal/hcsoci/resources_lcow.go``, ``internal/controller/linuxcontainer/mounts.go``,
``internal/guest/runtime/hcsv2`` (``standalone_container.go``, ``workload_container.go``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from attrs import frozen

from uvm._guest.specs import check_writable, linux_container, part, spec_of, with_namespace
from uvm._names import guest_path
from uvm._vm.pods.plan import (
    BLOCK_DEVICE,
    CONTAINER_TYPE,
    DISKS,
    GUEST,
    HUGE_PAGES,
    SANDBOX,
    SANDBOX_ID,
    SANDBOX_TMP,
    Attachment,
    Device,
    Disk,
    GuestRoot,
    Member,
    OCIMount,
    Role,
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
from uvm.errors import OptionsError

#: Where Plan9 shares are mounted (hcsshim ``internal/controller/device/plan9/mount``): not in the bundle of
#: their container, at which its scratch disk is mounted at the same time.
_SHARES: Final = "/run/mounts/plan9"
_SKIP_NETWORK: Final = "io.microsoft.cri.skip-pod-networking"
#: The namespaces of its sandbox that a workload is in, and their files in ``/proc/<pid>/ns``.
_SHARED_NAMESPACES: Final = {"network": "net", "ipc": "ipc", "uts": "uts"}
_HUGE_PAGE_SIZES: Final = ("2M",)
_BINDS: Final = ("bind", "rbind")
#: Options of binding, not of mounting a disk.
_PROPAGATIONS: Final = [
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
]
_FILE_SYSTEMS: Final = (
    *("binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "fusectl"),
    *("hugetlbfs", "mqueue", "overlay", "proc", "pstore", "ramfs", "securityfs", "sysfs", "tmpfs", "tracefs"),
)


@frozen
class LinuxPlan:
    """What is to be done for a container (:class:`~uvm._vm.pods.plan.ContainerPlan`)."""

    spec: JSON
    #: By the place of a mount in the list, its source as the guest takes it; of what is in the guest already.
    sources: dict[int, str]
    mounts: dict[int, Attachment]
    devices: tuple[Attachment, ...]

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """What is attached: for mounts, then devices."""
        return (*self.mounts.values(), *self.devices)

    @property
    def init(self) -> None:
        """Return None: the guest has the process of the document."""

    def document(self, places: Sequence[str], root: GuestRoot) -> JSON:
        """Return the specification that the guest takes; ``create_container`` removes what it ignores."""
        spec: JSON = json.loads(json.dumps(self.spec))
        spec["root"] = {**part(spec, "root"), "path": root.path}
        mounts = items(spec, "mounts")
        for index, source in (*self.sources.items(), *zip(self.mounts, places, strict=False)):
            mounts[index]["source"] = source
        for index, wanted in self.mounts.items():
            if isinstance(wanted, Disk):
                _bind_disk(mounts[index], wanted.mount.block_device)
        ids = places[len(self.mounts) :]
        for device, guid in zip(items(spec, "windows.devices"), ids, strict=True):
            device["id"] = guid
        return spec


def _bind_disk(mount: JSON, block_device: bool) -> None:
    """Have a disk, which the guest has mounted, bound into the container."""
    mount["type"] = "bind" if block_device else "none"
    if set(_BINDS).isdisjoint(mount.get("options") or []):
        mount["options"] = [*(mount.get("options") or []), "rbind"]


def plan(spec: Mapping[str, Any], member: Member) -> LinuxPlan:
    """Return what is to be done for a container in a Linux guest.

    :raises OptionsError: its specification cannot work.
    """
    own: JSON = json.loads(check_writable("the specification", dict(spec)))
    spec_of({"OciSpecification": {**own, "root": {}}})
    mounts, sources = dict[int, Attachment](), dict[int, str]()
    for mount in mounts_of(own, "linux"):
        wanted = _kind_of(mount)(mount, member)
        if isinstance(wanted, str):
            sources[mount.index] = wanted
        elif wanted is not None:
            mounts[mount.index] = wanted
    _join_pod(own, member)
    devices = [each["id"] for each in devices_in(own, PCI_ID_TYPES)]
    refuse_device_twice(devices)
    made = LinuxPlan(own, sources, mounts, tuple(map(Device, devices)))
    _check(made, member)
    return made


def _check(made: LinuxPlan, member: Member) -> None:
    """Refuse what would be refused once everything is attached."""
    document = made.document([""] * len(made.attachments), GuestRoot("/"))
    linux_container(with_namespace(document, member.id), bundle_path="/")


# Mounts. Each function returns what is attached, the source in the guest, or None for what stays as it is.

_Planned = Attachment | str | None


def _kind_of(mount: OCIMount) -> Callable[[OCIMount, Member], _Planned]:
    if mount.destination.startswith(BLOCK_DEVICE) and mount.type not in DISKS:
        raise OptionsError(
            f"{mount} is of the type {mount.type!r}; {BLOCK_DEVICE} is for disks: {', '.join(sorted(DISKS))}"
        )
    if mount.type not in MOUNTS and not mount.is_bind:
        raise OptionsError(
            f"{mount} is of the type {mount.type!r}, which is unknown; known are {', '.join(sorted(MOUNTS))}"
        )
    return MOUNTS["bind"] if mount.is_bind and mount.type not in DISKS else MOUNTS[mount.type]


def _bind(mount: OCIMount, member: Member) -> _Planned:
    source = source_of(mount)
    for prefix, in_guest in _IN_GUEST.items():
        if source.startswith(prefix):
            _check_workload(mount, member, f"{prefix} is in")
            return in_guest(mount, prefix)
    return Share(source, mount.read_only, f"{_SHARES}/{member.id}-m{mount.index}")


def _check_workload(mount: OCIMount, member: Member, what: str) -> None:
    """Refuse what the guest knows in the workloads of a pod alone."""
    if member.role is not Role.WORKLOAD:
        raise OptionsError(
            f"{mount}: {what} what a pod's workloads share with its sandbox, and {member.id} is none of "
            "them; run the sandbox first (Pod.run_sandbox)"
        )


def _shared(mount: OCIMount, prefix: str) -> str:
    return prefix + confined(mount, prefix)


def _huge_pages(mount: OCIMount, prefix: str) -> str:
    size, _, name = confined(mount, prefix).removeprefix("/").partition("/")
    if size not in _HUGE_PAGE_SIZES or not name:
        raise OptionsError(
            f"{mount}: its source has to be {prefix}SIZE/NAME, of the size {', '.join(_HUGE_PAGE_SIZES)}; "
            f"given was {mount.source!r}"
        )
    return f"{prefix}{size}/{name}"


def _in_vm(mount: OCIMount, prefix: str) -> str:
    return prefix + guest_path(mount.source.removeprefix(prefix), "linux", f"the source of {mount}")


_IN_GUEST: Final = {SANDBOX: _shared, SANDBOX_TMP: _shared, HUGE_PAGES: _huge_pages, GUEST: _in_vm}


def _disk(type: DiskType, mount: OCIMount, member: Member) -> _Planned:
    path, block_device = source_of(mount), mount.destination.startswith(BLOCK_DEVICE)
    if type is DiskType.EXTENSIBLE_VIRTUAL_DISK:
        parse_evd(path)
    if block_device:
        _check_workload(mount, member, f"{BLOCK_DEVICE} is for")
    options = tuple(option for option in mount.options if option not in (*_BINDS, *_PROPAGATIONS))
    return Disk(path, type, mount.read_only, Mount(options=options, block_device=block_device))


#: By the type of a mount, what it takes.
MOUNTS: Final[dict[str, Callable[[OCIMount, Member], _Planned]]] = {
    "bind": _bind,
    **{name: partial(_disk, type) for name, type in DISKS.items()},
    **dict.fromkeys(_FILE_SYSTEMS, lambda mount, member: None),
}


# A member of a pod.


def _join_pod(spec: JSON, member: Member) -> None:
    """Have a specification say which container of its pod it is, and in which namespaces."""
    if member.network:
        spec["windows"] = {**part(spec, "windows")}
        network = {**part(spec, "windows.network"), "networkNamespace": member.network}
        spec["windows"]["network"] = network
    if member.role is Role.STANDALONE:
        return
    annotations = {**part(spec, "annotations"), CONTAINER_TYPE: member.role.value}
    annotations[SANDBOX_ID] = member.sandbox_id or member.id
    if not member.network:
        annotations.setdefault(_SKIP_NETWORK, "true")
    spec["annotations"] = annotations
    if member.role is Role.WORKLOAD:
        _join_sandbox(spec, member)


def _join_sandbox(spec: JSON, member: Member) -> None:
    if spec.get("hostname"):
        raise OptionsError(
            f"the specification of {member.id} has a hostname, which is that of the pod's sandbox "
            f"{member.sandbox_id}; leave out hostname"
        )
    of_sandbox = f"/proc/{member.sandbox_pid}/ns"
    kept = [each for each in items(spec, "linux.namespaces") if each.get("path") or not _is_shared(each)]
    there = {each.get("type") for each in kept}
    kept += [
        {"type": type, "path": f"{of_sandbox}/{file}"}
        for type, file in _SHARED_NAMESPACES.items()
        if type not in there
    ]
    spec["linux"] = {**part(spec, "linux"), "namespaces": kept}


def _is_shared(namespace: JSON) -> bool:
    return namespace.get("type") in _SHARED_NAMESPACES
