"""A pod: one VM, one network namespace, and any number of containers, brought up and ended in order.

Theory of operation
-------------------

::

    create         the VM starts, and joins the network namespace
    run_container  plan, attach, create, start; any number at once, each undone from its end where it fails
    close          the containers end, the sandbox the last; the VM leaves the namespace, and is closed

A Linux guest assigns a network namespace to one container. So the containers of a pod share one through
its sandbox, which :meth:`Pod.run_sandbox` runs: the others, its workloads, join its namespaces and know its
directories (``sandbox://``). Without a sandbox each container is one of its own, and the first has the
network. In a Windows guest all have it.

The container of an id is a member of its pod from before anything is attached for it until all was released.

Source: hcsshim ``internal/controller/pod``, ``cmd/containerd-shim-runhcs-v1/pod.go``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import anyio

from uvm._arguments import items_of
from uvm._async import end_after, enters, errors_of, opens, suggesting
from uvm._checks import checked, flag, guid_of, text
from uvm._errands import Release
from uvm._guest.specs import check_container_id, part
from uvm._home import Bound
from uvm._names import HostPath, guid_key, text_of
from uvm._repr import brief, counted
from uvm._vm.keywords import CreationSettings
from uvm._vm.networksetup import NetworkSetup
from uvm._vm.pods import container as containers
from uvm._vm.pods.container import PodContainer
from uvm._vm.pods.plan import (
    CONTAINER_TYPE,
    SANDBOX_ID,
    ContainerPlan,
    Member,
    Role,
    items,
    specification,
)
from uvm._vm.pods.resources import ContainerResources, Layers
from uvm._vm.vm import UtilityVM, opened
from uvm.backend import Backend
from uvm.errors import NotAttachedError, OptionsError, UVMError, VMStateError, together

if TYPE_CHECKING:
    from uvm._vm.pods.windows import VMFacts
    from uvm.options import LCOWOptions, WCOWOptions


class Pod(Bound):
    """A pod: one VM, one network namespace, any number of containers. :meth:`create` makes one.

    Any number of tasks may use it at once.

    :ivar vm: its VM.
    :ivar network: the id of its network namespace; empty if it has none.
    """

    def __init__(self, vm: UtilityVM, network: str, device_util: str = "") -> None:
        self.vm = vm
        self.network = network
        self._device_util = device_util
        self._members: dict[str, PodContainer | None] = {}
        self._sandbox_id = ""
        #: The container of a Linux guest that has the network namespace.
        self._network_user = ""
        self._setup: NetworkSetup | None = None
        self._ending = Release(vm.id, "end pod", self._end, vm._link.start_soon)

    def __repr__(self) -> str:
        return brief(f"<Pod in {self.vm!r} with {counted(len(self.containers), 'containers')}>")

    @classmethod
    @suggesting
    @enters()
    async def create(
        cls,
        options: LCOWOptions | WCOWOptions,
        *,
        backend: Backend | str,
        network: str = "",
        device_util: HostPath = "",
        **settings: Unpack[CreationSettings],
    ) -> AsyncIterator[Pod]:
        """Create a pod without containers, and close it at the end of the ``async with``.

        Its VM has started, and is in its network namespace with all endpoints of that. Enter and leave it in
        one task. On leaving, the containers are ended, the VM leaves the namespace, and is closed. What fails
        then is raised, or added as notes to the exception of the body.

        :param backend: a backend, or the name of one, which is opened for the pod and closed with it.
        :param network: the id of a network namespace of the host, from ``uvm.create_namespace`` for instance.
        :param device_util: the path of hcsshim's ``device-util.exe`` on the host, with which a Windows guest
            says where its assigned PCI devices are; only such devices need it.
        :param settings: the other keywords of :meth:`uvm.UtilityVM.create`.
        :raises OptionsError: the options cannot work on this host; nothing was created.
        :raises HostError: the host refused; what was created was closed again.
        :raises BridgeClosedError: the guest did not connect in time; the VM was closed.
        """
        network = guid_of(network, "network") if network else ""
        device_util = text_of(device_util, "device_util") if device_util else ""
        # Open until the proxy of the network was asked, which is after the exit of the VM.
        async with (
            opened(backend) as host,
            AsyncExitStack() as exited,
            UtilityVM.create(options, backend=host, **settings) as vm,
        ):
            await vm.start()
            pod = cls(vm, network, device_util)
            exited.push_async_exit(pod._leave_proxy)
            await pod._join_network()
            try:
                yield pod
            except BaseException as failure:
                await end_after(failure, pod.end, f"ending the pod {pod.id}")
                raise
            await pod.end()

    async def _join_network(self) -> None:
        if self.network:
            setup = self.vm.network_setup()
            await setup.setup(self.network)
            self._setup = setup

    @property
    def id(self) -> str:
        """The id of its VM."""
        return self.vm.id

    @property
    def containers(self) -> Mapping[str, PodContainer]:
        """The containers by their ids, the oldest first."""
        return {id: made for id, made in self._members.items() if made is not None}

    @property
    def sandbox(self) -> PodContainer | None:
        """The container whose namespaces and directories the others share, if there is one."""
        return self._members.get(self._sandbox_id)

    # Containers.

    @opens
    async def run_container(
        self,
        spec: Mapping[str, Any],
        layers: Layers,
        scratch: HostPath,
        *,
        id: str = "",
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
    ) -> PodContainer:
        """Attach what a container needs, create it and start it. Await it, or enter it.

        Everything is checked before anything is attached, and attached at once. What fails is rolled back in
        order, also for a caller who is cancelled.

        :param spec: its OCI runtime specification, which is copied.
        :param layers: its layers, top-most first, as for :meth:`uvm.UtilityVM.mount_layers`.
        :param scratch: its scratch disk.
        :param id: its id; a fresh one by default.
        :param stdin: whether its own process has that stream; so too `stdout` and `stderr`.
        :raises OptionsError: the specification cannot work, or the id is that of another container of the
            pod; nothing was attached.
        :raises HostPathError: the source of a mount, a layer or the scratch disk is not there; nothing was
            attached.
        :raises VMStateError: its sandbox does not run, or the pod is being ended; nothing was attached.
        :raises GuestError: the guest refused; what was attached was released.
        :raises HostError: the host refused; what was attached was released.
        """
        streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        for name, wanted in streams.items():
            checked(wanted, flag, name)
        return await self._make(spec, layers, scratch, id, streams)

    @opens
    async def run_sandbox(
        self, spec: Mapping[str, Any], layers: Layers, scratch: HostPath, *, id: str = ""
    ) -> PodContainer:
        """Run the container whose namespaces and directories the others share. Await it, or enter it.

        Those are the containers that come after it: its own process has to run as long as they do, and it is
        ended after them. Errors as of :meth:`run_container`.

        :raises OptionsError: the pod has a sandbox, or its network is another container's.
        """
        annotations = {**part(specification(spec), "annotations"), CONTAINER_TYPE: Role.SANDBOX.value}
        sandbox = {**spec, "annotations": annotations}
        return await self.run_container(sandbox, layers, scratch, id=id)

    @opens
    async def create_container(
        self, spec: Mapping[str, Any], layers: Layers, scratch: HostPath, *, id: str = ""
    ) -> PodContainer:
        """Attach what a container needs and create it; it is not started. Await it, or enter it.

        Arguments and errors as of :meth:`run_container`.
        """
        return await self._make(spec, layers, scratch, id, None)

    @opens
    async def attach_resources(
        self, spec: Mapping[str, Any], layers: Layers, scratch: HostPath, *, id: str = ""
    ) -> ContainerResources:
        """Attach what a container needs, as one lease, and create none. Await it, or enter it.

        :meth:`ContainerResources.document` is what ``pod.vm.create_container`` takes then. In a VM with a
        security policy the caller does both within ``pod.vm.container_creation()``, which this does not
        enter. Arguments and errors as of :meth:`run_container`.
        """
        member, plan = self._plan(spec, id)
        given = items_of(layers, "layers")
        resources = ContainerResources(self.vm, member.id, plan, given, scratch)

        async def attach() -> ContainerResources:
            await resources._attach_all()
            return resources

        return await self.vm._link.carry_out(
            "attach for container", attach, lambda made: made._releasing.begin()
        )

    async def _make(
        self,
        spec: Mapping[str, Any],
        layers: Layers,
        scratch: HostPath,
        id: str,
        streams: Mapping[str, bool] | None,
    ) -> PodContainer:
        """Create a container, and start it if it has streams: a task of the VM does it."""
        member, plan = self._plan(spec, id)
        given = items_of(layers, "layers")
        resources = ContainerResources(self.vm, member.id, plan, given, scratch)
        self._enter(member)
        make = partial(self._create, member, resources, streams)
        return await self.vm._link.carry_out("create pod container", make, lambda made: made._ending.begin())

    async def _create(
        self, member: Member, resources: ContainerResources, streams: Mapping[str, bool] | None
    ) -> PodContainer:
        try:
            made = await containers.create(self.vm, resources, member, self)
        except BaseException:
            self._left(member)
            raise
        self._members[member.id] = made
        if self._ending.begun:
            await made._ending.wait()
            raise self._ended_error()
        return made if streams is None else await containers.run(made, streams)

    def _plan(self, spec: Mapping[str, Any], id: str) -> tuple[Member, ContainerPlan]:
        """Return which member a container is to be, and what is to be done for it."""
        self.vm._link.check_running()
        if self._ending.begun:
            raise self._ended_error()
        member = self._member(specification(spec), checked(id, text, "id") or self._new_id())
        if self.vm.os == "windows":
            from uvm._vm.pods.windows import plan as plan_windows

            return member, plan_windows(spec, member, self._facts())
        from uvm._vm.pods.linux import plan as plan_linux

        return member, plan_linux(spec, member)

    def _facts(self) -> VMFacts:
        from uvm._vm.pods.windows import VMFacts

        plan, options = self.vm.plan, self.vm.options
        confidential, dumps = options.security_policy_enabled, options.process_dump_location
        return VMFacts(plan.id, plan.processors, confidential, dumps, self._device_util)

    def _ended_error(self) -> VMStateError:
        return VMStateError(f"the pod {self.id} has ended, or is being ended: no container is made in it")

    def _new_id(self) -> str:
        """Return an id as containerd's, which a guest with a security policy insists on."""
        new_id = self.vm._context.backend.new_id
        return f"{new_id()}{new_id()}".replace("-", "").lower()

    # Its members.

    def _member(self, spec: Mapping[str, Any], id: str) -> Member:
        check_container_id(id)
        if id in self._members:
            raise OptionsError(f"the pod {self.id} has a container {id} already; nothing was attached")
        role = self._role_of(part(spec, "annotations"), id)
        network = self.network if self._has_network(spec, id, role) else ""
        if role is not Role.WORKLOAD:
            return Member(id, role, network=network)
        return Member(id, role, self._sandbox_id, self._sandbox_pid(id), network)

    def _role_of(self, annotations: Mapping[str, Any], id: str) -> Role:
        asked = annotations.get(CONTAINER_TYPE)
        try:
            role = Role(asked or "")
        except ValueError:
            raise OptionsError(f"{id}: {CONTAINER_TYPE} is sandbox or container, not {asked!r}") from None
        if role is Role.SANDBOX and self._sandbox_id:
            raise OptionsError(f"{id} cannot be the sandbox of the pod: {self._sandbox_id} is")
        if not asked:
            return Role.WORKLOAD if self._sandbox_id else Role.STANDALONE
        given = annotations.get(SANDBOX_ID, self._sandbox_id)
        if role is Role.WORKLOAD and (not self._sandbox_id or given != self._sandbox_id):
            there = f"it is {self._sandbox_id}" if self._sandbox_id else "there is none; see Pod.run_sandbox"
            raise OptionsError(
                f"{id} is of the sandbox {given!r} ({SANDBOX_ID}), which the pod has not: {there}"
            )
        return role

    def _has_network(self, spec: Mapping[str, Any], id: str, role: Role) -> bool:
        """Return whether a container has the network namespace of the pod."""
        named = part(spec, "windows.network").get("networkNamespace")
        if named and self.network and guid_key(named) != guid_key(self.network):
            raise OptionsError(
                f"{id} is to be in the network namespace {named}, and its pod is in {self.network}; leave "
                "that out of the specification"
            )
        if not self.network or self.vm.os == "windows" or role is Role.WORKLOAD or not self._network_user:
            return bool(self.network)
        own = any(each.get("type") == "network" for each in items(spec, "linux.namespaces"))
        if named or own or role is Role.SANDBOX:
            raise OptionsError(
                f"{id} cannot have the network of its pod: a Linux guest assigns it to one container, and "
                f"{self._network_user} has it; run the pod's sandbox first (Pod.run_sandbox), whose network "
                "all others share"
            )
        return False

    def _sandbox_pid(self, id: str) -> int:
        sandbox = self.sandbox
        if self.vm.os == "windows":
            return 0
        if sandbox is None or sandbox.init is None or sandbox.init.exit_code is not None:
            raise VMStateError(
                f"{id} cannot join the sandbox {self._sandbox_id}, whose own process does not run; nothing "
                "was attached"
            )
        return sandbox.init.pid

    def _enter(self, member: Member) -> None:
        self._members[member.id] = None
        if member.role is Role.SANDBOX:
            self._sandbox_id = member.id
        if member.network and member.role is not Role.WORKLOAD:
            self._network_user = member.id

    def _left(self, member: Member) -> None:
        """Note that a container has ended, and that all that was attached for it was released."""
        self._members.pop(member.id, None)
        if self._sandbox_id == member.id:
            self._sandbox_id = ""
        if self._network_user == member.id:
            self._network_user = ""

    def _check_end(self, member: Member) -> None:
        """Refuse to end the sandbox before its workloads.

        :raises VMStateError: there are some.
        """
        standalone = {id for id, made in self.containers.items() if made.role is Role.STANDALONE}
        others = ", ".join(id for id in self._members if id != member.id and id not in standalone)
        if member.role is Role.SANDBOX and others:
            raise VMStateError(f"{member.id} is the sandbox of {others}: end those first; nothing was ended")

    # The end.

    async def end(self) -> None:
        """End its containers, the sandbox the last, and have the VM leave the network namespace.

        A task of the VM does it; a caller that is cancelled stops only the waiting. No container is created
        any more. What failed is tried again by a further call.

        The sandbox is not ended while a workload is left, and the VM stays in the namespace while a container
        is.

        :raises UVMError: part of that failed; what does not depend on it was done.
        """
        await self._ending.wait()

    async def close(self) -> None:
        """End it as :meth:`end` does, and close the VM. Closed again, it does nothing.

        Of a caller that is cancelled, the VM is closed at once, which ends everything.

        :raises UVMError: part of that failed; the rest was done, and the VM was closed.
        """
        async with AsyncExitStack() as ended:
            ended.push_async_exit(self._leave_proxy)
            ended.push_async_callback(self.vm.close)
            await self.end()

    async def _end(self) -> None:
        """End it in order, up to what fails; raise the errors of that."""
        # Those that come up need the sandbox and the network.
        await self.vm._link.work.wait_until(lambda: None not in self._members.values())
        sandbox = self.sandbox
        others = [each.aclose for each in self.containers.values() if each is not sandbox]
        for calls in others, [] if sandbox is None else [sandbox._ending.wait], [self._leave_network]:
            if errors := await errors_of(calls):
                raise together(f"ending the pod {self.id}", errors)

    async def _leave_network(self) -> None:
        if self._setup is not None:
            # A proxy that refused for good has it torn down all the same.
            with suppress(NotAttachedError):
                await self._setup.teardown(self.network)
            self._setup = None

    async def _leave_proxy(self, kind: object, failure: BaseException | None, traceback: object) -> None:
        """Have the proxy forget a VM once that has exited, unless its network was torn down.

        What fails becomes notes of a failure, or is raised.
        """
        link, proxy = self.vm._link, self.vm.options.network_config_proxy
        if self._setup is None or not proxy:
            return
        seconds = link.exit_grace_seconds
        errors: list[Exception] = [
            UVMError(
                f"leave the network {self.network}: the proxy at {proxy} did not answer within {seconds:g} s "
                f"after the exit of {self.id}; it may have that registered"
            )
        ]
        with anyio.move_on_after(seconds, shield=True):
            await link.exited.wait()
            errors = await errors_of([self._leave_network])
        for error in errors:
            if failure is None:
                raise error
            failure.add_note(f"and {error}")
