"""The plan of a clone: the document of its template's options, with what is attached to the template.

A clone starts from the memory of its template, so that each device has to be where it was: a share has the
same name, a disk the same slot. A disk that is writable is copied: that of slot 0:0, the scratch disk of the
VM, into the clone's directory, any other into a directory of its own in there. Linux guests are this
library's own addition, and so are overlays, on a host that has them: each is in a directory of its own.

Source: hcsshim v0.8.16 ``internal/uvm/clone.go``, and ``Clone`` in ``scsi.go`` and ``vsmb.go``.
"""

from __future__ import annotations

from typing import Final

from attrs import evolve

from uvm._document.common import finish
from uvm._document.paths import join
from uvm._document.plan import CopyFile, CreationPlan, GrantAccess, MakeOverlay, Preparation
from uvm.backend import HostInfo
from uvm.options import LCOWOptions, WCOWOptions
from uvm.schema import devices, system
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS
from uvm.schema.template import TemplateDisk, TemplateDocument, TemplateLayer

#: What the name of an overlay ends with, after that of the disk below.
_OVERLAY_SUFFIX: Final = ".qcow2"


def plan_clone(
    options: LCOWOptions | WCOWOptions,
    template: TemplateDocument,
    host: HostInfo,
    vm: system.VirtualMachine,
    id: str,
    preparations: tuple[Preparation, ...],
    *,
    packs_layers: bool = False,
) -> CreationPlan:
    """Plan the creation of a clone.

    :param vm: the machine as it would be created otherwise.
    :param preparations: the steps that its options ask for.
    :param packs_layers: many layers are mapped on a VPMEM device.
    """
    restored = template.replaced(
        boot_disks=[_own(disk, options.scratch_directory, host, id) for disk in template.boot_disks],
        disks=[_own(disk, options.scratch_directory, host, id) for disk in template.disks],
    )
    assert vm.devices is not None
    vm.restore_state = system.RestoreState(template_system_id=template.system_id)
    if vm.devices.virtual_smb is not None:
        vm.devices.virtual_smb.shares += template.shares
    # A Linux guest has all controllers of its options, a Windows guest those that have disks.
    kept = [*vm.devices.scsi] if template.os == "linux" else [SCSI_CONTROLLER_GUIDS[0]]
    vm.devices.scsi = _controllers(restored, kept)
    for layer in template.layers:
        _add_layer(vm.devices.virtual_pmem, layer, packed=packs_layers)
    pairs = [*zip(_disks(template), _disks(restored), strict=True)]
    steps = (step for old, new in pairs for step in _steps(old, new, host))
    return evolve(
        finish(options, host, vm, id=id),
        reserved_scsi=tuple((disk.controller, disk.lun) for disk in restored.boot_disks),
        preparations=(*preparations, *steps, *(GrantAccess(layer.path) for layer in template.layers)),
        temporary_files=tuple(disk.path for disk in _disks(restored) if not disk.read_only),
        restored=restored,
    )


def _disks(template: TemplateDocument) -> list[TemplateDisk]:
    return [*template.boot_disks, *template.disks]


def _own(disk: TemplateDisk, directory: str, host: HostInfo, id: str) -> TemplateDisk:
    """Return a disk of the template as the clone has it: at a path of its own, if it is writable."""
    if disk.read_only:
        return disk
    if host.overlays or (disk.controller, disk.lun) != (0, 0):
        directory = join(host, directory, f"clone-mount-{disk.controller}-{disk.lun}-{id}")
    name = host.path.basename(disk.path)
    return disk.replaced(path=join(host, directory, f"{name}{_OVERLAY_SUFFIX}" if host.overlays else name))


def _controllers(restored: TemplateDocument, kept: list[str]) -> dict[str, devices.Scsi]:
    """Return the controllers with the disks of the clone; hcsshim leaves out that a disk is read-only.

    :param kept: the controllers that are there without disks too.
    """
    controllers = {guid: devices.Scsi() for guid in kept}
    for disk in _disks(restored):
        guid = SCSI_CONTROLLER_GUIDS[disk.controller]
        attachment = devices.Attachment(
            type=disk.type,
            path=disk.path,
            read_only=disk.read_only,
            extensible_virtual_disk_type=disk.extensible_virtual_disk_type,
        )
        controllers.setdefault(guid, devices.Scsi()).attachments[str(disk.lun)] = attachment
    return controllers


def _add_layer(
    controller: devices.VirtualPMemController | None, layer: TemplateLayer, *, packed: bool
) -> None:
    """Put a layer of the template where it was."""
    assert controller is not None, "the options of the template, which had layers, have a controller"
    if packed:
        mapping = devices.VirtualPMemMapping(host_path=layer.path, image_format="Vhd1")
        device = controller.devices.setdefault(str(layer.device), devices.VirtualPMemDevice())
        device.mappings[str(layer.offset_bytes)] = mapping
    else:
        controller.devices[str(layer.device)] = devices.VirtualPMemDevice(
            host_path=layer.path, read_only=True, image_format="Vhd1"
        )


def _steps(old: TemplateDisk, new: TemplateDisk, host: HostInfo) -> tuple[Preparation, ...]:
    if new.extensible_virtual_disk_type:
        # Its provider sees to the access.
        return ()
    grant = GrantAccess(new.path)
    if new.read_only:
        return (grant,)
    make = MakeOverlay if host.overlays else CopyFile
    return make(old.path, new.path), grant
