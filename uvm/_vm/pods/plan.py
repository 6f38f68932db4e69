"""What a container's OCI specification asks of its VM, read and checked before anything is sent. Pure.

Theory of operation
-------------------

A container from a specification takes four steps, of which the first and the last are pure::

    spec -- plan --> ContainerPlan -- check, attach --> places -- document --> what the guest is sent
            (pure)    attachments      (resources.py)     |         (pure)
                                                          `-- of each attachment, where the guest has it

:func:`uvm._vm.pods.linux.plan` plans for a Linux guest, :func:`uvm._vm.pods.windows.plan` for a Windows
guest. Each has one table, ``MOUNTS``: by the type of a mount, the function that returns what is to be
attached for it, or None where it is nothing. What can be attached is the closed set :data:`Attachment`, which
``resources.KINDS`` knows how to check on the host and how to attach, by its class.

What cannot work is an :class:`~uvm.errors.OptionsError` of the plan: a plan that was made is sent as it is.

Source: hcsshim ``internal/hcsoci`` (``create.go``, ``resources_lcow.go``, ``resources_wcow.go``).
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, Protocol, TypeAlias

from attrs import frozen

from uvm._arguments import kind_of, refuse_twice
from uvm._guest.specs import Command, check_text, part
from uvm._names import GuestOS, guest_path_key, pci_function, pci_key
from uvm._repr import Value
from uvm.backend import JSON
from uvm.devices.scsi import DiskType, Mount
from uvm.errors import OptionsError

#: Which container of a pod it is, and of which pod (hcsshim ``pkg/annotations``).
CONTAINER_TYPE: Final = "io.kubernetes.cri.container-type"
SANDBOX_ID: Final = "io.kubernetes.cri.sandbox-id"

#: What stands in front of a source that is in the VM, not on the host (hcsshim ``internal/guestpath``).
SANDBOX, SANDBOX_TMP = "sandbox://", "sandbox-tmp://"
HUGE_PAGES, GUEST = "hugepages://", "uvm://"
#: In front of the name of a pipe.
PIPE: Final = "\\\\.\\pipe\\"
#: In front of a destination: the block device itself is to be there.
BLOCK_DEVICE: Final = "blockdev://"


class Role(Enum):
    """What a container is in its pod.

    ``STANDALONE``: one of its own. ``SANDBOX``: the one whose namespaces and directories the others share.
    ``WORKLOAD``: one of those.
    """

    STANDALONE = ""
    SANDBOX = "sandbox"
    WORKLOAD = "container"


@frozen
class Member:
    """A container that is to be made, as a member of its pod.

    :ivar sandbox_id: the pod's sandbox, of a workload.
    :ivar sandbox_pid: the process id of its first process, in the guest.
    :ivar network: the network namespace that is the pod's, if this container may have it; else empty.
    """

    id: str
    role: Role = Role.STANDALONE
    sandbox_id: str = ""
    sandbox_pid: int = 0
    network: str = ""


# What can be attached.

#: The disks of mounts, by the types of these.
DISKS: Final = {
    "virtual-disk": DiskType.VIRTUAL_DISK,
    "physical-disk": DiskType.PASS_THRU,
    "extensible-virtual-disk": DiskType.EXTENSIBLE_VIRTUAL_DISK,
}


@frozen
class Share:
    """A directory, or a single file, of the host.

    :ivar at: where a Linux guest is to have it.
    """

    path: str
    read_only: bool
    at: str = ""


@frozen
class Disk:
    """A disk, mounted in the guest."""

    path: str
    type: DiskType
    read_only: bool
    mount: Mount


@frozen
class Device:
    """A function of a PCI device: its instance path, or ``<path>/<function>``."""

    path: str


@frozen
class LocatedDevice:
    """A function of a PCI device for a Windows guest, where its location paths are looked up.

    :ivar device_util: hcsshim's tool for that, on the host.
    """

    path: str
    device_util: str


@frozen
class Pipe:
    """A named pipe of the host."""

    path: str


@frozen
class GuestDirectory:
    """A directory that is made in a Windows VM, unless it is there, and stays."""

    path: str


Attachment: TypeAlias = Share | Disk | Device | LocatedDevice | Pipe | GuestDirectory


@frozen
class GuestRoot:
    """A root file system in the guest.

    :ivar layers: of a Windows guest, the ids of its layers and their paths, top-most first.
    """

    path: str
    layers: tuple[tuple[str, str], ...] = ()


class ContainerPlan(Protocol):
    """What is to be done for a container.

    :ivar attachments: what is attached for it, all at once.
    """

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """What is attached for it, all at once."""

    @property
    def init(self) -> Command | None:
        """Return the container's own, first process, if that is not of the document."""

    def document(self, places: Sequence[str], root: GuestRoot) -> JSON:
        """Return what ``create_container`` takes.

        :param places: of each attachment, where the guest has it: a path, or the VMBus GUID of a device.
        """


# Reading a specification.


@frozen(repr=False)
class OCIMount(Value):
    """A mount of a specification, with its place in the list of mounts."""

    index: int
    type: str
    source: str
    destination: str
    options: tuple[str, ...]

    def __str__(self) -> str:
        return f"mounts[{self.index}] at {self.destination!r}"

    @property
    def read_only(self) -> bool:
        """Whether it is for reading alone."""
        return any(option.lower() == "ro" for option in self.options)

    @property
    def is_bind(self) -> bool:
        """Whether it shows what is there already, whatever its type says."""
        return self.type == "bind" or not {"bind", "rbind"}.isdisjoint(self.options)


def specification(given: object) -> Mapping[str, Any]:
    """Return what a caller passes as a specification.

    :raises OptionsError: it is no mapping.
    """
    if not isinstance(given, Mapping):
        raise OptionsError(f"an OCI specification is a mapping, not {kind_of(given)}")
    return given


def items(spec: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """Return a list of JSON objects in a specification, by its path; an empty one if it has none.

    :raises OptionsError: it is something else.
    """
    above, _, name = path.rpartition(".")
    found = (part(spec, above) if above else spec).get(name) or []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise OptionsError(f"{path} of the specification is no list of JSON objects")
    return found


def mounts_of(spec: Mapping[str, Any], os: GuestOS) -> tuple[OCIMount, ...]:
    """Return the mounts of a specification.

    :raises OptionsError: one is malformed, or two are at one place.
    """
    mounts = tuple(_mount(index, each) for index, each in enumerate(items(spec, "mounts")))
    places = [
        guest_path_key(each.destination.removeprefix(BLOCK_DEVICE), os, f"mounts[{each.index}].destination")
        for each in mounts
    ]
    refuse_twice("the list of mounts of the specification", places)
    return mounts


def _mount(index: int, given: dict[str, Any]) -> OCIMount:
    texts = {name: given.get(name) or "" for name in ("type", "source", "destination")}
    options = given.get("options") or []
    if not isinstance(options, list):
        raise OptionsError(f"mounts[{index}].options of the specification is {kind_of(options)}, not a list")
    for name, text in (*texts.items(), *(("options", each) for each in options)):
        check_text(f"mounts[{index}].{name} of the specification", text)
    if not texts["destination"]:
        raise OptionsError(f"mounts[{index}] of the specification has no destination")
    return OCIMount(index, **texts, options=tuple(options))


def source_of(mount: OCIMount) -> str:
    """Return the source of a mount that needs one.

    :raises OptionsError: it has none.
    """
    if not mount.source:
        raise OptionsError(f"{mount} has no source, which a mount of the type {mount.type!r} needs")
    return mount.source


def confined(mount: OCIMount, prefix: str, os: GuestOS = "linux") -> str:
    """Return what stands behind the prefix of a mount's source, as an absolute path, with ``/``.

    :raises OptionsError: it is the path of something else, by ``..``.
    """
    depth, rest = 0, mount.source.removeprefix(prefix)
    rest = rest.replace("\\", "/") if os == "windows" else rest
    for name in rest.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(name, 1)
        if depth < 0:
            raise OptionsError(f"{mount}: its source {mount.source!r} is not within {prefix}")
    return "/" + posixpath.normpath("/" + rest).lstrip("/")


def devices_in(spec: Mapping[str, Any], types: Collection[str]) -> list[dict[str, Any]]:
    """Return the devices of a specification (``windows.devices``).

    :param types: the known types of their ids.
    :raises OptionsError: one is malformed, or of an unknown type.
    """
    found = items(spec, "windows.devices")
    for index, each in enumerate(found):
        for name in ("id", "idType"):
            check_text(f"windows.devices[{index}].{name} of the specification", each.get(name))
        if each["idType"] not in types:
            raise OptionsError(
                f"windows.devices[{index}] of the specification is of the type {each['idType']!r}, which is "
                f"unknown; known are {', '.join(sorted(types))}"
            )
    return found


def refuse_device_twice(paths: Iterable[str]) -> None:
    """Refuse PCI devices, by instance path or ``<path>/<function>``, of which one is there twice.

    :raises OptionsError: one is, or is no device.
    """
    functions = (pci_function(path, 0) for path in paths)
    keys = [f"{pci_key(path)}/{function}" for path, function in functions]
    refuse_twice("windows.devices of the specification", keys)
