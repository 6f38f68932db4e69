"""Many tasks on one VM, in every order, with refusals, lost answers, cancellations and exits.

Each example is one run of an event loop. Every request to the host and the guest is parked at a gate, and
hypothesis chooses what happens next: a task begins to attach something or to release it, a waiting task is
cancelled, a parked request is answered in one way or another, the VM ends. So callers leave before the
answer, which comes late, or is a refusal of what nobody waits for any more: orphans, which tasks release too,
or attach the same again. Processes and containers start and end in between; all is updated,
directories come into containers, and namespaces of the host are created. Once all is let go and at rest, the
ledgers, the host, its access and the guest have to agree. A VM may be saved as a template: then it has all
that it had, and so has a clone of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import anyio.abc
import pytest
from attrs import define, evolve, field
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import uvm
from tests.ncproxy.test_setup import CUSTOM, PROXY
from tests.vm import support as host
from tests.vm.audit import check_at_rest, check_opened, check_pod
from tests.vm.orders import Choose, run_example
from tests.vm.support import Running, quiet, running
from uvm._buses.holds import HoldState
from uvm._buses.network import TEMPLATE_NAMESPACE
from uvm._document.plan import CreationPlan
from uvm._guest.timeouts import GuestTimeouts
from uvm._ncproxy.setup import ExternalNetworkSetup
from uvm.backend import HCS_CONCURRENCY, VM_GROUP, Concurrency
from uvm.backends.fake import Call, Gate, Parked
from uvm.devices.vsmb import guest_path
from uvm.errors import AlreadyReleasedError, UVMError, VMExitedError
from uvm.testing.ncproxy import FakeNetworkProxy

Acquire = Callable[[Running], Awaitable[Any]]

HOST_NETWORK = "44444444-0000-0000-0000-000000000004"
CPU_GROUP = "io.microsoft.virtualmachine.cpugroup.id"


@define(eq=False)
class Task:
    """Something that was begun: an acquire or a release.

    :ivar opened: a process or a container that it has opened.
    """

    name: str
    scope: anyio.CancelScope = field(factory=anyio.CancelScope, repr=False)
    lease: Any = field(default=None, repr=False)
    opened: Any = field(default=None, repr=False)
    error: BaseException | None = field(default=None, repr=False)
    cancelled: bool = False
    done: bool = False

    @property
    def holds(self) -> bool:
        """Whether it has a lease that was not given back."""
        return self.lease is not None and not self.lease.released


# What can be attached. Few keys, so that tasks collide.


async def _endpoint(run: Running, endpoint: str) -> Any:
    return await run.vm.network.add_endpoint(host.NAMESPACE, endpoint)


@define
class _SetUp:
    """A network that is set up, by the VM itself or by a proxy, as what holds it: a lease."""

    run: Running
    setup: uvm.NetworkSetup

    @property
    def released(self) -> bool:
        if self.run.vm.exit_status is not None:
            return True
        if isinstance(self.setup, ExternalNetworkSetup):
            return self.setup._up is None
        known = TEMPLATE_NAMESPACE if self.run.vm.options.template else host.NAMESPACE
        return known not in self.run.vm.network.namespaces

    async def release(self) -> None:
        if not self.released:
            await self.setup.teardown(host.NAMESPACE)


async def _set_up(run: Running) -> _SetUp:
    made = _SetUp(run, run.vm.network_setup("pod1"))
    await made.setup.setup(host.NAMESPACE)
    return made


async def _update(run: Running) -> None:
    """Change the SR-IOV settings of the oldest adapter that the host has, if there is one."""
    on_host = [adapter for adapter in run.vm.network.adapters if adapter.endpoint_id]
    for adapter in on_host[:1]:
        await run.vm.network.update_adapter(adapter.nic_id, offload_weight=1)


async def _host_namespace(run: Running) -> uvm.HostNamespace:
    """Create a namespace of the host, with an endpoint."""
    async with AsyncExitStack() as stack:
        namespace = await stack.enter_async_context(uvm.create_namespace(run.backend))
        await namespace.create_endpoint(HOST_NETWORK, {"Name": "own_eth0"})
        stack.pop_all()
        return namespace


async def _its_network(run: Running) -> Any:
    """Put the VM into the namespace of the host that was created last, if there is one."""
    created = [key for kind, key in run.backend.network._created if kind == "namespace"]
    return await run.vm.network.setup(created[-1] if created else host.NAMESPACE)


async def _update_vm(run: Running, size: int) -> None:
    """Change all that an update of a VM changes: to one of two values each."""
    processors = {"maximum": 5_000 * size, "shares": 50 * size}
    if run.vm.os == "linux":
        processors = {"quota": 50_000 * size, "shares": 512 * size}
    asked = {"memory": {"limit": 512 * host.MIB * size}, "cpu": processors}
    groups = sorted(run.backend._host.cpu_groups.groups)
    await run.vm.update(asked, {CPU_GROUP: groups[size - 1]})


async def _update_container(container: uvm.Container, size: int) -> None:
    processors = {"shares": 512 * size}
    memory = {"memory": {"limit": 64 * host.MIB * size}} if container._guest.os == "windows" else {}
    await container.update({**memory, "cpu": processors})


async def _container(run: Running, container_id: str) -> Any:
    linux = run.vm.os == "linux"
    spec = {"process": {"args": ["cat"], "cwd": "/"}, "linux": {}} if linux else {"Container": {}}
    async with AsyncExitStack() as stack:
        container = await stack.enter_async_context(run.vm.create_container(container_id, spec))
        await container.start()
        if linux:
            await container.open_init(stdin=True)
        stack.pop_all()
        return container


_POD_SPEC: dict[str, Any] = {
    "process": {"args": ["cat"], "cwd": "/"},
    "linux": {},
    "mounts": [
        {"destination": "/data", "type": "bind", "source": host.SHARED},
        {"destination": "/disk", "type": "virtual-disk", "source": host.OTHER_DISK},
    ],
    "windows": {"devices": [{"id": host.OTHER_DEVICE, "idType": "vpci-instance-id"}]},
}


def _in_pod(run: Running, call: str, container_id: str, scratch: str = host.SCRATCH) -> Any:
    """Have the pod make a container, or attach what one needs."""
    return getattr(run.pod, call)(_POD_SPEC, [host.LAYER, host.OTHER_LAYER], scratch, id=container_id)


def _shared_options(run: Running, read_only: bool) -> Any:
    return run.vm.vsmb.default_options(read_only).replaced(no_directmap=True)


def _base_share(run: Running) -> str:
    """Give where the guest sees the share that is there all the time, while the VM runs."""
    names = [share.name for share in run.vm.vsmb.shares if share.host_path == r"C:\os"]
    return guest_path(*names) if names else ""


_CIM = uvm.BlockCIMLayer([uvm.BlockCIM(host.LAYER, "base.cim")])
_CIMS = uvm.BlockCIMLayer(
    [uvm.BlockCIM(host.OTHER_LAYER, "top.cim"), *_CIM.cims],
    merged=uvm.BlockCIM(host.LARGE_LAYER, "merged.cim"),
)
_WINDOWS_SPEC: dict[str, Any] = {
    "process": {"args": ["cat"]},
    "mounts": [
        {"source": host.SHARED, "destination": "C:\\shared", "options": ["ro"]},
        {"source": host.OTHER_DISK, "destination": "C:\\disk", "type": "virtual-disk"},
        {"source": host.PIPE, "destination": r"\\.\pipe\mapped"},
        {"source": "sandbox://a", "destination": "C:\\a"},
    ],
}

_EVERYWHERE: dict[str, Acquire] = {
    "process": lambda run: run.vm.open_process(["cat"], stdin=True),
    "container": partial(_container, container_id="c1"),
    "other container": partial(_container, container_id="c2"),
    "disk": lambda run: run.vm.scsi.attach(host.DISK),
    "disk, read-only": lambda run: run.vm.scsi.attach(host.DISK, read_only=True),
    "disk, for the VM group": lambda run: run.vm.scsi.attach(
        host.DISK, read_only=True, mount=uvm.Mount(), grant_access=VM_GROUP
    ),
    "disk, mounted": lambda run: run.vm.scsi.attach(host.DISK, mount=uvm.Mount()),
    "disk, mounted at": lambda run: run.vm.scsi.attach(host.DISK, mount=uvm.Mount(guest_path="/at")),
    "other disk, mounted": lambda run: run.vm.scsi.attach(host.OTHER_DISK, mount=uvm.Mount()),
    "other disk, mounted there": lambda run: run.vm.scsi.attach(
        host.OTHER_DISK, mount=uvm.Mount(guest_path="/at")
    ),
    "device": lambda run: run.vm.vpci.assign(host.DEVICE),
    "other device": lambda run: run.vm.vpci.assign(host.OTHER_DEVICE),
    "namespace": lambda run: run.vm.network.add_namespace(host.NAMESPACE),
    "host namespace": _host_namespace,
    "network of its own": _its_network,
    "network": _set_up,
    "endpoint": partial(_endpoint, endpoint=host.ENDPOINT),
    "other endpoint": partial(_endpoint, endpoint=host.OTHER_ENDPOINT),
    "directory at": lambda run: run.vm.share(host.SHARED, "/shared"),
    "file at": lambda run: run.vm.share(host.FILE, "/shared", read_only=True),
}

_LINUX: dict[str, Acquire] = _EVERYWHERE | {
    "disk, mounted twice": lambda run: run.vm.scsi.attach(host.DISK, mount=uvm.Mount(filesystem="xfs")),
    "layer": lambda run: run.vm.vpmem.add(host.LAYER),
    "other layer": lambda run: run.vm.vpmem.add(host.OTHER_LAYER),
    "other layer, for the VM group": lambda run: run.vm.vpmem.add(host.OTHER_LAYER, grant_access=VM_GROUP),
    "large layer": lambda run: run.vm.vpmem.add(host.LARGE_LAYER),
    "plan9": lambda run: run.vm.plan9.add(host.OTHER_SHARED, "/plan9"),
    "combined": lambda run: run.vm.layers.combine("/root", ["/base"], scratch_path="/base/upper"),
    "root": lambda run: run.vm.mount_layers("c1", [host.LAYER, host.OTHER_LAYER], host.SCRATCH),
    "pod's container": partial(_in_pod, call="run_container", container_id="p1"),
    "pod's other container": partial(_in_pod, call="create_container", container_id="p2"),
    "pod's sandbox": partial(_in_pod, call="run_sandbox", container_id="p1"),
    "pod's resources": partial(_in_pod, call="attach_resources", container_id="p3"),
    "guest adapter": lambda run: run.vm.network.add_guest_adapter(host.GUEST_ADAPTER),
    "other root": lambda run: run.vm.mount_layers("c2", [host.OTHER_LAYER], host.SCRATCH),
}

_WINDOWS: dict[str, Acquire] = _EVERYWHERE | {
    "share": lambda run: run.vm.vsmb.add(host.SHARED, read_only=True),
    "share, not mapped": lambda run: run.vm.vsmb.add(host.OTHER_SHARED, options=_shared_options(run, True)),
    "file": lambda run: run.vm.vsmb.add(host.FILE),
    "other file": lambda run: run.vm.vsmb.add(host.OTHER_FILE),
    "file, not mapped": lambda run: run.vm.vsmb.add(host.FILE, options=_shared_options(run, True)),
    "other file, not mapped": lambda run: run.vm.vsmb.add(
        host.OTHER_FILE, options=_shared_options(run, True)
    ),
    "pipe": lambda run: run.vm.pipes.add(host.PIPE),
    "other pipe": lambda run: run.vm.pipes.add(host.OTHER_PIPE),
    "combined": lambda run: run.vm.layers.combine(r"C:\base", [("a", _base_share(run))]),
    "root": lambda run: run.vm.mount_layers("c1", [uvm.WCOWLayer(host.SHARED, "a")], host.SCRATCH),
    "block CIM": lambda run: run.vm.block_cims.mount(_CIM),
    "block CIMs": lambda run: run.vm.block_cims.mount(_CIMS, container_id="c1"),
    "root on a block CIM": lambda run: run.vm.mount_layers("c2", [_CIM], host.SCRATCH),
    "root on block CIMs": lambda run: run.vm.mount_layers("c3", [_CIMS], host.SCRATCH),
    "pod's container": lambda run: run.pod.run_container(_WINDOWS_SPEC, [_CIM], host.SCRATCH, id="p1"),
    "pod's other container": lambda run: run.pod.create_container(
        _WINDOWS_SPEC, [_CIM], host.SCRATCH, id="p2"
    ),
    "pod's resources": lambda run: run.pod.attach_resources(_WINDOWS_SPEC, [_CIMS], host.SCRATCH, id="p3"),
}

#: What collides with a network that is set up.
_NETWORK = ("network", "endpoint", "device", "host namespace", "network of its own")

_MENUS = {"linux": _LINUX, "windows": _WINDOWS}

#: By path, whoever holds it.
_REMOVALS: dict[str, Acquire] = {
    "disk": lambda run: run.vm.scsi.detach(host.DISK),
    "namespace": lambda run: run.vm.network.remove_namespace(host.NAMESPACE),
    "endpoint": lambda run: run.vm.network.remove_endpoint(host.NAMESPACE, host.ENDPOINT),
    "guest adapter": lambda run: run.vm.network.remove_guest_adapter(host.NIC),
    "sr-iov": _update,
    "all adapters": lambda run: run.vm.network.remove_all_adapters(),
    "device": lambda run: run.vm.vpci.remove(host.DEVICE),
    "state": lambda run: run.vm.delete_container_state("c1"),
    "update": partial(_update_vm, size=1),
    "other update": partial(_update_vm, size=2),
}


@define(eq=False, repr=False)
class World:
    """One example: a VM, the tasks that use it, and the requests that wait for an answer.

    :ivar names: what of the menu can be attached.
    :ivar proceeds: how many answers in the menu of answers are the usual one.
    """

    run: Running
    tasks: anyio.abc.TaskGroup
    gate: Gate
    choose: Choose
    names: Collection[str]
    proceeds: int
    begun: list[Task] = field(factory=list)
    ending: bool = False
    #: Endpoints and namespaces may stay on the host: rolling them back failed, as notes say.
    network_stays: bool = False

    @property
    def ended(self) -> bool:
        return self.run.vm.exit_status is not None

    @property
    def held(self) -> list[Task]:
        return [task for task in self.begun if task.holds]

    @property
    def on_host(self) -> list[uvm.HostNamespace]:
        """The namespaces that outlive the VM."""
        leases = (task.lease for task in self.held)
        return [lease for lease in leases if isinstance(lease, uvm.HostNamespace)]

    @property
    def opened(self) -> list[Task]:
        return [task for task in self.begun if task.opened is not None]

    # What can happen.

    def step(self) -> None:
        """Do one thing out of those that are possible now."""
        waiting = [task for task in self.begun if not task.done and not task.cancelled]
        actions: list[Callable[[], None]] = [self._acquire]
        if self.held:
            actions += [self._release, self._release_cancelled]
        if waiting:
            actions.append(partial(self._cancel, waiting))
        if self.gate.pending:
            actions += [self._answer] * 4
        if self.opened:
            actions += [self._close_opened, self._close_cancelled, self._update_container]
            actions += [self._mount] * (self.run.vm.os == "windows")
        if self.run.vm.orphans:
            actions += [self._release_orphan] * 2
        if self.run.pod.containers:
            actions.append(self._end_member)
        actions.append(self._remove)
        if not self.ended:
            actions.append(self._end)
        if self.run.vm.options.template:
            actions.append(self._save)
        self.choose(actions, "action")()

    def _acquire(self) -> None:
        menu = _MENUS[self.run.vm.os]
        name = self.choose(sorted(self.names), "acquire")
        self._begin(f"acquire {name}", partial(menu[name], self.run))

    def _release(self) -> None:
        task = self.choose(self.held, "release")
        self._begin(f"release {task.name}", task.lease.release)

    def _release_cancelled(self) -> None:
        """Release inside a cancelled scope: it takes effect all the same."""
        task = self.choose(self.held, "release cancelled")
        release = self._begin(f"release cancelled {task.name}", task.lease.release)
        release.scope.cancel()
        release.cancelled = True

    def _close_opened(self) -> None:
        self._close()

    def _close(self) -> Task:
        task = self.choose(self.opened, "close")
        opened, task.opened = task.opened, None
        return self._begin(f"close {task.name}", opened.aclose)

    def _close_cancelled(self) -> None:
        self._close().scope.cancel()

    def _release_orphan(self) -> None:
        orphan = self.choose(list(self.run.vm.orphans), "release orphan")
        self._begin(f"release orphan {orphan.what}", orphan.release)

    def _end_member(self) -> None:
        """End a container of the pod, also one that somebody ends, or whose end has failed; or the pod."""
        pod = self.run.pod
        if self.choose([False] * 4 + [True], "end the pod"):
            self._begin("end the pod", pod.end)
        else:
            member = self.choose([*pod.containers.values()], "end member")
            self._begin(f"end {member.id}", member.aclose)

    def _opened_container(self) -> uvm.Container | None:
        opened = self.choose(self.opened, "container").opened
        return opened if isinstance(opened, uvm.Container) else None

    def _update_container(self) -> None:
        if (container := self._opened_container()) is not None:
            size = self.choose([1, 2], "size")
            self._begin(f"update {container.id}", partial(_update_container, container, size))

    def _mount(self) -> None:
        """Mount one of two directories in a container, at one of two paths."""
        if (container := self._opened_container()) is not None:
            directory = self.choose([host.SHARED, host.OTHER_SHARED], "directory")
            at = self.choose(["C:\\in", "c:/IN", "C:\\other"], "at")
            mount = self.run.vm.mount_in_container
            self._begin(f"mount in {container.id}", lambda: mount(container, directory, at))

    def _save(self) -> None:
        if self.choose([False] * 4 + [True], "save it"):
            self._begin("save", self.run.vm.save_template)

    def _remove(self) -> None:
        name = self.choose(sorted(_REMOVALS), "remove")
        self._begin(f"remove {name}", partial(_REMOVALS[name], self.run))

    def _cancel(self, waiting: list[Task]) -> None:
        task = self.choose(waiting, "cancel")
        task.scope.cancel()
        task.cancelled = True

    def _answer(self) -> None:
        parked: Parked = self.choose(list(self.gate.pending), "answer")
        if parked.call.operation in _ENDS and not _is_of_pod(parked.call):
            # Refused or lost, they leave what they were to end: tests/vm/test_container_ends.py.
            parked.proceed()
            return
        answers: list[Callable[[], None]] = [*[parked.proceed] * self.proceeds, parked.refuse]
        # What may have started without an id of a process, or without a handle of HCS, cannot be ended.
        if parked.call.operation not in _STARTS:
            answers += [partial(parked.lose, applied=applied) for applied in (True, False)]
        answer = self.choose(answers, "answer how")
        if answer != parked.proceed and parked.call.operation in _NETWORK_ENDS:
            self.network_stays = True
        answer()

    def _end(self) -> None:
        vm = self.run.vm
        if self.choose([False] * 9 + [True], "end it"):
            self.ending = True
            machine = self.run.backend.vms[vm.id]
            if self.choose([True, False], "crash"):
                machine.crash()
            else:
                self._begin("terminate", vm.terminate)

    def _begin(self, name: str, make: Callable[[], Awaitable[Any]]) -> Task:
        task = Task(name)
        self.begun.append(task)
        self.tasks.start_soon(self._carry_out, task, make)
        return task

    async def _carry_out(self, task: Task, make: Callable[[], Awaitable[Any]]) -> None:
        with task.scope:
            try:
                result = await make()
            except UVMError as error:
                task.error = error
            except ExceptionGroup as group:
                matched, other = group.split(UVMError)
                assert matched is not None
                assert other is None
                task.error = group
            else:
                if hasattr(result, "release"):
                    task.lease = result
                elif hasattr(result, "aclose"):
                    task.opened = result
        task.done = True

    # What has to hold.

    async def finish(self) -> None:
        """Let everything go, and wait until it is at rest: nobody may wait any more."""
        self.gate.close()
        await self.run.vm.settled()
        # The host ends a VM before the VM hears of it.
        if not self.ending:
            check_at_rest(self.run)
        await quiet()
        assert [task.name for task in self.begun if not task.done] == []
        errors = [task.error for task in self.begun if task.error is not None]
        assert len(errors) == len(set(map(id, errors))), "two waiters were given the same exception"
        if self.ended:
            self._check_ended(errors)
        else:
            check_at_rest(self.run)
            check_opened(self.run, [task.opened for task in self.opened])
            check_pod(self.run.pod)

    def _check_ended(self, errors: list[BaseException]) -> None:
        vm = self.run.vm
        assert vm.state is uvm.VMState.EXITED
        for snapshot in vm.ledgers().values():
            assert not snapshot.entries
            assert not snapshot.quarantined
        for error in errors:
            if isinstance(error, VMExitedError):
                assert error.status == vm.exit_status
        assert len(self.held) == len(self.on_host)

    async def leave(self) -> None:
        """Close the VM, and release what outlives it."""
        await self.run.vm.close()
        for namespace in self.on_host:
            await namespace.release()
        network = self.run.backend.network
        assert self.network_stays or network.created() == []
        for kind, key in [*network._created]:
            await (network.delete_endpoint if kind == "endpoint" else network.delete_namespace)(key)

    async def release_all(self) -> list[BaseException]:
        """Give back whatever is still held, also what a failed release left; gives what refused."""
        errors: list[BaseException] = []
        for _ in range(3):
            errors.clear()
            for task in self.begun:
                if task.opened is not None:
                    await self._close_again(task, errors)
                # A release that failed before may be repeated; one that did not is an error.
                if task.lease is not None:
                    await self._release_again(task.lease, errors)
            # Those of callers who have left, too.
            await self._end_pod(errors)
            await self._release_orphans(errors)
        await quiet()
        return errors

    async def _end_pod(self, errors: list[BaseException]) -> None:
        try:
            await self.run.pod.end()
        except (UVMError, ExceptionGroup) as error:
            errors.append(error)

    async def _release_again(self, lease: Any, errors: list[BaseException]) -> None:
        was_released = lease.released
        try:
            await lease.release()
        except AlreadyReleasedError:
            assert was_released
        except (UVMError, ExceptionGroup) as error:
            errors.append(error)

    async def _close_again(self, task: Task, errors: list[BaseException]) -> None:
        try:
            await task.opened.aclose()
            task.opened = None
        except UVMError as error:
            errors.append(error)

    async def _release_orphans(self, errors: list[BaseException]) -> None:
        """Release what has no caller any more."""
        for orphan in self.run.vm.orphans:
            try:
                await orphan.release()
            except UVMError as error:
                errors.append(error)


def _few_slots(plan: CreationPlan) -> CreationPlan:
    """Leave room for three disks only."""
    used = {lun for _, lun in plan.reserved_scsi}
    free = [lun for lun in range(64) if lun not in used][:4]
    return evolve(plan, reserved_scsi=tuple((0, lun) for lun in range(64) if lun not in free))


async def _example(choose: Choose) -> None:
    os = choose(["linux", "windows"], "os")
    external = choose([True, False], "external_guest_connection")
    template = os == "windows" and external and choose([True, False], "template")
    options = host.OPTIONS[os](
        external_guest_connection=external,
        template=template,
        network_config_proxy=choose(["", PROXY], "network_config_proxy"),
        **(
            {"vpmem_multi_mapping": choose([True, False], "packed"), "vpmem_count": 2}
            if os == "linux"
            else {"revoke_released_files": choose([False, True], "revoke_released_files")}
        ),
    )
    concurrency = choose([Concurrency(), HCS_CONCURRENCY, Concurrency(2, 2, 2, 2, 2, 2, 2)], "concurrency")
    # A guest may go alone here: no example waits for an exit that does not come.
    timeouts = GuestTimeouts(redial_seconds=3600 if os == "linux" else 0, vm_exit_seconds=0)
    async with (
        running(
            options, concurrency=concurrency, amend=None if template else _few_slots, timeouts=timeouts
        ) as run,
        FakeNetworkProxy(run.backend, PROXY, {"pod1": ["endpoint-eth0", "endpoint-eth1"]}) as proxy,
    ):
        if os == "linux":
            proxy.custom["vf1"] = CUSTOM
            proxy.endpoints["pod1"].append("vf1")
        await _prepare(run)
        async with anyio.create_task_group() as tasks:
            # A network is set up in many steps.
            names, proceeds = choose([(_MENUS[os], 2), (_MENUS[os], 2), (_NETWORK, 25)], "menu")
            world = World(run, tasks, run.backend.faults.hold(where=_is_work), choose, names, proceeds)
            for _ in range(choose(range(10, 60), "steps")):
                world.step()
                if choose([True, True, False], "settle"):
                    await quiet()
            await world.finish()
        if run.vm.state is uvm.VMState.SAVED:
            event("the VM was saved")
            await _check_clone(run)
        elif not world.ended and not run.vm._link.disconnected:
            event("the VM ran on")
            await _check_release_of_all(world)
        await world.leave()


async def _check_clone(run: Running) -> None:
    """A clone of the saved VM starts, and has what it had."""
    before = run.vm.devices()
    template = await run.vm.save_template()
    assert isinstance(run.vm.options, uvm.WCOWOptions)
    options = evolve(
        run.vm.options, id="clone", template=False, clone_of=template, scratch_directory=r"C:\clones\one"
    )
    async with uvm.UtilityVM.create(options, backend=run.backend) as clone:
        await clone.start()
        check_at_rest(Running(clone, run.backend))
        assert [(each.lun, each.mounts) for each in clone.scsi.disks] == [
            (each.lun, each.mounts) for each in before.disks
        ]
        assert [each.name for each in clone.vsmb.shares] == [each.name for each in before.vsmb_shares]
        assert {each.root for each in clone.layers.roots} == {each.root for each in before.roots}
    assert run.vm.devices() == before


async def _prepare(run: Running) -> None:
    """Attach what combined layers and adapters of the guest are made of, to be held all the time."""
    run.backend.network.add_network({"ID": HOST_NETWORK})
    for processor in (0, 1):
        await uvm.create_cpu_group(run.backend, [processor])
    if run.vm.os == "linux":
        await run.vm.scsi.attach(host.LARGE_LAYER, mount=uvm.Mount(guest_path="/base"))
        await run.vm.vpci.assign(host.NIC_DEVICE, vmbus_guid=host.NIC)
    else:
        await run.vm.scsi.attach(host.LARGE_LAYER, mount=uvm.Mount(guest_path=r"C:\base"))
        await run.vm.vsmb.add(r"C:\os", read_only=True)


_STARTS = ("create", "start", "execute process", "create process")
_ENDS = ("modify process", "shutdown forced", "terminate", "delete container state")


_NETWORK_ENDS = ("remove endpoint", "delete endpoint", "delete namespace")
_ON_HOST = ("create namespace", "create endpoint", "add endpoint", *_NETWORK_ENDS)
_SAVING = ("pause", "save", "resume")


def _is_work(call: Call) -> bool:
    return call.operation in ("modify", "grant", "revoke", *_STARTS, *_ENDS, *_ON_HOST, *_SAVING)


def _is_of_pod(call: Call) -> bool:
    """Return whether a call is about a container of the pod, which lists it until its end has succeeded."""
    return isinstance(call.document, dict) and call.document.get("ContainerId") in ("p1", "p2")


_PREPARED = {"scsi.disks": 1, "scsi.mounts": 1, "vsmb.shares": 1}


async def _check_release_of_all(world: World) -> None:
    run = world.run
    errors = await world.release_all()
    check_at_rest(run)
    if run.vm.quarantined:
        # What is withheld may be in the way of what it lies on.
        return
    assert errors == []
    assert [*run.vm._link.mounts] == []
    for name, snapshot in run.vm.ledgers().items():
        left = [e for e in snapshot.entries if not _may_stay(name, e, run)]
        assert left == [], name


def _may_stay(name: str, entry: Any, run: Running) -> bool:
    if name == "vsmb.shares" and (
        not entry.applied.options.no_directmap or entry.applied.directory == r"C:\os"
    ):
        return True
    if name.startswith("scsi."):
        disk = run.vm.scsi.find(host.LARGE_LAYER)
        if (entry.slot if name == "scsi.disks" else entry.key.slot) == disk:
            return True
    if name == "vpci.devices" and entry.slot == host.NIC:
        return True
    # It is held by what lives on it, which is judged by itself.
    driver = dict(run.vm._drivers())[name]
    holders = next(e.holders for e in driver.ledger if e.key == entry.key)
    return bool(holders) and not any(driver._holds[ticket].state is HoldState.HELD for ticket in holders)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_ledgers_host_and_guest_agree_at_rest_whatever_happened(backend: str, data: st.DataObject) -> None:
    run_example(_example, backend, data)
