"""What the tests of the create document share: how to plan a VM on a host with given files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from uvm._document import files_to_stat, plan_creation
from uvm._document.plan import CreationPlan
from uvm.backend import FileInfo, HostInfo
from uvm.options import (
    BlockCIMBootFiles,
    LCOWOptions,
    VmbFSBootFiles,
    WCOWOptions,
)

MIB = 1024 * 1024
GUID = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
CONTROLLER = "df6d0690-79e5-55b6-a5ec-c1e2f77f580a"
POLICY = "czNjcmV0"  # base64 of "s3cret", whose SHA-256 in base64 is:
POLICY_DIGEST = "HsHCa1DV08WNlYMYGvgHZlX+AHVr9yhZQLo2cPmfy6A="
SERVICE = {
    "BindSecurityDescriptor": "D:P(A;;FA;;;WD)",
    "ConnectSecurityDescriptor": "D:P(A;;FA;;;SY)(A;;FA;;;BA)",
    "AllowWildcardBinds": True,
}
BOOT = VmbFSBootFiles(
    os_files_path="C:\\os", os_relative_boot_directory="\\EFI\\Boot", scratch_vhd_path="C:\\scratch.vhdx"
)
DISKS = BlockCIMBootFiles(
    boot_cim_vhd_path="C:\\cim.vhd", efi_vhd_path="C:\\efi.vhd", scratch_vhd_path="C:\\scratch.vhdx"
)
INITRD = ("kernel", "vmlinux", "initrd.img")
VHD = ("kernel", "vmlinux", "rootfs.vhd")


class Looked(Mapping[str, FileInfo | None]):
    """Files of the host that remember which were asked for."""

    def __init__(self, files: dict[str, FileInfo]) -> None:
        self.files = files
        self.asked: set[str] = set()

    def __getitem__(self, path: str) -> FileInfo | None:
        self.asked.add(path)
        return self.files.get(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def plan(
    options: LCOWOptions | WCOWOptions, files: Mapping[str, FileInfo | int] | None = None, **host: Any
) -> CreationPlan:
    """Plan on a host with these files, seeing only those that ``files_to_stat`` names."""
    facts = HostInfo(**{"processors": 8, **host})
    there = {p: f if isinstance(f, FileInfo) else FileInfo(f) for p, f in (files or {}).items()}
    looked = Looked(there)
    guids = iter(f"guid-{n}" for n in range(100))
    made = plan_creation(options, facts, looked, id="vm1", new_id=lambda: next(guids))
    assert looked.asked <= set(files_to_stat(options, facts))
    return made


def lcow(
    names: tuple[str, ...] = INITRD, *, host: dict[str, Any] | None = None, **options: Any
) -> CreationPlan:
    r"""Plan a Linux VM with these boot files in C:\\boot."""
    files = {f"C:\\boot\\{name}": MIB for name in names}
    return plan(LCOWOptions(**{"boot_files_path": "C:\\boot", **options}), files, **(host or {}))


def wcow(*, host: dict[str, Any] | None = None, **options: Any) -> CreationPlan:
    r"""Plan a Windows VM; C:\\dumps is a directory, C:\\file is not."""
    files = {"C:\\dumps": FileInfo(is_dir=True), "C:\\file": FileInfo(1)}
    return plan(WCOWOptions(**{"boot_files": BOOT, **options}), files, **(host or {}))


def machine(made: CreationPlan) -> Any:
    return made.document["VirtualMachine"]


def kernel_arguments(made: CreationPlan) -> str:
    chipset = machine(made)["Chipset"]
    if "Uefi" in chipset:
        return str(chipset["Uefi"]["BootThis"]["OptionalData"])
    return str(chipset["LinuxKernelDirect"]["KernelCmdLine"])


def init_arguments(made: CreationPlan) -> str:
    return kernel_arguments(made).partition(" -- ")[2]
