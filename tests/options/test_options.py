"""The options check themselves, keep secrets and know hcsshim's names."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import PureWindowsPath
from typing import Any

import attrs
import pytest

from uvm.errors import OptionsError, UVMError
from uvm.options import (
    HCSSHIM,
    INVERTED,
    BlockCIMBootFiles,
    HvSocketService,
    LCOWOptions,
    Options,
    PCIDevice,
    RegistryValue,
    VmbFSBootFiles,
    WCOWOptions,
    from_hcsshim,
)

GUID = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
POLICY = "czNjcmV0"  # base64 of "s3cret"
BOOT = VmbFSBootFiles(
    os_files_path="C:\\os", os_relative_boot_directory="\\EFI", scratch_vhd_path="C:\\scratch.vhdx"
)
DISKS = BlockCIMBootFiles(
    boot_cim_vhd_path="C:\\cim.vhd", efi_vhd_path="C:\\efi.vhd", scratch_vhd_path="C:\\scratch.vhdx"
)
NUMA: dict[str, Any] = {
    "allow_overcommit": False,
    "numa_mapped_physical_nodes": [0, 1],
    "numa_processor_counts": [1, 1],
    "numa_memory_blocks": [512, 512],
}


PLAIN_WINDOWS: dict[str, Any] = {"BootFiles": {"BootType": 0, "VmbFSFiles": {"OSFilesPath": "C:\\os"}}}


def lcow(**options: Any) -> LCOWOptions:
    return LCOWOptions(**options)


def wcow(**options: Any) -> WCOWOptions:
    return WCOWOptions(**{"boot_files": BOOT, **options})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"memory_mb": -1}, "memory_mb must be a whole number from 0 to 18446744073709551614, not -1"),
        ({"memory_mb": "2048"}, "memory_mb must be a whole number .*, not '2048'"),
        ({"memory_mb": True}, "memory_mb must be a whole number .*, not True"),
        ({"processors": 2.0}, "processors must be a whole number"),
        ({"processor_limit": 100_001}, "processor_limit must be a whole number from 0 to 100000, not 100001"),
        ({"processor_weight": 10_001}, "processor_weight must be"),
        ({"storage_qos_iops_max": 2**31}, "storage_qos_iops_max must be"),
        ({"allow_overcommit": 1}, "allow_overcommit must be True or False, not 1"),
        ({"owner": None}, "owner must be a string without NUL, not None"),
        ({"console_pipe": "a\0b"}, "console_pipe must be a string without NUL"),
        ({"cpu_group_id": None}, "cpu_group_id must be a string without NUL, not None"),
        (
            {"resource_partition_id": GUID[:-1]},
            "resource_partition_id must be a GUID such as .*, not '6fb1ab1e-",
        ),
        (
            {"hvsocket_services": {"log": HvSocketService()}},
            "hvsocket_services must be a mapping, each key a GUID",
        ),
        ({"hvsocket_services": {"": HvSocketService()}}, "each key a GUID"),
        ({"hvsocket_services": {GUID: {}}}, "each value HvSocketService"),
        ({"hvsocket_services": 3}, "hvsocket_services must be a mapping"),
        ({"numa_processor_counts": [1, -1]}, "numa_processor_counts must be a sequence, each item a whole"),
        ({"numa_processor_counts": 2}, "numa_processor_counts must be a sequence"),
        ({"deferred_commit": True, "allow_overcommit": False}, "deferred_commit needs virtual memory"),
        ({"cpu_group_id": GUID, "resource_partition_id": GUID}, "not in both"),
        ({"additional_json": "{"}, "additional_json must be a JSON object: Expecting"),
        ({"additional_json": "[]"}, "additional_json must be a JSON object, not list"),
        ({"additional_json": '{"a": NaN}'}, "NaN is not JSON"),
        ({"additional_json": {"a": {1}}}, "additional_json must be a JSON object: Object of type set"),
        ({"additional_json": {"a": float("inf")}}, "additional_json must be a JSON object"),
        ({"additional_json": 3}, "additional_json must be a JSON object"),
        ({"additional_json": '{"a":' * 100_000}, "additional_json must be a JSON object"),
        ({**NUMA, "allow_overcommit": True}, "virtual NUMA needs physical memory"),
        ({**NUMA, "numa_processor_counts": [2]}, "must be of one length, not 2, 1 and 2"),
        ({**NUMA, "numa_mapped_physical_nodes": [0, 64]}, "physical NUMA node 64: below 64 is allowed"),
        ({**NUMA, "numa_mapped_physical_nodes": [0, 255]}, "mixes 255"),
        ({**NUMA, "numa_memory_blocks": [1024, 0]}, "without memory"),
        ({**NUMA, "numa_processor_counts": [0, 0]}, "no processors"),
        (
            {
                "allow_overcommit": False,
                "numa_mapped_physical_nodes": [0] * 66,
                "numa_processor_counts": [1] * 66,
                "numa_memory_blocks": [1] * 66,
            },
            "66 virtual NUMA nodes; 65 are allowed",
        ),
        (
            {"allow_overcommit": False, "numa_max_processors_per_node": 2},
            "needs numa_max_memory_per_node_mb as well",
        ),
    ],
)
@pytest.mark.parametrize("make", [lcow, wcow])
def test_shared_options_that_cannot_work_are_refused(
    make: Any, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(OptionsError, match=problem):
        make(**options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"scsi_controllers": 5}, "scsi_controllers must be a whole number from 0 to 4, not 5"),
        ({"vpmem_count": 129}, "vpmem_count must be a whole number from 0 to 128, not 129"),
        ({"vpmem_size_bytes": 4097}, "vpmem_size_bytes must be a multiple of 4096, not 4097"),
        ({"rootfs_type": "iso"}, "rootfs_type must be 'initrd' or 'vhd' or 'none', not 'iso'"),
        ({"guest_log_level": "loud"}, "guest_log_level must be 'trace' or"),
        ({"extra_vsock_ports": [2**32]}, "extra_vsock_ports must be a sequence, each item a whole number"),
        ({"assigned_devices": ["x"]}, "assigned_devices must be a sequence, each item PCIDevice"),
        (
            {"assigned_devices": [PCIDevice("a", 1), PCIDevice("A", 1)]},
            "assigned_devices has A, function 1, twice",
        ),
        ({"guest_state_file": "k.vmgs", "security_policy": "s3cret!"}, "security_policy is not base64"),
    ],
)
def test_options_of_a_linux_vm_that_cannot_work_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        lcow(**options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"scsi_controllers": 2}, "a Windows VM has exactly 1 SCSI controller, not 2"),
        (
            {"boot_files": None},
            "boot_files is missing: it is VmbFSBootFiles, LayerBootFiles or BlockCIMBootFiles",
        ),
        ({"boot_files": DISKS}, "boots from VmbFSBootFiles or LayerBootFiles, not from BlockCIMBootFiles"),
        ({"security_policy_enabled": True, "boot_files": DISKS}, "needs guest_state_file"),
        ({"security_policy_enabled": True, "guest_state_file": "v"}, "boots from BlockCIMBootFiles"),
        (
            {
                "security_policy_enabled": True,
                "guest_state_file": "v",
                "boot_files": DISKS,
                "security_policy": "?",
            },
            "security_policy is not base64",
        ),
        ({"isolation_type": "SecureNestedPaging", "graphics_console": True}, "graphics console"),
        ({"debug_mode": True}, "debug_mode needs debug_data_path"),
        ({"registry_values": [{}]}, "each item RegistryValue"),
    ],
)
def test_options_of_a_windows_vm_that_cannot_work_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        wcow(**options)


def test_parts_of_options_check_themselves_too() -> None:
    with pytest.raises(OptionsError, match="hive must be 'System' or"):
        RegistryValue(hive="Users", key="a")
    with pytest.raises(OptionsError, match="function must be a whole number from 0 to 65535"):
        PCIDevice("a", -1)
    with pytest.raises(OptionsError, match="disabled must be True or False"):
        HvSocketService(disabled=3)  # type: ignore[arg-type]


def test_what_is_given_as_a_list_is_kept_as_a_tuple() -> None:
    assert lcow(extra_vsock_ports=[1, 2]).extra_vsock_ports == (1, 2)


@pytest.mark.parametrize("given", [[1, 2], (1, 2), range(1, 3), iter([1, 2])])
def test_any_sequence_is_kept_as_a_tuple(given: Any) -> None:
    assert lcow(extra_vsock_ports=given).extra_vsock_ports == (1, 2)


@pytest.mark.parametrize("given", ["12", b"12", {1: 2}, 12, None])
def test_what_is_no_sequence_is_refused(given: Any) -> None:
    with pytest.raises(OptionsError, match="extra_vsock_ports must be a sequence"):
        lcow(extra_vsock_ports=given)


def test_guids_are_kept_without_braces_in_their_own_case() -> None:
    braced = "{" + GUID.upper() + "}"
    assert lcow(cpu_group_id=braced).cpu_group_id == GUID.upper()
    assert lcow(resource_partition_id=braced).resource_partition_id == GUID.upper()
    assert list(lcow(hvsocket_services={braced: HvSocketService()}).hvsocket_services) == [GUID.upper()]


@pytest.mark.parametrize("other", [GUID.upper(), "{" + GUID + "}", f" {GUID}"])
def test_one_service_is_not_in_the_table_twice(other: str) -> None:
    with pytest.raises(OptionsError, match=f"hvsocket_services has {GUID} twice"):
        lcow(hvsocket_services={GUID: HvSocketService(), other: HvSocketService(disabled=True)})


def test_one_registry_value_is_not_set_twice() -> None:
    first = RegistryValue(hive="System", key="Select\\A", name="v", type="DWord", dword_value=1)
    again = RegistryValue(hive="System", key="SELECT\\a\\", name="V", type="QWord", qword_value=2)
    with pytest.raises(OptionsError, match=r"registry_values has .* twice"):
        wcow(registry_values=[first, again])
    assert len(wcow(registry_values=[first, attrs.evolve(again, name="w")]).registry_values) == 2


def test_a_registry_value_of_another_type_is_refused() -> None:
    with pytest.raises(OptionsError, match="string_value: no effect with type 'DWord'"):
        RegistryValue(hive="System", key="k", type="DWord", string_value="1")


def test_a_byte_order_mark_is_no_part_of_a_text() -> None:
    mark = "\ufeff"
    assert lcow(security_policy=mark + POLICY, guest_state_file="v").security_policy == POLICY
    assert lcow(additional_json=mark + "{}").additional_json == "{}"
    assert wcow(log_sources=mark + "e30=").log_sources == "e30="


def test_paths_may_be_pathlibs() -> None:
    options = wcow(
        boot_files=VmbFSBootFiles(
            os_files_path=PureWindowsPath("C:/os"),
            os_relative_boot_directory=PureWindowsPath("\\EFI"),
            scratch_vhd_path=PureWindowsPath("C:/scratch.vhdx"),
        ),
        dump_directory=PureWindowsPath("C:/dumps"),
        console_pipe=PureWindowsPath(r"\\.\pipe\p"),
    )
    assert options == wcow(dump_directory="C:\\dumps", console_pipe=r"\\.\pipe\p")


def test_an_isolated_linux_vm_has_no_numa_to_check() -> None:
    assert lcow(**{**NUMA, "allow_overcommit": True}, guest_state_file="kernel.vmgs").allow_overcommit


def test_options_cannot_be_changed_but_evolved_checked_compared_hashed_and_copied() -> None:
    options = lcow(hvsocket_services={GUID: HvSocketService()}, additional_json={"Owner": "me"})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        options.memory_mb = 1  # type: ignore[misc]
    assert attrs.evolve(options, memory_mb=4096).memory_mb == 4096
    with pytest.raises(OptionsError):
        attrs.evolve(options, memory_mb=-4)
    assert pickle.loads(pickle.dumps(options)) == copy.deepcopy(options) == options
    assert hash(copy.deepcopy(options)) == hash(options)


def test_later_changes_of_what_was_given_do_not_reach_the_options() -> None:
    services, extra = {GUID: HvSocketService()}, {"Owner": "me"}
    options = lcow(hvsocket_services=services, additional_json=extra)
    services.clear()
    extra.clear()
    assert options.hvsocket_services == {GUID: HvSocketService()}
    assert json.loads(options.additional_json or "") == {"Owner": "me"}


@pytest.mark.parametrize("make", [lcow, wcow])
def test_secrets_are_not_shown(make: Any) -> None:
    shown = repr(make(security_policy=POLICY, additional_json={"Secret": POLICY}))
    assert POLICY not in shown
    assert "(security_policy=..., additional_json=..." in shown


def test_a_refused_secret_is_not_shown_either() -> None:
    with pytest.raises(OptionsError, match="security_policy must be") as raised:
        lcow(security_policy="s3cret\0")
    assert "s3cret" not in str(raised.value)


def test_hcsshims_defaults() -> None:
    options = lcow()
    assert (options.memory_mb, options.scsi_controllers, options.allow_overcommit) == (1024, 1, True)
    assert (options.vpmem_size_bytes, options.forward_stderr, options.forward_stdout) == (2**32, True, False)
    assert options.uvm_reference_info_file == "reference_info.cose"
    assert wcow().uvm_reference_info_file == ""
    assert (wcow().log_forwarding, wcow().default_log_sources, wcow().inherit_time_zone) == (True, True, True)


#: The fields of ``Options`` and ``ConfidentialCommonOptions`` in create.go.
SHARED = """
    ID Owner MemorySizeInMB LowMMIOGapInMB HighMMIOBaseInMB HighMMIOGapInMB AllowOvercommit
    FullyPhysicallyBacked EnableDeferredCommit ProcessorCount ProcessorLimit ProcessorWeight
    StorageQoSIopsMaximum StorageQoSBandwidthMaximum DisableCompartmentNamespace CPUGroupID
    ResourcePartitionID NetworkConfigProxy ProcessDumpLocation NoWritableFileShares SCSIControllerCount
    DumpDirectoryPath AdditionalHyperVConfig MaxMemorySizePerNumaNode MaxProcessorsPerNumaNode
    PreferredPhysicalNumaNodes NumaMappedPhysicalNodes NumaProcessorCounts NumaMemoryBlocksCounts
    EnableGraphicsConsole ConsolePipe GuestStateFilePath SecurityPolicy SecurityPolicyEnabled
    SecurityPolicyEnforcer UVMReferenceInfoFile UVMHashEnvelopeReferenceInfoFile BundleDirectory
"""
#: Of ``OptionsLCOW`` and ``ConfidentialLCOWOptions`` in create_lcow.go, but the output handler.
LINUX = """
    BootFilesPath KernelFile KernelDirect RootFSFile KernelBootOptions UseGuestConnection ExecCommandLine
    ForwardStdout ForwardStderr VPMemDeviceCount VPMemSizeBytes VPMemNoMultiMapping PreferredRootFSType
    EnableColdDiscardHint VPCIEnabled EnableScratchEncryption DisableTimeSyncService HclEnabled
    ExtraVSockPorts AssignedDevices PolicyBasedRouting WritableOverlayDirs UseGuestStateFile
    DmVerityRootFsVhd DmVerityMode DmVerityCreateArgs
"""
#: Of ``OptionsWCOW`` and ``ConfidentialWCOWOptions`` in create_wcow.go, but the output handler.
WINDOWS = """
    BootFiles BootFilesRootPath NoDirectMap NoInheritHostTimezone AdditionalRegistryKeys LogSources
    LogForwardingEnabled DefaultLogSourcesEnabled IsolationType DisableSecureBoot FirmwareParameters
    WritableEFI DebugMode DebugDataPath
"""


@pytest.mark.parametrize(("cls", "own"), [(LCOWOptions, LINUX), (WCOWOptions, WINDOWS)])
def test_every_option_of_hcsshim_is_there_once(cls: type[Options], own: str) -> None:
    names = [f.metadata[HCSSHIM] for f in attrs.fields(cls) if HCSSHIM in f.metadata]
    assert sorted(names) == sorted((SHARED + own).split())


def test_only_what_hcsshim_negates_is_inverted() -> None:
    inverted = {
        f.name for cls in (LCOWOptions, WCOWOptions) for f in attrs.fields(cls) if INVERTED in f.metadata
    }
    assert inverted == {"vpmem_multi_mapping", "inherit_time_zone"}


def test_options_are_read_under_hcsshims_names() -> None:
    options = from_hcsshim(
        "linux",
        {
            "MemorySizeInMB": 2048,
            "PreferredRootFSType": 2,
            "VPMemNoMultiMapping": True,
            "HclEnabled": None,
            "AdditionalHyperVConfig": {GUID: {"AllowWildcardBinds": True}},
            "AssignedDevices": [{"deviceInstanceID": "PCIP\\1", "virtualFunctionIndex": 3}],
        },
        id="vm1",
        owner="golden",
    )
    assert options == LCOWOptions(
        id="vm1",
        owner="golden",
        memory_mb=2048,
        rootfs_type="none",
        vpmem_multi_mapping=False,
        hvsocket_services={GUID: HvSocketService(allow_wildcard_binds=True)},
        assigned_devices=(PCIDevice("PCIP\\1", 3),),
    )


def test_options_of_windows_vms_are_read_too() -> None:
    disks = {
        "BootCIMVHDPath": "C:\\cim.vhd",
        "EFIVHDPath": "C:\\efi.vhd",
        "ScratchVHDPath": "C:\\scratch.vhdx",
    }
    value = {"Key": {"Hive": "System", "Name": "a\\b"}, "Name": "c", "Type": "DWord", "DWordValue": 7}
    options = from_hcsshim(
        "windows",
        {
            "BootFiles": {"BootType": 1, "BlockCIMFiles": disks, "VmbFSFiles": None},
            "SecurityPolicyEnabled": True,
            "GuestStateFilePath": "C:\\state.vmgs",
            "NoInheritHostTimezone": True,
            "AdditionalRegistryKeys": [value],
        },
    )
    assert options == WCOWOptions(
        boot_files=DISKS,
        security_policy_enabled=True,
        guest_state_file="C:\\state.vmgs",
        inherit_time_zone=False,
        registry_values=(RegistryValue(hive="System", key="a\\b", name="c", type="DWord", dword_value=7),),
    )


def test_what_is_missing_or_null_in_a_part_has_gos_zero_value() -> None:
    nothing: dict[str, Any] = {"os_files_path": "", "os_relative_boot_directory": "", "scratch_vhd_path": ""}
    options = from_hcsshim(
        "windows",
        {
            "BootFiles": {"BootType": None, "VmbFSFiles": {"OSFilesPath": "C:\\os", "ScratchVHDPath": None}},
            "ResourcePartitionID": None,
            "AdditionalHyperVConfig": {GUID: None},
            "AdditionalRegistryKeys": [{"Key": {}, "Name": "n", "StringValue": None}],
        },
    )
    assert options == WCOWOptions(
        boot_files=VmbFSBootFiles(**{**nothing, "os_files_path": "C:\\os"}),
        hvsocket_services={GUID: HvSocketService()},
        registry_values=(RegistryValue(hive="", key="", name="n"),),
    )


@pytest.mark.parametrize("name", ["Type", "Type_"])
def test_the_type_of_a_registry_value_is_read_under_its_go_name_too(name: str) -> None:
    value = {"Key": {"Hive": "Sam", "Name": "k"}, name: "QWord"}
    options = from_hcsshim("windows", {**PLAIN_WINDOWS, "AdditionalRegistryKeys": [value]})
    assert options.registry_values == (RegistryValue(hive="Sam", key="k", type="QWord"),)


def test_the_bundle_that_hcsshims_shim_always_names_counts_for_isolated_vms_alone() -> None:
    bundle = {"BundleDirectory": "C:\\bundle"}
    assert from_hcsshim("windows", PLAIN_WINDOWS | bundle).bundle_directory == ""
    assert from_hcsshim("linux", bundle).bundle_directory == ""
    isolated = from_hcsshim("linux", bundle | {"GuestStateFilePath": "a.vmgs", "PreferredRootFSType": 2})
    assert isolated.bundle_directory == "C:\\bundle"


def test_disks_that_hcsshim_would_not_keep_are_not_kept() -> None:
    assert not from_hcsshim("windows", {**PLAIN_WINDOWS, "DebugMode": True}).debug_mode
    kept = from_hcsshim("windows", {**PLAIN_WINDOWS, "DebugMode": True, "DebugDataPath": "C:\\keep"})
    assert (kept.debug_mode, kept.debug_data_path) == (True, "C:\\keep")


@pytest.mark.parametrize(
    ("os", "options", "problem"),
    [
        ("beos", {}, "'linux' or 'windows', not 'beos'"),
        ("linux", {"MemorySize": 3}, "no option 'MemorySize' for LCOWOptions"),
        ("linux", {"NoDirectMap": True}, "no option 'NoDirectMap' for LCOWOptions"),
        ("linux", [], "must be a mapping"),
        ("linux", {"PreferredRootFSType": 3}, "rootfs_type must be .*, not 3"),
        ("linux", {"VPMemNoMultiMapping": "yes"}, "vpmem_multi_mapping must be True or False, not 'yes'"),
        ("linux", {"AdditionalHyperVConfig": 3}, "hcsshim's AdditionalHyperVConfig has another form than 3"),
        ("linux", {"PreferredRootFSType": True}, "rootfs_type must be .*, not True"),
        ("linux", {"AssignedDevices": [{}]}, "PCIDevice needs deviceInstanceID"),
        ("windows", {}, "boot_files is missing"),
        ("windows", {"BootFiles": None}, "BootFiles.BootType must be 0 .* or 1 .*, not None"),
        ("windows", {"BootFiles": {"BootType": 2}}, "BootFiles.BootType must be"),
        ("windows", {"BootFiles": {"BootType": True}}, "BootFiles.BootType must be"),
        ("windows", {"AdditionalRegistryKeys": [{"Name": "n"}]}, "RegistryValue needs Key"),
        ("windows", {"BootFiles": {"BootType": 1}}, "BootFiles.BlockCIMFiles is missing"),
    ],
)
def test_what_hcsshim_does_not_know_is_refused(os: str, options: Any, problem: str) -> None:
    with pytest.raises(OptionsError, match=problem) as raised:
        from_hcsshim(os, options)
    assert isinstance(raised.value, UVMError)
