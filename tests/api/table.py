"""Each call of the public API: how to set it up and make it, and what is to be expected of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from attrs import evolve

import uvm
from tests.api import surface
from tests.api.cases import Row
from tests.api.stage import Stage
from tests.vm import support as host

__all__ = ["ELSEWHERE", "ROWS", "name_of", "row_of"]

#: An open one, in base64.
_POLICY = base64.b64encode(json.dumps({"allow_all": True}).encode()).decode()
_NOWHERE = "00000000-0000-0000-0000-0000000000ff"
_SPEC: dict[str, Any] = {"process": {"args": ["server"], "cwd": "/"}, "linux": {}}
_MIB = 1 << 20


async def _container(stage: Stage) -> uvm.Container:
    """Create a container, and start it with its own process, which reads its input."""
    container = await stage.vm.create_container("c1", _SPEC)
    await container.start()
    stage.made["init"] = await container.open_init(stdin=True)
    return container


async def _started(stage: Stage) -> uvm.Container:
    container = await stage.vm.create_container("c1", _SPEC)
    await container.start()
    return container


async def _ended(stage: Stage) -> uvm.Container:
    container = await _container(stage)
    await container.terminate()
    await stage.made["init"].aclose()
    await container.wait()
    return container


async def _left_behind(stage: Stage) -> uvm.UtilityVM:
    """End a container, whose state stays in the guest."""
    await _ended(stage)
    return stage.vm


async def _guest_with_one(stage: Stage) -> uvm.GuestConnection:
    return (await _left_behind(stage)).guest


async def _busy(stage: Stage) -> uvm.Container:
    container = await _container(stage)
    stage.made["process"] = await container.open_process(["cat"], stdin=True)
    return container


async def _windows_container(stage: Stage) -> uvm.Container:
    if "container" not in stage.made:
        stage.made["container"] = await stage.vm.create_container("c1", {"Container": {}})
        await stage.made["container"].start()
    made: uvm.Container = stage.made["container"]
    return made


async def _container_mount(stage: Stage) -> uvm.ContainerMount:
    container = await _windows_container(stage)
    return await stage.vm.mount_in_container(container, host.SHARED, "C:\\data")


async def _process(stage: Stage) -> uvm.Process:
    return await stage.vm.open_process(["server"])


async def _stdin(stage: Stage) -> uvm.ProcessInput:
    stage.made["process"] = process = await _process(stage)
    assert process.stdin is not None
    return process.stdin


async def _stdout(stage: Stage) -> uvm.ProcessOutput:
    stage.made["process"] = process = await _process(stage)
    assert process.stdout is not None
    return process.stdout


async def _orphan(stage: Stage) -> uvm.Orphan:
    """Leave a disk behind whose removal was refused."""
    rule = stage.backend.faults.refuse(to="host", request_type="Remove", nth=1)
    lease = await stage.vm.scsi.attach(host.DISK)
    lease.give_up()
    await stage.settle()
    rule.remove()
    [orphan] = stage.vm.orphans
    return orphan


async def _combined(stage: Stage) -> uvm.CombinedLease:
    await _base(stage)
    return await stage.vm.layers.combine("/root", ["/base"], scratch_path="/base/upper")


async def _base(stage: Stage) -> Any:
    """Attach what layers are made of."""
    await stage.vm.scsi.attach(host.LARGE_LAYER, mount=uvm.Mount(guest_path="/base"))
    return stage.vm.layers


async def _namespace(stage: Stage) -> uvm.NamespaceLease:
    return await stage.vm.network.add_namespace(host.NAMESPACE)


async def _network(stage: Stage) -> Any:
    if not stage.vm.network.namespaces:
        await _namespace(stage)
    return stage.vm.network


async def _adapter(stage: Stage) -> uvm.AdapterLease:
    await _network(stage)
    return await stage.vm.network.add_endpoint(host.NAMESPACE, host.ENDPOINT)


async def _set_up(stage: Stage) -> uvm.NetworkSetup:
    network = await _network_setup(stage)
    await network.setup(host.NAMESPACE)
    return network


async def _network_setup(stage: Stage) -> uvm.NetworkSetup:
    return stage.vm.network_setup()


async def _guest_nic(stage: Stage) -> Any:
    """Assign the device of an adapter that is in the guest alone."""
    await stage.vm.vpci.assign(host.NIC_DEVICE, vmbus_guid=host.NIC)
    return await _network(stage)


async def _guest_adapter(stage: Stage) -> Any:
    await (await _guest_nic(stage)).add_guest_adapter(host.GUEST_ADAPTER)
    return stage.vm.network


async def _two_adapters(stage: Stage) -> Any:
    stage.made["nic_id"] = (await _adapter(stage)).nic_id
    return await _guest_adapter(stage)


async def _root(stage: Stage) -> uvm.RootFileSystem:
    return await stage.vm.mount_layers("c1", [host.LAYER], host.SCRATCH)


def _pod_of(stage: Stage) -> uvm.Pod:
    if "pod" not in stage.made:
        stage.made["pod"] = uvm.Pod(stage.vm, "")
    made: uvm.Pod = stage.made["pod"]
    return made


async def _pod(stage: Stage) -> uvm.Pod:
    return _pod_of(stage)


_POD_SPEC: dict[str, Any] = {
    **_SPEC,
    "mounts": [
        {"destination": "/data", "type": "bind", "source": host.SHARED, "options": ["rbind", "ro"]},
        {"destination": "/disk", "type": "virtual-disk", "source": host.DISK},
    ],
    "windows": {"devices": [{"id": host.DEVICE, "idType": "vpci-instance-id"}]},
}


def _pod_container(call: str, spec: dict[str, Any] = _SPEC) -> Callable[[Stage], Any]:
    """Return what has a pod make a container, by one of its calls."""
    streams = {"stdin": True} if call == "run_container" else {}
    return lambda s: getattr(_pod_of(s), call)(spec, [host.LAYER], host.SCRATCH, id="c1", **streams)


async def _pod_with_one(stage: Stage) -> uvm.Pod:
    stage.made.pop("pod", None)
    await _pod_container("run_container")(stage)
    return _pod_of(stage)


def _pod_makes(call: str, spec: dict[str, Any] = _SPEC) -> Row:
    missing = {**_SPEC, "mounts": [{"destination": "/d", "type": "bind", "source": host.DISK + "x"}]}
    return Row(
        lambda s, it: _pod_container(call, spec)(s),
        **_wrong_too(
            {"HostPathError": lambda s, it: _pod_container(call, missing)(s)},
            lambda s, it: _pod_container(call, {"mounts": [{"type": "x"}]})(s),
        ),
    )


async def _one_pod(stage: Stage, it: Any) -> None:
    """Bring a pod up, with a network and a container, and end it."""
    make = uvm.Pod.create(
        stage.options, backend=stage.backend, network=host.NAMESPACE, timeouts=stage.timeouts
    )
    async with make as pod, pod.run_container(_SPEC, [host.LAYER], host.SCRATCH, id="c1"):
        pass


def _bus(name: str, lease: str = "") -> Callable[[Stage], Awaitable[Any]]:
    """Return what prepares a bus, with a lease on it that the VM alone holds."""

    async def prepare(stage: Stage) -> Any:
        if lease:
            stage.made["lease"] = await OBJECTS[lease][1](stage)
        return getattr(stage.vm, name)

    return prepare


async def _pool(stage: Stage) -> uvm.Pool:
    return await _new_pool(stage).start()


async def _used_pool(stage: Stage) -> uvm.Pool:
    pool = await _pool(stage)
    stage.made["vm"] = await pool.acquire()
    await stage.settle()
    return pool


def _new_pool(stage: Stage) -> uvm.Pool:
    options = evolve(stage.options, id="")
    stage.pools.append(uvm.Pool(options, backend=stage.backend, ready=1, timeouts=stage.timeouts))
    return stage.pools[-1]


async def _vm(stage: Stage) -> Any:
    return stage.created


async def _grouped(stage: Stage) -> Any:
    stage.made["group"] = await uvm.create_cpu_group(stage.backend, [0])
    return stage.vm


async def _guest(stage: Stage) -> uvm.GuestConnection:
    return stage.vm.guest


async def _paused(stage: Stage) -> uvm.UtilityVM:
    await stage.vm.pause()
    return stage.vm


async def _adapter_of_template(stage: Stage) -> uvm.UtilityVM:
    await _adapter(stage)
    return stage.vm


_CIMS = uvm.BlockCIMLayer(
    [uvm.BlockCIM(host.OTHER_LAYER, "top"), uvm.BlockCIM(host.LAYER, "base")],
    merged=uvm.BlockCIM(host.LARGE_LAYER, "merged"),
)

_NO_CIM = uvm.BlockCIMLayer([uvm.BlockCIM(host.DISK + "x", "a")])

#: By class, which guest it needs, and how to get an object of it.
OBJECTS: dict[str, tuple[str, Callable[[Stage], Awaitable[Any]]]] = {
    "UtilityVM": ("linux", _vm),
    "ScsiBus": ("linux", _bus("scsi")),
    "VPMemBus": ("linux", _bus("vpmem")),
    "Plan9Bus": ("linux", _bus("plan9")),
    "VSMBBus": ("windows", _bus("vsmb")),
    "VPCIBus": ("linux", _bus("vpci")),
    "PipeBus": ("windows", _bus("pipes")),
    "BlockCIMBus": ("windows", _bus("block_cims")),
    "LayersBus": ("linux", _base),
    "NetworkBus": ("linux", _network),
    "NetworkSetup": ("linux", _network_setup),
    "ScsiLease": ("linux", lambda s: s.vm.scsi.attach(host.DISK, mount=uvm.Mount())),
    "VPMemLease": ("linux", lambda s: s.vm.vpmem.add(host.LAYER)),
    "Plan9Lease": ("linux", lambda s: s.vm.plan9.add(host.SHARED, "/shared")),
    "SharedLease": ("windows", lambda s: s.vm.share(host.SHARED, r"C:\shared")),
    "VSMBLease": ("windows", lambda s: s.vm.vsmb.add(host.SHARED)),
    "VPCILease": ("linux", lambda s: s.vm.vpci.assign(host.DEVICE)),
    "PipeLease": ("windows", lambda s: s.vm.pipes.add(host.PIPE)),
    "BlockCIMLease": ("windows", lambda s: s.vm.block_cims.mount(_CIMS)),
    "CombinedLease": ("linux", _combined),
    "NamespaceLease": ("linux", _namespace),
    "AdapterLease": ("linux", _adapter),
    "RootFileSystem": ("linux", _root),
    "ContainerMount": ("windows", _container_mount),
    "Orphan": ("linux", _orphan),
    "Pod": ("linux", _pod),
    "PodContainer": ("linux", _pod_container("run_container")),
    "ContainerResources": ("linux", _pod_container("attach_resources")),
    "Container": ("linux", _container),
    "Process": ("linux", _process),
    "ProcessInput": ("linux", _stdin),
    "ProcessOutput": ("linux", _stdout),
    "GuestConnection": ("linux", _guest),
    "Pool": ("linux", _pool),
}


async def _created(stage: Stage, it: Any) -> None:
    async with uvm.UtilityVM.create(stage.options, backend=stage.backend, timeouts=stage.timeouts) as vm:
        await vm.start()


async def _entered(it: Any) -> None:
    async with it:
        pass


async def _end_of_init(stage: Stage, it: Any) -> None:
    await stage.made["init"].stdin.send_eof()


async def _send_line(stage: Stage, it: Any) -> None:
    await stage.made["process"].stdin.send(b"line\n")


async def _send_to(stage: Stage, it: uvm.Process) -> None:
    await it.stdin.send(b"line\n")


async def _release(stage: Stage, it: Any) -> None:
    await it.release()


async def _send_eof(stage: Stage, it: uvm.Process) -> None:
    assert it.stdin is not None
    await it.stdin.send_eof()


async def _eof_of_init(stage: Stage, it: uvm.PodContainer) -> None:
    assert it.init is not None
    await _send_eof(stage, it.init)


async def _drop(stage: Stage, it: Any) -> None:
    stage.backend.vms[stage.vm.id].service.drop()


async def _crash(stage: Stage, it: Any) -> None:
    stage.crash()


async def _released_and_gone(stage: Stage, it: Any) -> None:
    """Have it released by a caller who leaves at once, and wait until it is gone."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await it.release()
    await it.gone()


async def _released_twice(stage: Stage, it: Any) -> None:
    await it.release()
    await it.release()


def _wrong_too(wrong: dict[str, Any], call: Callable[[Stage, Any], Awaitable[Any]]) -> dict[str, Any]:
    return {"wrong": {"OptionsError": call, **wrong}}


def _option(call: Callable[[Stage, Any], Awaitable[Any]]) -> dict[str, Any]:
    return {"wrong": {"OptionsError": call}}


_PROCESS = Row(
    lambda s, it: it.open_process(["server"]), wrong={"OptionsError": lambda s, it: it.open_process([])}
)
_RUN = Row(lambda s, it: it.run(["echo", "x"]), wrong={"OptionsError": lambda s, it: it.run([])})
_LEFT = Row(lambda s, it: _entered(it), sure=True, passes=True)
_ENTERED = Row(lambda s, it: it.__aenter__(), end=True)
_ANY: dict[str, Any] = {"RequestType": "Update", "ResourceType": "PodCgroupMemoryLimit"}
_LOG: dict[str, Any] = {"RPCType": "StartLogForwarding", "Settings": ""}
_DOCUMENT: dict[str, Any] = {
    "SchemaVersion": {"Major": 2, "Minor": 1},
    "OciBundlePath": "/run/gcs/c/c1",
    "OciSpecification": {**_SPEC, "root": {"path": "/run/gcs/c/c1/rootfs"}},
}
_MEMORY: dict[str, Any] = {"ResourcePath": "VirtualMachine/ComputeTopology/Memory/SizeInMB", "Settings": 512}

#: On another device; on the host alone; in both at once.
_SOME_LEASES = ("ScsiLease", "VSMBLease", "AdapterLease")

ROWS: dict[str, Row] = {
    # The VM.
    "UtilityVM.create": Row(_created, vm="", ends_vm=True, grace=True),
    "start_vm": Row(
        lambda s, it: _entered(uvm.start_vm(s.options, backend=s.backend, timeouts=s.timeouts)),
        vm="",
        ends_vm=True,
    ),
    "UtilityVM.__aenter__": Row(lambda s, it: it.__aenter__(), end=True),
    "UtilityVM.__aexit__": Row(lambda s, it: it.__aexit__(None, None, None), sure=True, ends_vm=True),
    "UtilityVM.start": Row(lambda s, it: it.start(), vm="created", ends_vm=True),
    "UtilityVM.close": Row(lambda s, it: it.close(), sure=True, ends_vm=True),
    "UtilityVM.terminate": Row(lambda s, it: it.terminate(), end=True, ends_vm=True),
    "UtilityVM.shutdown": Row(lambda s, it: it.shutdown(), end=True, ends_vm=True),
    "UtilityVM.wait": Row(lambda s, it: it.wait(), end=True, ends_vm=True, finish=_crash),
    "UtilityVM.settled": Row(lambda s, it: it.settled(), end=True),
    "UtilityVM.crash": Row(lambda s, it: it.crash(), ends_vm=True),
    "UtilityVM.pause": Row(lambda s, it: it.pause(), pauses=True),
    "UtilityVM.resume": Row(lambda s, it: it.resume(), _paused, pauses=True),
    "UtilityVM.save": Row(lambda s, it: it.save(""), _paused, pauses=True),
    "UtilityVM.save_template": Row(
        lambda s, it: it.save_template(),
        _adapter_of_template,
        os="windows",
        own=True,
        pauses=True,
        options={"template": True},
    ),
    "UtilityVM.properties": Row(lambda s, it: it.properties("Memory")),
    "UtilityVM.stats": Row(lambda s, it: it.stats()),
    "UtilityVM.assigned_memory_bytes": Row(lambda s, it: it.assigned_memory_bytes()),
    "UtilityVM.update": Row(
        lambda s, it: it.update({"memory": {"limit": 512 * _MIB}, "cpu": {"quota": 10_000}}),
        **_option(lambda s, it: it.update({"cpu": {"quota": 1}})),
    ),
    "UtilityVM.update_memory": Row(
        lambda s, it: it.update_memory(memory_mb=512), **_option(lambda s, it: it.update_memory())
    ),
    "UtilityVM.update_cpu_limits": Row(
        lambda s, it: it.update_cpu_limits(weight=5), **_option(lambda s, it: it.update_cpu_limits(limit=-1))
    ),
    "UtilityVM.set_cpu_group": Row(
        lambda s, it: it.set_cpu_group(s.made["group"].id),
        _grouped,
        **_option(lambda s, it: it.set_cpu_group("")),
    ),
    "UtilityVM.release_cpu_group": Row(lambda s, it: it.release_cpu_group()),
    "UtilityVM.update_hvsocket_service": Row(
        lambda s, it: it.update_hvsocket_service(_NOWHERE, uvm.HvSocketService()),
        **_option(lambda s, it: it.update_hvsocket_service("x", uvm.HvSocketService())),
    ),
    "UtilityVM.remove_hvsocket_service": Row(
        lambda s, it: it.remove_hvsocket_service(_NOWHERE),
        **_option(lambda s, it: it.remove_hvsocket_service("x")),
    ),
    "UtilityVM.update_container_memory_limits": Row(lambda s, it: it.update_container_memory_limits()),
    "UtilityVM.modify": Row(lambda s, it: it.modify(_MEMORY)),
    "UtilityVM.guest_request": Row(lambda s, it: it.guest_request(_ANY)),
    "UtilityVM.inject_policy_fragment": Row(
        lambda s, it: it.inject_policy_fragment("YQ=="),
        options={"security_policy": _POLICY, "security_policy_enabled": True},
    ),
    "UtilityVM.dump_stacks": Row(lambda s, it: it.dump_stacks(), own=True),
    "UtilityVM.set_log_sources": Row(lambda s, it: it.set_log_sources(), os="windows", own=True),
    "UtilityVM.start_log_forwarding": Row(lambda s, it: it.start_log_forwarding(), os="windows", own=True),
    "UtilityVM.stop_log_forwarding": Row(lambda s, it: it.stop_log_forwarding(), os="windows", own=True),
    "UtilityVM.share": Row(
        lambda s, it: it.share(host.SHARED, "/shared"),
        **_wrong_too(
            {"HostPathError": lambda s, it: it.share(host.DISK + "x", "/shared")},
            lambda s, it: it.share(host.SHARED, ""),
        ),
    ),
    "UtilityVM.mount_layers": Row(
        lambda s, it: it.mount_layers("c1", [host.LAYER], host.SCRATCH),
        **_wrong_too(
            {"HostPathError": lambda s, it: it.mount_layers("c1", [host.DISK + "x"], host.SCRATCH)},
            lambda s, it: it.mount_layers("", [host.LAYER], host.SCRATCH),
        ),
    ),
    "UtilityVM.mount_in_container": Row(
        lambda s, it: s.vm.mount_in_container(it, host.SHARED, "C:\\data"),
        _windows_container,
        os="windows",
        **_wrong_too(
            {"HostPathError": lambda s, it: s.vm.mount_in_container(it, host.DISK + "x", "C:\\data")},
            lambda s, it: s.vm.mount_in_container(it, host.SHARED, ""),
        ),
    ),
    "UtilityVM.create_container": Row(
        lambda s, it: it.create_container("c1", _SPEC), **_option(lambda s, it: it.create_container("c1", {}))
    ),
    "UtilityVM.delete_container_state": Row(
        lambda s, it: it.delete_container_state("c1"),
        _left_behind,
        own=True,
        end=True,
        **_option(lambda s, it: it.delete_container_state("..")),
    ),
    # A pod.
    "Pod.create": Row(_one_pod, _vm, vm="", ends_vm=True, grace=True),
    "Pod.end": Row(lambda s, it: it.end(), _pod_with_one, sure=True),
    "Pod.close": Row(lambda s, it: it.close(), sure=True, ends_vm=True),
    "Pod.run_container": _pod_makes("run_container", _POD_SPEC),
    "Pod.run_sandbox": _pod_makes("run_sandbox"),
    "Pod.create_container": _pod_makes("create_container"),
    "Pod.attach_resources": _pod_makes("attach_resources", _POD_SPEC),
    "PodContainer.start": Row(lambda s, it: it.start(), _pod_container("create_container")),
    "PodContainer.wait": Row(lambda s, it: it.wait(), finish=_eof_of_init),
    "PodContainer.aclose": Row(lambda s, it: it.aclose(), sure=True),
    "PodContainer.__aexit__": _LEFT,
    "PodContainer.__aenter__": _ENTERED,
    "PodContainer.open_process": _PROCESS,
    "PodContainer.run": _RUN,
    "ContainerResources.release": Row(
        lambda s, it: it.release(), sure=True, wrong={"AlreadyReleasedError": _released_twice}
    ),
    "ContainerResources.__aexit__": _LEFT,
    "ContainerResources.__aenter__": _ENTERED,
    # A pool of VMs.
    "Pool.start": Row(lambda s, it: _new_pool(s).start(), _vm, vm=""),
    "Pool.__aenter__": Row(lambda s, it: _new_pool(s).__aenter__(), _vm, vm=""),
    "Pool.__aexit__": Row(lambda s, it: it.__aexit__(None, None, None), vm="", sure=True),
    "Pool.close": Row(lambda s, it: it.close(), vm="", sure=True),
    "Pool.acquire": Row(lambda s, it: it.acquire(), vm=""),
    "Pool.vm": Row(lambda s, it: _entered(it.vm()), vm=""),
    "Pool.release": Row(lambda s, it: it.release(s.made["vm"]), _used_pool, vm="", sure=True),
    # Processes, wherever they run.
    "UtilityVM.open_process": _PROCESS,
    "Container.open_process": _PROCESS,
    "GuestConnection.open_process": _PROCESS,
    "UtilityVM.run": _RUN,
    "Container.run": _RUN,
    "GuestConnection.run": _RUN,
    # Devices.
    "ScsiBus.attach": Row(
        lambda s, it: it.attach(host.DISK, mount=uvm.Mount()),
        **_wrong_too(
            {"HostPathError": lambda s, it: it.attach(host.DISK + "x")}, lambda s, it: it.attach("relative")
        ),
    ),
    "ScsiBus.detach": Row(
        lambda s, it: it.detach(host.DISK),
        _bus("scsi", "ScsiLease"),
        sure=True,
        wrong={"NotAttachedError": lambda s, it: it.detach(host.OTHER_DISK)},
    ),
    "VPMemBus.add": Row(
        lambda s, it: it.add(host.LAYER),
        **_wrong_too(
            {"HostPathError": lambda s, it: it.add(host.DISK + "x")}, lambda s, it: it.add("relative")
        ),
    ),
    "VPMemBus.remove": Row(
        lambda s, it: it.remove(host.LAYER),
        _bus("vpmem", "VPMemLease"),
        sure=True,
        wrong={"NotAttachedError": lambda s, it: it.remove(host.OTHER_LAYER)},
    ),
    "Plan9Bus.add": Row(
        lambda s, it: it.add(host.SHARED, "/shared"), **_option(lambda s, it: it.add(host.SHARED, ""))
    ),
    "VSMBBus.add": Row(
        lambda s, it: it.add(host.SHARED),
        **_wrong_too(
            {"HostPathError": lambda s, it: it.add(host.DISK + "x")}, lambda s, it: it.add("relative")
        ),
    ),
    "VSMBBus.remove": Row(
        lambda s, it: it.remove(host.SHARED, read_only=False),
        _bus("vsmb", "VSMBLease"),
        sure=True,
        wrong={"NotAttachedError": lambda s, it: it.remove(host.OTHER_SHARED, read_only=False)},
    ),
    "VSMBBus.guest_path": Row(
        lambda s, it: it.guest_path(host.SHARED, read_only=False),
        _bus("vsmb", "VSMBLease"),
        wrong={"NotAttachedError": lambda s, it: it.guest_path(host.OTHER_SHARED, read_only=False)},
    ),
    "VPCIBus.assign": Row(
        lambda s, it: it.assign(host.DEVICE), **_option(lambda s, it: it.assign(host.DEVICE, -1))
    ),
    "VPCIBus.remove": Row(
        lambda s, it: it.remove(host.DEVICE),
        _bus("vpci", "VPCILease"),
        sure=True,
        wrong={"NotAttachedError": lambda s, it: it.remove(host.OTHER_DEVICE)},
    ),
    "PipeBus.add": Row(lambda s, it: it.add(host.PIPE), **_option(lambda s, it: it.add("relative"))),
    "PipeBus.remove": Row(
        lambda s, it: it.remove(host.PIPE),
        _bus("pipes", "PipeLease"),
        sure=True,
        wrong={"NotAttachedError": lambda s, it: it.remove(host.OTHER_PIPE)},
    ),
    "BlockCIMBus.mount": Row(
        lambda s, it: it.mount(_CIMS, container_id="c1"),
        **_wrong_too(
            {"HostPathError": lambda s, it: it.mount(_NO_CIM)},
            lambda s, it: it.mount(host.LAYER),
        ),
    ),
    "LayersBus.combine": Row(
        lambda s, it: it.combine("/root", ["/base"], scratch_path="/base/upper"),
        **_option(lambda s, it: it.combine("", ["/base"])),
    ),
    "LayersBus.remove": Row(
        lambda s, it: it.remove("/root"),
        _bus("layers", "CombinedLease"),
        sure=True,
        wrong={"NotAttachedError": lambda s, it: it.remove("/other")},
    ),
    "NetworkBus.add_namespace": Row(lambda s, it: it.add_namespace(host.NAMESPACE), _bus("network")),
    "NetworkBus.add_endpoint": Row(lambda s, it: it.add_endpoint(host.NAMESPACE, host.ENDPOINT)),
    "NamespaceLease.add_endpoint": Row(lambda s, it: it.add_endpoint(host.ENDPOINT)),
    "NetworkBus.setup": Row(lambda s, it: it.setup(host.NAMESPACE), _bus("network")),
    "NetworkBus.remove_namespace": Row(
        lambda s, it: it.remove_namespace(host.NAMESPACE), _bus("network", "AdapterLease"), sure=True
    ),
    "NetworkBus.remove_endpoint": Row(
        lambda s, it: it.remove_endpoint(host.NAMESPACE, host.ENDPOINT),
        _bus("network", "AdapterLease"),
        sure=True,
        wrong={"NotAttachedError": lambda s, it: it.remove_endpoint(host.NAMESPACE, host.OTHER_ENDPOINT)},
    ),
    "NetworkBus.add_guest_adapter": Row(
        lambda s, it: it.add_guest_adapter(host.GUEST_ADAPTER),
        _guest_nic,
        **_wrong_too(
            {
                "NotAttachedError": lambda s, it: it.add_guest_adapter(
                    {**host.GUEST_ADAPTER, "NamespaceID": ""}
                )
            },
            lambda s, it: it.add_guest_adapter({"ID": "x"}),
        ),
    ),
    "NetworkBus.remove_guest_adapter": Row(
        lambda s, it: it.remove_guest_adapter(host.NIC),
        _guest_adapter,
        sure=True,
        wrong={"NotAttachedError": lambda s, it: it.remove_guest_adapter(_NOWHERE)},
    ),
    "NetworkBus.update_adapter": Row(
        lambda s, it: it.update_adapter(s.made["nic_id"], offload_weight=5),
        _two_adapters,
        **_wrong_too(
            {"NotAttachedError": lambda s, it: it.update_adapter(host.NIC, offload_weight=5)},
            lambda s, it: it.update_adapter(s.made["nic_id"]),
        ),
    ),
    "NetworkBus.remove_all_adapters": Row(lambda s, it: it.remove_all_adapters(), _two_adapters, sure=True),
    # The set-up by the VM itself; that by a proxy is in tests/ncproxy.
    "NetworkSetup.setup": Row(lambda s, it: it.setup(host.NAMESPACE)),
    "NetworkSetup.teardown": Row(lambda s, it: it.teardown(host.NAMESPACE), _set_up, sure=True),
    # Ends.
    "Lease.release": Row(
        lambda s, it: it.release(), sure=True, wrong={"AlreadyReleasedError": _released_twice}
    ),
    "NamespaceLease.release": Row(
        lambda s, it: it.release(), sure=True, wrong={"AlreadyReleasedError": _released_twice}
    ),
    "RootFileSystem.release": Row(
        lambda s, it: it.release(), sure=True, wrong={"AlreadyReleasedError": _released_twice}
    ),
    "Orphan.release": Row(lambda s, it: it.release(), sure=True),
    "Lease.gone": Row(_released_and_gone, sure=True, passes=True, classes=_SOME_LEASES),
    "RootFileSystem.gone": Row(_released_and_gone, sure=True, passes=True),
    "Lease.__aexit__": evolve(_LEFT, classes=_SOME_LEASES),
    "RootFileSystem.__aexit__": _LEFT,
    "ContainerMount.release": Row(
        lambda s, it: it.release(), sure=True, wrong={"AlreadyReleasedError": _released_twice}
    ),
    "ContainerMount.__aexit__": _LEFT,
    "ContainerMount.__aenter__": _ENTERED,
    "Lease.__aenter__": evolve(_ENTERED, classes=_SOME_LEASES),
    "RootFileSystem.__aenter__": _ENTERED,
    # A container.
    "Container.start": Row(lambda s, it: it.start(), lambda s: s.vm.create_container("c1", _SPEC)),
    "Container.open_init": Row(lambda s, it: it.open_init(), _started),
    "Container.shutdown": Row(lambda s, it: it.shutdown(), end=True),
    "Container.terminate": Row(lambda s, it: it.terminate(), end=True),
    "Container.aclose": Row(lambda s, it: it.aclose(), sure=True),
    "Container.__aexit__": _LEFT,
    "Container.__aenter__": _ENTERED,
    "Container.signal": Row(
        lambda s, it: it.signal("TERM"), _busy, **_option(lambda s, it: it.signal("NONE"))
    ),
    "Container.delete_state": Row(lambda s, it: it.delete_state(), _ended, end=True),
    "Container.wait": Row(lambda s, it: it.wait(), finish=_end_of_init),
    "Container.properties": Row(lambda s, it: it.properties("Statistics")),
    "Container.statistics": Row(lambda s, it: it.statistics()),
    "Container.processes": Row(lambda s, it: it.processes()),
    "Container.update": Row(
        lambda s, it: it.update({"memory": {"limit": 512 * _MIB}}),
        **_option(lambda s, it: it.update({"memory": {"limit": -2}})),
    ),
    "Container.modify": Row(
        lambda s, it: it.modify({"ResourceType": "ContainerConstraints", "RequestType": "Update"})
    ),
    # The connection to the guest.
    "GuestConnection.modify": Row(lambda s, it: it.modify(_ANY), own=True),
    "GuestConnection.modify_service": Row(
        lambda s, it: it.modify_service("LogForwardService", _LOG), os="windows", own=True
    ),
    "GuestConnection.dump_stacks": Row(lambda s, it: it.dump_stacks(), own=True),
    "GuestConnection.create_container": Row(lambda s, it: it.create_container("c1", _DOCUMENT), own=True),
    "GuestConnection.shutdown": Row(lambda s, it: it.shutdown(), own=True, end=True, ends_vm=True),
    "GuestConnection.aclose": Row(lambda s, it: it.aclose(), own=True, sure=True),
    "GuestConnection.wait_closed": Row(lambda s, it: it.wait_closed(), own=True, end=True, finish=_drop),
    "GuestConnection.delete_container_state": Row(
        lambda s, it: it.delete_container_state("c1"),
        _guest_with_one,
        own=True,
        **_option(lambda s, it: it.delete_container_state("..")),
    ),
    # A process.
    "Process.wait": Row(lambda s, it: it.wait(), finish=_send_eof),
    "Process.communicate": Row(lambda s, it: it.communicate(b"x")),
    "Process.stream": Row(lambda s, it: anext(it.stream()), finish=_send_to),
    "Process.kill": Row(lambda s, it: it.kill(), end=True),
    "Process.signal": Row(lambda s, it: it.signal("TERM"), **_option(lambda s, it: it.signal("NONE"))),
    "Process.resize": Row(
        lambda s, it: it.resize(10, 10),
        lambda s: s.vm.open_process(["server"], terminal=True),
        **_option(lambda s, it: it.resize(0, 0)),
    ),
    "Process.aclose": Row(lambda s, it: it.aclose(), sure=True),
    "Process.__aexit__": _LEFT,
    "Process.__aenter__": _ENTERED,
    "ProcessInput.__aexit__": _LEFT,
    "ProcessOutput.__aexit__": _LEFT,
    "ProcessInput.__aenter__": _ENTERED,
    "ProcessOutput.__aenter__": _ENTERED,
    "ProcessInput.send": Row(lambda s, it: it.send(b"x"), **_option(lambda s, it: it.send("x"))),
    "ProcessInput.send_eof": Row(lambda s, it: it.send_eof()),
    "ProcessInput.aclose": Row(lambda s, it: it.aclose(), sure=True),
    "ProcessOutput.aclose": Row(lambda s, it: it.aclose(), sure=True),
    "ProcessOutput.receive": Row(
        lambda s, it: it.receive(), finish=_send_line, **_option(lambda s, it: it.receive(0))
    ),
    "ProcessOutput.__anext__": Row(lambda s, it: it.__anext__(), finish=_send_line),
}


def name_of(cls: type | None, name: str) -> str:
    """Return the name of the row of a call: that of the class which has the method, or of one above it."""
    names = list(surface.defining(cls, name))
    return next((each for each in names if each in ROWS or each in ELSEWHERE), names[0])


def row_of(cls: type | None, name: str) -> Row:
    """Return the row of a call."""
    row = ROWS[name_of(cls, name)]
    if cls is None:
        return row
    os, given = OBJECTS[cls.__name__]
    own = True if cls is uvm.GuestConnection else row.own
    return evolve(row, given=row.given or given, os=row.os or os, own=own, alone=cls is uvm.GuestConnection)


#: What needs more than a VM in memory, and the tests of it.
ELSEWHERE = {
    "Template.delete": "tests/vm/test_templates.py",
    "GuestConnection.serve": "tests/gcs/test_connection.py",
    "GuestConnection.start_guest": "tests/gcs/test_connection.py",
    "connect_unix": "tests/gcs/test_unix.py",
    **{
        f"GuestFiles.{name}": "tests/guest/test_files.py"
        for name in ("copy_in", "copy_out", "list", "make_directory", "read", "remove", "stat", "write")
    },
    "GuestConnection.update_container": "tests/vm/test_container_updates.py",
    **dict.fromkeys(
        (
            "HostNamespace.add_endpoint",
            "HostNamespace.create_endpoint",
            "HostNamespace.release",
            "HostNamespace.__aenter__",
            "HostNamespace.__aexit__",
            "create_namespace",
        ),
        "tests/vm/test_host_namespaces.py",
    ),
    "cpu_groups": "tests/vm/test_cpu_groups.py",
    "create_cpu_group": "tests/vm/test_cpu_groups.py",
    "delete_cpu_group": "tests/vm/test_cpu_groups.py",
    "UtilityVM.container_creation": "tests/vm/test_container_creation.py",
    "listen_unix": "tests/gcs/test_unix.py",
}
