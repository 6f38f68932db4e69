"""A guest as HCS reaches it, and the tasks that serve what HCS made there."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import anyio.abc
from attrs import define, field

from uvm._async import Flag
from uvm._guest.access import GuestAccess
from uvm.backend import JSON, System
from uvm.errors import AnswerLostError, HostError, UVMError
from uvm.hresult import HResult

T = TypeVar("T")

_log = logging.getLogger("uvm.gcs")


@define(eq=False, kw_only=True)
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

    @property
    def target(self) -> System:
        """The compute system in which processes are started."""
        return self.system if self.container is None else self.container

    async def lost_with_vm(self, error: HostError) -> bool:
        """Return whether HCS refused because the VM has gone, and not only a container of it."""
        if self.container is None:
            return error.system_gone
        cut_off = error.system_gone or error.hresult == HResult.HCS_E_UNEXPECTED_EXIT
        return cut_off and await self.vm_has_gone()

    async def ask(self, call: Awaitable[T]) -> T:
        """Await a call to HCS; BridgeClosedError where it is refused because the VM has gone."""
        try:
            return await call
        except HostError as error:
            if await self.lost_with_vm(error):
                raise self.closed_error() from error
            raise

    async def vm_has_gone(self) -> bool:
        """Ask HCS whether the VM has exited."""
        try:
            answer = await self.system.properties()
        except HostError as error:
            return error.system_gone or error.hresult == HResult.E_HANDLE
        except UVMError as error:
            # The caller gets the exit later, by the end of the task group.
            _log.debug("%s: asking whether the VM has gone: %s", self.name, error)
            return False
        return answer.get("Stopped") is True or answer.get("State") == "Stopped"


class Served(Protocol):
    """What HCS made, with a task of its own."""

    async def serve(self) -> None:
        """Serve it until no caller can want it any more."""

    def abandon(self) -> None:
        """End it in the background: its caller was cancelled."""


S = TypeVar("S", bound=Served)


async def start_served(access: RelayAccess, make: Callable[[], Awaitable[S]]) -> S:
    """Have HCS make something in a task of the VM, which serves it from then on.

    A caller may be cancelled at any time; what is made is abandoned as soon as HCS has answered.

    :raises AnswerLostError: the VM went before the answer.
    """
    start = _Start(access, make)
    access.tasks.start_soon(start.run)
    try:
        await start.answered.wait()
    except BaseException:
        start.abandon()
        raise
    return start.result()


@define(eq=False)
class _Start(Generic[S]):
    """The making of something, in its task, and the caller who waits for it."""

    access: RelayAccess
    make: Callable[[], Awaitable[S]]
    answered: Flag = field(factory=Flag, init=False)
    _abandoned: bool = field(default=False, init=False)
    _made: S | None = field(default=None, init=False)
    _failure: Exception | None = field(default=None, init=False)

    async def run(self) -> None:
        """Make it, and serve it from then on."""
        try:
            self._made = await self.make()
        except Exception as error:
            if self._abandoned:
                _log.debug("%s: what a cancelled caller wanted: %s", self.access.name, error)
            self._failure = error
        finally:
            self.answered.set()
        if self._made is not None:
            if self._abandoned:
                self._made.abandon()
            await self._made.serve()

    def abandon(self) -> None:
        """Note that the caller was cancelled."""
        self._abandoned = True
        if self._made is not None:
            self._made.abandon()

    def result(self) -> S:
        """Return what was made, or raise why there is nothing."""
        if self._made is not None:
            return self._made
        if self._failure is not None:
            raise self._failure
        closed = self.access.closed_error()
        raise AnswerLostError(str(closed)) from closed.__cause__
