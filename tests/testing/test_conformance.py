"""The recorded behaviour of hcsshim: it is ours, and what differs from it is found."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.__main__ import main
from uvm.backend import JSON
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS
from uvm.testing.conformance import check_case, differences, load_cases
from uvm.testing.replay import Replay, ScriptError

DATA = Path(__file__).parents[1] / "data"
CASES = {
    case["name"]: case
    for name in ("documents.json", "traces.json")
    for case in load_cases((DATA / name).read_text("utf-8"))
}
DISK = "C:\\disks\\a.vhdx"
SHARED = "C:\\shared"


def recorded(name: str) -> dict[str, Any]:
    return copy.deepcopy(CASES[name])


def script(*ops: JSON, steps: list[JSON], os: str = "linux", vm: JSON | None = None) -> JSON:
    return {"name": "made up", "os": os, "build": 26100, "vm": vm or {}, "ops": list(ops), "steps": steps}


def sent(to: str, **doc: Any) -> JSON:
    return {"to": to, "doc": doc}


def disk_added(lun: int, controller: int = 0) -> JSON:
    path = f"VirtualMachine/Devices/Scsi/{SCSI_CONTROLLER_GUIDS[controller]}/Attachments/{lun}"
    settings = {"Type": "VirtualDisk", "Path": DISK}
    return sent("host", ResourcePath=path, RequestType="Add", Settings=settings)


def files_shared(request_type: str, *names: str) -> JSON:
    settings: JSON = {
        "Name": "s1",
        "Path": SHARED,
        "AllowedFiles": [f"{SHARED}\\{name}" for name in names],
        "Options": {"RestrictFileAccess": True, "SingleFileMapping": True},
    }
    path = "VirtualMachine/Devices/VirtualSmb/Shares"
    return sent("host", ResourcePath=path, RequestType=request_type, Settings=settings)


async def difference(case: JSON) -> str:
    return "\n".join((await check_case(case)).difference)


@pytest.mark.anyio
@pytest.mark.parametrize("name", CASES)
async def test_what_was_recorded_is_what_we_do(name: str) -> None:
    assert await difference(CASES[name]) == ""


# Doctored cases are found.


@pytest.mark.anyio
async def test_a_document_with_another_value_differs() -> None:
    case = recorded("lcow_default")
    case["document"]["Owner"] = "somebody"
    assert await difference(case) == '$.Owner: "somebody" was recorded, this library has "golden"'


@pytest.mark.anyio
async def test_options_that_hcsshim_refuses_and_we_accept_differ() -> None:
    case = recorded("lcow_default")
    del case["document"]
    case["error"] = "no"
    assert await difference(case) == "accepted, but hcsshim refuses: no"


@pytest.mark.anyio
async def test_options_that_we_refuse_and_hcsshim_accepts_differ() -> None:
    case = recorded("lcow_default")
    case["options"]["NoSuchOption"] = 1
    assert "refused: hcsshim has no option 'NoSuchOption'" in await difference(case)


@pytest.mark.anyio
async def test_a_request_with_another_value_differs_and_its_step_is_named() -> None:
    case = recorded("lcow_scsi_basic")
    case["steps"][2]["requests"][0]["doc"]["Settings"]["ReadOnly"] = False
    found = await difference(case)
    assert re.fullmatch(
        r'step 2, \{.*"as": "b".*\}: \$\[0\]\.doc\.Settings\.ReadOnly: false was recorded, .* has true',
        found,
    )


@pytest.mark.anyio
async def test_requests_in_another_order_differ() -> None:
    case = recorded("lcow_plan9")
    case["steps"][0]["requests"].reverse()
    assert await difference(case)


@pytest.mark.anyio
async def test_a_request_too_many_differs() -> None:
    case = recorded("wcow_pipes")
    case["steps"][0]["requests"] *= 2
    assert await difference(case)


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "value"), [("controller", 1), ("lun", 7), ("guest_path", "/elsewhere")])
async def test_another_place_differs(name: str, value: object) -> None:
    case = recorded("lcow_scsi_basic")
    case["steps"][2][name] = value
    assert f"{name}: {value!r} was recorded" in await difference(case)


@pytest.mark.anyio
async def test_an_error_where_none_was_recorded_differs() -> None:
    case = recorded("wcow_vpmem_unsupported")
    case["steps"][1] = {"requests": []}
    assert "error: None was recorded" in await difference(case)


@pytest.mark.anyio
async def test_no_error_where_one_was_recorded_differs() -> None:
    case = recorded("wcow_pipes")
    case["steps"][0]["error"] = "no"
    assert "error: 'no' was recorded, this library has None" in await difference(case)


# The rules of comparison.


@pytest.mark.anyio
async def test_adapters_are_told_apart_by_their_order_and_not_by_their_ids() -> None:
    text = json.dumps(CASES["lcow_network"])
    renamed = json.loads(text.replace("nic-1", "5d0c6b4e").replace("nic-2", "0f3a9c11"))
    assert await difference(renamed) == ""
    confused = recorded("lcow_network")
    confused["steps"][-2] = json.loads(text.replace("nic-1", "nic-2"))["steps"][-2]
    assert "nic-" in await difference(confused)


@pytest.mark.anyio
async def test_a_grant_counts_where_a_new_attachment_is_made() -> None:
    case = recorded("lcow_scsi_basic")
    grant = case["steps"][0]["requests"].pop(0)
    assert grant["to"] == "grant"
    assert await difference(case)


@pytest.mark.anyio
@pytest.mark.parametrize("grants", [0, 1])
async def test_a_grant_is_ignored_where_an_add_joins_an_attachment(grants: int) -> None:
    case = recorded("lcow_scsi_basic")
    del case["steps"][1]["requests"][grants:]
    assert await difference(case) == ""


@pytest.mark.anyio
async def test_allowed_files_count_once_and_an_update_that_changes_nothing_is_dropped() -> None:
    case = script(
        *({"op": "mkfile", "path": f"{SHARED}\\{name}", "size": 1} for name in "ab"),
        *({"op": "vsmb_add", "path": f"{SHARED}\\{name}"} for name in "aab"),
        os="windows",
        steps=[
            {},
            {},
            {"requests": [files_shared("Add", "a")]},
            {"requests": [files_shared("Update", "a", "a")]},
            {"requests": [files_shared("Update", "a", "a", "b")]},
        ],
    )
    assert await difference(case) == ""
    case["steps"][4] = {"requests": [files_shared("Update", "b", "a")]}
    assert "AllowedFiles" in await difference(case)


@pytest.mark.anyio
async def test_an_error_that_is_found_before_anything_is_sent_may_send_nothing() -> None:
    mount = {"op": "scsi_add", "path": DISK, "mount": {"partition": 1}}
    detached = sent(
        "host",
        ResourcePath=disk_added(0)["doc"]["ResourcePath"],
        RequestType="Remove",
    )
    refused = {"error": "not in a Windows guest", "requests": [disk_added(0), detached]}
    assert await difference(script(mount, os="windows", steps=[refused])) == ""


@pytest.mark.anyio
async def test_the_requests_before_an_error_are_compared_where_there_are_any() -> None:
    """Only the LUN that a new disk gets tells whether a Windows guest can mount it."""
    mount = {"op": "scsi_add", "path": DISK, "mount": {}}
    added = disk_added(0, controller=1)
    removed = sent("host", ResourcePath=added["doc"]["ResourcePath"], RequestType="Remove")
    refused = {"error": "WCOW only supports SCSI controller 0", "requests": [added, removed]}
    vm = {"SCSIControllerCount": 2, "reserved_slots": [[0, lun] for lun in range(64)]}
    assert await difference(script(mount, os="windows", vm=vm, steps=[refused])) == ""
    refused["requests"] = [added]
    assert await difference(script(mount, os="windows", vm=vm, steps=[refused]))


@pytest.mark.parametrize(
    ("expected", "ours"),
    [
        (1, True),
        (0, False),
        (None, {}),
        ("", None),
        ([1, 2], [1, 3]),
        ([], [1]),
        ({"a": 1}, {}),
        ({}, {"a": None}),
        ({"a": {"b": [{"c": 1}]}}, {"a": {"b": [{"c": 2}]}}),
    ],
)
def test_json_values_differ(expected: Any, ours: Any) -> None:
    assert len(list(differences(expected, ours))) == 1


def test_the_order_of_keys_means_nothing() -> None:
    assert list(differences({"a": 1, "b": [True]}, {"b": [True], "a": 1.0})) == []


# The host that was recorded says yes to everything.


@pytest.mark.anyio
async def test_a_disk_can_be_attached_for_reading_and_for_writing() -> None:
    both: list[JSON] = [
        {"op": "scsi_add", "path": DISK, "read_only": read_only} for read_only in (False, True)
    ]
    reader = disk_added(1)
    reader["doc"]["Settings"]["ReadOnly"] = True
    steps = [{"requests": [disk_added(0)]}, {"requests": [reader]}]
    assert await difference(script(*both, steps=steps)) == ""


@pytest.mark.anyio
@pytest.mark.parametrize(
    "mount",
    [
        {"partition": 1, "ensure_filesystem": True, "filesystem": "xfs", "block_dev": True},
        {"Partition": 1, "EnsureFilesystem": True, "Filesystem": "xfs", "BlockDev": True},
    ],
)
async def test_a_mount_may_be_spelled_as_hcsshim_spells_it(mount: JSON) -> None:
    settings = {
        "MountPath": "/mnt",
        "Partition": 1,
        "BlockDev": True,
        "EnsureFilesystem": True,
        "Filesystem": "xfs",
    }
    mounted = sent("guest", RequestType="Add", ResourceType="MappedVirtualDisk", Settings=settings)
    add = {"op": "scsi_add", "path": DISK, "mount": mount, "guest_path": "/mnt"}
    assert await difference(script(add, steps=[{"requests": [disk_added(0), mounted]}])) == ""
    own = {"op": "scsi_add", "path": DISK, "mount": mount | {"guest_path": "/mnt"}, "guest_path": ""}
    assert await difference(script(own, steps=[{"requests": [disk_added(0), mounted]}])) == ""


@pytest.mark.anyio
async def test_the_id_of_an_hvsocket_service_is_sent_as_it_was_given() -> None:
    service = "ABCDEF00-2222-3333-4444-55555555555A"
    path = f"VirtualMachine/Devices/HvSocket/HvSocketConfig/ServiceTable/{service}"
    removed = sent("host", ResourcePath=path, RequestType="Remove")
    remove = {"op": "hvsocket_remove", "service": service}
    assert await difference(script(remove, steps=[{"requests": [removed]}])) == ""


@pytest.mark.anyio
async def test_a_root_file_system_on_vpmem_takes_the_first_device() -> None:
    ops: list[JSON] = [{"op": "mkfile", "path": DISK, "size": 1}, {"op": "vpmem_add", "path": DISK}]
    vm = {"PreferredRootFSType": 1, "RootFSFile": "rootfs.vhd", "VPMemNoMultiMapping": True}
    device = sent(
        "host",
        ResourcePath="VirtualMachine/Devices/VirtualPMem/Devices/1",
        RequestType="Add",
        Settings={"HostPath": DISK, "ReadOnly": True, "ImageFormat": "Vhd1"},
    )
    layer = {"DeviceNumber": 1, "MountPath": "/run/layers/p1"}
    mounted = sent("guest", RequestType="Add", ResourceType="VPMemDevice", Settings=layer)
    steps: list[JSON] = [{}, {"requests": [device, mounted], "guest_path": "/run/layers/p1"}]
    assert await difference(script(*ops, vm=vm, steps=steps)) == ""


# What cannot be run.


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("op", "problem"),
    [
        ({"op": "frobnicate"}, "there is no operation 'frobnicate'"),
        ({}, "there is no operation None"),
        ({"op": "scsi_add"}, "scsi_add needs 'path'"),
        ({"op": "release"}, "release needs 'ref'"),
    ],
)
async def test_an_operation_that_cannot_be_carried_out_is_named(op: JSON, problem: str) -> None:
    async with Replay.of({"os": "linux", "build": 26100}) as replay:
        with pytest.raises(ScriptError, match=f"^{problem}$"):
            await replay.run(op)
    assert await difference(script(op, steps=[{}])) == (
        f"step 0, {json.dumps(op)}: could not be run: ScriptError: {problem}"
    )


@pytest.mark.anyio
@pytest.mark.parametrize("missing", ["os", "build", "steps"])
async def test_a_case_that_lacks_something_differs(missing: str) -> None:
    case = script({"op": "release_cpu_group"}, steps=[{}])
    del case[missing]
    assert await difference(case) == f"could not be run: KeyError: '{missing}'"


@pytest.mark.anyio
async def test_a_script_with_fewer_steps_than_operations_differs() -> None:
    assert await difference(script({"op": "mkdir", "path": "C:\\a"}, steps=[])) == "1 operations, but 0 steps"


# The command.


def run(capsys: pytest.CaptureFixture[str], path: Path, *texts: str) -> tuple[int, list[str], str]:
    paths = [path / f"{number}.json" for number, _ in enumerate(texts)]
    for file, text in zip(paths, texts, strict=True):
        file.write_text(text, "utf-8")
    status = main([str(file) for file in paths])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def test_equal_files_end_with_0(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    texts = [json.dumps([CASES[name]]) for name in ("wcow_pipes", "lcow_default")]
    assert run(capsys, tmp_path, *texts) == (0, ["2 of 2 equal"], "")


def test_a_broken_case_does_not_stop_the_others(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = {"ops": [{"op": "frobnicate"}], "steps": [{}], "os": "linux", "build": 26100}
    cases = [CASES["wcow_pipes"], broken, {}, CASES["lcow_default"]]
    status, lines, _ = run(capsys, tmp_path, json.dumps(cases))
    assert status == 1
    assert lines == [
        "case 2: differs",
        '  step 0, {"op": "frobnicate"}: could not be run: ScriptError: there is no operation \'frobnicate\'',
        "case 3: differs",
        "  could not be run: KeyError: 'build'",
        "2 of 4 equal",
    ]


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    status, lines, err = run(capsys, tmp_path, text, json.dumps([CASES["wcow_pipes"]]))
    assert (status, lines) == (1, ["1 of 1 equal"])
    assert "0.json: could not be read: " in err


def test_no_case_at_all_is_not_a_success(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, tmp_path, "[]") == (1, ["0 of 0 equal"], "")


def test_no_file_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: " in capsys.readouterr().err
