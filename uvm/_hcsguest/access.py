"""A guest as HCS reaches it, and the tasks that serve what HCS made there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

import anyio
import anyio.abc
from attrs import define

from uvm._async import Flag
from uvm._guest.access import GuestAccess, has_gone
from uvm._guest.exit import Exit
from uvm._guest.starts import Start, start_in_task
from uvm._log import Log
from uvm.backend import JSON, HostProcess, System
from uvm.errors import HostError, UnknownOutcomeError, UVMError, own
from uvm.hresult import HResult

E = TypeVar("E")
T = TypeVar("T")

_log = Log("uvm.gcs")


@define(eq=False, repr=False, kw_only=True)
class RelayAccess(GuestAccess):
    """A guest as HCS reaches it.

    :ivar system: the VM.
    :ivar create: creates a compute system (:meth:`uvm.backend.Backend.create`).
    :ivar tasks: runs what serves the processes and the containers; it ends with the VM.
    :ivar owner: whose containers are.
    :ivar container: the container that is meant, a compute system of its own; None for the guest itself.
    """

    system: System
    create: Callable[[str, JSON], Awaitable[System]]
    tasks: anyio.abc.TaskGroup
    owner: str = ""
    container: System | None = None

    async def lost_with_vm(self, error: Exception) -> bool:
        """Return whether HCS refused because the VM has gone, and not only a container of it."""
        if isinstance(error, HostError):
            if self.container is None:
                return error.system_gone
            if not error.system_gone and error.hresult != HResult.HCS_E_UNEXPECTED_EXIT:
                return False
        return await has_gone(self.system)

    async def ask(self, call: Awaitable[T]) -> T:
        """Await a call to HCS; BridgeClosedError where it is refused because the VM has gone."""
        try:
            return await call
        except HostError as error:
            if await self.lost_with_vm(error):
                raise self.closed_error() from error
            raise


class Relayed(ABC, Generic[E]):
    """What HCS made in the guest: a process, or a container, with a task of its own.

    :ivar exit: its exit, to be.
    """

    def __init__(self, access: RelayAccess, made: HostProcess | System, name: str) -> None:
        self.exit: Exit[E] = Exit()
        self._access = access
        self._made = made
        self._name = name
        # Its VM went.
        self._cut_off = False
        # No caller can use its handle any more, or needs it.
        self._unused = Flag()
        self._closed = Flag()
        self._waiting = anyio.CancelScope()
        access.tasks.start_soon(self._serve)

    @abstractmethod
    async def _report_exit(self) -> None:
        """Wait for its exit, and report it."""

    async def _serve(self) -> None:
        """Wait for its exit, and close the handle once it is not used any more: the task of its own."""
        limits = self._access.timeouts
        # A VM that is closed does not wait for a handle.
        seconds = limits.grace_seconds
        try:
            await self._await_exit()
            await self._unused.wait()
            seconds = limits.close_seconds
        except BaseException:
            self._cut()
            raise
        finally:
            with anyio.move_on_after(seconds, shield=True):
                await self._close()
            self._closed.set()

    async def _await_exit(self) -> None:
        try:
            with self._waiting:
                await self._report_exit()
        except Exception as error:
            # Whatever it is, the VM goes on.
            if await self._access.lost_with_vm(error):
                self._cut()
                return
            _log.debug(self._access.name, "waiting for %s: %r", self._name, error)
            failure = (
                error
                if isinstance(error, UVMError)
                else UnknownOutcomeError(f"wait for {self._name}: {error!r}")
            )
            # It may run.
            self.exit.lose(partial(own, failure), cut_off=True)

    async def _close(self) -> None:
        try:
            await self._made.close()
        except Exception as error:
            # Nothing depends on it any more; what does go on is not to be ended by it.
            _log.warning(self._access.name, "closing the handle of %s: %r", self._name, error)

    def _cut(self) -> None:
        """Note that its VM has gone."""
        self._cut_off = True
        self.exit.lose(self._access.closed_error, cut_off=True)

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call to HCS; BridgeClosedError where the VM has gone, or goes meanwhile."""
        if self._cut_off:
            raise self._access.closed_error()
        try:
            return await self._access.ask(call())
        except HostError as error:
            if self._cut_off:
                raise self._access.closed_error() from error
            raise


async def start_served(
    access: RelayAccess,
    operation: str,
    make: Callable[[], Awaitable[T]],
    undo: Callable[[T], Awaitable[None]] | None,
) -> T:
    """Have HCS make something in a task of the VM.

    A cancelled caller leaves at once; what is made is ended as soon as HCS has answered.

    :param operation: what is made, for messages.
    :param undo: ends what was made after its caller had left; None for what ends by itself.
    :raises AnswerLostError: the VM went before the answer.
    :raises VMStateError: HCS, or the guest, owes too many answers.
    """

    async def begin(start: Start[T]) -> T:
        try:
            return await make()
        except anyio.get_cancelled_exc_class():
            start.send_away(access.answer_lost())
            raise

    return await start_in_task(access, operation, begin, undo)
