"""The utility VM, from creation to close."""

from __future__ import annotations

import enum
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus

from uvm._async import Errand, Flag, bare_task_group, suggesting
from uvm._buses.context import Context
from uvm._checks import checked, instance, optional, seconds, text
from uvm._document.plan import CreationPlan
from uvm._gcs.connection import GuestConnection
from uvm._guest.timeouts import GuestTimeouts
from uvm._vm.base import ClosedOnLeaving, note_closing
from uvm._vm.creation import HostArtifacts, Settings, create
from uvm._vm.guest import GuestServices
from uvm._vm.keywords import check_settings
from uvm._vm.layers import RootFileSystems
from uvm._vm.settings import RuntimeSettings
from uvm._vm.startup import GuestStartup, OutputHandler
from uvm.backend import JSON, Backend, Concurrency, HostInfo, System
from uvm.backends import is_backend, open_backend
from uvm.errors import (
    BridgeClosedError,
    ExitStatus,
    HostError,
    OptionsError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
    VMStateError,
    own,
    together,
)
from uvm.hresult import SYSTEM_ENDED

if TYPE_CHECKING:
    from uvm.options import LCOWOptions, WCOWOptions

_log = logging.getLogger("uvm")

CLOSE_GRACE_SECONDS = 10.0
#: How long a guest may take to shut down before the VM is terminated (hcsshim internal/gcs/container.go).
SHUTDOWN_SECONDS = 30.0

#: The host did not report how the VM exited, nor whether it did.
_UNKNOWN_EXIT = ExitStatus("Unknown")

_ELSEWHERE = (
    "UtilityVM.create was entered in one task and left in another, which a task group does not allow; the VM "
    "was closed. uvm.start_vm returns a VM that any task may close"
)


class VMState(enum.Enum):
    """The states of a VM."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"
    CLOSED = "closed"


class UtilityVM(ClosedOnLeaving, RootFileSystems, RuntimeSettings, GuestServices):
    """A utility VM. :meth:`create` makes one, and closes it when its context is left.

    Devices are attributes: ``scsi``, ``vpmem``, ``vsmb``, ``plan9``, ``vpci``, ``pipes``, ``network``,
    ``layers``. Any number of tasks may use them at once.
    """

    def __init__(
        self, context: Context, system: System, artifacts: HostArtifacts, startup: GuestStartup
    ) -> None:
        super().__init__(context)
        context.link.guest_exit_seconds = startup.timeouts.vm_exit_seconds
        self._system = system
        self._artifacts = artifacts
        self._startup = startup
        self._state = VMState.CREATED
        self._system_exited = Flag()
        self._output_ended = Flag()
        self._closing = Flag()
        self._close_errors: list[Exception] | None = None
        self._closed = Flag()
        self._served = Flag()
        self._close_error: Exception | None = None
        self._close_error_raised = False
        self._keeper_ended: Callable[[], Awaitable[None]] | None = None
        self._booting = anyio.CancelScope()
        self._detached = False
        self._link.states.mounted = self._mounted_in

    @classmethod
    @suggesting
    @asynccontextmanager
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
        settings = Settings(concurrency, amend, close_grace_seconds)
        async with opened(backend) as host:
            context, system, artifacts = await create(options, host, settings)
            startup = GuestStartup(context, timeouts or GuestTimeouts(), guest_output)
            vm = cls(context, system, artifacts, startup)
            _log.info("%s: created", vm.id)
            async with bare_task_group(vm._leave, _ELSEWHERE) as tasks:
                with anyio.CancelScope(shield=True):
                    await tasks.start(vm._serve)
                yield vm

    async def __aenter__(self) -> Self:
        return self

    # Facts.

    def __repr__(self) -> str:
        return f"<UtilityVM {self.id} ({self.os}, {self._state.value})>"

    @property
    def id(self) -> str:
        """The id of the compute system."""
        return self._context.plan.id

    @property
    def runtime_id(self) -> str:
        """The Hyper-V VM id, a GUID."""
        return self._system.runtime_id

    @property
    def os(self) -> str:
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
    def state(self) -> VMState:
        """The state of the VM, as last reported by its calls and the host."""
        return self._state

    @property
    def exit_status(self) -> ExitStatus | None:
        """How the VM exited; None before the exit."""
        return self._link.exit_status

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """The capabilities that the guest announced, by their names in the protocol.

        :raises VMStateError: the VM has not been started.
        :raises VMExitedError: the VM has exited.
        """
        return self._link.capabilities()

    # From start to exit. Tasks of the VM do it, and note the result; callers only wait.

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
            await Errand(self.id, start).made_in(channels, self._link.exit_error)
        except anyio.get_cancelled_exc_class():
            self._link.why_not_running = "its start was cancelled, and it is being terminated"
            self._booting.cancel()
            if self._state is VMState.RUNNING:
                # It started just as its caller was cancelled.
                self._state = VMState.STARTING
                failure = VMStateError(f"start {self.id}: cancelled")
                self._link.work.start_soon(channels, partial(self._end_after, failure))
            raise

    async def _boot_or_end(self) -> None:
        try:
            await self._boot()
        except Exception as failure:
            await self._end_after(failure)
            raise
        self._unless_gone(VMState.RUNNING)
        _log.info("%s: started", self.id)

    async def _boot(self) -> None:
        """Boot until the guest is connected; VMExitedError if the VM exits or is closed meanwhile."""
        call, limit = self._link.call, self._startup.timeouts.boot_seconds
        failure: Exception | None = None
        with self._booting:
            try:
                with anyio.fail_after(limit):
                    await call(self._startup.listen())
                    await call(self._system.start())
                    guest = await call(self._startup.meet())
                    self._adopt_boot_devices()
                    self._link.guest = guest
            except TimeoutError as error:
                failure = BridgeClosedError(
                    f"start {self.id}: the guest did not connect within {limit:g} s; the VM was terminated"
                )
                failure.__cause__ = error
            except Exception as error:
                failure = error
        if self._link.exited.is_set() or self._closing.is_set():
            if self._closing.is_set():
                # The exit status is known once it is closed.
                await self._closed.wait()
            raise self._link.exit_error() from failure
        if self._booting.cancel_called:
            raise VMStateError(f"start {self.id}: cancelled; the VM was terminated")
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

    async def _end_cancelled(self) -> None:
        """Terminate a VM that started just as its caller was cancelled; what fails is logged."""
        cancelled = VMStateError(f"start {self.id}: cancelled")
        await self._end_after(cancelled)
        for note in getattr(cancelled, "__notes__", ()):
            _log.warning("%s: its start was cancelled, %s", self.id, note)

    async def wait(self) -> ExitStatus:
        """Wait until the VM has exited and its last output was read; return the exit status.

        Any number of tasks may wait. A handler of the output that does not return is abandoned after the
        grace period of :meth:`close`.
        """
        self._link.check_here()
        await self._system_exited.wait()
        await self._end_of_output()
        assert self.exit_status is not None
        return self.exit_status

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

    async def shutdown(self, *, timeout_seconds: float = SHUTDOWN_SECONDS) -> ExitStatus:
        """Ask the guest to shut down, wait for the exit, and terminate the VM if that takes too long.

        After the exit it succeeds quietly.

        :param timeout_seconds: how long to wait before the VM is terminated.
        :raises GuestError: the guest refused; the VM keeps running.
        """
        self._link.check_here()
        checked(timeout_seconds, seconds, "timeout_seconds")
        if self._state is VMState.CREATED:
            raise VMStateError(
                f"shut down {self.id}: the VM has not been started; terminate it, or leave its context"
            )
        with anyio.move_on_after(timeout_seconds), suppress(VMExitedError):
            await self._link.carry_out(self._ask_to_shut_down)
            return await self.wait()
        return await self.terminate()

    async def _ask_to_shut_down(self) -> None:
        guest = self._link.guest
        # If the answer is lost, the exit is the answer; a VM whose guest has gone is terminated.
        with suppress(BridgeClosedError, UnknownOutcomeError, VMExitedError):
            if isinstance(guest, GuestConnection):
                await guest.shutdown()
            else:
                await self._unless_stopped(self._system.shutdown())

    async def terminate(self) -> ExitStatus:
        """Terminate the VM and wait for the exit. After the exit it succeeds quietly."""
        with suppress(VMExitedError):
            await self._link.carry_out(self._terminate)
        return await self.wait()

    async def _terminate(self) -> None:
        await self._link.call(self._unless_stopped(self._system.terminate()))

    async def pause(self) -> None:
        """Pause the VM: its processors stop, and so do the time limits on its guest."""
        self._link.check_running()
        await self._link.carry_out(self._pause)

    async def _pause(self) -> None:
        clock = self._startup.clock
        was_paused = clock.paused
        # The guest may stop before the host answers.
        clock.pause()
        try:
            await self._link.call(self._system.pause())
        except BaseException:
            if not was_paused:
                clock.resume()
            raise
        self._unless_gone(VMState.PAUSED)

    async def resume(self) -> None:
        """Resume the paused VM: its processors go on, and so do the time limits on its guest."""
        self._link.check_running()
        await self._link.carry_out(self._resume)

    async def _resume(self) -> None:
        await self._link.call(self._system.resume())
        self._startup.clock.resume()
        self._unless_gone(VMState.RUNNING)

    def _unless_gone(self, state: VMState) -> None:
        """Note a state, unless the VM exited or was closed meanwhile."""
        if not self._link.exited.is_set() and not self._closing.is_set():
            self._state = state

    async def properties(self, *types: str, queries: JSON | None = None) -> JSON:
        """Query properties of the compute system (:meth:`uvm.backend.System.properties`)."""
        for name in types:
            checked(name, text, "a type of properties")
        checked(queries, optional(instance(dict)), "queries")
        return await self._link.properties(*types, queries=queries)

    def detach(self) -> None:
        """Leave the VM running when its context ends; needs the option ``survive_process``.

        Its file-access grants, and the files created for it, are kept.

        :raises VMStateError: the VM was created without that option.
        """
        if not self.options.survive_process:
            raise VMStateError(
                f"detach {self.id}: created with survive_process=False, the VM is terminated when its last "
                "handle closes"
            )
        self._detached = True

    async def close(self) -> None:
        """Close the VM, from any task of its event loop; a second close waits for the first.

        The VM is terminated, its access grants are revoked and its temporary files deleted. Each step that
        takes longer than the grace period is abandoned and reported as an error. A caller who is cancelled
        leaves at once, and the closing goes on.
        """
        if not self._closed.is_set():
            self._link.home.check(f"the VM {self.id}")
        self._begin_closing()
        await self._closed.wait()
        if not self._startup.in_output_handler:
            await self._output_ended.wait()
            if self._keeper_ended is not None:
                await self._keeper_ended()
        self._close_error_raised = True
        if self._close_error is not None:
            raise own(self._close_error)

    async def _wait_closing(self) -> None:
        """Wait until the VM is being closed."""
        await self._closing.wait()

    def _begin_closing(self) -> None:
        if not self._closing.is_set():
            self._state = VMState.CLOSED
            self._closing.set()
            self._link.closing = True
            if self._detached or self._link.tasks is None or self._link.exited.is_set():
                self._devices_gone()
            else:
                self._link.tasks.start_soon(self._end_to_close)

    async def _end_to_close(self) -> None:
        """Terminate the VM that is closed, so that what waits for it ends with its exit status."""
        try:
            self._close_errors = await self._step("terminating the VM", self._end_system)
        finally:
            self._devices_gone()

    async def _close_once(self) -> None:
        """Close the VM, unless that was done."""
        if self._closed.is_set():
            return
        self._begin_closing()
        try:
            errors = await self._close()
        finally:
            # An exit that the host did not report ends every wait for it all the same.
            self._exited(_UNKNOWN_EXIT)
            self._closed.set()
        if errors:
            self._close_error = together(f"closing {self.id}", errors)
        _log.info("%s: closed", self.id)

    async def _step(
        self, name: str, step: Callable[[], Awaitable[list[Exception] | None]]
    ) -> list[Exception]:
        """Carry out a step of closing within the grace period, and return its errors."""
        with anyio.move_on_after(self._grace_seconds) as scope:
            try:
                try:
                    return await step() or []
                except anyio.get_cancelled_exc_class():
                    if scope.cancel_called:
                        raise
                    # asyncio cancels each task once when its loop ends; what was cut off is done again.
                    return await step() or []
            except Exception as error:
                return [error]
        seconds = f"{self._grace_seconds:g} s"
        return [UVMError(f"close {self.id}: {name} did not finish within {seconds} and was abandoned")]

    async def _close(self) -> list[Exception]:
        errors = self._close_errors or []
        steps: dict[str, Callable[[], Awaitable[list[Exception] | None]]] = {
            "terminating the VM": self._end_system,
            "closing the connection to the guest": self._close_guest,
            # Before anything is revoked: a VM that could not be terminated ends with its last handle.
            "closing the handle of the VM": self._system.close,
            "revoking access": self._context.access.revoke_all,
            "keeping files for debugging": partial(self._artifacts.prepare, self.plan.copies_on_exit),
            "deleting temporary files": self._artifacts.remove,
        }
        if self._close_errors is not None:
            # That was done, before what waited for the VM had ended.
            del steps["terminating the VM"]
        if self._detached and not self._system_exited.is_set():
            steps = {name: step for name, step in steps.items() if name.startswith("closing")}
        for name, step in steps.items():
            errors += await self._step(name, step)
        for each in errors:
            _log.error("closing %s: %s", self.id, each)
        return errors

    @property
    def _grace_seconds(self) -> float:
        return self._link.exit_grace_seconds

    async def _end_system(self) -> None:
        if self.exit_status is None or self.exit_status is _UNKNOWN_EXIT:
            # If the answer is lost, the exit is the answer.
            with suppress(UnknownOutcomeError):
                await self._unless_stopped(self._system.terminate())
            self._exited(await self._system.wait())

    async def _close_guest(self) -> None:
        if self._link.guest is not None:
            self._link.guest.close()
        await self._startup.stop_listening()

    async def _leave(self, failure: BaseException | None) -> BaseException | None:
        """Close the VM; return the body's failure with the errors as notes, or else the errors."""
        self._begin_closing()
        with anyio.CancelScope(shield=True):
            if self._link.tasks is None:
                # The task that serves it was cancelled before it began.
                await self._close_once()
            else:
                # To its end: the task group, which is left next, is not to wait, and be cancelled.
                await self._served.wait()
        error = None if self._close_error_raised else self._close_error
        if failure is None or error is None:
            return failure or error
        note_closing(failure, error)
        return failure

    # The exit.

    async def _serve(self, *, task_status: TaskStatus[None]) -> None:
        """Own the tasks of the VM, wait for the exit, and close the VM: the VM's one standing task.

        It goes on until the VM is closed, also if the body is cancelled, which may still release, and shut
        down, in order.
        """
        try:
            with anyio.CancelScope(shield=True):
                try:
                    await self._until_exit(task_status)
                finally:
                    self._output_ended.set()
                await self._closing.wait()
        finally:
            # An event loop that ends cancels this task itself.
            try:
                with anyio.CancelScope(shield=True):
                    await self._close_once()
            finally:
                self._served.set()

    async def _until_exit(self, task_status: TaskStatus[None]) -> None:
        """Serve the VM until it has exited and its last output was read."""
        async with anyio.create_task_group() as channels:
            self._startup.channels = channels
            try:
                async with anyio.create_task_group() as tasks:
                    self._link.tasks = tasks
                    task_status.started()
                    self._exited(await self._exit())
                    tasks.cancel_scope.cancel()
            finally:
                self._devices_gone()
            if self._closing.is_set():
                await self._close_once()
            # A VM that is left running goes on writing, but its output is not read.
            left_running = self._detached and self.exit_status is _UNKNOWN_EXIT
            grace_seconds = 0.0 if left_running else self._grace_seconds
            channels.cancel_scope.deadline = anyio.current_time() + grace_seconds
            await self._startup.stop_listening()
        if channels.cancel_scope.cancelled_caught and not left_running:
            _log.warning("%s: the handler of its output was abandoned after %g s", self.id, grace_seconds)

    async def _exit(self) -> ExitStatus:
        try:
            return await self._system.wait()
        except Exception as error:
            _log.error("%s: lost track of the VM's state: %s", self.id, error)
            return _UNKNOWN_EXIT

    async def _end_of_output(self) -> None:
        # The handler of the output may wait for the exit, and cannot wait for itself.
        if not self._startup.in_output_handler:
            await self._output_ended.wait()

    def _exited(self, status: ExitStatus) -> None:
        if self._system_exited.is_set():
            return
        if self._detached and status is _UNKNOWN_EXIT:
            _log.info("%s: left running", self.id)
        else:
            _log.info("%s: exited: %s", self.id, status)
        self._link.exit_status = status
        if self._state is not VMState.CLOSED:
            self._state = VMState.EXITED
        self._system_exited.set()
        self._devices_gone()

    def _devices_gone(self) -> None:
        """End every device; every call that waits raises VMExitedError."""
        if self._link.exited.is_set():
            return
        self._link.exited.set()
        self._link.work.close()
        self._startup.clock.resume()
        self._booting.cancel()
        if self._link.guest is not None:
            self._link.guest.close()
        for _, driver in self._drivers():
            driver.gone()
        if self._link.tasks is not None:
            self._link.tasks.cancel_scope.cancel()

    async def _unless_stopped(self, call: Awaitable[None]) -> None:
        """Await a call, which also succeeds if the VM has stopped already."""
        try:
            await call
        except HostError as error:
            if error.hresult not in SYSTEM_ENDED:
                raise


def check_backend(backend: Backend | str) -> None:
    """Refuse what is neither a backend nor a name.

    :raises OptionsError: it is something else.
    """
    if not isinstance(backend, str) and not is_backend(backend):
        raise OptionsError(f"backend must be a Backend, or the name of one, not {backend!r}")


def opened(backend: Backend | str) -> AbstractAsyncContextManager[Backend]:
    """Open a backend by its name, or leave it to its owner."""
    if isinstance(backend, str):
        return open_backend(backend)
    if not is_backend(backend):
        raise OptionsError(f"backend must be a Backend, or the name of one, not {backend!r}")
    return nullcontext(backend)
