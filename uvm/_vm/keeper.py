"""Tasks that belong to no task of the user: the only ones of the library that are in no task group.

How it works
------------

A VM owns a task group, which is left in the task that entered it. A :class:`Keeper` is a task in which a VM,
or another context manager, is entered, held and left, so that any task of the event loop may close it::

    caller                        keeper
      open ------------------->     enters it
      <------ what it yields        waits until it is to end
      ...
      vm.close() ------------->     leaves it
      wait_ended <-------------     notes what that failed with

A caller who is cancelled leaves at once, and the keeper undoes what it began. An event loop that ends
cancels the keeper, which leaves what it holds, and warns. asyncio holds its tasks weakly, so that they are
held here.
"""

from __future__ import annotations

import contextvars
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

import anyio
from attrs import define, field

from uvm._async import Flag, opens
from uvm._home import asyncio_loop, trio_lowlevel
from uvm._log import Log
from uvm._vm.keywords import CreationSettings, check_settings
from uvm._vm.vm import UtilityVM
from uvm.errors import VMStateError, own

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from uvm.backend import Backend
    from uvm.options import LCOWOptions, WCOWOptions

T = TypeVar("T")

_log = Log("uvm")

_held: set[asyncio.Task[None]] = set()


def spawn(function: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """Run a function, which raises nothing, in a task that the event loop cancels when it ends."""
    trio = trio_lowlevel()
    if trio is None:
        task = asyncio_loop().create_task(function(), name=name)
        _held.add(task)
        task.add_done_callback(_held.discard)
    else:
        trio.spawn_system_task(function, name=name, context=contextvars.copy_context())


@define(eq=False, repr=False)
class Keeper(Generic[T]):
    """Holds a context manager in a task of its own.

    :ivar name: what it holds, for messages.
    :ivar vm_id: the VM that it holds, for the log.
    :ivar ended: it has been left, or entering it has failed.
    :ivar failure: what entering, holding or leaving it failed with.
    """

    name: str
    _context: AbstractAsyncContextManager[T]
    #: Waits until it is to be left.
    _until: Callable[[T], Awaitable[None]]
    vm_id: str | None = None
    _scope: anyio.CancelScope = field(factory=anyio.CancelScope, init=False)
    _opened: Flag = field(factory=Flag, init=False)
    ended: Flag = field(factory=Flag, init=False)
    _value: T | None = field(default=None, init=False)
    failure: BaseException | None = field(default=None, init=False)
    _caller_left: bool = field(default=False, init=False)
    _leaving: bool = field(default=False, init=False)

    async def open(self) -> T:
        """Enter it, and return what it yields; raise what entering it raises."""
        spawn(self._run, f"uvm: keeper of {self.name}")
        try:
            await self._opened.wait()
        except BaseException:
            self._caller_left = True
            self._scope.cancel()
            raise
        if self.failure is not None:
            raise self.failure
        assert self._value is not None
        return self._value

    async def wait_ended(self) -> None:
        """Wait until it has been left; raise a copy of what that failed with."""
        await self.ended.wait()
        if self.failure is not None:
            raise own(self.failure)

    async def _run(self) -> None:
        try:
            with self._scope:
                async with self._context as value:
                    self._value = value
                    self._opened.set()
                    await self._until(value)
                    self._leaving = True
        except anyio.get_cancelled_exc_class():
            # The event loop ended.
            if not self._leaving:
                self.failure = _warn_unclosed(self)
            raise
        except BaseException as error:
            # Raised by this task, one that is no Exception would end the event loop.
            self.failure = error
            if self._caller_left:
                said = "starting %s, for a caller who was cancelled: %s"
                _log.warning(self.vm_id, said, self.name, error)
        finally:
            self._opened.set()
            self.ended.set()


@define(eq=False)
class _Warning:
    """Warns when it is collected: if warnings are errors, the interpreter reports one without a caller."""

    text: str
    source: object

    def __del__(self) -> None:
        warnings.warn(self.text, ResourceWarning, stacklevel=2, source=self.source)


def _warn_unclosed(keeper: Keeper[Any]) -> VMStateError:
    """Warn that an event loop ended before something was closed; return the same as an error."""
    text = (
        f"{keeper.name} was not closed before its event loop ended, and was terminated; call its `close()`, "
        "or have a `with` statement around it"
    )
    _Warning(text, keeper)
    return VMStateError(text)


def keeper_of(
    options: LCOWOptions | WCOWOptions, backend: Backend | str, settings: CreationSettings
) -> Keeper[UtilityVM]:
    """Return the keeper of a VM that is yet to be created and started."""

    def name(vm_id: str) -> None:
        keeper.vm_id, keeper.name = vm_id, f"the VM {vm_id}"

    starting = started(options, backend, settings, lambda vm: name(vm.id))
    keeper = Keeper("a VM", starting, UtilityVM._wait_closing)
    if vm_id := getattr(options, "id", ""):
        name(vm_id)
    return keeper


async def open_vm(keeper: Keeper[UtilityVM]) -> UtilityVM:
    """Create and start the VM of a keeper, who holds it until it is closed."""
    vm = await keeper.open()
    vm._keeper_ended = keeper.wait_ended
    vm._link.failure = lambda: keeper.failure
    return vm


@opens
async def start_vm(
    options: LCOWOptions | WCOWOptions, *, backend: Backend | str, **settings: Unpack[CreationSettings]
) -> UtilityVM:
    """Create and start a VM that is bound to no task. Await it, or enter it.

    Any task of the event loop may use it, and end it with :meth:`UtilityVM.close`; entered, it is closed at
    the end of the ``async with``, which may be left in another task. A VM that is not closed when its event
    loop ends is terminated, with a ResourceWarning. A caller who is cancelled leaves at once, and what was
    begun is undone.

    :param backend: a backend, or the name of one, which is opened for the VM and closed with it.
    :param settings: the other keywords of :meth:`UtilityVM.create`.
    :raises OptionsError: the options cannot work on this host; nothing was created.
    :raises NotSupportedError: the host is too old for them; nothing was created.
    :raises HostError: the host refused.
    :raises BridgeClosedError: the guest did not connect in time; the VM was terminated.
    :raises VMExitedError: the VM exited while it booted.
    """
    check_settings(settings, "start_vm")
    return await open_vm(keeper_of(options, backend, settings))


@asynccontextmanager
async def started(
    options: LCOWOptions | WCOWOptions,
    backend: Backend | str,
    settings: CreationSettings,
    created: Callable[[UtilityVM], object] = lambda vm: None,
) -> AsyncIterator[UtilityVM]:
    async with UtilityVM.create(options, backend=backend, **settings) as vm:
        created(vm)
        await vm.start()
        yield vm
