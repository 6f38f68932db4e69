"""Pods: brought up and ended in order; containers that disturb no other; input that is refused in whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import chain
from typing import Any, cast

import anyio
import pytest

import uvm
from tests.clocks import jumping_backends
from tests.planning import POLICY
from tests.vm import support as host
from tests.vm.audit import check_at_rest
from tests.vm.support import Running, host_backend, lcow, quiet
from uvm._vm.pods.linux import plan
from uvm._vm.pods.plan import GuestRoot, Member, Role
from uvm.backends.fake import FakeBackend, Latency, LinuxGuest
from uvm.errors import (
    GuestError,
    HostError,
    HostPathError,
    OptionsError,
    RPCError,
    UnknownOutcomeError,
    UVMError,
    VMStateError,
)
from uvm.testing.ncproxy import FakeNetworkProxy

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

DRIVE = r"\\.\PHYSICALDRIVE2"
SLEEP: dict[str, Any] = {"process": {"args": ["sleep", "3600"], "cwd": "/"}, "linux": {}}
IN_NETWORK: dict[str, Any] = {**SLEEP, "linux": {"namespaces": [{"type": "network"}]}}


def mount(source: str, at: str = "/data", type: str = "bind", *options: str) -> dict[str, Any]:
    return {"destination": at, "type": type, "source": source, "options": list(options)}


def with_mounts(*mounts: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {**SLEEP, "mounts": list(mounts), **parts}


def device(path: str = host.DEVICE, kind: str = "vpci-instance-id") -> dict[str, Any]:
    return {"devices": [{"id": path, "idType": kind}]}


#: One of each that a Linux guest has.
EVERYTHING = with_mounts(
    mount("proc", "/proc", "proc"),
    mount(host.SHARED, "/directory", "bind", "rbind", "ro"),
    mount(host.FILE, "/file", "bind", "rbind"),
    mount(host.DISK, "/disk", "virtual-disk", "ro"),
    mount(DRIVE, "blockdev:///dev/raw", "physical-disk"),
    mount("evd://space/9f", "/evd", "extensible-virtual-disk"),
    mount("sandbox:///shared/../notes", "/notes"),
    mount("sandbox-tmp:///tmp", "/tmp"),
    mount("hugepages://2M/pages", "/huge"),
    mount("uvm:///etc/../etc/hosts", "/hosts"),
    windows=device(),
)
LAYERS = [host.LAYER, host.OTHER_LAYER]


@asynccontextmanager
async def pod_on(backend: FakeBackend, network: str = "") -> AsyncIterator[uvm.Pod]:
    """A pod, of which nothing may be left."""
    for number in range(4):
        backend.files.add(rf"C:\disks\scratch{number}.vhdx", size=host.MIB)
    backend.files.add(DRIVE)
    made = uvm.Pod.create(lcow(), backend=backend, network=network, timeouts=host.REDIALS)
    async with made as pod:
        yield pod
        await quiet()
        check_at_rest(Running(pod.vm, backend))
    assert backend.leftovers() == []


def scratch(number: int) -> str:
    return rf"C:\disks\scratch{number}.vhdx"


async def run(pod: uvm.Pod, number: int, spec: dict[str, Any] = SLEEP) -> uvm.PodContainer:
    return await pod.run_container(spec, LAYERS, scratch(number), id=f"c{number}")


def document(backend: FakeBackend, pod: uvm.Pod, id: str) -> dict[str, Any]:
    """The specification that the guest has of a container."""
    spec: dict[str, Any] = backend.vms[pod.id].service.containers[id].document["OciSpecification"]
    return spec


def state(pod: uvm.Pod, backend: FakeBackend) -> tuple[Any, ...]:
    """All that is there of a pod."""
    machine = backend.vms[pod.id]
    access = sorted(map(str, backend.access.entries()))
    return (
        str(machine.tree.inventory()),
        sorted(machine.guest.mounts),
        sorted(machine.service.containers),
        sorted(pod.containers),
        access,
    )


async def test_everything_that_a_specification_asks_for_is_where_the_container_is_told() -> None:
    backend = host_backend()
    async with pod_on(backend, host.NAMESPACE) as pod:
        sandbox = await pod.run_sandbox(IN_NETWORK, LAYERS, scratch(0), id="pause")
        before = state(pod, backend)
        async with pod.run_container(EVERYTHING, LAYERS, scratch(1), id="c1") as container:
            spec = document(backend, pod, "c1")
            sources = {each["destination"]: each["source"] for each in spec["mounts"]}
            guest = backend.vms[pod.id].guest
            mounted = [guest.mount_of(sources[at]) for at in ("/directory", "/file", "/disk", "/evd")]
            assert [each.kind for each in mounted if each is not None] == ["plan9", "plan9", "disk", "disk"]
            assert guest.mounts[sources["blockdev:///dev/raw"]].kind == "blockdev"
            assert {at: sources[at] for at in ("/notes", "/tmp", "/huge", "/hosts", "/proc")} == {
                "/notes": "sandbox:///notes",
                "/tmp": "sandbox-tmp:///tmp",
                "/huge": "hugepages://2M/pages",
                "/hosts": "uvm:///etc/hosts",
                "/proc": "proc",
            }
            types = {each["destination"]: each["type"] for each in spec["mounts"]}
            assert (types["/disk"], types["blockdev:///dev/raw"]) == ("none", "bind")
            assert spec["windows"]["devices"][0]["id"] == pod.vm.vpci.devices[0].vmbus_guid
            assert spec["root"]["path"] == container.resources.root.root  # type: ignore[union-attr]
            assert len(container.resources.leases) == 6
            assert (await container.run(["echo", "here"])).stdout == b"here\n"
        assert state(pod, backend) == before
        assert sandbox.role is Role.SANDBOX


async def test_the_workloads_of_a_pod_are_in_the_namespaces_of_its_sandbox() -> None:
    backend = host_backend()
    async with pod_on(backend, host.NAMESPACE) as pod:
        sandbox = await pod.run_sandbox(IN_NETWORK, LAYERS, scratch(0), id="pause")
        assert sandbox.init is not None
        await run(pod, 1, {**IN_NETWORK, "linux": {"namespaces": [{"type": "network"}, {"type": "pid"}]}})
        spec = document(backend, pod, "c1")
        paths = {each["type"]: each.get("path") for each in spec["linux"]["namespaces"]}
        of_sandbox = f"/proc/{sandbox.init.pid}/ns"
        assert paths == {
            "pid": None,
            "network": f"{of_sandbox}/net",
            "ipc": f"{of_sandbox}/ipc",
            "uts": f"{of_sandbox}/uts",
        }
        assert spec["annotations"]["io.kubernetes.cri.sandbox-id"] == "pause"
        with pytest.raises(VMStateError, match="is the sandbox of c1: end those first"):
            await sandbox.aclose()
        assert sandbox.init.exit_code is None


def ends(backend: FakeBackend, begun: int) -> list[str]:
    """What has ended since then, in order."""
    return [
        entry.document.get("ContainerId", "Network")
        for entry in backend.request_log
        if entry.seq > begun
        if entry.call.operation == "shutdown forced" or entry.call.resource == "Network"
    ]


async def test_a_pod_ends_in_order() -> None:
    backend = host_backend()
    async with pod_on(backend, host.NAMESPACE) as pod:
        await pod.run_sandbox(SLEEP, LAYERS, scratch(0), id="pause")
        await run(pod, 1)
        begun = backend.request_log._seq
        await pod.end()
        assert ends(backend, begun) == ["c1", "pause", "Network", "Network"]
        assert not pod.containers
        with pytest.raises(VMStateError, match="has ended, or is being ended"):
            await run(pod, 2)


async def test_a_container_that_comes_up_while_its_pod_ends_ends_with_it() -> None:
    backend = host_backend()
    async with pod_on(backend) as pod:
        with backend.faults.hold(operation="create") as gate:
            async with anyio.create_task_group() as tasks:
                late = host.Attempt.begin(tasks, lambda: run(pod, 1))
                await gate.wait()
                tasks.start_soon(pod.end)
                await quiet()
                gate.close()
        assert isinstance(late.error, VMStateError)
        assert not pod.containers


async def test_what_comes_up_in_a_pod_that_ends_has_its_sandbox_and_network_until_then() -> None:
    backend = host_backend()
    async with pod_on(backend, host.NAMESPACE) as pod:
        await pod.run_sandbox(IN_NETWORK, LAYERS, scratch(0), id="pause")
        begun = backend.request_log._seq
        with backend.faults.hold(operation="create") as gate:
            async with anyio.create_task_group() as tasks:
                late = host.Attempt.begin(tasks, lambda: run(pod, 1))
                await gate.wait()
                tasks.start_soon(pod.end)
                await quiet()
                assert {*pod.containers, *pod.vm.network.namespaces} == {"pause", host.NAMESPACE}
                gate.close()
        assert isinstance(late.error, VMStateError)
        assert ends(backend, begun) == ["c1", "pause", "Network", "Network"]
        assert not pod._members


async def test_a_container_that_does_not_end_keeps_its_sandbox_and_network() -> None:
    backend = host_backend()
    async with pod_on(backend, host.NAMESPACE) as pod:
        await pod.run_sandbox(IN_NETWORK, LAYERS, scratch(0), id="pause")
        await run(pod, 1, with_mounts(mount(host.SHARED)))
        backend.faults.refuse(request_type="Remove", resource=host.PLAN9, first=1)
        with pytest.raises(HostError):
            await pod.end()
        assert sorted(pod.containers) == ["c1", "pause"]
        assert pod.vm.network.namespaces == (host.NAMESPACE,)
        await pod.end()
        assert [*pod.containers, *pod.vm.network.namespaces] == []


async def test_a_sandbox_is_not_that_of_the_containers_before_it() -> None:
    backend = host_backend()
    async with pod_on(backend) as pod:
        await run(pod, 0)
        async with pod.run_sandbox(SLEEP, LAYERS, scratch(1), id="pause"):
            pass
        assert [*pod.containers] == ["c0"]


@pytest.mark.parametrize("how", ["refuse", "lose"])
async def test_a_sandbox_has_its_directories_unmounted_before_its_scratch_disk(how: str) -> None:
    backend = host_backend()
    async with pod_on(backend) as pod:
        spec = with_mounts(mount(host.SHARED))
        sandbox = await pod.run_sandbox(spec, LAYERS, scratch(0), id="pause")
        begun = backend.request_log._seq
        # Of a sandbox that is refused, both the attempts.
        getattr(backend.faults, how)(request_type="Remove", resource="CombinedLayers", first=2)
        with pytest.raises(UVMError):
            await sandbox.aclose()
        assert pod.vm.plan9.shares == ()
        for _ in range(2):
            with suppress(UVMError):
                await sandbox.aclose()
        await sandbox.aclose()
        sent = [entry for entry in backend.request_log if entry.seq > begun]
        asked = [entry.call.operation + entry.call.resource for entry in sent]
        assert asked.index("delete container state") < asked.index("modifyMappedVirtualDisk")
        assert not pod.containers


async def test_the_exit_of_the_vm_is_the_end_of_a_sandbox_that_is_being_ended() -> None:
    backend = host_backend()
    async with uvm.Pod.create(lcow(), backend=backend) as pod:
        sandbox = await pod.run_sandbox(with_mounts(mount(host.SHARED)), LAYERS, host.SCRATCH, id="pause")
        crash = backend.faults.crash(request_type="Remove", resource="CombinedLayers")
        await sandbox.aclose()
        assert crash.fired
        assert sandbox.closed
    assert backend.leftovers() == []


PROXY = r"\\.\pipe\ncproxy"


@asynccontextmanager
async def proxy_of(backend: FakeBackend, *names: str) -> AsyncIterator[FakeNetworkProxy]:
    """A proxy that has forgotten a pod in the end, to whose VM it added adapters."""
    async with FakeNetworkProxy(backend, PROXY, {"vm1": names}) as proxy:
        yield proxy
        assert dict(proxy.agents) == {}
        calls = ["RegisterComputeAgent", "Setup", "Teardown", "UnregisterComputeAgent"]
        assert [call for call, _ in proxy.calls] == calls
    assert backend.leftovers() == []


@asynccontextmanager
async def pod_of_proxy(backend: FakeBackend) -> AsyncIterator[uvm.Pod]:
    options = lcow(network_config_proxy=PROXY)
    made = uvm.Pod.create(options, backend=backend, network=host.NAMESPACE, close_grace_seconds=3)
    async with made as pod:
        yield pod


async def test_a_pod_of_a_proxy_is_ended_by_the_next_call_if_one_fails() -> None:
    backend = host_backend()
    async with proxy_of(backend, "endpoint-eth0"), pod_of_proxy(backend) as pod:
        await pod.run_container(with_mounts(mount(host.SHARED)), LAYERS, host.SCRATCH, id="c1")
        backend.faults.refuse(request_type="Remove", resource=host.PLAN9, first=1)
        with pytest.raises(HostError):
            await pod.end()
        for _ in range(2):
            await pod.end()
        assert not pod.containers


@pytest.mark.parametrize("close", [False, True])
async def test_a_proxy_forgets_a_pod_whose_vm_has_exited(close: bool) -> None:
    backend = host_backend()
    async with proxy_of(backend) as proxy, pod_of_proxy(backend) as pod:
        backend.vms[pod.id].crash()
        await pod.vm.wait()
        if close:
            await pod.close()
            assert dict(proxy.agents) == {}


async def left_after_its_exit(backend: FakeBackend) -> None:
    async with pod_of_proxy(backend) as pod:
        backend.vms[pod.id].crash()
        await pod.vm.wait()


async def test_a_proxy_that_refuses_without_the_vm_forgets_the_pod_and_that_is_raised() -> None:
    backend = host_backend()
    async with proxy_of(backend, "endpoint-eth0"):
        with pytest.raises(RPCError):
            await left_after_its_exit(backend)


async def test_a_proxy_forgets_a_pod_whose_body_is_cancelled() -> None:
    backend = host_backend()
    async with proxy_of(backend):
        with anyio.CancelScope() as scope:
            async with pod_of_proxy(backend):
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught


async def test_a_proxy_that_does_not_answer_holds_a_pod_up_for_the_grace_period() -> None:
    backend = host_backend()

    async def hang(method: str) -> None:
        if method == "Teardown":
            await anyio.sleep_forever()

    async with FakeNetworkProxy(backend, PROXY, {"vm1": []}) as proxy:
        proxy.before = hang
        with pytest.raises(UVMError, match="did not answer within 3 s"):
            await left_after_its_exit(backend)


async def test_an_unknown_outcome_is_raised_with_what_else_failed() -> None:
    backend = host_backend()
    async with pod_on(backend) as pod:
        backend.faults.refuse(request_type="Add", resource=host.PLAN9, text="no share")
        backend.faults.lose(request_type="Add", resource="MappedVirtualDisk", first=1)
        spec = with_mounts(mount(host.SHARED), mount(host.OTHER_DISK, "/disk", "virtual-disk"))
        with pytest.raises(UnknownOutcomeError) as caught:
            await run(pod, 1, spec)
        assert any("no share" in note for note in caught.value.__notes__)
        backend.faults.clear()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (uvm.WCOWLayer(host.FILE, host.NIC), "is a file"),
        (uvm.BlockCIMLayer([uvm.BlockCIM(r"C:\nowhere.vhd", "a.cim")]), "no such file"),
    ],
)
async def test_layers_of_windows_that_are_not_there_are_refused_before_anything_is_attached(
    layer: Any, message: str
) -> None:
    backend = host_backend()
    spec = {
        "process": {"args": ["cmd"], "cwd": "C:\\"},
        "mounts": [{"source": host.SHARED, "destination": "C:\\data"}],
        "windows": {},
    }
    async with uvm.Pod.create(host.wcow(), backend=backend) as pod:
        sent = backend.request_log._seq
        with pytest.raises(HostPathError, match=message):
            await pod.run_container(spec, [layer], host.SCRATCH)
        assert backend.request_log._seq == sent


async def test_containers_without_a_sandbox_have_the_network_of_the_pod_or_of_its_vm() -> None:
    backend = host_backend()
    async with pod_on(backend, host.NAMESPACE) as pod:
        await run(pod, 0, IN_NETWORK)
        with pytest.raises(OptionsError, match="c0 has it; run the pod's sandbox first"):
            await run(pod, 1, IN_NETWORK)
        await run(pod, 1)
        names = [document(backend, pod, id)["windows"]["network"]["networkNamespace"] for id in ("c0", "c1")]
        assert names == [host.NAMESPACE, "c1"]


async def test_containers_of_a_pod_run_beside_each_other_and_share_layers() -> None:
    backend = host_backend()
    async with pod_on(backend) as pod:
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(run, pod, number)
        assert sorted(pod.containers) == ["c0", "c1", "c2"]
        assert [layer.references for layer in pod.vm.vpmem.layers] == [3, 3]


@pytest.mark.parametrize("how", ["refuse", "lose"])
@pytest.mark.parametrize("operation", ["shutdown forced", "modify", "delete container state"])
async def test_the_end_of_one_container_disturbs_no_other(how: str, operation: str) -> None:
    backend = host_backend()
    async with pod_on(backend) as pod:
        spec = with_mounts(mount(host.SHARED), mount(host.OTHER_DISK, "/disk", "virtual-disk"))
        other, one = await run(pod, 0), await run(pod, 1, spec)
        before = document(backend, pod, "c0")
        # Each request of that kind fails, once.
        rule = getattr(backend.faults, how)(operation=operation, to="guest")
        with suppress(UVMError):
            await one.aclose()
        assert rule.fired
        rule.remove()
        await pod.vm.settled()
        assert document(backend, pod, "c0") == before
        assert (await other.run(["echo", "on"])).stdout == b"on\n"
        assert other.resources.state is uvm.LeaseState.HELD
        assert {*pod.containers} == ({"c0"} if one.closed else {"c0", "c1"})
        # What is unknown is reported once more.
        for _ in range(2):
            with suppress(UVMError):
                await one.aclose()
        await one.aclose()
        assert {*pod.containers} == {"c0"}


async def test_what_was_refused_of_an_end_is_done_by_the_next() -> None:
    backend = host_backend()
    async with pod_on(backend) as pod:
        before = state(pod, backend)
        one = await run(pod, 1, with_mounts(mount(host.SHARED)))
        backend.faults.refuse(request_type="Remove", resource=host.PLAN9, first=1)
        with pytest.raises(HostError):
            await one.aclose()
        assert one.resources.state is uvm.LeaseState.REFUSED
        await one.aclose()
        assert (one.closed, one.resources.state) == (True, uvm.LeaseState.GONE)
        assert state(pod, backend) == before


async def test_a_container_that_is_refused_leaves_its_pod_as_it_was() -> None:
    backend = host_backend()
    async with pod_on(backend) as pod:
        await run(pod, 0)
        before = state(pod, backend)
        with pytest.raises(GuestError, match="no-such-program"):
            await run(pod, 1, with_mounts(mount(host.SHARED), process={"args": ["no-such-program"]}))
        assert state(pod, backend) == before
        await run(pod, 1)


async def test_a_device_of_another_vm_is_not_assigned_and_nothing_stays() -> None:
    backend = host_backend()
    async with (
        uvm.UtilityVM.create(lcow(id="other"), backend=backend) as other,
        uvm.Pod.create(lcow(), backend=backend) as pod,
    ):
        await other.start()
        await other.vpci.assign(host.DEVICE)
        before = state(pod, backend)
        with pytest.raises(HostError, match="is assigned to VM other"):
            await pod.run_container(with_mounts(mount(host.SHARED), windows=device()), LAYERS, host.SCRATCH)
        assert state(pod, backend) == before


async def test_what_is_attached_for_a_container_is_one_lease() -> None:
    backend = host_backend()
    async with pod_on(backend) as pod:
        before = state(pod, backend)
        async with pod.attach_resources(with_mounts(mount(host.SHARED)), LAYERS, scratch(0), id="c1") as held:
            made = await pod.vm.create_container("c1", held.document(), root=held.root)
            await made.start()
            await made.aclose()
            assert not held.released
        assert state(pod, backend) == before


async def test_a_pod_whose_network_is_not_there_leaves_nothing() -> None:
    backend = host_backend()
    with pytest.raises(HostError):
        async with uvm.Pod.create(lcow(), backend=backend, network=host.NIC):
            raise AssertionError
    assert backend.leftovers() == []


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_a_pod_of_a_policy_without_its_files_is_refused_and_nothing_is_created(os: str) -> None:
    backend = host_backend()
    options: Any = (
        uvm.LCOWOptions.confidential(POLICY, boot_files_path=r"C:\boot", bundle_directory=r"C:\bundle")
        if os == "linux"
        else uvm.WCOWOptions.confidential(
            POLICY,
            boot_files_root_path=r"C:\cim",
            bundle_directory=r"C:\bundle",
            scratch_vhd_path=host.SCRATCH,
        )
    )
    with pytest.raises(OptionsError, match=r"\.vmgs was not found on the host"):
        async with uvm.Pod.create(options, backend=backend):
            raise AssertionError
    assert backend.request_log.entries(to="lifecycle") == []
    assert backend.leftovers() == []


async def test_an_error_in_a_pod_is_raised_bare_and_the_pod_ends() -> None:
    backend = host_backend()

    async def fail() -> None:
        async with pod_on(backend, host.NAMESPACE) as pod:
            await run(pod, 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert backend.leftovers() == []


MISSING = r"C:\nowhere"
#: Specifications that cannot work, with the error and a part of its message.
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (None, OptionsError, "a mapping, not nothing"),
    "no process": ({"linux": {}}, OptionsError, "has no 'process'"),
    "no linux": ({"process": {}}, OptionsError, "has no 'linux'"),
    "not JSON": ({**SLEEP, "x": object()}, OptionsError, "cannot be written as JSON"),
    "mounts are no list": ({**SLEEP, "mounts": 1}, OptionsError, "no list of JSON objects"),
    "options are no list": (with_mounts({**mount("a"), "options": "ro"}), OptionsError, "not a list"),
    "unknown type": (with_mounts(mount("a", type="zfs")), OptionsError, "'zfs', which is unknown; known"),
    "no destination": (with_mounts(mount(host.SHARED, "")), OptionsError, "has no destination"),
    "relative destination": (with_mounts(mount(host.SHARED, "a")), OptionsError, "relative"),
    "no source": (with_mounts(mount("")), OptionsError, "has no source"),
    "missing source": (with_mounts(mount(MISSING)), HostPathError, "no such file or directory"),
    "missing disk": (with_mounts(mount(MISSING, type="virtual-disk")), HostPathError, "no such file"),
    "no EVD": (with_mounts(mount("x", type="extensible-virtual-disk")), OptionsError, "evd://<type>/<path>"),
    "two at one place": (
        with_mounts(mount(host.SHARED), mount(host.OTHER_SHARED, "/x/../data/")),
        OptionsError,
        "has /data twice",
    ),
    "a block device of no disk": (
        with_mounts(mount(host.SHARED, "blockdev:///dev/x")),
        OptionsError,
        "is for disks",
    ),
    **{
        f"a block device {problem}": (
            with_mounts(mount(host.DISK, destination, "virtual-disk")),
            OptionsError,
            problem,
        )
        for destination, problem in (("blockdev://", "empty"), ("blockdev://x", "relative"))
    },
    "relative source": (with_mounts(mount("a")), OptionsError, "is relative"),
    "device of no type": ({**SLEEP, "windows": device(kind="usb")}, OptionsError, "'usb', which is unknown"),
    "a device twice": (
        {**SLEEP, "windows": {"devices": [*device()["devices"], *device(host.DEVICE.lower())["devices"]]}},
        OptionsError,
        "twice",
    ),
    "out of the sandbox": (with_mounts(mount("sandbox:///a/../../b")), OptionsError, "is not within sandbox"),
    "out of its tmp": (with_mounts(mount("sandbox-tmp://..")), OptionsError, "is not within sandbox-tmp"),
    "out of huge pages": (with_mounts(mount("hugepages://2M/../../x")), OptionsError, "not within hugepages"),
    "huge pages of no size": (with_mounts(mount("hugepages://4K/a")), OptionsError, "of the size 2M"),
    "huge pages of no name": (with_mounts(mount("hugepages://2M")), OptionsError, "SIZE/NAME"),
    "relative in the VM": (with_mounts(mount("uvm://a")), OptionsError, "is relative"),
    "a host name of its own": ({**SLEEP, "hostname": "a"}, OptionsError, "has a hostname"),
    "another network": (
        {**SLEEP, "windows": {"network": {"networkNamespace": host.NIC}}},
        OptionsError,
        "its pod is in",
    ),
    "another sandbox": (
        {**SLEEP, "annotations": {"io.kubernetes.cri.container-type": "sandbox"}},
        OptionsError,
        "pause is",
    ),
    "of another sandbox": (
        {
            **SLEEP,
            "annotations": {
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": "b",
            },
        },
        OptionsError,
        "which the pod has not: it is pause",
    ),
    "of no kind": (
        {**SLEEP, "annotations": {"io.kubernetes.cri.container-type": "x"}},
        OptionsError,
        "is sandbox or container",
    ),
}


async def test_input_that_cannot_work_is_an_error_of_its_own_and_nothing_is_attached() -> None:
    backend = host_backend()
    async with pod_on(backend, host.NAMESPACE) as pod:
        await pod.run_sandbox(IN_NETWORK, LAYERS, scratch(0), id="pause")
        await quiet()
        before, sent = state(pod, backend), backend.request_log._seq
        for name, (spec, error, message) in WRONG.items():
            with pytest.raises(error, match=message):
                await pod.run_container(spec, LAYERS, scratch(1))
            assert backend.request_log._seq == sent, name
        for nothing in ("spec", None):
            with pytest.raises(OptionsError, match="a mapping, not"):
                await pod.run_sandbox(cast(Any, nothing), LAYERS, scratch(1))
        for bad, error, message in (
            ({"id": "pause"}, OptionsError, "has a container pause already"),
            ({"id": ".."}, OptionsError, "no name of a directory"),
            ({"stdin": 1}, OptionsError, "stdin"),
        ):
            with pytest.raises(error, match=message):
                await pod.run_container(SLEEP, LAYERS, scratch(1), **bad)
        for layers, disk in ((MISSING, scratch(1)), (host.LAYER, MISSING)):
            with pytest.raises(HostPathError, match="no such file"):
                await pod.run_container(with_mounts(mount(host.SHARED)), [layers], disk)
        with pytest.raises(OptionsError, match="layers must be a sequence"):
            await pod.run_container(SLEEP, host.LAYER, scratch(1))
        with pytest.raises(OptionsError, match="one or more LCOWLayer"):
            await pod.run_container(SLEEP, [], scratch(1))
        assert backend.request_log._seq == sent
        await quiet()
        assert state(pod, backend) == before


@pytest.mark.parametrize("named", [None, "", host.NAMESPACE.upper()])
def test_a_member_of_a_pod_is_in_the_network_of_that(named: str | None) -> None:
    spec = {**SLEEP, "windows": {"network": {"networkNamespace": named}}}
    made = plan(spec, Member("c1", network=host.NAMESPACE)).document([], GuestRoot("/"))
    assert made["windows"]["network"]["networkNamespace"] == host.NAMESPACE


@pytest.mark.parametrize("source", ["sandbox:///a", "sandbox-tmp:///a", "hugepages://2M/a", "uvm:///a"])
async def test_what_a_pod_shares_needs_its_sandbox(source: str) -> None:
    backend = host_backend()
    async with pod_on(backend) as pod:
        with pytest.raises(OptionsError, match=r"run the sandbox first \(Pod.run_sandbox\)"):
            await run(pod, 0, with_mounts(mount(source)))
        annotations = {"io.kubernetes.cri.container-type": "container"}
        with pytest.raises(OptionsError, match="there is none"):
            await run(pod, 0, {**SLEEP, "annotations": annotations})


async def test_workloads_need_a_sandbox_that_runs() -> None:
    backend = host_backend()
    async with pod_on(backend) as pod:
        sandbox = await pod.run_sandbox({**SLEEP, "process": {"args": ["true"]}}, LAYERS, scratch(0))
        assert sandbox.init is not None
        await sandbox.init.wait()
        with pytest.raises(VMStateError, match="does not run"):
            await run(pod, 1)
        await sandbox.aclose()
        assert pod.sandbox is None
        assert isinstance(backend.vms[pod.id].guest, LinuxGuest)
        await run(pod, 1)


@pytest.mark.parametrize("part", ["up", "down"])
async def test_ten_containers_of_twenty_layers_take_as_many_answers_in_turn_as_one_of_two(part: str) -> None:
    seconds = [await took(containers, layers, part) for containers, layers in ((1, 2), (10, 20))]
    assert seconds[0] == pytest.approx(seconds[1])


async def took(containers: int, layers: int, part: str) -> float:
    """How long containers take to come up, or to end, where each answer takes 10 ms and all else no time."""
    latency = Latency(host_ms=10, guest_ms=10, grant_ms=10, lifecycle_ms=10)
    backend = host_backend(latency=latency)
    images = [[rf"C:\many\{c}-{n}.vhd" for n in range(layers)] for c in range(containers)]
    for path in (*chain(*images), *(rf"C:\many\{c}.vhdx" for c in range(containers))):
        backend.files.add(path, size=host.MIB)
    async with uvm.Pod.create(lcow(), backend=backend) as pod:
        begun = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for c, image in enumerate(images):
                tasks.start_soon(pod.run_container, SLEEP, image, rf"C:\many\{c}.vhdx")
        up = anyio.current_time()
        await pod.end()
        return up - begun if part == "up" else anyio.current_time() - up
