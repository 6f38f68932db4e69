"""The files that a confidential VM with a Windows guest boots from.

Those that are not named are under the root of the boot files. What the VM may write there is copied for it,
since other VMs boot from there too.

Source: hcsshim internal/uvm/create_wcow.go, and cmd/containerd-shim-runhcs-v1/pod.go, which copies beside the
scratch disk.
"""

from __future__ import annotations

from attrs import asdict, evolve

from uvm._document.paths import Files, join, need, with_host_paths
from uvm._document.plan import CopyFile
from uvm._names import host_path, host_path_key
from uvm.backend import HostInfo
from uvm.errors import OptionsError
from uvm.options import BlockCIMBootFiles, WCOWOptions

_DISKS = ("boot_cim_vhd_path", "efi_vhd_path", "scratch_vhd_path")
#: The guest state files by isolation, but that of SNP.
_STATE_FILES = {"VirtualizationBasedSecurity": "cwcow.vbs.vmgs", "GuestStateOnly": "cwcow.gso.vmgs"}


def default_files(options: WCOWOptions, disks: BlockCIMBootFiles, host: HostInfo) -> dict[str, str]:
    """Return the files that are not named, by their options."""
    names = {
        "guest_state_file": _STATE_FILES.get(options.isolation_type, "cwcow.snp.vmgs"),
        "efi_vhd_path": "boot.vhd",
        "boot_cim_vhd_path": "rootfs.vhd",
    }
    named = {**asdict(disks), "guest_state_file": options.guest_state_file}
    if all(named[option] for option in names):
        return {}
    root = host_path(options.boot_files_root_path, host.paths, "boot_files_root_path")
    return {option: join(host, root, name) for option, name in names.items() if not named[option]}


def with_default_files(
    options: WCOWOptions, disks: BlockCIMBootFiles, host: HostInfo, files: Files
) -> tuple[WCOWOptions, BlockCIMBootFiles, tuple[CopyFile, ...]]:
    """Return options and disks in which every file is named, and the copies to make before.

    :raises OptionsError: a file is not there; one disk is named twice; there is no directory for the copies.
    """
    if not options.bundle_directory:
        raise OptionsError("a confidential VM needs bundle_directory, for the files that are made for it")
    paths = default_files(options, disks, host)
    for option, path in paths.items():
        need(files, path, f"{option} is not named")
    copies = {}
    for option in ("guest_state_file", *(("efi_vhd_path",) if options.writable_efi else ())):
        if source := paths.get(option):
            copies[option] = CopyFile(
                source, join(host, options.bundle_directory, host.path.basename(source))
            )
    paths |= {option: copy.target for option, copy in copies.items()}
    state = paths.pop("guest_state_file", options.guest_state_file)
    disks = evolve(with_host_paths(disks, _DISKS, host), **paths)
    named = (disks.scratch_vhd_path, disks.efi_vhd_path, disks.boot_cim_vhd_path)
    if len({host_path_key(path, host.paths) for path in named}) < len(named):
        raise OptionsError(f"boot_files names one disk twice: {', '.join(named)}")
    return evolve(options, guest_state_file=state), disks, tuple(copies.values())
