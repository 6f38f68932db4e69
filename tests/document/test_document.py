"""The create document: as hcsshim recorded it, what all share, and properties of any of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.planning import BOOT, CONTROLLER, DISKS, GUID, MIB, POLICY, lcow, machine, plan, wcow
from uvm._document import files_to_stat, plan_creation
from uvm._document.plan import CreationPlan
from uvm.backend import FileInfo, HostInfo
from uvm.errors import NotSupportedError, OptionsError
from uvm.options import (
    HvSocketService,
    LCOWOptions,
    PCIDevice,
    WCOWOptions,
    from_hcsshim,
)
from uvm.schema.json import from_json, to_json
from uvm.schema.system import ComputeSystem

CASES = json.loads(Path(__file__).parents[1].joinpath("data", "documents.json").read_text(encoding="utf-8"))
# What hcsshim recorded


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_document_is_the_one_that_hcsshim_makes(case: dict[str, Any]) -> None:
    def make() -> CreationPlan:
        options = from_hcsshim(case["os"], case["options"], id="vm1", owner="golden")
        return plan(options, dict.fromkeys(case["files"], MIB), build=case["build"])

    if "error" in case:
        with pytest.raises((OptionsError, NotSupportedError)):
            make()
    else:
        assert make().document == case["document"]


def test_the_recorded_cases_are_all_there() -> None:
    assert len(CASES) == 35
    assert sum("error" in case for case in CASES) == 10


# What the options add to any document


@pytest.mark.parametrize("make", [lcow, wcow])
@pytest.mark.parametrize("group", [GUID.upper(), "a-group"])
def test_the_cpu_group_reaches_the_document_as_it_was_given(make: Any, group: str) -> None:
    processor = machine(make(cpu_group_id=group))["ComputeTopology"]["Processor"]
    assert processor == {"Count": 2, "CpuGroup": {"Id": group}}


@pytest.mark.parametrize("make", [lcow, wcow])
def test_shared_options_reach_the_document(make: Any) -> None:
    service = HvSocketService(bind_security_descriptor="D:P", disabled=True)
    made = machine(
        make(
            hvsocket_services={GUID: service},
            storage_qos_bandwidth_max=5,
            resource_partition_id=GUID.upper(),
            console_pipe="\\\\.\\pipe\\p",
        )
    )
    table = made["Devices"]["HvSocket"]["HvSocketConfig"]["ServiceTable"]
    assert table[GUID] == {"BindSecurityDescriptor": "D:P", "Disabled": True}
    assert made["StorageQoS"] == {"BandwidthMaximum": 5}
    assert made["ResourcePartitionId"] == GUID
    assert made["Devices"]["ComPorts"] == {"0": {"NamedPipe": "\\\\.\\pipe\\p"}}


@pytest.mark.parametrize("make", [lcow, wcow])
def test_a_vm_that_survives_does_not_end_with_its_last_handle(make: Any) -> None:
    assert "ShouldTerminateOnLastHandleClosed" not in make(survive_process=True).document


def test_hcs_connects_to_the_guest_where_we_do_not() -> None:
    made = machine(lcow(external_guest_connection=False))
    assert made["GuestConnection"] == {"UseVsock": True, "UseConnectedSuspend": True}
    assert machine(wcow(external_guest_connection=False))["GuestConnection"] == {}
    alone = lcow(external_guest_connection=False, use_guest_connection=False)
    assert "GuestConnection" not in machine(alone)


def test_additional_json_is_merged_over_the_document() -> None:
    extra: dict[str, Any] = {
        "Owner": None,
        "New": {"a": [1]},
        "VirtualMachine": {
            "Chipset": None,
            "ComputeTopology": {"Memory": {"SizeInMB": 7}},
            "StopOnReset": False,
        },
    }
    plain, made = lcow().document, lcow(additional_json=json.dumps(extra)).document
    assert (made["Owner"], made["New"]) == (None, {"a": [1]})
    vm = made["VirtualMachine"]
    assert vm["ComputeTopology"]["Memory"] == {"SizeInMB": 7, "AllowOvercommit": True}
    assert (vm["StopOnReset"], vm["Chipset"]) == (False, plain["VirtualMachine"]["Chipset"])
    assert lcow(additional_json=extra).document == made


def test_additional_json_replaces_what_is_not_an_object_on_both_sides() -> None:
    assert lcow(additional_json={"VirtualMachine": 5}).document["VirtualMachine"] == 5


def test_additional_json_replaces_lists() -> None:
    extra: Any = {"VirtualMachine": {"RegistryChanges": {"AddValues": []}}}
    assert machine(wcow(additional_json=extra))["RegistryChanges"] == {"AddValues": []}


def test_plans_made_from_the_same_options_share_nothing() -> None:
    options = LCOWOptions(boot_files_path="C:\\boot", additional_json={"A": {"b": []}})
    files = dict.fromkeys(("C:\\boot\\kernel", "C:\\boot\\initrd.img"), MIB)
    first, second = plan(options, files), plan(options, files)
    first.document["A"]["b"].append(1)
    machine(first)["Devices"]["Scsi"].clear()
    assert second.document["A"] == {"b": []}
    assert machine(second)["Devices"]["Scsi"] == {CONTROLLER: {}}


def test_a_plan_does_not_show_its_document() -> None:
    assert "loglevel" not in repr(lcow())


# Any options

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
PATH = st.sampled_from(["C:\\boot", "D:/x/", "\\\\?\\C:\\y", ""])
HOST_PATHS = ("bundle_directory", "debug_data_path", "boot_files_root_path", "uvm_reference_info_file")
HOSTS = st.builds(
    HostInfo,
    build=st.sampled_from([17134, 17763, 18362, 19043, 26100]),
    processors=st.integers(1, 4),
    machine=st.sampled_from(["amd64", "arm64"]),
)


def options_of(cls: type, **special: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some options of a class, most of them of the right type."""
    kinds = {
        "str": TEXT,
        "bool": st.booleans(),
        "int": st.integers(0, 4),
        "tuple[int, ...]": st.lists(st.integers(0, 3), max_size=2).map(tuple),
    }
    special = {**dict.fromkeys(HOST_PATHS, PATH), **special}
    optional = {
        f.name: special[f.name] if f.name in special else kinds[str(f.type).removesuffix(" | None")]
        for f in attrs.fields(cls)
        if f.name in special or str(f.type).removesuffix(" | None") in kinds
    }
    return st.fixed_dictionaries({}, optional=optional)


SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "additional_json": st.just({"VirtualMachine": {"Devices": {"Battery": {}}}}),
    "cpu_group_id": st.just(GUID),
    "resource_partition_id": st.just(GUID),
    "hvsocket_services": st.just({GUID: HvSocketService(disabled=True)}),
    "security_policy": st.sampled_from([POLICY, "", "?"]),
    "memory_mb": st.integers(0, 8192),
    "deferred_commit": st.just(False),
    "numa_mapped_physical_nodes": st.just(()),
    "numa_max_processors_per_node": st.sampled_from([0, 0, 2]),
    "numa_max_memory_per_node_mb": st.just(512),
}


def check_any(options: Any, host: HostInfo) -> None:
    """Either it is refused, or the document is one that HCS would parse, and holds what the plan says."""
    files = {path: FileInfo(MIB) for path in files_to_stat(options, host)}
    try:
        made = plan_creation(options, host, files, id="vm1", new_id=lambda: GUID)
    except (OptionsError, NotSupportedError):
        return
    assert to_json(from_json(ComputeSystem, made.document, forbid_extra=True)) == made.document
    devices = machine(made)["Devices"]
    scsi = list(devices.get("Scsi", {}).values())
    attached = {(n, int(lun)) for n, c in enumerate(scsi) for lun in c.get("Attachments", {})}
    assert (len(scsi), attached) == (made.scsi_controllers, set(made.reserved_scsi))
    pmem = devices.get("VirtualPMem", {})
    assert pmem.get("MaximumCount", 0) == made.vpmem_count
    assert ("Devices" in pmem) == (made.boot_vpmem_bytes is not None)


@given(
    options_of(
        LCOWOptions,
        **SPECIAL,
        rootfs_type=st.sampled_from(["vhd", "initrd", "none"]),
        guest_state_file=st.sampled_from(["", "", "kernel.vmgs"]),
        vpmem_size_bytes=st.just(4096),
        assigned_devices=st.just((PCIDevice("a"),)),
        boot_files_path=st.sampled_from(["C:\\boot", "D:\\x\\"]),
    ),
    HOSTS,
)
def test_any_options_of_a_linux_vm_are_refused_or_give_a_valid_document(
    given: dict[str, Any], host: HostInfo
) -> None:
    try:
        options = LCOWOptions(**given)
    except OptionsError:
        return
    check_any(options, host)


@given(
    options_of(WCOWOptions, **SPECIAL, scsi_controllers=st.just(1), dump_directory=st.just("")),
    st.sampled_from([BOOT, DISKS]),
    HOSTS,
)
def test_any_options_of_a_windows_vm_are_refused_or_give_a_valid_document(
    given: dict[str, Any], boot: Any, host: HostInfo
) -> None:
    try:
        options = WCOWOptions(**given, boot_files=boot)
    except OptionsError:
        return
    check_any(options, host)
