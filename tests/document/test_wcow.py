"""The create document of a VM with a Windows guest."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tests.planning import BOOT, CONTROLLER, DISKS, POLICY, POLICY_DIGEST, machine, wcow
from uvm._document.plan import CopyFile, GrantAccess, MakeDirectory, SetDiskId
from uvm.errors import OptionsError
from uvm.options import (
    HvSocketService,
    RegistryValue,
)

# Windows VMs


def test_a_windows_vm_boots_from_a_share_with_its_scratch_in_the_first_slot() -> None:
    made = wcow(no_direct_map=True)
    share = machine(made)["Devices"]["VirtualSmb"]["Shares"][0]
    assert (share["Name"], share["Path"], share["Options"]["NoDirectmap"]) == ("os", "C:\\os", True)
    assert machine(made)["Chipset"]["Uefi"]["BootThis"]["DevicePath"] == "\\EFI\\Boot\\bootmgfw.efi"
    assert made.preparations == (GrantAccess("C:\\scratch.vhdx"),)
    assert (made.reserved_scsi, made.scsi_controllers, made.vpmem_count) == (((0, 0),), 1, 0)


@pytest.mark.parametrize(
    ("directory", "loader"),
    [
        ("\\", "\\bootmgfw.efi"),
        ("/EFI/x/../Boot/", "\\EFI\\Boot\\bootmgfw.efi"),
        ("EFI", "EFI\\bootmgfw.efi"),
        ("", "bootmgfw.efi"),
        ("C:", "C:bootmgfw.efi"),
        ("C:\\", "C:\\bootmgfw.efi"),
        ("\\\\host\\share", "\\\\host\\share\\bootmgfw.efi"),
    ],
)
def test_the_path_of_the_boot_loader_is_joined_as_go_joins(directory: str, loader: str) -> None:
    boot = attrs.evolve(BOOT, os_relative_boot_directory=directory)
    assert machine(wcow(boot_files=boot))["Chipset"]["Uefi"]["BootThis"]["DevicePath"] == loader


def test_the_log_service_of_the_document_wins_over_the_one_of_the_options() -> None:
    log = "172dad59-976d-45f2-8b6c-6d1b13f2ac4d"
    services = {log: HvSocketService(disabled=True)}
    table = machine(wcow(hvsocket_services=services))["Devices"]["HvSocket"]["HvSocketConfig"]["ServiceTable"]
    assert "Disabled" not in table[log]
    made = machine(wcow(hvsocket_services=services, log_forwarding=False))
    assert made["Devices"]["HvSocket"]["HvSocketConfig"]["ServiceTable"] == {log: {"Disabled": True}}


def test_the_registry_has_dumps_first_then_the_namespace_then_what_was_asked_for() -> None:
    value = RegistryValue(hive="Sam", key="k", volatile=True, name="n", type="String", string_value="v")
    made = machine(wcow(process_dump_location="C:\\d", registry_values=[value]))
    added = made["RegistryChanges"]["AddValues"]
    assert [(v["Key"]["Name"], v["Name"], v.get("DWordValue")) for v in added] == [
        ("ControlSet001\\Services\\WerSvc", "Start", 2),
        ("Microsoft\\Windows\\Windows Error Reporting", "Disabled", 1),
        ("CurrentControlSet\\Services\\gns", "EnableCompartmentNamespace", 1),
        ("k", "n", None),
    ]
    assert [v["Key"]["Hive"] for v in added] == ["System", "Software", "System", "Sam"]
    assert added[3] == {
        "Key": {"Hive": "Sam", "Name": "k", "Volatile": True},
        "Name": "n",
        "Type": "String",
        "StringValue": "v",
    }


def test_what_a_registry_value_does_not_say_is_left_to_hcs() -> None:
    made = wcow(disable_compartment_namespace=True, registry_values=[RegistryValue(hive="", key="k")])
    assert machine(made)["RegistryChanges"] == {"AddValues": [{"Key": {"Name": "k"}}]}


def test_crash_dumps_go_into_a_directory_that_every_vm_may_write() -> None:
    made = wcow(dump_directory="C:\\dumps")
    assert machine(made)["DebugOptions"] == {
        "BugcheckSavedStateFileName": "C:\\dumps\\vm1-savedstate.vmrs",
        "BugcheckNoCrashdumpSavedStateFileName": "C:\\dumps\\vm1-savedstate_nocrashdump.vmrs",
    }
    assert machine(made)["Devices"]["GuestCrashReporting"] == {
        "WindowsCrashSettings": {"DumpFileName": "C:\\dumps\\vm1-windows-crash", "DumpType": "Full"}
    }
    assert made.preparations[0] == GrantAccess("C:\\dumps", to_vm_group=True, mask="all")


def test_crash_dumps_need_a_directory() -> None:
    with pytest.raises(OptionsError, match=r"dump_directory: C:\\file is not a directory"):
        wcow(dump_directory="C:\\file")
    with pytest.raises(OptionsError, match=r"dump_directory: C:\\none was not found"):
        wcow(dump_directory="C:\\none")


CONFIDENTIAL: dict[str, Any] = {
    "boot_files": DISKS,
    "security_policy_enabled": True,
    "security_policy": POLICY,
    "guest_state_file": "C:\\state.vmgs",
    "bundle_directory": "C:\\bundle",
}


def test_a_confidential_windows_vm_boots_from_disks() -> None:
    made = wcow(**CONFIDENTIAL)
    vm = machine(made)
    assert made.document["SchemaVersion"] == {"Major": 2, "Minor": 5}
    # Go leaves a zero out of a version, too.
    assert vm["Version"] == {"Major": 12}
    assert vm["Chipset"] == {
        "Uefi": {
            "ApplySecureBootTemplate": "Apply",
            "SecureBootTemplateId": "1734c6e8-3154-4dda-ba5f-a874cc483422",
        }
    }
    assert vm["GuestState"] == {
        "GuestStateFilePath": "C:\\state.vmgs",
        "GuestStateFileType": "BlockStorage",
    }
    assert vm["SecuritySettings"]["Isolation"] == {
        "IsolationType": "SecureNestedPaging",
        "LaunchData": POLICY_DIGEST,
        "HclEnabled": True,
    }
    assert vm["Devices"]["Scsi"][CONTROLLER]["Attachments"] == {
        "0": {"Type": "VirtualDisk", "Path": "C:\\scratch.vhdx"},
        "1": {"Type": "VirtualDisk", "Path": "C:\\efi.vhd", "ReadOnly": True},
        "2": {"Type": "VirtualDisk", "Path": "C:\\cim.vhd", "ReadOnly": True},
    }
    assert vm["Devices"]["VirtualSmb"]["Shares"] == [
        {
            "Name": "defaultEmptyShare",
            "Path": "C:\\bundle\\EmptyDoNotModify",
            "Options": {"ReadOnly": True, "ShareRead": True, "NoOplocks": True},
        }
    ]
    assert made.reserved_scsi == ((0, 0), (0, 1), (0, 2))


def test_a_confidential_windows_vm_is_prepared_in_this_order() -> None:
    share = "C:\\bundle\\EmptyDoNotModify"
    assert wcow(**CONFIDENTIAL).preparations == (
        GrantAccess("C:\\state.vmgs"),
        GrantAccess("C:\\efi.vhd"),
        GrantAccess("C:\\cim.vhd"),
        GrantAccess("C:\\scratch.vhdx"),
        SetDiskId("C:\\scratch.vhdx", "a7b3c5d1-4e2f-4a8b-9c6d-1e3f5a7b9c2d"),
        MakeDirectory(share),
        GrantAccess(share),
    )


def test_a_confidential_windows_vm_can_be_opened_for_debugging() -> None:
    made = wcow(
        **CONFIDENTIAL,
        isolation_type="GuestStateOnly",
        disable_secure_boot=True,
        firmware_parameters="a=1",
        writable_efi=True,
        debug_mode=True,
        debug_data_path="C:\\keep",
    )
    vm = machine(made)
    assert vm["Chipset"] == {
        "Uefi": {"ApplySecureBootTemplate": "Skip"},
        "FirmwareFile": {"Parameters": "YT0x"},
    }
    assert vm["SecuritySettings"]["Isolation"]["IsolationType"] == "GuestStateOnly"
    assert "ReadOnly" not in vm["Devices"]["Scsi"][CONTROLLER]["Attachments"]["1"]
    assert made.copies_on_exit == (
        MakeDirectory("C:\\keep"),
        CopyFile("C:\\scratch.vhdx", "C:\\keep\\vm1_scratch.vhdx"),
        CopyFile("C:\\efi.vhd", "C:\\keep\\vm1_efi.vhd"),
    )


def test_a_plain_windows_vm_keeps_nothing() -> None:
    assert wcow(debug_mode=True, debug_data_path="C:\\keep").copies_on_exit == ()
