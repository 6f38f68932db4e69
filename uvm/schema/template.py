"""A VM that is saved as a template, as a JSON document: what its clones are made from.

hcsshim keeps the same (v0.8.16 ``internal/uvm/clone.go``: ``UVMTemplateConfig``), in a form of Go's own.
"""

from __future__ import annotations

from typing import Any

from uvm.schema.common import Layer
from uvm.schema.devices import VirtualSmbShare
from uvm.schema.json import Model, always
from uvm.schema.network import HostComputeNamespace

#: The version of the document that is written, and that is read.
TEMPLATE_VERSION = 1


class TemplateMount(Model):
    """A mount of a disk in the guest; all but the path and the ReFS format is for Linux guests."""

    guest_path: str = ""
    format_with_refs: bool = False
    partition: int = 0
    encrypted: bool = False
    options: list[str] = []
    ensure_filesystem: bool = False
    filesystem: str = ""
    block_device: bool = False


class TemplateDisk(Model):
    """A disk on a SCSI controller; one that is writable is copied for each clone."""

    controller: int = always(0)
    lun: int = always(0)
    path: str = ""
    type: str = ""
    extensible_virtual_disk_type: str = ""
    read_only: bool = False
    mounts: list[TemplateMount] = []


class TemplateLayer(Model):
    """A read-only layer on a VPMEM device.

    :ivar offset_bytes: its offset; 0 also if it has the device alone.
    :ivar size_bytes: the size of its file.
    """

    device: int = always(0)
    offset_bytes: int = 0
    size_bytes: int = 0
    path: str = ""


class TemplateRoot(Model):
    """A root file system that the guest has combined."""

    container_root_path: str = ""
    layers: list[Layer] = []
    scratch_path: str = ""
    container_id: str = ""
    filter_type: str = ""


class TemplateDocument(Model):
    """A saved VM: what it was created with, and what is attached to it.

    :ivar system_id: the id of the saved VM.
    :ivar os: the operating system of its guest.
    :ivar options: its options that are not at their defaults, without those in which clones may differ.
    :ivar boot_disks: the disks that it was created with.
    :ivar disks: those that were attached later.
    :ivar layers: the layers on its VPMEM devices.
    :ivar shares_named: how many names of shares have been used.
    :ivar namespace: the network namespace that its guest is in, as the guest knows it.
    """

    version: int = always(0)
    system_id: str = ""
    os: str = ""
    options: dict[str, Any] = {}
    boot_disks: list[TemplateDisk] = []
    disks: list[TemplateDisk] = []
    layers: list[TemplateLayer] = []
    shares: list[VirtualSmbShare] = []
    shares_named: int = 0
    roots: list[TemplateRoot] = []
    namespace: HostComputeNamespace | None = None
