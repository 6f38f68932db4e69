"""The create document of an isolated VM with a Linux guest, which boots from a guest state file."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planning import (
    CONTROLLER,
    POLICY,
    POLICY_DIGEST,
    SERVICE,
    lcow,
)
from uvm._document.plan import CopyFile, GrantAccess
from uvm.errors import OptionsError

ISOLATED: dict[str, Any] = {
    "guest_state_file": "kernel.vmgs",
    "dm_verity_rootfs_vhd": "verity.vhd",
    "rootfs_type": "none",
    "security_policy": POLICY,
    "bundle_directory": "C:\\bundle",
}
ISOLATED_FILES = ("kernel.vmgs", "verity.vhd")


def test_an_isolated_linux_vm_boots_from_its_guest_state_file() -> None:
    made = lcow(
        ISOLATED_FILES,
        **ISOLATED,
        vpmem_count=0,
        dm_verity_mode=True,
        hcl_enabled=False,
        extra_vsock_ports=[5],
    )
    sockets = [
        f"{port}-facb-11e6-bd58-64006a7986d3" for port in ("00000001", "0000006d", "40000000", "40000001")
    ]
    disk = {"Type": "VirtualDisk", "Path": "C:\\bundle\\rootfs.vhd", "ReadOnly": True}
    other_controllers = (
        "0110f83b-de10-5172-a266-78bca56bf50a",
        "b5d2d8d4-3a75-51bf-945b-3444dc6b8579",
        "305891a9-b251-5dfe-91a2-c25d9212275b",
    )
    assert made.document == {
        "Owner": "uvm",
        "SchemaVersion": {"Major": 2, "Minor": 5},
        "ShouldTerminateOnLastHandleClosed": True,
        "VirtualMachine": {
            "StopOnReset": True,
            "Chipset": {
                "Uefi": {
                    "ApplySecureBootTemplate": "Apply",
                    "SecureBootTemplateId": "1734c6e8-3154-4dda-ba5f-a874cc483422",
                }
            },
            "ComputeTopology": {
                "Memory": {"SizeInMB": 1024, "AllowOvercommit": True},
                "Processor": {"Count": 2},
            },
            "Devices": {
                "Scsi": {
                    CONTROLLER: {"Attachments": {"0": disk}},
                    **{guid: {} for guid in other_controllers},
                },
                "HvSocket": {
                    "HvSocketConfig": {
                        "DefaultBindSecurityDescriptor": "D:P(A;;FA;;;WD)",
                        "DefaultConnectSecurityDescriptor": "D:P(A;;FA;;;SY)(A;;FA;;;BA)",
                        "ServiceTable": dict.fromkeys(
                            [*sockets, "00000005-facb-11e6-bd58-64006a7986d3"], SERVICE
                        ),
                    }
                },
                "Plan9": {},
            },
            "GuestState": {
                "GuestStateFilePath": "C:\\bundle\\kernel.vmgs",
                "GuestStateFileType": "FileMode",
                "ForceTransientState": True,
            },
            "SecuritySettings": {
                "Isolation": {
                    "IsolationType": "SecureNestedPaging",
                    "LaunchData": POLICY_DIGEST,
                    "HclEnabled": False,
                }
            },
        },
    }
    assert made.reserved_scsi == ((0, 0),)


def test_an_isolated_linux_vm_gets_copies_of_the_files_which_go_with_it() -> None:
    made = lcow(ISOLATED_FILES, **ISOLATED)
    state, rootfs = "C:\\bundle\\kernel.vmgs", "C:\\bundle\\rootfs.vhd"
    assert made.preparations == (
        CopyFile("C:\\boot\\kernel.vmgs", state),
        CopyFile("C:\\boot\\verity.vhd", rootfs),
        GrantAccess(state, to_vm_group=True, mask="all"),
        GrantAccess(rootfs, to_vm_group=True, mask="all"),
    )
    assert made.temporary_files == (state, rootfs)
    assert (made.vpmem_count, made.reserved_scsi) == (0, ())


@pytest.mark.parametrize("rootfs_type", [None, "vhd", "initrd"])
def test_an_isolated_linux_vm_takes_no_other_root_file_system(rootfs_type: str | None) -> None:
    with pytest.raises(OptionsError, match="rootfs_type must be 'none'"):
        lcow(ISOLATED_FILES, **{**ISOLATED, "rootfs_type": rootfs_type})


def test_the_files_of_an_isolated_linux_vm_have_to_be_there_and_stay() -> None:
    with pytest.raises(OptionsError, match=r"the guest state file: C:\\boot\\kernel.vmgs was not found"):
        lcow((), **ISOLATED)
    with pytest.raises(OptionsError, match=r"the dm-verity root file system: C:\\boot\\verity.vhd was not"):
        lcow(("kernel.vmgs",), **ISOLATED)
    with pytest.raises(OptionsError, match="bundle_directory must not be boot_files_path"):
        lcow(ISOLATED_FILES, **{**ISOLATED, "bundle_directory": "c:\\BOOT\\"})
    with pytest.raises(OptionsError, match="guest_state_file needs dm_verity_rootfs_vhd"):
        lcow(ISOLATED_FILES, **{**ISOLATED, "dm_verity_rootfs_vhd": ""})
