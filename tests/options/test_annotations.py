"""Options from annotations: each of hcsshim's sets an option, is read elsewhere, or is refused by name."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import uvm
from tests.planning import BOOT, DISKS, MIB, POLICY, plan
from uvm._checks import HCSSHIM
from uvm.errors import OptionsError
from uvm.options import (
    ContainerAnnotations,
    LCOWOptions,
    WCOWOptions,
    container_annotations,
    expanded_annotations,
    from_hcsshim,
    options_from_annotations,
    unknown_annotations,
)
from uvm.options.annotations import NOT_SUPPORTED, OF_VMS, READ_ELSEWHERE, SERVICE_TABLE
from uvm.options.containerannotations import OF_CONTAINERS

DATA = json.loads(Path(__file__).parents[1].joinpath("data", "annotations.json").read_text("utf-8"))
NAMES = {each["name"] for each in DATA}
VM = "io.microsoft.virtualmachine."
TOPOLOGY = f"{VM}computetopology."
GUID = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
WINDOWS: dict[str, Any] = {"boot_files": BOOT}
#: What the host of a confidential VM adds.
HOST: dict[str, Any] = {"bundle_directory": r"C:\bundle", "scratch_vhd_path": r"C:\scratch.vhdx"}


def lcow(annotations: dict[str, str], **options: Any) -> LCOWOptions:
    made: LCOWOptions = options_from_annotations("linux", annotations, **options)
    return made


def wcow(annotations: dict[str, str], **options: Any) -> WCOWOptions:
    made: WCOWOptions = options_from_annotations("windows", annotations, **WINDOWS | options)
    return made


# The tables.


def test_each_annotation_of_hcsshim_is_in_one_table_and_no_others_are() -> None:
    tables = [set(OF_VMS), set(READ_ELSEWHERE), set(NOT_SUPPORTED), {SERVICE_TABLE}]
    assert set().union(*tables) == NAMES
    assert sum(map(len, tables)) == len(NAMES)


def test_what_belongs_to_a_vm_or_to_a_container_is_said_of_it() -> None:
    of = {each["name"]: each["of"] for each in DATA}
    assert {of[name] for name in OF_CONTAINERS} <= {"container", "container and vm"}
    systems = {"vm": {"linux", "windows"}, "vm lcow": {"linux"}, "vm wcow": {"windows"}}
    systems["container and vm"] = systems["vm"]
    assert [name for name, sets in OF_VMS.items() if set(sets) != systems[of[name]]] == []
    read_of_containers = {name for name, where in READ_ELSEWHERE.items() if "container_annotations" in where}
    # It says nothing by itself, but contradicts another.
    denied = {"microsoft.com/disable-hostprocess-container"}
    assert read_of_containers == set(OF_CONTAINERS) - set(OF_VMS) | denied


@pytest.mark.parametrize("cls", [LCOWOptions, WCOWOptions])
def test_what_is_set_is_an_option(cls: Any) -> None:
    os: Any = "linux" if cls is LCOWOptions else "windows"
    stand_for_others = {"security_hardware", "exec_arguments"}
    set_ = {sets[os].option for sets in OF_VMS.values() if os in sets}
    assert set_ - stand_for_others <= set(attrs.fields_dict(cls))


# What each sets. hcsshim's fields are those that its internal/oci/uvm.go fills.

COMMON = {
    f"{TOPOLOGY}memory.sizeinmb": ("4096", "MemorySizeInMB", 4096),
    f"{TOPOLOGY}memory.lowmmiogapinmb": ("128", "LowMMIOGapInMB", 128),
    f"{TOPOLOGY}memory.highmmiobaseinmb": ("65536", "HighMMIOBaseInMB", 65536),
    f"{TOPOLOGY}memory.highmmiogapinmb": ("256", "HighMMIOGapInMB", 256),
    f"{TOPOLOGY}memory.allowovercommit": ("false", "AllowOvercommit", False),
    f"{TOPOLOGY}memory.enabledeferredcommit": ("1", "EnableDeferredCommit", True),
    f"{TOPOLOGY}processor.count": ("3", "ProcessorCount", 3),
    f"{TOPOLOGY}processor.limit": ("50000", "ProcessorLimit", 50000),
    f"{TOPOLOGY}processor.weight": ("9", "ProcessorWeight", 9),
    f"{VM}storageqos.bandwidthmaximum": ("7", "StorageQoSBandwidthMaximum", 7),
    f"{VM}storageqos.iopsmaximum": ("8", "StorageQoSIopsMaximum", 8),
    f"{VM}cpugroup.id": (GUID, "CPUGroupID", GUID),
    f"{VM}resource-partition-id": (GUID, "ResourcePartitionID", GUID),
    f"{VM}fileshares.disablewritable": ("T", "NoWritableFileShares", True),
    f"{VM}console.pipe": (r"\\.\pipe\a", "ConsolePipe", r"\\.\pipe\a"),
    "io.microsoft.container.processdumplocation": ("/d", "ProcessDumpLocation", "/d"),
    "io.microsoft.network.ncproxy": (r"\\.\pipe\p", "NetworkConfigProxy", r"\\.\pipe\p"),
    f"{SERVICE_TABLE}{GUID}": (
        '{"AllowWildcardBinds": true, "BindSecurityDescriptor": "D:P(A;;FA;;;WD)"}',
        "AdditionalHyperVConfig",
        {GUID: {"AllowWildcardBinds": True, "BindSecurityDescriptor": "D:P(A;;FA;;;WD)"}},
    ),
}
LINUX = {
    f"{TOPOLOGY}memory.enablecolddiscardhint": ("true", "EnableColdDiscardHint", True),
    f"{VM}devices.virtualpmem.maximumcount": ("0", "VPMemDeviceCount", 0),
    f"{VM}devices.virtualpmem.maximumsizebytes": ("4096", "VPMemSizeBytes", 4096),
    f"{VM}storage.scratch.encrypted": ("true", "EnableScratchEncryption", True),
    f"{VM}bootfilesrootpath": (r"C:\b", "BootFilesPath", r"C:\b"),
    f"{VM}lcow.bootfilesrootpath": (r"C:\b", "BootFilesPath", r"C:\b"),
    f"{VM}lcow.kernelbootoptions": ("a b", "KernelBootOptions", "a b"),
    f"{VM}lcow.vpcienabled": ("true", "VPCIEnabled", True),
    f"{VM}lcow.vpmem.nomultimapping": ("true", "VPMemNoMultiMapping", True),
    f"{VM}lcow.timesync.disable": ("true", "DisableTimeSyncService", True),
    f"{VM}lcow.writable-overlay-directories": ("true", "WritableOverlayDirs", True),
    f"{VM}lcow.network.policybasedrouting": ("true", "PolicyBasedRouting", True),
    f"{VM}lcow.dmverity-mode": ("true", "DmVerityMode", True),
}
OF_WINDOWS = {
    f"{VM}dump-directory-path": (r"C:\d", "DumpDirectoryPath", r"C:\d"),
    f"{VM}disablecompartmentnamespace": ("true", "DisableCompartmentNamespace", True),
    f"{VM}forwardlogs.sources": ("e30=", "LogSources", "e30="),
    f"{VM}forwardlogs.enable": ("false", "LogForwardingEnabled", False),
    f"{VM}forwardlogs.defaultsources.enable": ("false", "DefaultLogSourcesEnabled", False),
    f"{VM}wcow.virtualSMB.nodirectmap": ("true", "NoDirectMap", True),
    f"{VM}wcow.timezone.noinherit": ("true", "NoInheritHostTimezone", True),
}
BLOCKS: dict[str, Any] = {
    "BootType": 1,
    "BlockCIMFiles": {
        "BootCIMVHDPath": DISKS.boot_cim_vhd_path,
        "EFIVHDPath": DISKS.efi_vhd_path,
        "ScratchVHDPath": DISKS.scratch_vhd_path,
    },
}
BOOTS: dict[str, Any] = {
    "BootType": 0,
    "VmbFSFiles": {
        "OSFilesPath": BOOT.os_files_path,
        "OSRelativeBootDirPath": BOOT.os_relative_boot_directory,
        "ScratchVHDPath": BOOT.scratch_vhd_path,
    },
}


@pytest.mark.parametrize("name", [*COMMON, *LINUX])
def test_an_annotation_of_a_linux_vm_sets_what_it_sets_in_hcsshim(name: str) -> None:
    text, field, value = (COMMON | LINUX)[name]
    assert lcow({name: text}) == from_hcsshim("linux", {field: value})


@pytest.mark.parametrize("name", [*COMMON, *OF_WINDOWS])
def test_an_annotation_of_a_windows_vm_sets_what_it_sets_in_hcsshim(name: str) -> None:
    text, field, value = (COMMON | OF_WINDOWS)[name]
    assert wcow({name: text}) == from_hcsshim("windows", {field: value, "BootFiles": BOOTS})


def test_what_an_annotation_implies_is_set_with_it() -> None:
    initrd = lcow({f"{VM}lcow.preferredrootfstype": "initrd"})
    assert (initrd.rootfs_type, initrd.rootfs_file) == ("initrd", "initrd.img")
    vhd = lcow({f"{VM}lcow.preferredrootfstype": "vhd"})
    assert (vhd.rootfs_type, vhd.rootfs_file) == ("vhd", "rootfs.vhd")
    assert lcow({f"{VM}lcow.kerneldirectboot": "false"}).kernel_file == "kernel"
    assert lcow({f"{VM}lcow.kerneldirectboot": "true"}).kernel_file is None
    backed = {f"{VM}fullyphysicallybacked": "true"}
    assert (lcow(backed).allow_overcommit, lcow(backed).vpmem_count) == (False, 0)
    assert wcow(backed).allow_overcommit is False
    more = lcow({f"{VM}lcow.extra-exec-command-args": "-x y"})
    assert more.exec_command_line == "/bin/gcs -v4 -log-format json -loglevel info -x y"
    assert wcow({f"{VM}saveastemplate": "true"}).template


def test_virtual_numa_nodes_are_lists_with_commas() -> None:
    physical = {f"{TOPOLOGY}memory.allowovercommit": "false"}
    explicit = {
        f"{TOPOLOGY}numa.mapped-physical-nodes": "0,1",
        f"{TOPOLOGY}numa.count-of-processors": "1,2",
        f"{TOPOLOGY}numa.count-of-memory-blocks": "512,512",
    }
    made = lcow(physical | explicit)
    assert (made.numa_mapped_physical_nodes, made.numa_processor_counts) == ((0, 1), (1, 2))
    assert made.numa_memory_blocks == (512, 512)
    implicit = {
        f"{TOPOLOGY}processor.numa.max-processors-per-node": "2",
        f"{TOPOLOGY}processor.numa.max-size-per-node": "512",
        f"{TOPOLOGY}numa.preferred-physical-nodes": "1",
    }
    assert wcow(physical | implicit).numa_preferred_physical_nodes == (1,)
    assert lcow({f"{TOPOLOGY}numa.mapped-physical-nodes": ""}).numa_mapped_physical_nodes == ()


def test_registry_values_are_json_and_permitted_in_some_places_alone() -> None:
    name = f"{VM}wcow.additional-reg-keys"
    value = {
        "Key": {"Hive": "System", "Name": r"CurrentControlSet\services\x"},
        "Name": "v",
        "Type": "String",
        "StringValue": "s",
    }
    assert wcow({name: json.dumps([value])}) == from_hcsshim(
        "windows", {"AdditionalRegistryKeys": [value], "BootFiles": BOOTS}
    )
    for changes, problem in (
        ({"Key": {"Hive": "System", "Name": "Setup"}}, "is not permitted"),
        ({"Key": {"Hive": "Sam", "Name": "Software"}}, "is not permitted"),
        ({"Key": {"Hive": "Software", "Name": ""}}, "needs a hive, a key"),
        ({"Key": {"Hive": "Sofware", "Name": "x"}}, "hive"),
        ({"Name": ""}, "needs a hive, a key, a name"),
        ({"Type": ""}, "and a type"),
        ({"Key": None}, "needs Key"),
        ({"Key": "x"}, "another form"),
        ({"DWordValue": 1}, "dword_value: no effect with type"),
        ({"Type": "Toast"}, "type must be"),
        ({"Colour": 1}, "Colour"),
    ):
        with pytest.raises(OptionsError, match=f"annotation {name}.*{problem}"):
            wcow({name: json.dumps([value | changes])})


# A policy.


@pytest.mark.parametrize("hardware", [True, False])
def test_a_policy_makes_a_confidential_linux_vm(hardware: bool) -> None:
    annotations = {
        f"{VM}lcow.securitypolicy": POLICY,
        f"{VM}no_security_hardware": str(not hardware).lower(),
        f"{VM}lcow.enforcer": "rego",
        f"{VM}storage.scratch.encrypted": "false",
    }
    made = lcow(annotations, **HOST)
    assert made == LCOWOptions.confidential(
        POLICY,
        security_hardware=hardware,
        security_policy_enforcer="rego",
        scratch_encryption=False,
        **{"bundle_directory": r"C:\bundle"} if hardware else {},
    )


def test_names_of_files_of_a_confidential_linux_vm_are_those_of_annotations() -> None:
    names = {
        f"{VM}lcow.gueststatefile": "g.vmgs",
        f"{VM}lcow.dmverity-rootfs-vhd": "v.vhd",
        f"{VM}lcow.dmverity-mode": "false",
        f"{VM}lcow.hcl-enabled": "true",
        f"{VM}lcow.uvm-reference-info-file": "r.cose",
        f"{VM}uvm-hash-envelope-reference-info-file": "h.cose",
        f"{VM}lcow.extra-vsock-ports": "7,8",
    }
    made = lcow({f"{VM}lcow.securitypolicy": POLICY} | names, **HOST)
    theirs = {
        "GuestStateFilePath": "g.vmgs",
        "DmVerityRootFsVhd": "v.vhd",
        "DmVerityMode": False,
        "HclEnabled": True,
        "UVMReferenceInfoFile": "r.cose",
        "UVMHashEnvelopeReferenceInfoFile": "h.cose",
        "ExtraVSockPorts": [7, 8],
    }
    fields = {
        attrs.fields_dict(LCOWOptions)[f.name].metadata.get(HCSSHIM): f.name
        for f in attrs.fields(LCOWOptions)
    }
    for field, value in theirs.items():
        assert getattr(made, fields[field]) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("annotations", "options"),
    [
        ({}, {}),
        ({f"{VM}no_security_hardware": "true"}, {"security_hardware": False}),
        ({f"{VM}wcow.isolation_type": "VBS"}, {"isolation_type": "VBS"}),
        ({f"{TOPOLOGY}memory.sizeinmb": "4096"}, {"memory_mb": 4096}),
        ({f"{VM}wcow.no_secure_boot": "true"}, {"disable_secure_boot": True}),
        ({f"{VM}wcow.writable_efi": "true"}, {"writable_efi": True}),
        ({f"{VM}wcow.gueststatefile": r"C:\g.vmgs"}, {"guest_state_file": r"C:\g.vmgs"}),
        ({f"{VM}wcow.enforcer": "rego"}, {"security_policy_enforcer": "rego"}),
        ({f"{VM}wcow.uvm-reference-info-file": r"C:\r"}, {"uvm_reference_info_file": r"C:\r"}),
        ({f"{VM}forwardlogs.enable": "true"}, {"log_forwarding": True}),
        (
            {"io.microsoft.wcow.debug": "true", "io.microsoft.wcow.debug_data_path": r"C:\d"},
            {"debug_mode": True, "debug_data_path": r"C:\d"},
        ),
    ],
)
def test_a_policy_makes_a_confidential_windows_vm(
    annotations: dict[str, str], options: dict[str, Any]
) -> None:
    root = {f"{VM}bootfilesrootpath": r"C:\cim"}
    # What an image would boot from is left out.
    made = wcow(
        {f"{VM}wcow.securitypolicy": POLICY} | root | annotations, **HOST, resources={"memory": {"limit": 1}}
    )
    assert made == WCOWOptions.confidential(POLICY, boot_files_root_path=r"C:\cim", **HOST, **options)


def test_disks_that_are_named_are_booted_from() -> None:
    made = wcow(
        {f"{VM}wcow.securitypolicy": POLICY, f"{VM}wcow.gueststatefile": r"C:\g"}, **HOST, boot_files=DISKS
    )
    assert made.boot_files == DISKS


def test_without_a_policy_what_only_a_confidential_vm_takes_is_left_out() -> None:
    assert lcow({f"{VM}no_security_hardware": "true"}, **HOST) == LCOWOptions()
    assert wcow({f"{VM}no_security_hardware": "true", f"{VM}wcow.securitypolicy": ""}, **HOST) == WCOWOptions(
        **WINDOWS
    )


def test_what_does_not_fit_a_policy_is_refused_by_its_annotation() -> None:
    for cls, policy, name, value, option in (
        (lcow, f"{VM}lcow.securitypolicy", f"{VM}lcow.kernelbootoptions", "x", "kernel_boot_options"),
        (lcow, f"{VM}lcow.securitypolicy", f"{VM}devices.virtualpmem.maximumcount", "1", "vpmem_count"),
        (lcow, f"{VM}lcow.securitypolicy", f"{TOPOLOGY}memory.allowovercommit", "true", "allow_overcommit"),
        (lcow, f"{VM}lcow.securitypolicy", f"{VM}console.pipe", "x", "console_pipe"),
        (wcow, f"{VM}wcow.securitypolicy", f"{TOPOLOGY}memory.sizeinmb", "1024", "MB"),
        (wcow, f"{VM}wcow.securitypolicy", f"{VM}wcow.isolation_type", "TDX", "isolation_type"),
    ):
        with pytest.raises(OptionsError, match=option) as raised:
            cls({policy: POLICY, name: value, f"{VM}bootfilesrootpath": r"C:\cim"}, **HOST)
        assert option == "MB" or f"{option} is {name}" in str(raised.value)
        assert POLICY not in str(raised.value)


def test_an_option_without_effect_is_refused_by_its_annotation() -> None:
    for name, value in ((f"{VM}wcow.isolation_type", "VBS"), ("io.microsoft.wcow.debug_data_path", r"C:\d")):
        with pytest.raises(OptionsError, match=f"no effect without security_policy_enabled.*{name}"):
            wcow({name: value})
    with pytest.raises(OptionsError, match=f"no effect without guest_state_file.*{VM}lcow.hcl-enabled"):
        lcow({f"{VM}lcow.hcl-enabled": "true"})


# Resources and other options.


def test_an_annotation_wins_over_the_resources_and_these_over_the_options() -> None:
    resources = {
        "memory": {"limit": 3000 * MIB + 5},
        "cpu": {"count": 4, "maximum": 5000, "shares": 7},
        "storage": {"bps": 1, "iops": 2},
    }
    made = wcow(
        {f"{TOPOLOGY}processor.count": "2"}, resources=resources, memory_mb=512, processors=1, owner="o"
    )
    assert (made.memory_mb, made.processors, made.processor_limit, made.processor_weight) == (
        3000,
        2,
        5000,
        7,
    )
    assert (made.storage_qos_bandwidth_max, made.storage_qos_iops_max, made.owner) == (1, 2, "o")
    # As in hcsshim, 0 says nothing.
    none = wcow(
        {f"{TOPOLOGY}processor.count": "0"}, resources={"cpu": {"count": 0}, "memory": None}, processors=3
    )
    assert none.processors == 3


@pytest.mark.parametrize(
    "resources", [5, {"memory": {"limit": "1"}}, {"cpu": {"count": -1}}, {"cpu": {"count": True}}]
)
def test_resources_of_another_form_are_refused(resources: Any) -> None:
    with pytest.raises(OptionsError, match="resources"):
        wcow({}, resources=resources)


# Bad values.

BAD_FLAGS = ("", "yes", "TrUe", " true", "2")
BAD_NUMBERS = ("", "-1", "+1", "1.0", "0x10", " 1", "1_000", "\u0661", str(2**64))


@pytest.mark.parametrize("name", [*COMMON, *LINUX, *OF_WINDOWS])
def test_a_value_that_cannot_be_read_is_refused_under_the_name_of_its_annotation(name: str) -> None:
    value = (COMMON | LINUX | OF_WINDOWS)[name][2]
    if isinstance(value, bool):
        wrong: tuple[str, ...] = BAD_FLAGS
    elif isinstance(value, int):
        wrong = BAD_NUMBERS
    elif isinstance(value, dict):
        wrong = ("", "{", "[]", '{"Colour": 1}', '{"Disabled": 1}', "[" * 10_000)
    else:
        wrong = ("\0",)
    make: Any = wcow if name in OF_WINDOWS else lcow
    for text in wrong:
        with pytest.raises(OptionsError) as raised:
            make({name: text})
        assert name in str(raised.value)


@pytest.mark.parametrize(
    ("annotations", "problem"),
    [
        ({f"{SERVICE_TABLE}x": "{}"}, "it is a GUID"),
        ({f"{SERVICE_TABLE}{GUID}": "{}", f"{SERVICE_TABLE}{GUID.upper()}": "{}"}, "hvsocket_services"),
        ({f"{VM}lcow.extra-vsock-ports": "1,,2"}, "whole number"),
        ({f"{VM}lcow.preferredrootfstype": "none"}, "'initrd' or 'vhd', not 'none'"),
        ({f"{VM}resource-partition-id": "x"}, "it is a GUID"),
        ({f"{VM}bootfilesrootpath": r"C:\a", f"{VM}lcow.bootfilesrootpath": r"C:\b"}, "contradict"),
        (
            {f"{VM}fullyphysicallybacked": "true", f"{TOPOLOGY}memory.allowovercommit": "true"},
            "allow_overcommit",
        ),
        (
            {f"{VM}cpugroup.id": "a", f"{VM}resource-partition-id": GUID},
            "in a resource partition or in a CPU group",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(annotations: dict[str, str], problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        lcow(annotations)


@pytest.mark.parametrize("annotations", [None, 5, "a", [("a", "b")], {"a": 1}, {1: "a"}])
def test_annotations_are_texts_by_name(annotations: Any) -> None:
    for read in (lcow, wcow, container_annotations, expanded_annotations, unknown_annotations):
        with pytest.raises(OptionsError, match="annotation"):
            read(annotations)


def test_the_guest_is_a_linux_or_a_windows_one() -> None:
    with pytest.raises(OptionsError, match="'linux' or 'windows'"):
        options_from_annotations("macos", {})


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_what_is_not_supported_is_refused_unless_it_is_off(name: str) -> None:
    for value in ("", "false", "0"):
        assert lcow({name: value}) == LCOWOptions()
    with pytest.raises(OptionsError, match=name):
        lcow({name: "true"})


# What is reported.


def test_unknown_names_under_the_prefixes_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    unknown = {
        f"{TOPOLOGY}memory.sizeinmbs": "1",
        "microsoft.com/no": "x",
        "io.kubernetes.no": "1",
        "other": "2",
    }
    with caplog.at_level(logging.WARNING, "uvm"):
        assert lcow(unknown) == LCOWOptions()
    assert unknown_annotations(unknown) == [f"{TOPOLOGY}memory.sizeinmbs", "microsoft.com/no"]
    texts = [record.getMessage() for record in caplog.records]
    assert f"there is none of that name; was {TOPOLOGY}memory.sizeinmb" in texts[0]
    assert len(texts) == 2


def test_what_has_no_effect_on_such_a_guest_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "uvm"):
        assert lcow({f"{VM}dump-directory-path": "x"}) == LCOWOptions()
    assert [record.getMessage() for record in caplog.records] == [
        f"annotation {VM}dump-directory-path: no effect on a Linux guest"
    ]


@pytest.mark.parametrize("os", ["linux", "windows"])
def test_what_is_known_is_not_reported(os: str, caplog: pytest.LogCaptureFixture) -> None:
    known = dict.fromkeys(READ_ELSEWHERE, "x") | {
        "io.microsoft.disable-unsafe-operations": "true",
        "io.microsoft.container.wcow.gmsa.disable": "true",
        "microsoft.com/hostprocess-container": "false",
        "microsoft.com/disable-hostprocess-container": "true",
    }
    with caplog.at_level(logging.WARNING, "uvm"):
        options_from_annotations(os, known, **WINDOWS if os == "windows" else {})
    assert caplog.records == []


# Expansions, and containers.


def test_unsafe_operations_are_denied_one_by_one() -> None:
    deny = {"io.microsoft.disable-unsafe-operations": "true"}
    assert wcow(deny).no_direct_map
    assert lcow(deny).no_writable_file_shares
    assert container_annotations(deny).disable_gmsa
    with pytest.raises(OptionsError, match=r"stands for .*fileshares.disablewritable, which is 'false'"):
        lcow(deny | {f"{VM}fileshares.disablewritable": "false"})
    with pytest.raises(OptionsError, match="are both true"):
        expanded_annotations(deny | {"microsoft.com/hostprocess-container": "true"})


CONTAINER = "io.microsoft.container."


def test_annotations_of_a_container() -> None:
    assert container_annotations({}) == ContainerAnnotations()
    made = container_annotations(
        {
            f"{CONTAINER}memory.sizeinmb": "5",
            f"{CONTAINER}processor.count": "2",
            f"{CONTAINER}storage.qos.iopsmaximum": "9",
            f"{CONTAINER}processdumplocation": r"C:\d",
            "io.microsoft.wcow.processdumptype": "mini",
            "io.microsoft.wcow.processdumpcount": "3",
            f"{CONTAINER}wcow.deviceextensions": r"C:\a,C:\b",
            "microsoft.com/hostprocess-container": "true",
            "microsoft.com/hostprocess-rootfs-location": r"C:\r",
            f"{VM}cpugroup.id": "of the VM",
        }
    )
    assert made == ContainerAnnotations(
        memory_mb=5,
        processor_count=2,
        storage_qos_iops_max=9,
        process_dump_location=r"C:\d",
        process_dump_type=1,
        process_dump_count=3,
        device_extensions=(r"C:\a", r"C:\b"),
        host_process=True,
        host_process_root=r"C:\r",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f"{CONTAINER}memory.sizeinmb", "5MB"),
        (f"{CONTAINER}processor.weight", "-1"),
        ("io.microsoft.wcow.processdumptype", "huge"),
        ("io.microsoft.wcow.processdumpcount", "0"),
        ("microsoft.com/hostprocess-inherit-user", "maybe"),
        (f"{CONTAINER}wcow.test-registry-annotation", "{}"),
    ],
)
def test_a_bad_value_of_a_container_is_refused_under_its_name(name: str, value: str) -> None:
    with pytest.raises(OptionsError, match=f"annotation {name}"):
        container_annotations({name: value})


# Whatever is said.

_TEXTS = st.one_of(
    st.sampled_from(
        ["true", "false", "0", "1", "4096", "initrd", "rego", POLICY, GUID, "{}", "[]", "1,2", r"C:\a"]
    ),
    st.text(max_size=20),
    st.integers().map(str),
)
_NAMES = st.one_of(
    st.sampled_from(sorted(NAMES)), st.just(f"{SERVICE_TABLE}{GUID}"), st.text(max_size=8).map(VM.__add__)
)


@given(st.sampled_from(["linux", "windows"]), st.dictionaries(_NAMES, _TEXTS, max_size=6))
@example("windows", {f"{VM}wcow.securitypolicy": POLICY, f"{VM}bootfilesrootpath": r"C:\a"})
def test_any_annotations_make_options_that_work_together_or_are_refused(
    os: str, annotations: dict[str, str]
) -> None:
    before = dict(annotations)
    try:
        made = options_from_annotations(os, annotations, **HOST, **WINDOWS if os == "windows" else {})
    except OptionsError:
        pass
    else:
        made.check_effects()
        assert isinstance(made, LCOWOptions if os == "linux" else WCOWOptions)
    assert annotations == before


@given(st.dictionaries(_NAMES, _TEXTS, max_size=6))
def test_any_annotations_say_something_of_a_container_or_are_refused(annotations: dict[str, str]) -> None:
    try:
        made = container_annotations(annotations)
    except OptionsError:
        return
    assert made == container_annotations(expanded_annotations(annotations))


@given(st.sampled_from(sorted(set(COMMON) | set(LINUX))), st.data())
def test_what_is_read_is_what_was_written(name: str, data: st.DataObject) -> None:
    sets = OF_VMS.get(name, {}).get("linux")
    if sets is None or sets.option not in (
        "memory_mb",
        "processors",
        "storage_qos_iops_max",
        "kernel_boot_options",
    ):
        return
    value = data.draw(
        st.integers(1, 2**31 - 1) if sets.option != "kernel_boot_options" else st.text("ab ", max_size=9)
    )
    assert getattr(lcow({name: str(value)}), sets.option) == value


def test_a_pod_s_annotations_are_enough_to_plan_its_vm() -> None:
    files = {rf"C:\boot\{name}": MIB for name in ("kernel.vmgs", "rootfs.vhd")}
    made = uvm.options_from_annotations(
        "linux",
        {f"{VM}bootfilesrootpath": r"C:\boot", f"{VM}lcow.securitypolicy": POLICY},
        bundle_directory=r"C:\bundle",
    )
    assert (
        plan(made, files).document["VirtualMachine"]["GuestState"]["GuestStateFilePath"]
        == r"C:\bundle\kernel.vmgs"
    )
