"""The boot files of a Windows VM, found in the layers of an image. Pure.

A base layer that can boot a VM has a directory ``UtilityVM``: ``Files``, from which the VM boots, and
``SystemTemplate.vhdx``, which its scratch disk is a copy of. Of several the top-most layer counts.

Source: hcsshim ``internal/uvmfolder/locate.go``, ``internal/wcow/scratch.go``, and ``getVmbFSBootFiles`` of
``internal/layers/wcow_parse.go``.
"""

from __future__ import annotations

from uvm._document.paths import Files, join, need
from uvm._document.plan import CopyFile
from uvm._names import host_path
from uvm.backend import HostInfo
from uvm.errors import OptionsError
from uvm.options import LayerBootFiles, VmbFSBootFiles

_UTILITY_VM = "UtilityVM"
_FILES = "UtilityVM/Files"
_TEMPLATE = "UtilityVM/SystemTemplate.vhdx"
_BOOT_DIRECTORY = r"\EFI\Microsoft\Boot"
_SCRATCH = "sandbox.vhdx"


def layer_files_to_stat(boot: LayerBootFiles, host: HostInfo) -> tuple[str, ...]:
    """Return the host paths that the boot files depend on.

    :raises OptionsError: a path is no absolute one.
    """
    names = (_UTILITY_VM, _FILES, _TEMPLATE)
    looked_at = (join(host, layer, name) for layer in _layers(boot, host) for name in names)
    return (*looked_at, join(host, _scratch_directory(boot, host), _SCRATCH))


def boot_files_of_layers(
    boot: LayerBootFiles, host: HostInfo, files: Files
) -> tuple[VmbFSBootFiles, tuple[CopyFile, ...]]:
    """Return the boot files, and the copy that makes the scratch disk, if it is not there.

    :raises OptionsError: no layer has a utility VM, or a part of it is not there.
    """
    layers = _layers(boot, host)
    layer = next((layer for layer in layers if files.get(join(host, layer, _UTILITY_VM))), None)
    if layer is None:
        raise OptionsError(
            f"boot_files.layers: none of {', '.join(layers)} has a directory {_UTILITY_VM}; "
            "nothing was created. Name all layers of an image of Windows, its base included"
        )
    os_files, template = join(host, layer, _FILES), join(host, layer, _TEMPLATE)
    scratch = join(host, _scratch_directory(boot, host), _SCRATCH)
    need(files, os_files, "boot_files.layers", directory=True)
    found = VmbFSBootFiles(
        os_files_path=os_files, os_relative_boot_directory=_BOOT_DIRECTORY, scratch_vhd_path=scratch
    )
    if files.get(scratch) is not None:
        need(files, scratch, "boot_files.scratch_directory")
        return found, ()
    need(files, template, "boot_files.layers")
    return found, (CopyFile(template, scratch),)


def _layers(boot: LayerBootFiles, host: HostInfo) -> list[str]:
    return [host_path(layer, host.paths, "boot_files.layers") for layer in boot.layers]


def _scratch_directory(boot: LayerBootFiles, host: HostInfo) -> str:
    return host_path(boot.scratch_directory, host.paths, "boot_files.scratch_directory")
