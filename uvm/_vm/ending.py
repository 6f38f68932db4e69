"""How a VM ends: its exit, and its closing.

How it works
------------

A VM exits once, and is closed once; either may come first. One task, :meth:`Ending._serve`, owns all other
tasks of the VM, and carries out its end, whichever task asked for it::

    the task that serves                     a caller
      waits for the exit                       shutdown, terminate: ask the guest or the host, and wait
      ends each device, and all that waits
      reads the last output                    wait: returns the exit status
      waits until it is to be closed           close, or the end of the context: begins that, and waits
      terminates the VM if it runs, once it has left a CPU group that it was moved into
      closes, revokes and deletes: each step
      within the grace period                  close: raises what failed

A closing that begins before the exit terminates the VM at once, in a task of its own, so that what waits for
it ends with the exit status. A detached VM is left running, and only its handles are closed.

A caller who is cancelled leaves at once, and the closing goes on. An event loop that ends cancels the task
that serves as well, which finishes the closing all the same; a step that was cut off is done again.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

import anyio

from uvm._async import Flag, note_failed
from uvm._buses.context import Context
from uvm._checks import checked, seconds
from uvm._gcs.connection import GuestConnection
from uvm._log import Log
from uvm._observed import Door, Observed, Outcome, observe
from uvm._vm.base import ClosedOnLeaving
from uvm._vm.creation import HostArtifacts
from uvm._vm.devices import Devices
from uvm._vm.settings import RuntimeSettings
from uvm._vm.startup import GuestStartup
from uvm.backend import System
from uvm.errors import (
    BridgeClosedError,
    ExitStatus,
    HostError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
    VMStateError,
    own,
    together,
)
from uvm.hresult import SYSTEM_ENDED

_log = Log("uvm")

#: How long a guest may take to shut down before the VM is terminated (hcsshim internal/gcs/container.go).
SHUTDOWN_SECONDS = 30.0

#: The host did not report how the VM exited, nor whether it did.
_UNKNOWN_EXIT = ExitStatus("Unknown")


class VMState(enum.Enum):
    """The states of a VM."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SAVED = "saved"  # as a template
    EXITED = "exited"
    CLOSED = "closed"


class Ending(Devices, RuntimeSettings, ClosedOnLeaving):
    """The exit and the closing of a VM. A part of :class:`~uvm._vm.vm.UtilityVM`."""

    def __init__(
        self, context: Context, system: System, artifacts: HostArtifacts, startup: GuestStartup
    ) -> None:
        super().__init__(context)
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
        #: While it boots: cancelled by the exit, and if the caller of the start is.
        self._booting: anyio.CancelScope | None = None
        self._start_cancelled = False
        self._detached = False
        self._started_at: datetime | None = None
        self._exited_at: datetime | None = None

    @property
    def state(self) -> VMState:
        """The state of the VM, as last reported by its calls and the host."""
        return self._state

    @property
    def exit_status(self) -> ExitStatus | None:
        """How the VM exited; None before the exit."""
        return self._link.exit_status

    @property
    def exited_at(self) -> datetime | None:
        """When the host reported the exit, in UTC; None before."""
        return self._exited_at

    # What ends it.

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

    async def _end_of_output(self) -> None:
        # The handler of the output may wait for the exit, and cannot wait for itself.
        if not self._startup.in_output_handler:
            await self._output_ended.wait()

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
        if self._state is VMState.SAVED:
            raise VMStateError(f"shut down {self.id}: it was saved as a template; terminate it, or close it")
        with anyio.move_on_after(timeout_seconds), suppress(VMExitedError):
            await self._link.carry_out("shut down", self._ask_to_shut_down)
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
            await self._link.carry_out("terminate", self._terminate)
        return await self.wait()

    async def _terminate(self) -> None:
        await self._link.call(self._unless_stopped(self._system.terminate()))

    def detach(self) -> None:
        """Leave the VM running when its context ends; needs the option ``survive_process``.

        Its file-access grants, and the files created for it, are kept.

        :raises VMStateError: the VM was created without that option.
        """
        if not self._context.options.survive_process:
            raise VMStateError(
                f"detach {self.id}: created with survive_process=False, the VM is terminated when its last "
                "handle closes"
            )
        self._detached = True

    # The closing.

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
            for each in await self._step("leaving the CPU group", self._leave_cpu_group):
                _log.warning(self.id, "closing it: %s", each, operation="close")
            self._close_errors = await self._step("terminating the VM", self._end_system)
        finally:
            self._devices_gone()

    async def _close_once(self) -> None:
        """Close the VM, unless that was done."""
        if self._closed.is_set():
            return
        self._begin_closing()
        try:
            what = Observed(Door.VM, self.id, "close")
            if errors := await observe(what, self._close, _closed):
                self._close_error = together(f"closing {self.id}", errors)
        finally:
            # An exit that the host did not report ends every wait for it all the same.
            self._exited(_UNKNOWN_EXIT)
            self._closed.set()
        _log.info(self.id, "closed")

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
        for name, step in self._steps():
            errors += await self._step(name, step)
        for each in errors:
            _log.error(self.id, "closing it: %s", each, operation="close")
        return errors

    def _steps(self) -> Iterator[tuple[str, Callable[[], Awaitable[list[Exception] | None]]]]:
        """Yield the steps of closing for which there is something to do."""
        left_running = self._detached and not self._system_exited.is_set()
        # It may have been terminated before what waited for it had ended.
        if self._close_errors is None and not left_running:
            yield "terminating the VM", self._end_system
        yield "closing the connection to the guest", self._close_guest
        # Before anything is revoked: a VM that could not be terminated ends with its last handle.
        yield "closing the handle of the VM", self._system.close
        if left_running:
            return
        if self._context.access.any_granted:
            yield "revoking access", self._context.access.revoke_all
        if copies := self._context.plan.copies_on_exit:
            yield "keeping files for debugging", partial(self._artifacts.prepare, copies)
        if self._artifacts.to_remove:
            yield "deleting temporary files", self._artifacts.remove

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
        note_failed(failure, "closing the VM", error)
        return failure

    # The exit.

    async def _serve(self, serving: Flag) -> None:
        """Own the tasks of the VM, wait for the exit, and close the VM: the VM's one standing task.

        It goes on until the VM is closed, also if the body is cancelled, which may still release, and shut
        down, in order.
        """
        try:
            try:
                await self._until_exit(serving)
            finally:
                self._output_ended.set()
            if not self._closing.is_set():
                with anyio.CancelScope(shield=True):
                    await self._closing.wait()
        finally:
            # An event loop that ends cancels this task itself.
            try:
                if not self._closed.is_set():
                    with anyio.CancelScope(shield=True):
                        await self._close_once()
            finally:
                self._served.set()

    async def _until_exit(self, serving: Flag) -> None:
        """Serve the VM until it has exited and its last output was read; no cancellation ends that."""
        async with anyio.create_task_group() as channels:
            channels.cancel_scope.shield = True
            self._startup.channels = channels
            try:
                async with anyio.create_task_group() as tasks:
                    self._link.tasks = tasks
                    serving.set()
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
            _log.warning(self.id, "the handler of its output was abandoned after %g s", grace_seconds)

    async def _exit(self) -> ExitStatus:
        try:
            return await self._system.wait()
        except Exception as error:
            _log.error(self.id, "lost track of the VM's state: %s", error)
            return _UNKNOWN_EXIT

    def _exited(self, status: ExitStatus) -> None:
        if self._system_exited.is_set():
            return
        if self._detached and status is _UNKNOWN_EXIT:
            _log.info(self.id, "left running")
        else:
            _log.info(self.id, "exited: %s", status)
        if status is not _UNKNOWN_EXIT:
            self._exited_at = datetime.now(UTC)
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
        if self._booting is not None:
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


def _closed(errors: list[Exception]) -> tuple[Outcome, Exception | None]:
    """Return how closing a VM ended, and the first of what failed; its other steps have changed much."""
    return ("unknown", errors[0]) if errors else ("ok", None)
