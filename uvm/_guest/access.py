"""What processes and containers need of their guest, however it is reached."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import anyio.abc
from attrs import Factory, define, field, frozen

from uvm._errands import Errand
from uvm._guest.clock import GuestClock
from uvm._guest.states import ContainerStates
from uvm._guest.timeouts import GuestTimeouts
from uvm._home import Home
from uvm._log import Log
from uvm._repr import Value
from uvm.backend import JSON, System
from uvm.errors import AnswerLostError, BridgeClosedError, HostError, NotSupportedError, UVMError
from uvm.hresult import HResult

T = TypeVar("T")

_log = Log("uvm.gcs")

_CAPABILITIES: Final = {
    "signal_process": "SignalProcessSupported",
    "delete_container_state": "DeleteContainerStateSupported",
    "dump_stacks": "DumpStacksSupported",
    "namespace_add": "NamespaceAddRequestSupported",
    "host_process_container": "HostProcessContainerSupported",
    "log_forwarding": "LogForwardingSupported",
    "update_container": "UpdateContainerSupported",
}


@frozen(repr=False)
class GuestFeatures(Value):
    """What a guest says that it can do (hcsshim internal/gcs/guestcaps.go).

    :ivar signal_process: signals to processes; without it they can only be killed.
    :ivar delete_container_state: forgetting a container that has exited.
    :ivar dump_stacks: reporting the stacks of its compute service.
    :ivar namespace_add: network namespaces as objects of their own.
    :ivar host_process_container: containers that are processes of the guest itself. Windows only.
    :ivar log_forwarding: sending its logs to the host. Windows only.
    :ivar update_container: changing a container's resources by a call of its own. No known guest can.
    """

    signal_process: bool = False
    delete_container_state: bool = False
    dump_stacks: bool = False
    namespace_add: bool = False
    host_process_container: bool = False
    log_forwarding: bool = False
    update_container: bool = False

    @classmethod
    def of(cls, capabilities: Mapping[str, Any]) -> GuestFeatures:
        """Read them from a guest's ``GuestDefinedCapabilities``; what is not ``true`` is not there."""
        return cls(**{name: capabilities.get(said) is True for name, said in _CAPABILITIES.items()})


class Caller(Protocol):
    """Awaits a call to the guest, and raises what it raises, or says that the VM has exited."""

    def __call__(self, call: Awaitable[T], /) -> Awaitable[T]: ...


async def as_it_is(call: Awaitable[T], /) -> T:
    """Await a call."""
    return await call


@define(eq=False, repr=False)
class GuestAccess:
    """What processes and containers need of their guest.

    :ivar name: whose guest it is, for messages.
    :ivar os: the guest's operating system, ``"linux"`` or ``"windows"``.
    :ivar clock: measures every limit on what the guest does.
    :ivar call: awaits every call that a process or a container makes for its caller.
    :ivar states: the states of containers that have ended.
    :ivar tasks: runs what no caller waits for; None where the guest is out of reach.
    :ivar late_starts: what its callers did not wait for, and the guest has not answered.
    :ivar home: the event loop of the guest.
    :ivar processors: how many the VM has; 0 where that is not known.
    :ivar build: the build of Windows on the host; 0 where that is not known, or it is none.
    """

    name: str
    timeouts: GuestTimeouts
    os: str = ""
    features: GuestFeatures = GuestFeatures()
    clock: GuestClock = Factory(GuestClock)
    call: Caller = field(default=as_it_is, kw_only=True)
    states: ContainerStates = field(factory=ContainerStates, kw_only=True)
    tasks: anyio.abc.TaskGroup | None = field(default=None, kw_only=True)
    late_starts: set[object] = field(factory=set, kw_only=True)
    home: Home = field(factory=Home.here, kw_only=True)
    processors: int = field(default=0, kw_only=True)
    build: int = field(default=0, kw_only=True)

    def start_soon(self, call: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Have the VM's tasks make a call that must not raise; False where the guest is out of reach.

        :raises VMStateError: the guest belongs to another event loop.
        """
        if (tasks := self.tasks) is None:
            return False
        self.home.check(f"the guest of {self.name}")
        if tasks.cancel_scope.cancel_called:
            return False
        self.states.work.start_soon(tasks, call)
        return True

    def watch(self, call: Callable[..., Coroutine[Any, Any, None]], *args: object) -> bool:
        """Have the VM's tasks wait for something, which is no work; False where the guest is out of reach.

        :param call: must not raise, save when it is cancelled.
        """
        # anyio may never cancel what is started in a group whose tasks have ended after it was cancelled.
        if (tasks := self.tasks) is None or tasks.cancel_scope.cancel_called:
            return False
        tasks.start_soon(call, *args)
        return True

    async def carry_out(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        """Have a task of the VM make a call that changes something, and wait for the result.

        A caller who is cancelled leaves at once, and the call goes on; what it fails with is logged.
        """
        if (tasks := self.tasks) is None or tasks.cancel_scope.cancel_called:
            raise self.closed_error()
        self.home.check(f"the guest of {self.name}")
        self.states.work.begin()
        made = partial(self.states.work.carry_out, call)
        return await Errand(self.name, operation, made).made_in(tasks, self.answer_lost)

    def closed_error(self) -> BridgeClosedError:
        """Return a fresh exception that says why nothing can be asked any more."""
        return BridgeClosedError(f"{self.name}: the connection to the guest is closed")

    def answer_lost(self) -> AnswerLostError:
        """Return a fresh exception that says that it closed before an answer."""
        closed = self.closed_error()
        error = AnswerLostError(str(closed))
        error.__cause__ = closed.__cause__
        return error

    def needs(self, supported: bool, operation: str, capability: str) -> None:
        """Raise NotSupportedError, which names the capability, unless the guest has it."""
        if not supported:
            raise NotSupportedError(
                f"{operation}: the guest of {self.name} does not say that it can ({capability}); "
                "nothing was sent"
            )


async def has_gone(system: System) -> bool:
    """Ask the host whether a compute system has exited. What cannot be asked has not, as far as is known."""
    try:
        return has_stopped(await system.properties())
    except HostError as error:
        return error.system_gone or error.hresult == HResult.E_HANDLE
    except UVMError as error:
        _log.debug(system.id, "asking whether it has exited: %s", error)
        return False


def has_stopped(properties: JSON) -> bool:
    """Return whether a compute system has exited, by its properties."""
    return properties.get("Stopped") is True or properties.get("State") == "Stopped"
