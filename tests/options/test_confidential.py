"""Confidential VMs: the constructors set what belongs together, as hcsshim does, and refuse the rest."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planning import MIB, POLICY, plan
from uvm._document.plan import CopyFile, CreationPlan
from uvm.errors import OptionsError
from uvm.options import BlockCIMBootFiles, LCOWOptions, VmbFSBootFiles, WCOWOptions, from_hcsshim

LINUX_FILES = {rf"C:\boot\{name}": MIB for name in ("kernel.vmgs", "rootfs.vhd", "vmlinux", "initrd.img")}
STATE_FILES = ("cwcow.snp.vmgs", "cwcow.vbs.vmgs", "cwcow.gso.vmgs")
ROOT_FILES = {rf"C:\cim\{name}": MIB for name in (*STATE_FILES, "boot.vhd", "rootfs.vhd")}
LINUX: dict[str, Any] = {"boot_files_path": r"C:\boot", "bundle_directory": r"C:\bundle"}
WINDOWS: dict[str, Any] = {
    "boot_files_root_path": r"C:\cim",
    "bundle_directory": r"C:\bundle",
    "scratch_vhd_path": r"C:\scratch.vhdx",
}
DISKS = BlockCIMBootFiles(
    boot_cim_vhd_path=r"C:\a.vhd", efi_vhd_path=r"C:\b.vhd", scratch_vhd_path=r"C:\c.vhdx"
)


def lcow(**options: Any) -> CreationPlan:
    return plan(LCOWOptions.confidential(POLICY, **LINUX | options), LINUX_FILES)


def wcow(**options: Any) -> CreationPlan:
    return plan(WCOWOptions.confidential(POLICY, **WINDOWS | options), ROOT_FILES)


# The fields are those that hcsshim's internal/oci/uvm.go sets for these annotations.

COMMON = {"SecurityPolicy": POLICY, "SecurityPolicyEnabled": True, "BundleDirectory": r"C:\bundle"}
ON_HARDWARE = {
    "BootFilesPath": r"C:\boot",
    "VPMemDeviceCount": 0,
    "GuestStateFilePath": "kernel.vmgs",
    "AllowOvercommit": False,
    "PreferredRootFSType": 2,
    "RootFSFile": "",
    "DmVerityRootFsVhd": "rootfs.vhd",
    "DmVerityMode": True,
    "EnableScratchEncryption": True,
}
WITHOUT_HARDWARE = {"BootFilesPath": r"C:\boot", "EnableScratchEncryption": True}


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, ON_HARDWARE),
        (
            {"hcl_enabled": True, "extra_vsock_ports": [7]},
            ON_HARDWARE | {"HclEnabled": True, "ExtraVSockPorts": [7]},
        ),
        ({"dm_verity_mode": False}, ON_HARDWARE | {"DmVerityMode": False}),
        ({"security_hardware": False, "bundle_directory": ""}, WITHOUT_HARDWARE),
    ],
)
def test_the_document_of_a_linux_vm_is_that_of_hcsshims_shim(
    options: dict[str, Any], fields: dict[str, Any]
) -> None:
    made = lcow(**options)
    theirs = plan(from_hcsshim("linux", COMMON | fields), LINUX_FILES)
    assert made == theirs


@pytest.mark.parametrize(
    ("options", "isolation", "state_file"),
    [
        ({}, "SecureNestedPaging", "cwcow.snp.vmgs"),
        ({"isolation_type": "SNP"}, "SecureNestedPaging", "cwcow.snp.vmgs"),
        ({"isolation_type": "VBS"}, "VirtualizationBasedSecurity", "cwcow.vbs.vmgs"),
        ({"security_hardware": False}, "GuestStateOnly", "cwcow.gso.vmgs"),
        (
            {"security_hardware": False, "isolation_type": "VBS"},
            "VirtualizationBasedSecurity",
            "cwcow.vbs.vmgs",
        ),
    ],
)
def test_the_document_of_a_windows_vm_is_that_of_hcsshims_shim(
    options: dict[str, Any], isolation: str, state_file: str
) -> None:
    made = wcow(**options)
    disks = {
        "BootCIMVHDPath": r"C:\cim\rootfs.vhd",
        "EFIVHDPath": r"C:\cim\boot.vhd",
        "ScratchVHDPath": r"C:\scratch.vhdx",
    }
    fields = {
        "MemorySizeInMB": 2048,
        "AllowOvercommit": False,
        "IsolationType": isolation,
        "LogForwardingEnabled": False,
        # The shim has copied it.
        "GuestStateFilePath": rf"C:\bundle\{state_file}",
        "BootFiles": {"BootType": 1, "BlockCIMFiles": disks},
    }
    theirs = plan(from_hcsshim("windows", COMMON | fields))
    assert made.document == theirs.document
    copy = CopyFile(rf"C:\cim\{state_file}", rf"C:\bundle\{state_file}")
    assert made.preparations == (copy, *theirs.preparations)
    assert made.temporary_files == (copy.target,)


def test_what_a_windows_vm_may_write_of_the_root_is_copied_and_what_is_named_is_not() -> None:
    made = wcow(writable_efi=True)
    efi = CopyFile(r"C:\cim\boot.vhd", r"C:\bundle\boot.vhd")
    assert made.preparations[1] == efi
    attachments = next(iter(made.document["VirtualMachine"]["Devices"]["Scsi"].values()))["Attachments"]
    assert attachments["1"] == {"Type": "VirtualDisk", "Path": efi.target}
    named = WCOWOptions.confidential(
        POLICY, bundle_directory=r"C:\bundle", boot_files=DISKS, guest_state_file=r"C:\v", writable_efi=True
    )
    assert plan(named).temporary_files == ()


@pytest.mark.parametrize("missing", list(ROOT_FILES)[0:1] + list(ROOT_FILES)[3:])
def test_a_policy_without_its_files_is_refused_before_anything_is_copied(missing: str) -> None:
    there = {path: size for path, size in ROOT_FILES.items() if path != missing}
    with pytest.raises(OptionsError, match=r"is not named: .* was not found on the host"):
        plan(WCOWOptions.confidential(POLICY, **WINDOWS), there)


@pytest.mark.parametrize("missing", list(LINUX_FILES)[:2])
def test_a_linux_policy_without_its_files_is_refused(missing: str) -> None:
    there = {path: size for path, size in LINUX_FILES.items() if path != missing}
    with pytest.raises(OptionsError, match="was not found on the host"):
        plan(LCOWOptions.confidential(POLICY, **LINUX), there)


@pytest.mark.parametrize("cls", [LCOWOptions, WCOWOptions])
@pytest.mark.parametrize(
    ("policy", "problem"), [("", "security_policy is empty"), ("s3cret!", "security_policy is not base64")]
)
def test_there_has_to_be_a_policy(cls: Any, policy: str, problem: str) -> None:
    beside = LINUX if cls is LCOWOptions else WINDOWS
    with pytest.raises(OptionsError, match=problem) as raised:
        cls.confidential(policy, **beside)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"vpmem_count": 4}, "vpmem_count is 0 in a confidential VM"),
        ({"allow_overcommit": True}, "allow_overcommit is False in a confidential VM"),
        ({"rootfs_type": "vhd"}, "rootfs_type is 'none' in a confidential VM"),
        ({"kernel_boot_options": "debug"}, "kernel_boot_options is '' in a confidential VM"),
        ({"kernel_file": "vmlinux"}, "kernel_file: no effect with guest_state_file"),
        ({"security_policy_enabled": False}, "security_policy_enabled is True"),
        ({"bundle_directory": ""}, "needs bundle_directory"),
        ({"security_hardware": False}, "bundle_directory: no effect without guest_state_file"),
        ({"console_pipe": r"\\.\pipe\a"}, "console_pipe: no effect"),
        ({"template": True}, "cannot be saved as a template"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_a_linux_option_that_excludes_another_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        LCOWOptions.confidential(POLICY, **LINUX | options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"memory_mb": 2046}, "at least 2048 MB, not 2046"),
        ({"allow_overcommit": True}, "allow_overcommit is False"),
        ({"isolation_type": "TDX"}, "isolation_type is one of SecureNestedPaging, SNP, .*, not 'TDX'"),
        ({"graphics_console": True}, "graphics console"),
        ({"scratch_vhd_path": ""}, "needs scratch_vhd_path, or boot_files"),
        ({"boot_files": DISKS}, "scratch_vhd_path: boot_files has that"),
        ({"boot_files_root_path": ""}, "needs guest_state_file, or boot_files_root_path"),
        ({"boot_files_root_path": "", "guest_state_file": r"C:\v"}, "boot_files needs boot_cim_vhd_path"),
        ({"bundle_directory": ""}, "needs bundle_directory"),
        ({"debug_mode": True}, "debug_mode needs debug_data_path"),
    ],
)
def test_a_windows_option_that_excludes_another_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        WCOWOptions.confidential(POLICY, **WINDOWS | options)


def test_a_confidential_windows_vm_does_not_boot_from_a_directory() -> None:
    boot = VmbFSBootFiles(
        os_files_path=r"C:\os", os_relative_boot_directory=r"\EFI", scratch_vhd_path=r"C:\s.vhdx"
    )
    beside = {name: value for name, value in WINDOWS.items() if name != "scratch_vhd_path"}
    with pytest.raises(OptionsError, match="boots from BlockCIMBootFiles"):
        WCOWOptions.confidential(POLICY, boot_files=boot, **beside)


def test_layers_of_a_linux_vm_with_a_policy_have_devices_of_their_own() -> None:
    """The guest refuses layers that share one, whose hashes it could not check."""
    assert not lcow(security_hardware=False, bundle_directory="").vpmem_multi_mapping
