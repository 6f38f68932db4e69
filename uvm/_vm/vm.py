"""The utility VM: its creation, its start and the calls to it; how it ends is :mod:`uvm._vm.ending`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
import anyio.lowlevel

from uvm._async import BareTaskGroup, Flag, Opening, enters, suggesting
from uvm._buses.access import Grant
from uvm._buses.context import Context
from uvm._checks import checked, instance, optional, text
from uvm._document.plan import CreationPlan
from uvm._errands import Errand
from uvm._guest.timeouts import GuestTimeouts
from uvm._log import Log
from uvm._names import GuestOS, HostPath
from uvm._observed import Outcome, outcome_of
from uvm._vm.creation import HostArtifacts, Settings, create
from uvm._vm.ending import VMState
from uvm._vm.guest import GuestServices
from uvm._vm.keywords import check_settings
from uvm._vm.saving import Saving
from uvm._vm.startup import GuestStartup, OutputHandler
from uvm.backend import JSON, Backend, Concurrency, HostInfo, System
from uvm.backends import is_backend, open_backend
from uvm.errors import BridgeClosedError, OptionsError, VMStateError
from uvm.schema.secrets import printable

if TYPE_CHECKING:
    from uvm._guest.container import Container
    from uvm._vm.containermounts import ContainerMount
    from uvm._vm.creationorder import CreationOrder
    from uvm._vm.layers import LCOWLayer, RootFileSystem, WCOWLayer
    from uvm.devices.blockcims import BlockCIMLayer
    from uvm.options import LCOWOptions, WCOWOptions

_log = Log("uvm")

CLOSE_GRACE_SECONDS = 10.0

_DEFAULT_TIMEOUTS: Final = GuestTimeouts()

_ELSEWHERE = (
    "UtilityVM.create was entered in one task and left in another, which a task group does not allow; the VM "
    "was closed. uvm.start_vm returns a VM that any task may close"
)


class UtilityVM(Saving, GuestServices):
    """A utility VM. :meth:`create` makes one, and closes it when its context is left.

    Devices are attributes: ``scsi``, ``vpmem``, ``vsmb``, ``plan9``, ``vpci``, ``pipes``, ``network``,
    ``layers``; ``files`` are those of the guest. Any number of tasks may use them at once.
    """

    def __init__(
        self, context: Context, system: System, artifacts: HostArtifacts, startup: GuestStartup
    ) -> None:
        super().__init__(context, system, artifacts, startup)
        context.link.guest_exit_seconds = startup.timeouts.vm_exit_seconds
        self._creations: CreationOrder | None = None

    @classmethod
    @suggesting
    @enters("; 'await uvm.start_vm(...)' returns a VM that runs")
    async def create(
        cls,
        options: LCOWOptions | WCOWOptions,
        *,
        backend: Backend | str,
        concurrency: Concurrency | None = None,
        amend: Callable[[CreationPlan], CreationPlan] | None = None,
        timeouts: GuestTimeouts | None = None,
        guest_output: OutputHandler | None = None,
        close_grace_seconds: float = CLOSE_GRACE_SECONDS,
    ) -> AsyncIterator[UtilityVM]:
        """Create a VM, and close it at the end of the ``async with``; enter and leave it in one task.

        :func:`uvm.start_vm` returns a VM that is bound to no task.

        On exit the VM is terminated, its access grants are revoked and its temporary files deleted. Clean-up
        errors are raised, or added as notes to the exception of the body, which propagates unwrapped.

        :param backend: a backend, or the name of one, which is opened for the VM and closed with it.
        :param concurrency: how many operations run at once, in place of the limits of the host.
        :param amend: called with the :class:`CreationPlan` (HCS document, grants, files) before anything
            happens; returns the plan to use. For settings without an option.
        :param timeouts: how long to wait for the guest.
        :param guest_output: reads the guest's output, its log; by default each entry becomes a record of the
            logger ``uvm.guest``. See :data:`~uvm._vm.startup.OutputHandler`.
        :param close_grace_seconds: how long each clean-up step, and reading the guest's last output after the
            exit, may take before it is abandoned.
        :raises OptionsError: the options cannot work on this host; nothing was created.
        :raises NotSupportedError: the host is too old for them; nothing was created.
        :raises HostError: the host refused.
        :raises VMStateError: it is left in another task than it was entered in; the VM was closed.
        """
        check_settings(
            {
                "concurrency": concurrency,
                "amend": amend,
                "timeouts": timeouts,
                "guest_output": guest_output,
                "close_grace_seconds": close_grace_seconds,
            },
            "UtilityVM.create",
        )
        async with opened(backend) as host:
            made = await create(options, host, Settings(concurrency, amend, close_grace_seconds))
            vm = cls(*made, GuestStartup(made[0], timeouts or _DEFAULT_TIMEOUTS, guest_output))
            async with BareTaskGroup(vm._leave, _ELSEWHERE) as tasks:
                _log.info(vm.id, "created")
                serving = Flag()
                tasks.start_soon(vm._serve, serving)
                with anyio.CancelScope(shield=True):
                    await serving.wait()
                yield vm

    async def __aenter__(self) -> Self:
        return self

    # Facts.

    def __repr__(self) -> str:
        return f"<UtilityVM {self.id} ({self.os}, {self._state.value})>"

    def __str__(self) -> str:
        counts = self.devices()._counts() or "no devices"
        return f"{printable(self.id)}: a {self.os.capitalize()} VM, {self._state.value}, with {counts}"

    @property
    def runtime_id(self) -> str:
        """The Hyper-V VM id, a GUID."""
        return self._system.runtime_id

    @property
    def os(self) -> GuestOS:
        """The guest's operating system: ``"linux"`` or ``"windows"``."""
        return self._context.plan.os

    @property
    def options(self) -> LCOWOptions | WCOWOptions:
        """The options that the VM was created with."""
        return self._context.options

    @property
    def host(self) -> HostInfo:
        """The facts of the host."""
        return self._context.host

    @property
    def plan(self) -> CreationPlan:
        """The plan that the VM was created by: the document, the boot devices, the reserved slots."""
        return self._context.plan

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """The capabilities that the guest announced, by their names in the protocol.

        :raises VMStateError: the VM has not been started.
        :raises VMExitedError: the VM has exited.
        """
        return self._link.capabilities()

    @property
    def started_at(self) -> datetime | None:
        """When the host had started the VM, in UTC; None before."""
        return self._started_at

    # The start. Tasks of the VM do it, and note the result; callers only wait.

    async def start(self) -> None:
        """Start the VM and wait until its guest is connected. If that fails, the VM is terminated.

        A caller who is cancelled leaves at once, and the VM is terminated.

        :raises VMStateError: the VM was started before.
        :raises BridgeClosedError: the guest did not connect in time.
        :raises VMExitedError: the VM exited while it booted.
        """
        self._link.check_here()
        if self._state is VMState.EXITED or self._state is VMState.CLOSED:
            raise self._link.exit_error()
        if self._state is not VMState.CREATED:
            raise VMStateError(f"start {self.id}: the VM is {self._state.value}; a VM is started once")
        self._state = VMState.STARTING
        channels = self._startup.channels
        assert channels is not None
        try:
            self._link.work.begin()
            start = partial(self._link.work.carry_out, self._boot_or_end)
            errand = Errand(self.id, "start", start, outcome=self._outcome_of_start)
            await errand.made_in(channels, self._link.exit_error)
        except anyio.get_cancelled_exc_class():
            self._link.why_not_running = "its start was cancelled, and it is being terminated"
            self._start_cancelled = True
            if self._booting is not None:
                self._booting.cancel()
            if self._state is VMState.RUNNING:
                # It started just as its caller was cancelled.
                self._state = VMState.STARTING
                failure = VMStateError(f"start {self.id}: cancelled")
                self._link.work.start_soon(channels, partial(self._end_after, failure))
            raise

    def _outcome_of_start(self, error: BaseException) -> Outcome:
        if self._start_cancelled:
            return "cancelled"
        # What had begun to run was terminated.
        return "unknown" if self._started_at is not None else outcome_of(error)

    async def _boot_or_end(self) -> None:
        try:
            await self._boot()
        except Exception as failure:
            await self._end_after(failure)
            raise
        self._unless_gone(VMState.RUNNING)
        _log.info(self.id, "started")

    async def _boot(self) -> None:
        """Boot until the guest is connected; VMExitedError if the VM exits or is closed meanwhile."""
        call, limit = self._link.call, self._startup.timeouts.boot_seconds
        failure: Exception | None = None
        with anyio.move_on_after(limit) as self._booting:
            if self._start_cancelled or self._link.exited.is_set():
                self._booting.cancel()
            try:
                await call(self._startup.listen())
                await call(self._system.start())
                self._started_at = datetime.now(UTC)
                guest = await call(self._startup.meet())
                self._link.guest = guest
                self._adopt_boot_devices()
                await call(self._join_cpu_group())
            except Exception as error:
                failure = error
        late, self._booting = self._booting.cancelled_caught, None
        if self._link.exited.is_set() or self._closing.is_set():
            if self._closing.is_set():
                # The exit status is known once it is closed.
                await self._closed.wait()
            raise self._link.exit_error() from failure
        if self._start_cancelled:
            raise VMStateError(f"start {self.id}: cancelled; the VM was terminated")
        if late:
            raise BridgeClosedError(
                f"start {self.id}: the guest did not connect within {limit:g} s; the VM was terminated"
            )
        if failure is not None:
            raise failure

    async def _end_after(self, failure: Exception) -> None:
        """Terminate a VM that did not start; errors become notes of the failure."""
        with anyio.move_on_after(self._grace_seconds) as scope:
            try:
                # A close() meanwhile terminates it, and raises what fails.
                if self._state is not VMState.CLOSED:
                    await self._end_system()
            except Exception as error:
                if self._state is not VMState.CLOSED:
                    failure.add_note(f"and terminating the VM failed: {error}")
            await self._startup.stop_listening()
        if scope.cancelled_caught:
            failure.add_note(f"and terminating the VM was abandoned after {self._grace_seconds:g} s")

    # While it runs.

    async def settled(self) -> None:
        """Wait until nothing is in flight that tasks of the VM have begun; it changes nothing.

        That is the start of the VM; devices that are attached, removed or rolled back, access that is revoked
        with them, and root file systems; containers, their states and processes that are ended, also for
        callers who have left; and every other call that goes on after its caller. What another task begins
        meanwhile is waited for as well. Then ``vm.devices()`` is what the host has, and the guest.

        A start whose caller has left is waited for until the guest answers and what it started is ended, but
        for no longer than the guest may take for any answer (``GuestTimeouts.rpc_seconds``). For all else
        there is no limit but the caller's own. After the exit it returns at once.

        :raises VMStateError: another event loop calls it.
        """
        self._link.check_here()
        await anyio.lowlevel.checkpoint()
        work = self._link.work
        while work.busy or work.owed:
            await work.wait_until(lambda: not work.busy)
            with self._startup.clock.move_on_after(self._startup.timeouts.rpc_seconds):
                await work.wait_until(lambda: work.busy > 0 or not work.owed)
            if not work.busy:
                return

    def mount_layers(
        self,
        container_id: str,
        layers: Sequence[LCOWLayer | WCOWLayer | BlockCIMLayer | HostPath],
        scratch_path: HostPath,
        *,
        root: str = "",
        grant_access: Grant = True,
    ) -> Opening[RootFileSystem]:
        """Attach layers and a scratch disk and have the guest combine them. Await it, or enter it.

        :param layers: top-most first. A path alone is that of a Linux layer. A Windows guest may have one
            BlockCIMLayer instead, which is all of them.
        :param scratch_path: the VHDX of the scratch disk on the host; a Linux guest formats one without
            a file system.
        :param root: the directory in a Linux guest; ``/run/gcs/c/<container id>`` by default. In a Windows
            guest the root is the mount point of the scratch disk.
        :param grant_access: grant the VM access to Linux layers; ``uvm.backend.VM_GROUP`` grants it to every
            VM, for good, so that VMs which share layers grant nothing that another revokes.
        :raises OptionsError: there is no layer, or one is of the other kind of guest.
        :raises HostPathError: a layer or the scratch disk is not there; nothing was sent.
        """
        from uvm._vm.layers import mount_layers

        return mount_layers(self, container_id, layers, scratch_path, root, grant_access)

    @enters()
    async def container_creation(self) -> AsyncIterator[None]:
        """Hold a turn in bringing up containers, from the mounting of their layers to their creation.

        In a VM with a security policy containers are to be brought up in this context, one at a time, in the
        order of asking: its enforcer ties what is mounted to the container that is created next. In other
        VMs it waits for nothing.

        If the body fails or is cancelled, the next turn begins when the tasks of the VM have finished or
        undone what it began, or have taken as long for it as the guest may for an answer
        (``GuestTimeouts.rpc_seconds``).

        :raises VMStateError: the VM is not running, or the task has a turn already.
        :raises VMExitedError: the VM has exited, or exits before the turn comes.
        """
        self._link.check_running()
        if not self._context.options.security_policy_enabled:
            yield
            return
        if self._creations is None:
            from uvm._vm.creationorder import CreationOrder

            clock, seconds = self._startup.clock, self._startup.timeouts.rpc_seconds
            self._creations = CreationOrder(self._link, lambda: clock.move_on_after(seconds))
        async with self._creations.turn():
            yield

    def _devices_gone(self) -> None:
        super()._devices_gone()
        if self._creations is not None:
            self._creations.gone()

    def mount_in_container(
        self, container: Container, path: HostPath, container_path: HostPath, *, read_only: bool = False
    ) -> Opening[ContainerMount]:
        r"""Show a directory of the host in a running Windows container. Await it, or enter it.

        It is shared with the guest, and then mapped into the container. If that fails, or its caller leaves,
        the share is released at once. It ends with its lease, or with the container.

        :param container_path: where the container sees it, such as ``C:\data``.
        :raises OptionsError: a path is no absolute one, or that of a file; the container is in another VM.
        :raises VMStateError: the container does not run; nothing was sent.
        :raises HostPathError: nothing is at that path of the host.
        :raises AccessDeniedError: it is writable, and the VM denies writable shares.
        :raises NotSupportedError: the guest is Linux.
        :raises GuestError: the guest refused, for instance since something is mapped there.
        """
        from uvm._vm.containermounts import mount_in_container

        return mount_in_container(self, container, path, container_path, read_only)

    async def properties(self, *types: str, queries: JSON | None = None) -> JSON:
        """Query properties of the compute system (:meth:`uvm.backend.System.properties`)."""
        for name in types:
            checked(name, text, "a type of properties")
        checked(queries, optional(instance(dict)), "queries")
        return await self._link.properties(*types, queries=queries)


def check_backend(backend: Backend | str) -> None:
    """Refuse what is neither a backend nor a name.

    :raises OptionsError: it is something else.
    """
    if not isinstance(backend, str) and not is_backend(backend):
        raise OptionsError(f"backend must be a Backend, or the name of one, not {backend!r}")


def opened(backend: Backend | str) -> AbstractAsyncContextManager[Backend]:
    """Open a backend by its name, or leave it to its owner."""
    check_backend(backend)
    return open_backend(backend) if isinstance(backend, str) else nullcontext(backend)
