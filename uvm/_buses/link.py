"""What the devices of one VM share: access to its host and guest, its tasks, and its exit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.abc
from attrs import Factory, define, frozen

from uvm._async import Flag, Work
from uvm._buses.flights import Flights, Occupied
from uvm._buses.recent import Receiver, Sent, noted
from uvm._errands import Errand
from uvm._guest.access import has_gone, has_stopped
from uvm._guest.states import ContainerStates
from uvm._guest.stdio import StreamBrokenError
from uvm._home import Home
from uvm._index import Index
from uvm._log import Log
from uvm._repr import Value
from uvm.devices.base import Quarantined, Step
from uvm.errors import (
    BridgeClosedError,
    ExitStatus,
    HostError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
    VMStateError,
)
from uvm.schema.json import to_json
from uvm.schema.requests import ModificationRequest

if TYPE_CHECKING:
    from uvm.backend import JSON, Guest, Listener, System

T = TypeVar("T")

_log = Log("uvm")


@frozen(repr=False)
class StuckDevice(Value):
    r"""What stays on the host without a caller: an orphan, or what may be in a quarantined slot.

    :ivar what: the device, such as ``disk C:\a.vhdx``.
    :ivar where: its slot, such as ``SCSI controller 0, LUN 1``.
    :ivar why: what its removal, or the operation of unknown outcome, failed with.
    """

    what: str
    where: str
    why: str
    since: datetime


@define(eq=False, repr=False)
class Link:
    """What the devices of one VM share: access to its host and guest, its tasks, and its exit.

    :ivar tasks: the VM's task group; None unless the VM is running.
    :ivar in_flight: the devices that have an operation in flight.
    :ivar occupied: the guest paths of the devices.
    :ivar following: while a task notes that an operation has ended: the operations that this begins, which
        the task goes on with. Each is what :func:`uvm._buses.driver.carry_out` takes.
    :ivar left: holds without a caller whose release was refused, or is tried again, by what they occupy:
        orphans, unless others want the device.
    :ivar mounts: the directories of the host that are, or may be, mapped into containers.
    :ivar quarantined: what is withheld, each with the same for people.
    :ivar recent: its last requests to the host and the guest; None before the first.
    :ivar work: what its tasks have in flight.
    :ivar states: the states of the guest's containers that have ended.
    :ivar home: the event loop of the VM.
    :ivar closing: the VM is being closed: what began before goes on until the exit, and nothing else begins.
    :ivar disconnected: the connection to the guest was closed, for good, to save the VM as a template.
    :ivar saved: the VM is a template, and has its devices until it is closed, whatever is released.
    :ivar guest_went_alone: the connection to the guest has closed, and the VM has not exited.
    :ivar failure: returns what the task that holds the VM failed with.
    :ivar exit_grace_seconds: how long to wait for the exit itself after the host reported the VM as gone.
    :ivar guest_exit_seconds: the same after the connection to the guest closed.
    """

    vm_id: str
    system: System
    guest: Guest | None = None
    tasks: anyio.abc.TaskGroup | None = None
    exited: Flag = Factory(Flag)
    exit_status: ExitStatus | None = None
    exit_grace_seconds: float = 5.0
    guest_exit_seconds: float = 2.0
    quarantined: list[tuple[Quarantined[Hashable, object], StuckDevice]] = Factory(list)
    left: Index[Any] = Factory(Index)
    mounts: dict[Any, None] = Factory(dict)
    in_flight: Flights = Factory(Flights)
    occupied: Occupied = Factory(Occupied)
    following: list[tuple[Any, Any, Any]] | None = None
    recent: list[Sent] | None = None
    work: Work = Factory(Work)
    states: ContainerStates = Factory(
        lambda link: ContainerStates(link.occupied.inside, link.vm_id, link.work), takes_self=True
    )
    home: Home = Factory(Home.here)
    failure: Callable[[], BaseException | None] = lambda: None
    closing: bool = False
    why_not_running: str = "start it first"
    disconnected: bool = False
    saved: bool = False
    guest_went_alone: bool = False

    def check_running(self) -> Guest:
        """Return the guest of a VM that is running.

        :raises VMExitedError: it has exited, or was closed.
        :raises VMStateError: it has not been started, or belongs to another event loop.
        """
        self.check_open()
        return self._running_guest()

    def check_open(self) -> None:
        """Refuse what is asked of a VM that has exited or is closed, or from another event loop."""
        self.check_here()
        if self.closing or self.exited.is_set():
            raise self.exit_error()

    def check_here(self) -> None:
        """Refuse what another event loop asks of a VM that has not exited.

        :raises VMStateError: the VM belongs to another event loop.
        """
        if not self.exited.is_set():
            self.home.check(f"the VM {self.vm_id}")

    def _running_guest(self) -> Guest:
        guest = self._known_guest()
        if self.disconnected:
            raise VMStateError(f"{self.vm_id}: the VM is not running; {self.why_not_running}")
        return guest

    def _known_guest(self) -> Guest:
        if self.exited.is_set():
            raise self.exit_error()
        if self.guest is None or self.tasks is None:
            raise VMStateError(f"{self.vm_id}: the VM is not running; {self.why_not_running}")
        return self.guest

    def capabilities(self) -> Mapping[str, Any]:
        """Return what the guest reported of itself; raise as :meth:`check_running` does."""
        return self._known_guest().capabilities

    def exit_error(self) -> VMExitedError:
        """Return the error that says that the VM has exited."""
        error = VMExitedError(f"{self.vm_id}: the VM has exited", self.exit_status)
        error.__cause__ = self.failure()
        return error

    def start_soon(self, call: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Have the VM's tasks make a call, which must not raise; False once the VM has exited.

        :raises VMStateError: the VM belongs to another event loop.
        """
        self.check_here()
        if self.tasks is None or self.exited.is_set():
            return False
        self.work.start_soon(self.tasks, call)
        return True

    async def carry_out(
        self,
        operation: str,
        call: Callable[[], Awaitable[T]],
        give_up: Callable[[T], object] = lambda result: None,
    ) -> T:
        """Have a task of the VM make a call that changes it, and wait for the result.

        A caller who is cancelled leaves at once, and the call goes on; what it fails with is logged.

        :param operation: what it does, for the log and for spans.
        :param give_up: called with the result if the caller has left.
        :raises VMExitedError: the VM exits, or is closed, before the result.
        """
        self.check_open()
        assert self.tasks is not None
        self.work.begin()
        made = partial(self.work.carry_out, call)
        return await Errand(self.vm_id, operation, made, give_up).made_in(self.tasks, self.exit_error)

    async def properties(self, *types: str, queries: JSON | None = None) -> JSON:
        """Query properties of the system; raise what the host raised, or VMExitedError."""
        self.check_open()
        answer = await self.call(self.system.properties(*types, queries=queries))
        if has_stopped(answer) and await self._exit_comes(self.exit_grace_seconds):
            raise self.exit_error()
        return answer

    async def modify(self, request: JSON) -> None:
        """Change the running system; raise what the host raised, or VMExitedError."""
        self._running_guest()
        await self._noted("host", request, self.system.modify(request))

    async def modify_guest(self, request: JSON | ModificationRequest) -> None:
        """Change the guest; raise what it raised, or VMExitedError."""
        await self._noted("guest", request, self._running_guest().modify(request))

    async def _noted(self, to: Receiver, request: JSON | ModificationRequest, call: Awaitable[None]) -> None:
        if self.recent is None:
            self.recent = []
        await noted(self.recent, to, request, self.call(call))

    async def listen(self, service_id: str) -> Listener:
        """Listen for the guest to dial a service; raise what the host raised, or VMExitedError."""
        return await self.call(self.system.listen(service_id))

    async def send(self, step: Step) -> None:
        """Send one step of an operation."""
        if isinstance(step.request, ModificationRequest):
            await self.modify_guest(step.request)
        else:
            await self.modify(to_json(step.request))

    async def revoke(self, step: Step) -> None:
        """Send a step that removes a device; a guest that has exited holds none any more."""
        if isinstance(step.request, ModificationRequest):
            going = self._unless_gone(self._running_guest().modify(step.request))
            await self._noted("guest", step.request, going)
        else:
            await self.modify(to_json(step.request))

    async def _unless_gone(self, call: Awaitable[None]) -> None:
        try:
            await call
        except BridgeClosedError as error:
            _log.debug(self.vm_id, "the guest has exited, and holds nothing any more: %s", error)

    async def call(self, call: Awaitable[T]) -> T:
        """Await a call to the host or the guest; VMExitedError if it fails because the VM has exited."""
        try:
            return await self.call_guest(call)
        except HostError as error:
            if not error.system_gone or not await self._exit_comes(self.exit_grace_seconds):
                raise
            raise self.exit_error() from error

    async def call_guest(self, call: Awaitable[T], /) -> T:
        """Do as :meth:`call`, if what HCS reports as gone is a container rather than the VM."""
        try:
            self.check_here()
        except VMStateError:
            if isinstance(call, Coroutine):
                call.close()
            raise
        try:
            return await call
        except (VMExitedError, BridgeClosedError, UnknownOutcomeError, StreamBrokenError) as error:
            if not await self._failed_with_vm(error):
                raise
            raise self.exit_error() from error

    async def _failed_with_vm(self, error: UVMError) -> bool:
        """Return whether what failed did because the VM has exited, once that is reported."""
        if self.exited.is_set():
            return True
        if isinstance(error, BridgeClosedError) and not self.guest_went_alone:
            # A guest exits with its VM, but may also exit alone; that is waited for once.
            came = await self._exit_comes(self.guest_exit_seconds)
            self.guest_went_alone = not came
            return came
        with anyio.move_on_after(self.exit_grace_seconds):
            # One part of the host reports the exit before the others.
            if isinstance(error, VMExitedError) or await has_gone(self.system):
                await self.exited.wait()
        return self.exited.is_set()

    async def _exit_comes(self, seconds: float) -> bool:
        """Wait a little for the exit, which voids every operation, so that no answer is judged by itself."""
        with anyio.move_on_after(seconds):
            await self.exited.wait()
        return self.exited.is_set()
