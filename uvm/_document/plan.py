"""What creating a VM takes: the document, and what has to be done on the host around it."""

from __future__ import annotations

from attrs import field, frozen

from uvm._names import GuestOS
from uvm._repr import Value
from uvm.backend import JSON, AccessMask
from uvm.schema.template import TemplateDocument


@frozen(repr=False)
class CopyFile(Value):
    """Copy a file of the host, and overwrite the target."""

    source: str
    target: str


@frozen(repr=False)
class MakeOverlay(Value):
    """Make an empty disk over another, which is only read from then on."""

    base: str
    target: str


@frozen(repr=False)
class MakeDirectory(Value):
    """Make a directory of the host, with its parents."""

    path: str


@frozen(repr=False)
class GrantAccess(Value):
    """Grant this VM, or every VM, access to a host path."""

    path: str
    to_vm_group: bool = False
    mask: AccessMask = "read"


@frozen(repr=False)
class SetDiskId(Value):
    """Set the identifier of a virtual disk file."""

    path: str
    disk_id: str


Preparation = CopyFile | MakeOverlay | MakeDirectory | GrantAccess | SetDiskId


@frozen(repr=False)
class AssignedDevice(Value):
    """A PCI device of the document, and its GUID in the guest."""

    instance_path: str
    function: int
    vmbus_guid: str


@frozen(kw_only=True, repr=False)
class CreationPlan(Value):
    """The document of a VM, and what has to be done on the host around its creation.

    :ivar document: the JSON object for :meth:`~uvm.backend.Backend.create`. It may hold secrets.
    :ivar processors: virtual processors, after fitting them to the host.
    :ivar memory_mb: memory, after alignment.
    :ivar reserved_scsi: (controller, LUN) of the disks that the document attaches.
    :ivar vpmem_count: VPMEM devices of the VM; 0 if it has none.
    :ivar boot_vpmem_bytes: the size of the root file system on VPMEM device 0; None if that is free.
    :ivar assigned_devices: PCI devices of the document.
    :ivar preparations: the steps on the host before the creation, in order.
    :ivar temporary_files: files made for this VM, deleted after its exit, or if it cannot be created.
    :ivar restored: what is attached to a clone from its start, as to its template; its own disks.
    :ivar copies_on_exit: the steps after the exit, before the temporary files are deleted (``debug_mode``).
    """

    document: JSON = field(repr=False, hash=False)
    os: GuestOS
    id: str
    processors: int
    memory_mb: int
    scsi_controllers: int
    reserved_scsi: tuple[tuple[int, int], ...] = ()
    vpmem_count: int = 0
    vpmem_size_bytes: int = 0
    vpmem_multi_mapping: bool = False
    boot_vpmem_bytes: int | None = None
    assigned_devices: tuple[AssignedDevice, ...] = ()
    preparations: tuple[Preparation, ...] = ()
    temporary_files: tuple[str, ...] = ()
    copies_on_exit: tuple[Preparation, ...] = ()
    restored: TemplateDocument | None = field(default=None, hash=False)
