"""A scripted session with a VM on the fake, for the tests of what a person sees of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anyio
import pytest

import uvm
from tests.vm import support
from uvm._guest.specs import bundle_of
from uvm.backends.fake import FakeBackend
from uvm.backends.fake.handle import FakeHandle

#: What must not be shown.
SECRET = "czNjcmV0"

SERVICE = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
#: The ids of containers: under a security policy a Linux guest takes no others.
CONTAINER, UNSTARTED, ROOT, COMBINED = (each * 64 for each in "abcd")
#: The ways to reach a guest.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "linux": ("linux", {"security_policy_enabled": True, "security_policy": SECRET}),
    "windows": (
        "windows",
        {"additional_json": {"Owner": SECRET}, "network_config_proxy": r"\\.\pipe\ncproxy"},
    ),
    "linux through HCS": ("linux", {"external_guest_connection": False}),
    "windows through HCS": ("windows", {"external_guest_connection": False}),
}
#: Called with what a user holds, by name, in each state that it is in.
Look = Callable[..., None]


def reachable(value: Any, path: str, seen: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each object of uvm that public names lead to, with the names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from reachable(item, f"{path}[{key!r:.40}]", seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            yield from reachable(item, f"{path}[{index}]", seen)
    if not type(value).__module__.startswith("uvm") or id(value) in seen:
        return
    seen[id(value)] = value
    yield path, value
    for name in dir(value):
        if name.startswith("_"):
            continue
        try:
            found = getattr(value, name, None)
        except uvm.UVMError:
            # Not in this state.
            continue
        yield from reachable(found, f"{path}.{name}", seen)


def spec(*args: str, root: str = "/r") -> dict[str, Any]:
    """Return an OCI specification with a secret in its environment."""
    process = {"args": list(args), "cwd": "/", "env": [f"TOKEN={SECRET}"]}
    return {"ociVersion": "1.0", "process": process, "root": {"path": root}, "linux": {}}


async def play(look: Look, os: str, **options: Any) -> None:
    """Hold one of each, and look at them when they are there, released, and gone with their VM."""
    backend = support.host_backend()
    made = support.OPTIONS[os](**options)
    held: dict[str, Any] = {"backend": backend, "options": made, **rules_of(backend)}
    async with uvm.UtilityVM.create(made, backend=backend) as vm:
        held |= {"vm": vm, "group": await uvm.create_cpu_group(backend, [0])}
        look(**held)
        await vm.start()
        held |= await (_linux(vm) if os == "linux" else _windows(vm))
        held |= await _anywhere(vm)
        held |= await _processes(vm, backend)
        held["guest_file"] = await vm.files.stat("/" if vm.os == "linux" else "C:\\")
        held |= await _pod(vm)
        held |= await _unowned(vm, backend)
        handles = await _handles(vm, backend)
        held |= handles
        look(**held)
        for each in held.values():
            if isinstance(each, uvm.Lease | uvm.RootFileSystem | uvm.ContainerMount) and not each.released:
                await each.release()
        if "resources" in held:
            await held["pod_container"].aclose()
            await held["resources"].release()
        await held["process"].kill()
        await held["process"].wait()
        await held["process"].aclose()
        for each in (held["container"], held["unstarted"]):
            await each.aclose()
        for each in handles.values():
            await each.close() if isinstance(each, FakeHandle) else await each.aclose()
        look(**held)
        await vm.terminate()
        look(**held)
    look(**held)


def rules_of(backend: FakeBackend) -> dict[str, Any]:
    return {
        "fault": backend.faults.refuse(operation="dump stacks", where=lambda call: False),
        "gate": backend.faults.hold(operation="dump stacks"),
        "misbehaviour": backend.misbehaviour.twice(operation="dump stacks"),
    }


async def _anywhere(vm: uvm.UtilityVM) -> dict[str, Any]:
    opening = vm.scsi.attach(support.DISK)
    return {
        "disk": await vm.scsi.attach(support.DISK, mount=uvm.Mount()),
        "shared": await vm.share(support.SHARED, "/mnt" if vm.os == "linux" else r"C:\mnt"),
        "device": await vm.vpci.assign(support.DEVICE),
        "namespace": (namespace := await vm.network.add_namespace(support.NAMESPACE)),
        "adapter": await namespace.add_endpoint(support.ENDPOINT),
        "host_namespace": await uvm.create_namespace(vm._context.backend),
        "network_setup": vm.network_setup(),
        "opening": opening,
        "again": await opening,
    }


async def _linux(vm: uvm.UtilityVM) -> dict[str, Any]:
    layer = await vm.vpmem.add(support.LAYER)
    return {
        "layer": layer,
        "combined": await vm.layers.combine(
            f"{bundle_of(COMBINED)}/rootfs", [layer.guest_path], container_id=COMBINED
        ),
        "plan9": await vm.plan9.add(support.OTHER_SHARED, "/other"),
        "root": await vm.mount_layers(ROOT, [uvm.LCOWLayer(support.OTHER_LAYER)], support.SCRATCH),
    }


async def _windows(vm: uvm.UtilityVM) -> dict[str, Any]:
    return {
        "share": await vm.vsmb.add(support.OTHER_SHARED, read_only=True),
        "file": await vm.vsmb.add(support.FILE, read_only=True),
        "pipe": await vm.pipes.add(support.PIPE),
        "cims": await vm.block_cims.mount(uvm.BlockCIMLayer([uvm.BlockCIM(support.LAYER, "base.cim")])),
    }


async def _pod(vm: uvm.UtilityVM) -> dict[str, Any]:
    pod = uvm.Pod(vm, "")
    if vm.os == "windows":
        return {"pod": pod}
    mounts = [{"destination": "/data", "type": "bind", "source": support.OTHER_SHARED}]
    made = {**spec("sleep", "3600"), "mounts": mounts}
    return {
        "pod": pod,
        "pod_container": await pod.run_container(made, [support.LAYER], support.LARGE_LAYER, id="e" * 64),
        "resources": await pod.attach_resources(made, [support.LAYER], support.LARGE_LAYER, id="f" * 64),
    }


async def _unowned(vm: uvm.UtilityVM, backend: FakeBackend) -> dict[str, Any]:
    """Leave an orphan, whose caller was cancelled and whose removal was refused, and a slot in quarantine."""
    backend.faults.refuse(request_type="Remove", resource=support.DISKS, first=1)
    with backend.faults.hold(request_type="Add", resource=support.DISKS) as gate:
        async with anyio.create_task_group() as tasks:
            attempt = support.Attempt.begin(tasks, lambda: vm.scsi.attach(support.OTHER_DISK))
            held = {"parked": await gate.wait()}
            attempt.scope.cancel()
    await support.quiet()
    backend.faults.lose(request_type="Add", resource=support.DISKS, first=1)
    with pytest.raises(uvm.UnknownOutcomeError):
        await vm.scsi.attach(support.DISK, read_only=True)
    assert vm.orphans
    assert vm.quarantined
    return {**held, "orphans": vm.orphans, "quarantined": vm.quarantined, "devices": vm.devices()}


async def _handles(vm: uvm.UtilityVM, backend: FakeBackend) -> dict[str, Any]:
    """Open what a backend's user has of the host."""
    system = await backend.open(vm.id)
    handles: dict[str, Any] = {"system": system, "listener": await system.listen(SERVICE)}
    if backend.hosted_systems:
        handles["hosted system"] = await backend.open(CONTAINER)
        handles["host process"] = await system.create_process({"CommandLine": "sleep 3600"})
    return handles


async def _processes(vm: uvm.UtilityVM, backend: FakeBackend) -> dict[str, Any]:
    def document(container_id: str) -> dict[str, Any]:
        root = f"{bundle_of(container_id)}/rootfs"
        return spec("sleep", "3600", root=root) if vm.os == "linux" else {"Container": {}}

    container = await vm.create_container(CONTAINER, document(CONTAINER))
    await container.start()
    process = await vm.open_process(["sleep", "3600"], env={"TOKEN": SECRET}, stdin=True)
    held = {
        "container": container,
        "unstarted": await vm.create_container(UNSTARTED, document(UNSTARTED)),
        "process": process,
        "done": await vm.run(["echo", "x" * 1000]),
        "statistics": await vm.stats(),
        "ledgers": vm.ledgers(),
        "entries": list(backend.request_log),
    }
    if vm.os == "linux":
        held["init"] = await container.open_init()
        held["details"] = await container.processes()
    else:
        held["mount"] = await vm.mount_in_container(container, support.SHARED, "C:\\in")
    return held
