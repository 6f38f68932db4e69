"""The utility VM: its life, and its devices as attributes."""

from __future__ import annotations

import enum
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from uvm._async import Flag, bare_task_group
from uvm._buses import Buses
from uvm._buses.context import Context
from uvm._buses.lease import Pending
from uvm._document import CreationPlan
from uvm._gcs.connection import GuestConnection
from uvm._guest.timeouts import GuestTimeouts
from uvm._vm.creation import Settings, Traces, create, perform, take_back
from uvm._vm.guest import GuestServices
from uvm._vm.layers import LCOWLayer, RootFileSystem, WCOWLayer, mount_layers
from uvm._vm.settings import RunningChanges
from uvm._vm.startup import Arrival, OutputHandler
from uvm.backend import JSON, Backend, Concurrency, HostInfo, System
from uvm.errors import BridgeClosedError, ExitStatus, HostError, UnknownOutcomeError, UVMError, VMStateError
from uvm.hresult import SYSTEM_ENDED

if TYPE_CHECKING:
    from uvm.options import LCOWOptions, WCOWOptions

_log = logging.getLogger("uvm")

CLOSE_GRACE_SECONDS = 10.0
#: How long a guest may take to shut down before its VM is terminated (hcsshim internal/gcs/container.go).
SHUTDOWN_SECONDS = 30.0

#: Nobody was told how it ended, nor whether it did.
_UNKNOWN_EXIT = ExitStatus("Unknown")


class VMState(enum.Enum):
    """Where a VM is in its life."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"
    CLOSED = "closed"


class UtilityVM(Buses, RunningChanges, GuestServices):
    """A utility VM. Make one with :meth:`create`; it lives as long as that context.

    Devices are attributes: ``scsi``, ``vpmem``, ``vsmb``, ``plan9``, ``vpci``, ``pipes``, ``network``,
    ``layers``. Any number of tasks may use them at once.
    """

    def __init__(self, context: Context, system: System, traces: Traces, arrival: Arrival) -> None:
        super().__init__(context)
        context.link.guest_exit_seconds = arrival.timeouts.vm_exit_seconds
        self._system = system
        self._traces = traces
        self._arrival = arrival
        self._state = VMState.CREATED
        self._serving = Flag()
        self._system_exited = Flag()
        self._closed = Flag()
        self._exit_scopes: set[anyio.CancelScope] = set()
        self._detached = False

    @classmethod
    def create(
        cls,
        options: LCOWOptions | WCOWOptions,
        *,
        backend: Backend,
        concurrency: Concurrency | None = None,
        amend: Callable[[CreationPlan], CreationPlan] | None = None,
        timeouts: GuestTimeouts | None = None,
        guest_output: OutputHandler | None = None,
        close_grace_seconds: float = CLOSE_GRACE_SECONDS,
    ) -> AbstractAsyncContextManager[UtilityVM]:
        """Create a VM, and close it at the end of the ``async with``; enter and leave it in one task.

        An exception of the body comes out as it is. Closing ends the VM, waits for its exit, takes back
        what it was given on the host, and raises where any of that failed.

        :param concurrency: how many operations at once, in place of what the backend says of its host.
        :param amend: has the last word on the plan before anything is done, for what no option covers.
        :param timeouts: how long to wait for what the guest does.
        :param guest_output: what is done with the guest's output, its log; by default it is parsed and goes
            to the logger ``uvm.guest``. See :data:`~uvm._vm.startup.OutputHandler`.
        :param close_grace_seconds: how long closing waits for what hangs before it abandons it.
        :raises OptionsError: the options cannot work on this host; nothing was created.
        :raises NotSupportedError: the host is too old for them; nothing was created.
        :raises HostError: the host refused.
        """
        settings = Settings(concurrency, amend, close_grace_seconds)
        return _created(cls, options, backend, settings, timeouts or GuestTimeouts(), guest_output)

    # What it is.

    def __repr__(self) -> str:
        return f"<UtilityVM {self.id} ({self.os}, {self._state.value})>"

    @property
    def id(self) -> str:
        """The id of its compute system."""
        return self.context.plan.id

    @property
    def runtime_id(self) -> str:
        """The Hyper-V VM id, a GUID."""
        return self._system.runtime_id

    @property
    def os(self) -> str:
        """The guest's operating system: ``"linux"`` or ``"windows"``."""
        return self.context.plan.os

    @property
    def options(self) -> LCOWOptions | WCOWOptions:
        """The options that it was created with."""
        return self.context.options

    @property
    def host(self) -> HostInfo:
        """The facts of its host."""
        return self.context.host

    @property
    def plan(self) -> CreationPlan:
        """What was decided at its creation: the document, the boot devices, the reserved slots."""
        return self.context.plan

    @property
    def state(self) -> VMState:
        """Where it is in its life."""
        return self._state

    @property
    def exit_status(self) -> ExitStatus | None:
        """How it exited; None while it has not."""
        return self.link.exit_status

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """What its guest said of itself.

        :raises VMStateError: it has not been started.
        """
        return self.link.capabilities()

    # Its life.

    async def start(self) -> None:
        """Start it and wait until its guest is connected. Where that fails, it is terminated.

        :raises VMStateError: it was started before.
        :raises BridgeClosedError: the guest did not connect in time.
        :raises VMExitedError: it exited while it booted.
        """
        if self._state is VMState.EXITED or self._state is VMState.CLOSED:
            raise self.link.exit_error()
        if self._state is not VMState.CREATED:
            raise VMStateError(f"{self.id}: cannot be started: it is {self._state.value}")
        self._state = VMState.STARTING
        limit = self._arrival.timeouts.boot_seconds
        try:
            async with self._until_gone():
                with anyio.fail_after(limit):
                    await self._boot()
        except BaseException as failure:
            await self._end_after(failure)
            if isinstance(failure, TimeoutError):
                raise BridgeClosedError(
                    f"{self.id}: the guest did not connect within {limit:g} s; the VM was terminated"
                ) from failure
            raise
        self._state = VMState.RUNNING

    async def _boot(self) -> None:
        call = self.link.call
        await call(self._arrival.listen())
        await call(self._system.start())
        guest = await call(self._arrival.meet())
        self.adopt_boot_devices()
        self.link.guest = guest

    async def _end_after(self, failure: BaseException) -> None:
        """End what did not start; what fails then is told with the failure."""
        with anyio.move_on_after(self._grace_seconds, shield=True) as scope:
            try:
                # Whoever closes it meanwhile ends it, and tells what fails.
                if self._state is not VMState.CLOSED:
                    await self._end_system()
            except Exception as error:
                if self._state is not VMState.CLOSED:
                    failure.add_note(f"and ending the VM failed: {error}")
            await self._arrival.stop_listening()
        if scope.cancelled_caught:
            failure.add_note(f"and ending the VM was abandoned after {self._grace_seconds:g} s")

    @asynccontextmanager
    async def _until_gone(self) -> AsyncIterator[None]:
        """Let the body run until the VM exits or is closed; VMExitedError then, whatever the body raises."""
        failure: Exception | None = None
        with anyio.CancelScope() as scope:
            self._exit_scopes.add(scope)
            try:
                yield
            except Exception as error:
                failure = error
            finally:
                self._exit_scopes.discard(scope)
        if self.link.exited.is_set():
            if self._state is VMState.CLOSED:
                # Who closes it learns how it ended.
                await self._closed.wait()
            raise self.link.exit_error() from failure
        if failure is not None:
            raise failure

    async def wait(self) -> ExitStatus:
        """Wait until it has exited, and tell how. Any number of tasks may wait."""
        await self._system_exited.wait()
        assert self.exit_status is not None
        return self.exit_status

    async def shutdown(self, *, timeout_seconds: float = SHUTDOWN_SECONDS) -> ExitStatus:
        """Ask the guest to shut down, wait for the exit, and terminate the VM where it takes too long.

        After the exit it succeeds quietly.

        :param timeout_seconds: how long to wait before the VM is terminated.
        :raises GuestError: the guest refused; the VM goes on.
        """
        if not self._system_exited.is_set():
            self._check_started()
            with anyio.move_on_after(timeout_seconds):
                await self._ask_to_shut_down()
                return await self.wait()
        return await self.terminate()

    async def _ask_to_shut_down(self) -> None:
        guest = self.link.guest
        # Where the answer is lost, the exit tells; a guest that has gone leaves its VM to be terminated.
        with suppress(BridgeClosedError, UnknownOutcomeError):
            if isinstance(guest, GuestConnection):
                await guest.shutdown()
            else:
                await self._unless_stopped(self._system.shutdown())

    async def terminate(self) -> ExitStatus:
        """End it at once and wait for the exit. After the exit it succeeds quietly."""
        if not self._system_exited.is_set():
            await self._unless_stopped(self._system.terminate())
        return await self.wait()

    async def pause(self) -> None:
        """Pause the VM: its processors stop, and the limits on what its guest does with them."""
        self.link.check_running()
        clock = self._arrival.clock
        was_paused = clock.paused
        # The guest may stand still before the host answers.
        clock.pause()
        try:
            await self.link.call(self._system.pause())
        except BaseException:
            if not was_paused:
                clock.resume()
            raise
        self._unless_gone(VMState.PAUSED)

    async def resume(self) -> None:
        """Resume the paused VM: its processors and the limits on what its guest does go on."""
        self.link.check_running()
        await self.link.call(self._system.resume())
        self._arrival.clock.resume()
        self._unless_gone(VMState.RUNNING)

    def _unless_gone(self, state: VMState) -> None:
        """Note a state, unless the VM exited while that was done."""
        if not self.link.exited.is_set():
            self._state = state

    async def properties(self, *types: str, queries: JSON | None = None) -> JSON:
        """Query properties of the compute system (:meth:`uvm.backend.System.properties`)."""
        if self._state is VMState.CLOSED:
            raise self.link.exit_error()
        return await self._system.properties(*types, queries=queries)

    def detach(self) -> None:
        """Leave it running when its context ends; needs the option ``survive_process``.

        What it was given on the host stays given.

        :raises VMStateError: it was not created with that option.
        """
        if not self.options.survive_process:
            raise VMStateError(f"{self.id}: it ends with its last handle; create it with survive_process")
        self._detached = True

    async def close(self) -> None:
        """End it now rather than at the end of its context. Closing it again does nothing.

        Terminates it, waits for its exit, and takes back what it was given on the host. What still hangs
        after the grace period is abandoned and reported.
        """
        with anyio.CancelScope(shield=True):
            if self._state is VMState.CLOSED:
                await self._closed.wait()
                return
            self._state = VMState.CLOSED
            try:
                errors = await self._close()
            finally:
                # Where nobody was told of an exit, whoever waits for it is let go all the same.
                self._exited(_UNKNOWN_EXIT)
                self._closed.set()
        if errors:
            raise errors[0] if len(errors) == 1 else ExceptionGroup(f"closing {self.id}", errors)

    async def _close(self) -> list[Exception]:
        errors: list[Exception] = []
        self._devices_gone()
        # The handle goes before anything is taken back: what could not be terminated ends with it.
        steps = [self._end_system, self._close_guest, self._close_handle]
        if self._detached and not self._system_exited.is_set():
            steps = [self._close_guest, self._close_handle]
        else:
            steps += [self._revoke, self._keep, self._take_back]
        for step in steps:
            with anyio.move_on_after(self._grace_seconds) as scope:
                try:
                    await step()
                except ExceptionGroup as group:
                    errors += group.exceptions
                except Exception as error:
                    errors.append(error)
            if scope.cancelled_caught:
                name = step.__name__.strip("_").replace("_", " ")
                errors.append(
                    UVMError(f"{self.id}: closing abandoned {name!r} after {self._grace_seconds:g} s")
                )
        for each in errors:
            _log.error("%s: closing: %s", self.id, each)
        return errors

    @property
    def _grace_seconds(self) -> float:
        return self.link.exit_grace_seconds

    async def _end_system(self) -> None:
        if self.exit_status is None or self.exit_status is _UNKNOWN_EXIT:
            # Where the answer is lost, the exit tells.
            with suppress(UnknownOutcomeError):
                await self._unless_stopped(self._system.terminate())
            self._exited(await self._system.wait())

    async def _close_guest(self) -> None:
        if self.link.guest is not None:
            self.link.guest.close()
        await self._arrival.stop_listening()

    async def _revoke(self) -> None:
        _raise_all(await self.context.access.revoke_all())

    async def _keep(self) -> None:
        await perform(self.plan.keepsakes, self.plan, self.context.backend, self._traces)

    async def _take_back(self) -> None:
        _raise_all(await take_back(self._traces, self.context.backend, self.id))

    async def _close_handle(self) -> None:
        await self._system.close()

    # Containers.

    def mount_layers(
        self,
        container_id: str,
        layers: Sequence[LCOWLayer | WCOWLayer | str],
        scratch_path: str,
        *,
        root: str = "",
    ) -> Pending[RootFileSystem]:
        """Attach layers and a scratch disk and have the guest combine them to a root file system.

        See :func:`uvm._vm.layers.mount_layers`.
        """
        return mount_layers(self, container_id, layers, scratch_path, root=root)

    # What the end of the system brings.

    async def _serve(self) -> None:
        """The VM's one standing task: it owns the tasks of the devices and waits for the exit.

        It ends with the exit, or when the VM is closed, and not before: a body that is cancelled may still
        release, and shut down, in order.
        """
        async with anyio.create_task_group() as channels:
            channels.cancel_scope.shield = True
            self._arrival.channels = channels
            try:
                async with anyio.create_task_group() as tasks:
                    self.link.tasks = tasks
                    self._serving.set()
                    if not self.link.exited.is_set():
                        self._exited(await self._exit())
                    tasks.cancel_scope.cancel()
            finally:
                self._devices_gone()
            # One that was left running goes on talking, but not to us.
            left_running = self._detached and self.exit_status in (None, _UNKNOWN_EXIT)
            grace_seconds = 0.0 if left_running else self._grace_seconds
            channels.cancel_scope.deadline = anyio.current_time() + grace_seconds
            await self._arrival.stop_listening()
        if channels.cancel_scope.cancelled_caught and not left_running:
            _log.warning("%s: the handler of its output was abandoned after %g s", self.id, grace_seconds)

    async def _exit(self) -> ExitStatus:
        try:
            return await self._system.wait()
        except Exception as error:
            _log.error("%s: nobody can tell any more whether it runs: %s", self.id, error)
            return _UNKNOWN_EXIT

    def _exited(self, status: ExitStatus) -> None:
        if self._system_exited.is_set():
            return
        _log.info("%s: exited: %s", self.id, status)
        self.link.exit_status = status
        if self._state is not VMState.CLOSED:
            self._state = VMState.EXITED
        self._system_exited.set()
        self._devices_gone()

    def _devices_gone(self) -> None:
        """End everything that is attached or on its way, quietly; who waits for something is told."""
        if self.link.exited.is_set():
            return
        self.link.exited.set()
        self._arrival.clock.resume()
        for scope in self._exit_scopes:
            scope.cancel()
        if self.link.guest is not None:
            self.link.guest.close()
        for _, driver in self.drivers():
            driver.gone()
        if self.link.tasks is not None:
            self.link.tasks.cancel_scope.cancel()

    def _check_started(self) -> None:
        if self._state is VMState.CREATED:
            raise VMStateError(f"{self.id}: it has not been started; terminate it, or leave its context")

    async def _unless_stopped(self, call: Awaitable[None]) -> None:
        """Await a call, and take "it has stopped already" for success."""
        try:
            await call
        except HostError as error:
            if error.hresult not in SYSTEM_ENDED:
                raise


@asynccontextmanager
async def _created(
    cls: type[UtilityVM],
    options: LCOWOptions | WCOWOptions,
    backend: Backend,
    settings: Settings,
    timeouts: GuestTimeouts,
    output: OutputHandler | None,
) -> AsyncIterator[UtilityVM]:
    context, system, traces = await create(options, backend, settings)
    arrival = Arrival(context, timeouts, output)
    vm = cls(context, system, traces, arrival)
    async with bare_task_group(partial(_close_after, vm)) as tasks:
        tasks.start_soon(vm._serve)
        with anyio.CancelScope(shield=True):
            await vm._serving.wait()
        yield vm


async def _close_after(vm: UtilityVM, failure: BaseException | None) -> BaseException | None:
    """Close a VM; what fails then is told with the body's failure, or is the failure."""
    try:
        await vm.close()
    except Exception as error:
        if failure is None:
            return error
        for each in error.exceptions if isinstance(error, ExceptionGroup) else (error,):
            failure.add_note(f"and closing the VM failed: {each}")
    return failure


def _raise_all(errors: list[Exception]) -> None:
    if errors:
        raise ExceptionGroup("not all was taken back", errors)
