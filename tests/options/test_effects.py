"""Every option has an effect: it changes the plan of a VM, is refused, or is read when the VM lives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest

import uvm
from tests.planning import BOOT, DISKS, GUID, MIB, POLICY, plan
from uvm._document.plan import CreationPlan
from uvm.backend import FileInfo
from uvm.errors import OptionsError
from uvm.options import (
    BlockCIMBootFiles,
    HvSocketService,
    LCOWOptions,
    PCIDevice,
    RegistryValue,
    Template,
    VmbFSBootFiles,
    WCOWOptions,
)
from uvm.schema.template import TemplateDisk, TemplateDocument

LIBRARY = Path(uvm.__file__).parent
FILES: dict[str, FileInfo | int] = {
    **{
        rf"{d}\{n}": MIB
        for d in (r"C:\boot", r"C:\x")
        for n in ("kernel", "vmlinux", "initrd.img", "rootfs.vhd")
    },
    **{rf"C:\boot\{n}": MIB for n in ("x", "kernel.vmgs", "verity.vhd")},
    **{rf"{d}\boot.vhd": MIB for d in (r"C:\root", r"C:\x")},
    r"C:\x": FileInfo(is_dir=True),
}

PLAIN: dict[str, Any] = {"boot_files_path": r"C:\boot"}
ISOLATED: dict[str, Any] = PLAIN | {
    "guest_state_file": "kernel.vmgs",
    "dm_verity_rootfs_vhd": "verity.vhd",
    "rootfs_type": "none",
    "bundle_directory": r"C:\bundle",
    "vpmem_count": 0,
}
ENFORCED: dict[str, Any] = PLAIN | {"security_policy_enabled": True}
ON_SCSI: dict[str, Any] = PLAIN | {
    "vpmem_count": 0,
    "rootfs_type": "vhd",
    "dm_verity_mode": True,
    "dm_verity_create_args": "root",
}
WINDOWS: dict[str, Any] = {"boot_files": BOOT}
CONFIDENTIAL: dict[str, Any] = {
    "boot_files": DISKS,
    "security_policy_enabled": True,
    "guest_state_file": r"C:\state.vmgs",
    "bundle_directory": r"C:\bundle",
}
IMPLICIT: dict[str, Any] = {
    "allow_overcommit": False,
    "numa_max_processors_per_node": 2,
    "numa_max_memory_per_node_mb": 512,
}
EXPLICIT: dict[str, Any] = {
    "allow_overcommit": False,
    "numa_mapped_physical_nodes": [0, 1],
    "numa_processor_counts": [1, 1],
    "numa_memory_blocks": [512, 512],
}

#: The options beside which an option is given, and its other value; else a plain VM and any other value do.
SHARED: dict[str, tuple[dict[str, Any], Any]] = {
    "processors": ({}, 4),
    "console_pipe": ({}, r"\\.\pipe\p"),
    "deferred_commit": ({}, True),
    "resource_partition_id": ({}, GUID),
    "hvsocket_services": ({}, {GUID: HvSocketService()}),
    "numa_max_memory_per_node_mb": (IMPLICIT, 1024),
    "numa_max_processors_per_node": (IMPLICIT, 4),
    "numa_preferred_physical_nodes": (IMPLICIT, [1]),
    "numa_mapped_physical_nodes": (EXPLICIT, [1, 0]),
    "numa_processor_counts": (EXPLICIT, [2, 0]),
    "numa_memory_blocks": (EXPLICIT, [256, 768]),
    "additional_json": ({}, {"Owner": "x"}),
    "clone_of": ({}, Template(TemplateDocument(system_id="t", disks=[TemplateDisk()]))),
}
LINUX_ONLY: dict[str, tuple[dict[str, Any], Any]] = {
    "boot_files_path": (PLAIN, r"C:\x"),
    "rootfs_type": (PLAIN, "initrd"),
    "guest_log_level": (PLAIN, "debug"),
    "vpmem_size_bytes": (PLAIN, 4096 * 1024),
    "assigned_devices": (PLAIN, [PCIDevice("PCIP\\1")]),
    "kernel_direct": (PLAIN, False),
    "vpmem_multi_mapping": (PLAIN, False),
    "scsi_controllers": (PLAIN, 2),
    "security_policy": (ISOLATED, POLICY),
    "guest_state_file": (ISOLATED, "x"),
    "bundle_directory": (ISOLATED, r"C:\other"),
    "dm_verity_rootfs_vhd": (ISOLATED, "x"),
    "hcl_enabled": (ISOLATED, True),
    "extra_vsock_ports": (ISOLATED, [5]),
    "dm_verity_mode": (ISOLATED, True),
    "dm_verity_create_args": (ON_SCSI, "x"),
    "uvm_reference_info_file": (ENFORCED, "x"),
    "uvm_hash_envelope_reference_info_file": (ENFORCED, "x"),
    "security_policy_enforcer": (ENFORCED, "x"),
    "writable_overlay_dirs": (PLAIN | {"rootfs_type": "vhd"}, True),
}
WINDOWS_ONLY: dict[str, tuple[dict[str, Any], Any]] = {
    "boot_files": (WINDOWS, attrs.evolve(BOOT, os_files_path=r"C:\x")),
    "registry_values": (WINDOWS, [RegistryValue(hive="System", key="k")]),
    "dump_directory": (WINDOWS, r"C:\x"),
    "uvm_reference_info_file": (CONFIDENTIAL, r"C:\x"),
    "uvm_hash_envelope_reference_info_file": (CONFIDENTIAL, r"C:\x"),
    "security_policy_enforcer": (CONFIDENTIAL, "x"),
    "security_policy": (CONFIDENTIAL, POLICY),
    "guest_state_file": (CONFIDENTIAL, r"C:\x"),
    "bundle_directory": (CONFIDENTIAL, r"C:\x"),
    "boot_files_root_path": (
        CONFIDENTIAL
        | {"boot_files": attrs.evolve(DISKS, efi_vhd_path=""), "boot_files_root_path": r"C:\root"},
        r"C:\x",
    ),
    "isolation_type": (CONFIDENTIAL, "VirtualizationBasedSecurity"),
    "disable_secure_boot": (CONFIDENTIAL, True),
    "firmware_parameters": (CONFIDENTIAL, "x"),
    "writable_efi": (CONFIDENTIAL, True),
    "debug_mode": (CONFIDENTIAL | {"debug_data_path": r"C:\x"}, True),
    "debug_data_path": (CONFIDENTIAL | {"debug_mode": True, "debug_data_path": r"C:\y"}, r"C:\x"),
    "security_policy_enabled": ({**CONFIDENTIAL}, False),
}
#: Options that have no effect beside the others here.
REFUSED = {
    LCOWOptions: {
        "dump_directory",
        "disable_compartment_namespace",
        "revoke_released_files",
        "use_guest_state_file",
        "clone_of",
        "scratch_directory",
    },
    WCOWOptions: {"scsi_controllers", "security_policy_enabled", "clone_of", "scratch_directory"},
}
#: Options that are read when the VM lives: what they decide has tests where it is done.
READ_LATER = {
    "network_config_proxy": "the network's set-up",
    "no_writable_file_shares": "shares",
    "revoke_released_files": "shares of a Windows guest",
    "template": "what is saved",
    "no_direct_map": "shares of a Windows guest",
    "fully_physically_backed": "layers",
    "security_policy_enabled": "the guest's first request",
    "security_policy_enforcer": "the guest's first request",
    "uvm_reference_info_file": "the guest's first request",
    "uvm_hash_envelope_reference_info_file": "the guest's first request",
    "inherit_time_zone": "the guest's start",
    "log_sources": "the guest's log",
    "default_log_sources": "the guest's log",
    "use_guest_connection": "the guest's start",
    "scratch_encryption": "the scratch disks of containers",
    "policy_based_routing": "adapters",
}


def other(field: attrs.Attribute[Any]) -> Any:
    """Another value of an option, of its type."""
    if isinstance(field.default, bool) or "bool" in str(field.type):
        return not field.default
    if "int" in str(field.type):
        return (field.default or 0) + 2
    return "x"


def planned(cls: type[Any], given: dict[str, Any]) -> CreationPlan:
    options = cls(**given)
    options.check_effects()
    return plan(options, FILES, build=26100)


def cases() -> list[Any]:
    found = []
    for cls, own, plain in ((LCOWOptions, LINUX_ONLY, PLAIN), (WCOWOptions, WINDOWS_ONLY, WINDOWS)):
        for field in attrs.fields(cls):
            beside, value = own.get(field.name) or SHARED.get(field.name) or ({}, other(field))
            found.append(
                pytest.param(cls, plain | beside, field.name, value, id=f"{cls.__name__}.{field.name}")
            )
    return found


@pytest.mark.parametrize(("cls", "beside", "name", "value"), cases())
def test_every_option_changes_the_plan_is_refused_or_is_read_later(
    cls: type[Any], beside: dict[str, Any], name: str, value: Any
) -> None:
    before = planned(cls, beside)
    if name in REFUSED[cls]:
        with pytest.raises(OptionsError, match=name if name != "scsi_controllers" else "SCSI controller"):
            planned(cls, beside | {name: value})
    elif name == "id":
        assert planned(cls, beside | {name: value}) == before, "the id is the caller's to plan with"
    elif planned(cls, beside | {name: value}) == before:
        assert name in READ_LATER


@pytest.mark.parametrize(
    ("cls", "beside", "name", "value"),
    [each for each in cases() if each.values[2] not in REFUSED[each.values[0]]],
)
def test_options_show_what_differs_from_their_defaults_and_that_makes_them_again(
    cls: type[Any], beside: dict[str, Any], name: str, value: Any
) -> None:
    options = cls(**beside | {name: value})
    field = attrs.fields_dict(cls)[name]
    if not field.repr:
        assert f"{name}=..." in repr(options)
    else:
        hidden = [each for each in beside if not attrs.fields_dict(cls)[each].repr]
        shown = attrs.evolve(options, **{each: attrs.fields_dict(cls)[each].default for each in hidden})
        assert eval(repr(shown), vars(uvm.options)) == shown
        assert {f"{each}=" in repr(shown) for each in beside.keys() - {*hidden}} <= {True}


def test_options_that_are_all_default_show_nothing() -> None:
    assert repr(LCOWOptions(memory_mb=512)) == "LCOWOptions(memory_mb=512)"


@pytest.mark.parametrize("name", READ_LATER)
def test_what_is_said_to_be_read_later_is_read(name: str) -> None:
    modules = [each for each in LIBRARY.rglob("*.py") if each.relative_to(LIBRARY).parts[0] != "options"]
    assert any(re.search(rf"\.{name}\b|\"{name}\"", each.read_text("utf-8")) for each in modules)


#: The parts of options: how an option holds one, and two values of each field.
PARTS: list[tuple[type[Any], Any, dict[str, tuple[Any, Any]]]] = [
    (
        HvSocketService,
        lambda part: (LCOWOptions, PLAIN | {"hvsocket_services": {GUID: part}}),
        {
            "bind_security_descriptor": ("", "D:P"),
            "connect_security_descriptor": ("", "D:P"),
            "allow_wildcard_binds": (False, True),
            "disabled": (False, True),
        },
    ),
    (
        PCIDevice,
        lambda part: (LCOWOptions, PLAIN | {"assigned_devices": [part]}),
        {"instance_path": ("PCIP\\1", "PCIP\\2"), "function": (0, 1)},
    ),
    (
        RegistryValue,
        lambda part: (WCOWOptions, WINDOWS | {"registry_values": [part]}),
        {
            "hive": ("System", "Sam"),
            "key": ("k", "l"),
            "volatile": (False, True),
            "name": ("", "n"),
            "type": ("", "DWord"),
            "string_value": ("", "s"),
            "binary_value": ("", "AA=="),
            "dword_value": (0, 1),
            "qword_value": (0, 1),
            "custom_type": (0, 1),
        },
    ),
    (
        VmbFSBootFiles,
        lambda part: (WCOWOptions, {"boot_files": part}),
        {
            "os_files_path": (r"C:\os", r"C:\x"),
            "os_relative_boot_directory": ("\\EFI", "\\x"),
            "scratch_vhd_path": (r"C:\s", r"C:\x"),
        },
    ),
    (
        BlockCIMBootFiles,
        lambda part: (WCOWOptions, CONFIDENTIAL | {"boot_files": part}),
        {
            "boot_cim_vhd_path": (r"C:\c", r"C:\x"),
            "efi_vhd_path": (r"C:\e", r"C:\x"),
            "scratch_vhd_path": (r"C:\s", r"C:\x"),
        },
    ),
]


@pytest.mark.parametrize(("part", "hold", "values"), PARTS)
def test_every_field_of_a_part_changes_the_plan(
    part: type[Any], hold: Any, values: dict[str, tuple[Any, Any]]
) -> None:
    assert set(values) == {field.name for field in attrs.fields(part)}
    first = {name: value for name, (value, _) in values.items()}
    before = planned(*hold(part(**first)))
    for name, (_, value) in values.items():
        assert planned(*hold(part(**{**first, name: value}))) != before, name
