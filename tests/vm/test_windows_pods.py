"""Windows containers from OCI specifications: what is attached, the document, what a failure leaves."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import uvm
from tests.clocks import jumping_backends
from tests.points import Point, on_this_loop, points, spoil
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    DEVICE,
    DISK,
    FILE,
    LAYER,
    MIB,
    NAMESPACE,
    OTHER_DISK,
    SCRATCH,
    SHARED,
    Running,
    host_backend,
    wcow,
)
from uvm._vm.pods.plan import GuestDirectory, GuestRoot, Member, Pipe
from uvm._vm.pods.windows import VMFacts, plan
from uvm.backends.fake import FakeBackend, FakeProcess
from uvm.errors import AccessDeniedError, GuestError, HostPathError, NotSupportedError, OptionsError, UVMError
from uvm.schema.guest import NULL_GUID

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

TOOL = r"C:\tools\device-util.exe"
OS = r"C:\layers\os"
LAYERS = [uvm.WCOWLayer(OS, "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11")]
SHARES = "\\\\?\\VMSMB\\VSMB-{dcc079ae-60ba-4d07-847c-3493609c0870}\\"
WAITS = {
    "Key": {"Hive": "System", "Name": "ControlSet001\\Control"},
    "Name": "WaitToKillServiceTimeout",
    "Type": "String",
    "StringValue": "2147483647",
}

SPEC: dict[str, Any] = {
    "ociVersion": "1.1.0",
    "hostname": "web",
    "process": {"args": ["echo", "hello"], "cwd": "C:\\", "env": ["A=1"]},
    "mounts": [
        {"source": SHARED, "destination": "C:\\data", "options": ["RO"]},
        {"type": "virtual-disk", "source": DISK, "destination": "C:\\disk", "options": ["ro"]},
        {"source": FILE, "destination": "C:\\one.txt"},
        {"source": r"\\.\pipe\docker_engine", "destination": r"\\.\pipe\docker"},
        {"source": "sandbox:///x/y", "destination": "C:\\shared"},
        {"source": r"uvm://\\.\pipe\own", "destination": r"\\.\pipe\mine"},
    ],
    "windows": {
        "resources": {
            "cpu": {"count": 9},
            "memory": {"limit": 100 * MIB + 1},
            "storage": {"bps": 5, "iops": 6},
        },
        "network": {"DNSSearchList": ["a.b", "c"], "allowUnqualifiedDNSQuery": True},
        "devices": [
            {"id": DEVICE, "idType": "vpci-instance-id"},
            {"id": "{5B45201D-F2F2-4F3B-85BB-30FF1F953599}", "idType": "class"},
        ],
    },
}


def prepared() -> FakeBackend:
    backend = host_backend()
    backend.files.add_directory(OS)
    backend.files.add(TOOL, size=MIB)

    @backend.programs.register("device-util")
    async def locate(process: FakeProcess) -> int:
        assert process.args[1] == "children"
        assert process.args[2].startswith("--parentID=VMBUS\\{44c4f61d-4444-4400-9d52-802e27ede19f}\\{")
        assert process.args[3:] == ("--property=location",)
        await process.stdout.send(b"PCIROOT(0)#PCI(1),PCIROOT(0)#PCI(2)\n")
        return 0

    return backend


@asynccontextmanager
async def pod_of(**options: Any) -> AsyncIterator[tuple[uvm.Pod, Running]]:
    backend = prepared()
    # What is mapped directly stays shared.
    made = wcow(**{"no_direct_map": True, **options})
    async with uvm.Pod.create(made, backend=backend, network=NAMESPACE, device_util=TOOL) as pod:
        yield pod, Running(pod.vm, backend)
    assert backend.leftovers() == []


def documents(run: Running) -> Any:
    return run.backend.vms[run.vm.id].service.containers


def started(run: Running, container_id: str) -> list[dict[str, Any]]:
    """Return the processes that were started in a container, or in the guest itself."""
    return [
        json.loads(e.document["Settings"]["ProcessParameters"])
        for e in run.backend.request_log
        if e.call.operation == "execute process" and e.document["ContainerId"] == container_id
    ]


# The whole of it.


async def test_everything_of_a_specification_is_in_the_document_of_its_container() -> None:
    async with pod_of() as (pod, run):
        async with pod.run_container(SPEC, LAYERS, SCRATCH, id="c1") as container:
            names = {share.host_path: share.name for share in run.vm.vsmb.shares if not share.files}
            (files,) = [share.name for share in run.vm.vsmb.shares if share.files]
            (root,) = run.vm.layers.roots
            assert documents(run)["c1"].document == {
                "SchemaVersion": {"Major": 2, "Minor": 1},
                "Container": {
                    "GuestOs": {"HostName": "web"},
                    "Storage": {
                        "Layers": [{"Id": LAYERS[0].id, "Path": SHARES + names[OS]}],
                        "Path": root.root,
                        "QoS": {"BandwidthMaximum": 5, "IopsMaximum": 6},
                    },
                    "MappedDirectories": [
                        {"HostPath": SHARES + names[SHARED], "ContainerPath": "C:\\data", "ReadOnly": True},
                        {"HostPath": f"{SHARES}{files}\\one.txt", "ContainerPath": "C:\\one.txt"},
                        {"HostPath": "C:\\SandboxMounts\\x\\y", "ContainerPath": "C:\\shared"},
                        {
                            "HostPath": run.vm.scsi.guest_path(DISK),
                            "ContainerPath": "C:\\disk",
                            "ReadOnly": True,
                        },
                    ],
                    "MappedPipes": [
                        {"ContainerPipeName": "docker", "HostPath": f"{SHARES}IPC$\\docker_engine"},
                        {"ContainerPipeName": "mine", "HostPath": "\\\\.\\pipe\\vm1\\own"},
                    ],
                    "Memory": {"SizeInMB": 100},
                    "Processor": {"Count": run.vm.plan.processors},
                    "Networking": {
                        "AllowUnqualifiedDnsQuery": True,
                        "DnsSearchList": "a.b,c",
                        "Namespace": NAMESPACE,
                    },
                    "RegistryChanges": {"AddValues": [WAITS]},
                    "AssignedDevices": [
                        {"Type": "DeviceInstance", "LocationPath": "PCIROOT(0)#PCI(1)"},
                        {"Type": "DeviceInstance", "LocationPath": "PCIROOT(0)#PCI(2)"},
                        {"InterfaceClassGuid": "{5B45201D-F2F2-4F3B-85BB-30FF1F953599}"},
                    ],
                },
            }
            made = r'cmd /c mkdir "C:\SandboxMounts\x\y" & dir "C:\SandboxMounts\x\y"'
            assert made in [asked["CommandLine"] for asked in started(run, NULL_GUID)]
            assert container.init is not None
            assert (await container.init.communicate()).stdout == b"hello\n"
            assert (await container.wait()).type == "GracefulExit"
            check_at_rest(run)
        left = run.vm.devices()
        assert (left.disks, left.vsmb_shares, left.pipes, left.pci_devices) == ((), (), (), ())


async def test_the_end_of_a_container_disturbs_no_other_that_shares_with_it() -> None:
    async with pod_of() as (pod, run):
        first = await pod.run_container(SPEC, LAYERS, SCRATCH, id="c1")
        before = run.vm.devices()
        sleeping = {**SPEC, "process": {"commandLine": "sleep 3600"}}
        second = await pod.run_container(sleeping, LAYERS, OTHER_DISK, id="c2")
        await first.aclose()
        check_at_rest(run)
        assert (await second.run(["echo", "there"])).stdout == b"there\n"
        assert {share.references for share in run.vm.vsmb.shares} == {1}
        assert len(run.vm.devices().disks) == len(before.disks)
        await second.aclose()
        assert run.vm.devices().disks == ()


async def test_a_container_on_block_cims_has_its_volume_as_its_layer() -> None:
    layer = uvm.BlockCIMLayer([uvm.BlockCIM(LAYER, "os.cim")])
    async with pod_of() as (pod, run), pod.create_container({}, [layer], SCRATCH, id="c1"):
        (volume,) = run.vm.block_cims.volumes
        storage = documents(run)["c1"].document["Container"]["Storage"]
        assert storage["Layers"] == [{"Id": volume.volume_guid, "Path": volume.guest_path}]
    assert volume.references == 1


async def test_a_command_line_reaches_the_process_as_it_is() -> None:
    async with pod_of() as (pod, run):
        process = {"commandLine": 'echo "a  b"', "env": ["X=1"], "user": {"username": "me"}, "cwd": "C:\\x"}
        container = await pod.run_container({"process": process}, LAYERS, SCRATCH, id="c1")
        (asked,) = started(run, "c1")
        assert (asked["CommandLine"], asked["User"]) == ('echo "a  b"', "me")
        assert (asked["WorkingDirectory"], asked["Environment"]) == ("C:\\x", {"X": "1"})
        await container.aclose()


@pytest.mark.parametrize("own", [True, False])
async def test_all_who_wait_learn_of_the_exit_that_follows_that_of_the_process(own: bool) -> None:
    async with pod_of(external_guest_connection=own) as (pod, _):
        container = await pod.run_container({"process": {"args": ["true"]}}, LAYERS, SCRATCH)
        exits = []

        async def wait() -> None:
            exits.append((await container.wait()).type)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
        assert exits == ["GracefulExit"] * 3
        await container.aclose()


async def test_a_container_without_a_process_is_only_started() -> None:
    async with pod_of() as (pod, _):
        container = await pod.run_container({}, LAYERS, SCRATCH)
        assert container.init is None
        assert (await container.run(["echo", "hello"])).stdout == b"hello\n"


# The document, by parts.


def document(spec: dict[str, Any], **facts: Any) -> Any:
    made = plan(spec, Member("c1"), VMFacts(**{"id": "p@vm", "processors": 2, **facts}))
    places = [f"place{number}" for number in range(len(made.attachments))]
    return made.document(places, GuestRoot("C:\\root", (("id", "C:\\layer"),)))


def windows(**resources: Any) -> dict[str, Any]:
    return {"windows": {"resources": resources}}


def annotated(**given: str) -> dict[str, Any]:
    return {"annotations": {"io.microsoft.container." + k.replace("__", "."): v for k, v in given.items()}}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, {"Processor": {}}),
        (windows(cpu={"count": 1}), {"Processor": {"Count": 1}}),
        (windows(cpu={"maximum": 2500}), {"Processor": {"Maximum": 2500}}),
        (windows(cpu={"shares": 70}), {"Processor": {"Weight": 70}}),
        (annotated(processor__count="3"), {"Processor": {"Count": 2}}),
        (annotated(processor__limit="10"), {"Processor": {"Maximum": 10}}),
        (windows(cpu={"shares": 70}) | annotated(processor__weight="80"), {"Processor": {"Weight": 80}}),
        (annotated(memory__sizeinmb="7"), {"Memory": {"SizeInMB": 7}}),
        (windows(memory={"limit": 3 * MIB - 1}), {"Memory": {"SizeInMB": 2}}),
        ({"windows": {"network": {"networkNamespace": NAMESPACE}}}, {"Networking": {"Namespace": NAMESPACE}}),
        (
            {"annotations": {"microsoft.com/hostprocess-container": "true"}},
            {"IsolationType": "HostProcess"},
        ),
        (
            {"windows": {"devices": [{"id": "PCIROOT(0)", "idType": "vpci-location-path"}]}},
            {"AssignedDevices": [{"Type": "DeviceInstance", "LocationPath": "PCIROOT(0)"}]},
        ),
    ],
)
def test_what_a_specification_says_is_in_the_document(spec: dict[str, Any], expected: dict[str, Any]) -> None:
    container = document(spec)["Container"]
    bare = {
        "Storage": {"Path": "C:\\root", "Layers": [{"Id": "id", "Path": "C:\\layer"}]},
        "RegistryChanges": {"AddValues": [WAITS]},
        "Processor": {},
    }
    assert container == {**bare, **expected}


def test_dumps_of_processes_go_where_the_container_or_its_vm_says() -> None:
    annotations = {
        "io.microsoft.container.processdumplocation": "C:\\dumps\\{container_id}",
        "io.microsoft.wcow.processdumptype": "mini",
        "io.microsoft.wcow.processdumpcount": "3",
    }
    key = {"Hive": "Software", "Name": "Microsoft\\Windows\\Windows Error Reporting\\LocalDumps"}

    def values(folder: str, type: int, count: int) -> list[dict[str, Any]]:
        return [
            WAITS,
            {"Key": key, "Name": "DumpFolder", "Type": "String", "StringValue": folder},
            {"Key": key, "Name": "DumpType", "Type": "DWord", "DWordValue": type},
            {"Key": key, "Name": "DumpCount", "Type": "DWord", "DWordValue": count},
        ]

    of_container = document({"annotations": annotations}, dumps="C:\\x")["Container"]
    assert of_container["RegistryChanges"]["AddValues"] == values("C:\\dumps\\c1", 1, 3)
    of_vm = document({}, dumps="C:\\d\\{CONTAINER_ID}")["Container"]
    assert of_vm["RegistryChanges"]["AddValues"] == values("C:\\d\\c1", 2, 10)


def test_registry_values_of_a_container_are_those_of_its_annotation() -> None:
    name = "io.microsoft.container.wcow.test-registry-annotation"
    key = {"Hive": "Software", "Name": "x"}
    value = {"Key": key, "Name": "v", "Type": "DWord", "DWordValue": 1}
    made = document({"annotations": {name: json.dumps([value])}})["Container"]
    assert made["RegistryChanges"]["AddValues"] == [WAITS, value]


def test_without_a_directory_of_its_own_a_container_has_no_dumps() -> None:
    annotations = {"io.microsoft.container.processdumplocation": ""}
    made = document({"annotations": annotations}, dumps="C:\\d")["Container"]
    assert made["RegistryChanges"]["AddValues"] == [WAITS]


def test_a_host_process_container_may_have_its_root_elsewhere() -> None:
    annotations = {
        "microsoft.com/hostprocess-container": "true",
        "microsoft.com/hostprocess-rootfs-location": "D:/hpc",
    }
    storage = document({"annotations": annotations})["Container"]["Storage"]
    assert storage["PrivilegedContainerRootPath"] == "D:\\hpc"


def test_a_pipe_of_the_vm_has_the_name_of_its_pod_in_it() -> None:
    mount = {"source": r"uvm://\\.\pipe\a", "destination": r"\\.\pipe\b"}
    assert document({"mounts": [mount]})["Container"]["MappedPipes"] == [
        {"ContainerPipeName": "b", "HostPath": "\\\\.\\pipe\\p\\a"}
    ]


@pytest.mark.parametrize("spelling", [r"\\.\pipe\a\b", "//./pipe/a/b", r"\\.\PIPE\a\b", "//./Pipe\\a/b"])
def test_a_pipe_may_be_spelled_as_windows_takes_it(spelling: str) -> None:
    made = plan({"mounts": [{"source": spelling, "destination": spelling}]}, Member("c1"), VMFacts("p", 2))
    assert made.attachments == (Pipe(r"\\.\pipe\a\b"),)
    of_vm = document({"mounts": [{"source": f"uvm://{spelling}", "destination": spelling}]})["Container"]
    assert of_vm["MappedPipes"] == [{"ContainerPipeName": r"a\b", "HostPath": r"\\.\pipe\p\a\b"}]


def test_the_document_of_a_confidential_container_has_its_specification() -> None:
    spec = {
        "ociVersion": "1.0",
        "process": {"args": ["x"]},
        "mounts": [{"source": "sandbox://a", "destination": "C:\\a"}],
    }
    made = document(spec, confidential=True)
    assert made["Spec"] == {**spec, "root": {"path": "C:\\root"}}
    # Its guest makes the directory itself.
    mapped = made["CWCOWHostedSystem"]["Container"]["MappedDirectories"]
    assert mapped == [{"HostPath": "C:\\SandboxMounts\\a", "ContainerPath": "C:\\a"}]
    assert plan(spec, Member("c1"), VMFacts("v", 2, confidential=True)).attachments == ()


# Bad input.


def mounted(source: str, destination: str = "C:\\x", type: str = "") -> dict[str, Any]:
    return {"mounts": [{"type": type, "source": source, "destination": destination}]}


def device(id: str, type: str) -> dict[str, Any]:
    return {"windows": {"devices": [{"id": id, "idType": type}]}}


BAD: list[tuple[dict[str, Any], type[UVMError], str]] = [
    (mounted(SHARED, type="bind"), OptionsError, "of the type 'bind', which a Windows guest has not"),
    (mounted(""), OptionsError, "has no source"),
    (mounted(SHARED, ""), OptionsError, "has no destination"),
    (mounted(SHARED, "data"), OptionsError, "relative"),
    (mounted(SHARED + "x"), HostPathError, "no such file or directory"),
    (mounted("shared"), OptionsError, "relative"),
    (mounted(DISK + "x", type="virtual-disk"), HostPathError, "no such file"),
    (mounted("x", type="extensible-virtual-disk"), OptionsError, "evd://"),
    (mounted("hugepages://2M/a"), OptionsError, "of Linux guests alone"),
    (mounted("sandbox-tmp:///a"), OptionsError, "of Linux guests alone"),
    (mounted("sandbox://a/../../b"), OptionsError, "not within sandbox://"),
    (mounted("sandbox://a\\..\\..\\b"), OptionsError, "not within sandbox://"),
    (mounted("sandbox://a&del b"), OptionsError, "made under such a name"),
    (mounted("sandbox://a%PATH%"), OptionsError, "made under such a name"),
    *(
        (mounted(f"sandbox://{name}"), OptionsError, "made under such a name")
        for name in (".. ", ".. /x", "a/...", "a.", "b /c", ". ", "a,\\Windows", "a;b", "a=b", "(a)")
    ),
    (mounted("sandbox://a", r"\\.\pipe\x"), OptionsError, "is a pipe, and its source"),
    (mounted(SHARED, "blockdev://C:\\x"), OptionsError, "in Linux containers alone"),
    (mounted("uvm://C:\\Windows"), OptionsError, "only pipes are mounted"),
    (mounted(r"\\.\pipe\a"), OptionsError, "so has to be its destination"),
    (mounted(r"\\.\pipe\a", "//./pipe/"), OptionsError, "so has to be its destination"),
    (mounted(r"uvm://\\.\pipe\a", "C:\\a"), OptionsError, "so has to be its destination"),
    (mounted(SHARED, r"\\.\pipe\a"), OptionsError, "is a pipe, and its source"),
    (mounted(DISK, r"\\.\pipe\a", "virtual-disk"), OptionsError, "is a pipe, and its source"),
    (
        {"mounts": [{"source": SHARED, "destination": d} for d in ("C:\\a", "c:/A/")]},
        OptionsError,
        "twice",
    ),
    (device("g", "toaster"), OptionsError, "unknown; known are class, gpu"),
    ({"windows": {"devices": [{"id": "g"}]}}, OptionsError, "idType"),
    (
        {"windows": {"devices": [{"id": id, "idType": "gpu"} for id in (DEVICE, DEVICE.lower() + "/0")]}},
        OptionsError,
        "twice",
    ),
    ({"root": {"readonly": True}}, OptionsError, "root is writable"),
    ({"windows": {"credentialSpec": "{}"}}, NotSupportedError, "group managed service accounts"),
    (windows(cpu={"count": 1, "shares": 3}), OptionsError, "has one of a count"),
    (windows(cpu={"maximum": 10_001}), OptionsError, "from 0 to 10000"),
    (windows(cpu={"affinity": [{"mask": 1}]}), NotSupportedError, "affinity"),
    (windows(memory={"limit": 5}), OptionsError, "1 MiB, at least"),
    (windows(storage={"bps": 1 << 40}), OptionsError, "bps and iops"),
    (annotated(processor__count="many"), OptionsError, "processor.count: it is a whole number"),
    ({"windows": {"network": {"DNSSearchList": "a"}}}, OptionsError, "no list"),
    ({"annotations": {"io.microsoft.container.wcow.deviceextensions": "x"}}, NotSupportedError, "extensions"),
    ({"hostname": 3}, OptionsError, "hostname"),
    ({"process": {"args": [3]}}, OptionsError, "not a string"),
]


@pytest.mark.parametrize(("spec", "error", "problem"), BAD)
async def test_a_specification_that_cannot_work_has_nothing_attached(
    spec: dict[str, Any], error: type[UVMError], problem: str
) -> None:
    async with pod_of() as (pod, run):
        run.start = run.last
        with pytest.raises(error, match=problem):
            await pod.run_container(spec, LAYERS, SCRATCH)
        assert (run.sent(), pod.containers) == ([], {})


def reached(path: str) -> list[str]:
    """Return the names below the drive that Windows, at its most generous, takes a path for."""
    names: list[str] = []
    for name in re.split(r"[\\/]", path)[1:]:
        if stripped := name.rstrip(" ."):
            names.append(stripped)
        elif ".." in name:
            del names[-1:]
    return names


@given(st.text(st.sampled_from("ab. /\\") | st.characters(codec="utf-8"), max_size=12))
def test_a_directory_that_a_pod_shares_is_below_that_of_its_vm_and_one_word(name: str) -> None:
    try:
        (wanted,) = plan(mounted(f"sandbox://{name}"), Member("c1"), VMFacts("p@vm", 2)).attachments
    except OptionsError:
        return
    assert isinstance(wanted, GuestDirectory)
    assert reached(wanted.path)[0] == "SandboxMounts"
    assert not set(wanted.path[3:]) & set('"%&<>^|!*?:,;=()')


@pytest.mark.parametrize("spec", [{"process": {"args": ["x"]}}, {"ociVersion": "1.0"}, {}])
def test_what_a_confidential_guest_refuses_is_refused_by_the_plan(spec: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match="needs ociVersion and process"):
        plan(spec, Member("c1"), VMFacts("v", 2, confidential=True))


@pytest.mark.parametrize(
    ("annotations", "problem"),
    [
        ({"microsoft.com/hostprocess-rootfs-location": "C:\\windows\\x"}, "in no directory of the VM"),
        ({"microsoft.com/hostprocess-rootfs-location": "\\\\a\\b"}, "in no directory of the VM"),
        ({"io.microsoft.wcow.processdumptype": "huge"}, "'mini' or 'full', not 'huge'"),
        ({"io.microsoft.wcow.processdumpcount": "0"}, "a whole number from 1"),
        ({"io.microsoft.disable-unsafe-operations": "true"}, "are both true"),
    ],
)
def test_an_annotation_that_cannot_be_is_refused(annotations: dict[str, str], problem: str) -> None:
    given = {"microsoft.com/hostprocess-container": "true", **annotations}
    with pytest.raises(OptionsError, match=problem):
        document({"annotations": given}, dumps="C:\\dumps")


async def test_writable_shares_are_denied_as_everywhere() -> None:
    async with pod_of(no_writable_file_shares=True) as (pod, run):
        with pytest.raises(AccessDeniedError):
            await pod.run_container(mounted(SHARED), LAYERS, SCRATCH)
        assert run.vm.vsmb.shares == ()


async def test_a_device_needs_the_tool_that_locates_it() -> None:
    backend = prepared()
    async with uvm.Pod.create(wcow(), backend=backend) as pod:
        with pytest.raises(OptionsError, match=r"device-util\.exe"):
            await pod.run_container(device(DEVICE, "gpu"), LAYERS, SCRATCH)
    missing = uvm.Pod.create(wcow(), backend=backend, device_util=r"C:\tools\none.exe")
    async with missing as pod:
        with pytest.raises(HostPathError, match=r"none\.exe"):
            await pod.run_container(device(DEVICE, "gpu"), LAYERS, SCRATCH)
        assert pod.vm.vpci.devices == ()


async def test_a_device_that_is_assigned_elsewhere_is_refused() -> None:
    boot: Any = wcow().boot_files
    elsewhere = evolve(boot, scratch_vhd_path=OTHER_DISK)
    second = wcow(id="vm2", boot_files=elsewhere)
    async with pod_of() as (pod, run), uvm.UtilityVM.create(second, backend=run.backend) as other:
        await other.start()
        await other.vpci.assign(DEVICE)
        before = run.vm.devices()
        with pytest.raises(uvm.HostError):
            await pod.run_container(device(DEVICE, "vpci"), LAYERS, SCRATCH)
        await run.vm.settled()
        assert run.vm.devices() == before


@pytest.mark.parametrize("program", ["device-util", "cmd"])
async def test_a_program_of_the_guest_that_fails_has_all_of_it_undone(program: str) -> None:
    async with pod_of() as (pod, run):
        before = run.vm.devices()

        @run.backend.programs.register(program)
        async def fail(process: FakeProcess) -> int:
            return 1

        with pytest.raises(uvm.ProcessFailedError):
            await pod.run_container(SPEC, LAYERS, SCRATCH)
        await run.vm.settled()
        assert (run.vm.devices(), pod.containers) == (before, {})
        check_at_rest(run)


async def test_a_device_that_the_guest_does_not_see_is_no_device() -> None:
    async with pod_of() as (pod, run):

        @run.backend.programs.register("device-util")
        async def nothing(process: FakeProcess) -> int:
            return 0

        with pytest.raises(UVMError, match="the guest has no device at VMBUS"):
            await pod.run_container(SPEC, LAYERS, SCRATCH)
        await run.vm.settled()
        assert run.vm.vpci.devices == ()


async def test_a_container_that_the_guest_refuses_has_all_of_it_undone() -> None:
    async with pod_of() as (pod, run):
        before = run.vm.devices()
        elsewhere = {"windows": {"network": {"networkNamespace": "1b1a8b1c-3c4b-4d8d-8d0c-2d6a4a9b8c11"}}}
        with pytest.raises(OptionsError, match="its pod is in"):
            await pod.run_container(elsewhere, LAYERS, SCRATCH)
        run.backend.faults.refuse(to="guest", operation="create", nth=1)
        with pytest.raises(GuestError):
            await pod.run_container(SPEC, LAYERS, SCRATCH)
        assert run.vm.devices() == before


# One disturbance at each request.

HOW = pytest.mark.parametrize("how", ["refuse", "lose", "cancelled"])


async def _requests(of_end: bool) -> list[Point]:
    """Return the requests of the bring-up of a container, or of its end."""
    async with pod_of() as (pod, run):
        run.start = run.last
        container = await pod.run_container(SPEC, LAYERS, SCRATCH, id="c1")
        found = [*points(run.backend, run.start)]
        run.start = run.last
        await container.aclose()
        found = [*points(run.backend, run.start)] if of_end else found
    return on_this_loop([point for point in found if point.to != "revoke"])


@HOW
async def test_a_bring_up_that_is_disturbed_at_any_request_is_undone_or_reported(how: str) -> None:
    for point in await _requests(False):
        async with pod_of() as (pod, run):
            before = run.vm.devices()
            call = partial(_run, pod)
            done = await spoil(run.backend, how, point, call)
            if done:
                await pod.containers["c1"].aclose()
            await run.vm.settled()
            if run.vm.state is not uvm.VMState.RUNNING:
                continue
            check_at_rest(run)
            assert pod.containers == {}, point
            # The share of the tool, which no container has.
            left = "host:modify Remove#1" if how == "refuse" else ""
            assert bool(run.vm.orphans) is (str(point) == left), point
            assert how == "lose" or run.vm.orphans or run.vm.devices() == before, point


async def _run(pod: uvm.Pod) -> None:
    await pod.run_container(SPEC, LAYERS, SCRATCH, id="c1")


@HOW
async def test_an_end_that_is_disturbed_at_any_request_goes_on_or_is_reported(how: str) -> None:
    for point in await _requests(True):
        async with pod_of() as (pod, run):
            before = run.vm.devices()
            container = await pod.run_container(SPEC, LAYERS, SCRATCH, id="c1")
            if not await spoil(run.backend, how, point, container.aclose) and how == "refuse":
                await container.aclose()
            await run.vm.settled()
            check_at_rest(run)
            assert run.vm.orphans == (), point
            assert how == "lose" or run.vm.devices() == before, point


async def test_a_confidential_container_runs_on_its_images() -> None:
    backend = prepared()
    for name in (r"C:\images\os.vhd", r"C:\images\boot.vhd", r"C:\vm\sandbox.vhdx", r"C:\vm\state.vmgs"):
        backend.files.add(name, size=MIB)
    options = wcow(
        boot_files=uvm.BlockCIMBootFiles.of_layer(r"C:\images\os.vhd", r"C:\vm"),
        security_policy_enabled=True,
        guest_state_file=r"C:\vm\state.vmgs",
        bundle_directory=r"C:\bundle",
    )
    layer = uvm.BlockCIMLayer([uvm.BlockCIM(LAYER, "app.cim")])
    spec = {
        "ociVersion": "1.1.0",
        "process": {"args": ["echo", "hello"]},
        "mounts": [{"source": "sandbox://a", "destination": "C:\\a"}],
    }
    async with uvm.Pod.create(options, backend=backend) as pod:
        run = Running(pod.vm, backend)
        async with pod.run_container(spec, [layer], SCRATCH, id="c1") as container:
            assert container.init is not None
            assert (await container.init.communicate()).stdout == b"hello\n"
            (created,) = [
                json.loads(e.document["ContainerConfig"])
                for e in backend.request_log
                if e.call.operation == "create" and e.document.get("ContainerId") == "c1"
            ]
            (root,) = pod.vm.layers.roots
            assert created["Spec"] == {**spec, "root": {"path": root.root}}
            assert "Container" in created["CWCOWHostedSystem"]
            # The guest makes the directory.
            assert started(run, NULL_GUID) == []
            check_at_rest(run)
    assert backend.leftovers() == []
