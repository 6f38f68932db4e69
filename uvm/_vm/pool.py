"""A pool of booted VMs.

How it works
------------

Each VM of a pool is a :class:`_Member`, kept by a task of its own (:func:`uvm._vm.keeper.spawn`)::

    STARTING --> READY --> IN_USE --> CLOSING       failed: closed, and another is started after a pause
                  | ^        |
                  v |        v
                CHECKING   READY, if it may be used again

A pool of clones boots one VM first, saves it as a template, and keeps that until its last clone is closed::

    backend opened --> template saved --> clones start ... are closed --> template ended --> backend closed

Whatever happens (a VM becomes ready, dies, fails, is released, a caller comes or leaves) changes the state of
a member at once, and then :meth:`Pool._settle` pairs callers with VMs, in the order in which they came, and
starts keepers of new ones. Callers only wait, so that one who is cancelled loses nothing.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from inspect import signature
from typing import TYPE_CHECKING, Self, TypeAlias, Unpack

import anyio
import anyio.lowlevel
from attrs import define, evolve, field

from uvm._async import Flag, enters, errors_of
from uvm._checks import U32, checked, flag, function, instance, optional, positive_seconds, whole
from uvm._home import Home
from uvm._log import Log
from uvm._vm.base import ClosedOnLeaving
from uvm._vm.ending import VMState
from uvm._vm.keeper import Keeper, spawn
from uvm._vm.keywords import CreationSettings, check_settings
from uvm._vm.vm import UtilityVM, check_backend, opened
from uvm.errors import OptionsError, UVMError, VMExitedError, VMStateError, own, together
from uvm.options import LCOWOptions, WCOWOptions

if TYPE_CHECKING:
    from uvm.backend import Backend

_log = Log("uvm")

#: Called with a VM of a pool; what it raises keeps the VM from being used.
Hook: TypeAlias = Callable[[UtilityVM], Awaitable[object]]

HOOK_SECONDS = 60.0
#: The pause before a VM is started in place of one that failed. It doubles with each failure in a row.
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
#: How long before its deadline a caller hears why no VM starts.
_NOTICE_SECONDS = 0.05


class _State(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    CHECKING = "checking"  # for a caller who waits
    IN_USE = "in use"
    CLOSING = "closing"


@define(eq=False, repr=False)
class _Member:
    """One VM of a pool.

    :ivar failures: how many starts in a row had failed when it was begun.
    :ivar expires_at: when it is too old to be handed out.
    :ivar nap: what its keeper sleeps in while it is ready or in use.
    """

    failures: int
    state: _State = _State.STARTING
    vm: UtilityVM | None = None
    uses: int = 0
    expires_at: float = math.inf
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    nap: anyio.CancelScope = field(factory=anyio.CancelScope)

    @property
    def usable(self) -> bool:
        """Whether its VM runs, and is not too old."""
        runs = self.vm is not None and self.vm.state is VMState.RUNNING
        return runs and anyio.current_time() < self.expires_at


@define(eq=False, repr=False)
class _Waiter:
    """A caller who waits for a VM."""

    woken: Flag = field(factory=Flag)
    member: _Member | None = None


class Pool(ClosedOnLeaving):
    """A pool of VMs that have been started ahead. Enter it, or :meth:`start` and :meth:`close` it.

    ``async with pool.vm() as vm`` hands out a VM. Callers are served in the order in which they came. A VM
    that dies, fails to start or fails a check is replaced, after a pause that grows with each failure in a
    row. Any task of the event loop may use the pool.

    :param options: of each of the VMs; without an ``id``.
    :param backend: a backend, or the name of one, which is opened for the pool and closed with it.
    :param ready: how many VMs are kept. One that is in use counts if it may be used again. It is also how
        many start at once.
    :param max_size: how many VMs there are at most, those in use and those that are being closed included.
    :param max_uses: how often one VM is handed out; by default none is used twice. What its user leaves
        behind in it, the next one finds.
    :param max_age_seconds: from when it was ready until it is no more handed out.
    :param prepare: called with each VM once it has started; if it raises, the VM has failed to start.
    :param check: called with a VM before it is handed out; if it raises, or returns False, another is.
    :param hook_seconds: how long `prepare`, `check`, and `prepare_template` may take; then the VM has failed.
    :param clones: the VMs are clones of one that is booted first and saved as a template, which the pool ends
        after them; it does not count. The ``scratch_directory`` of the options is for the disks of them all.
    :param prepare_template: called with the VM that becomes the template, before it is saved: what it
        attaches and runs, every clone has.
    :param settings: the other keywords of :meth:`UtilityVM.create`.
    :raises OptionsError: an argument cannot work.
    """

    def __init__(
        self,
        options: LCOWOptions | WCOWOptions,
        *,
        backend: Backend | str,
        ready: int = 4,
        max_size: int | None = None,
        max_uses: int = 1,
        max_age_seconds: float | None = None,
        prepare: Hook | None = None,
        check: Hook | None = None,
        hook_seconds: float = HOOK_SECONDS,
        clones: bool = False,
        prepare_template: Hook | None = None,
        **settings: Unpack[CreationSettings],
    ) -> None:
        checked(options, instance(LCOWOptions, WCOWOptions), "options")
        check_backend(backend)
        if options.id:
            raise OptionsError(f"the options of a pool's VMs have the id {options.id!r}; leave it out")
        check_settings(settings, "Pool", signature(Pool).parameters)
        self._clones = checked(clones, flag, "clones")
        self._prepare_template = checked(prepare_template, optional(function), "prepare_template")
        if clones and options.clone_of is not None:
            raise OptionsError("clones: the VMs are clones of the options' clone_of already; leave one out")
        if prepare_template is not None and not clones:
            raise OptionsError("prepare_template has no effect without clones=True")
        self._options = options
        self._backend = backend
        self._target = checked(ready, whole(U32, 1), "ready")
        self._max_size = math.inf if max_size is None else checked(max_size, whole(U32, 1), "max_size")
        self._max_uses = checked(max_uses, whole(U32, 1), "max_uses")
        age = math.inf if max_age_seconds is None else max_age_seconds
        self._max_age_seconds = checked(age, positive_seconds, "max_age_seconds")
        self._prepare = checked(prepare, optional(function), "prepare")
        self._check = checked(check, optional(function), "check")
        self._hook_seconds = checked(hook_seconds, positive_seconds, "hook_seconds")
        self._settings = settings
        self._home: Home | None = None
        self._keeper: Keeper[Backend] | None = None
        self._host: Backend | None = None
        self._members: set[_Member] = set()
        self._ready: deque[_Member] = deque()
        self._in_use: dict[UtilityVM, _Member] = {}
        self._waiters: deque[_Waiter] = deque()
        #: Those that are checked for callers who still wait; the oldest check comes first.
        self._checks: deque[_Member] = deque()
        self._failures = 0
        self._last_error: Exception | None = None
        # Those of the start, which it waits for.
        self._first: set[_Member] = set()
        self._filled = Flag()
        self._closing = Flag()
        self._closed = Flag()
        #: In which the template is booted and saved.
        self._booting: anyio.CancelScope | None = None
        self._close_errors: list[Exception] = []

    def __repr__(self) -> str:
        state = "closed" if self._closing.is_set() else "open" if self._home is not None else "not started"
        return f"<Pool ({state}): {self.ready} ready, {self.in_use} in use, {self.starting} starting>"

    @property
    def ready(self) -> int:
        """How many VMs can be handed out at once."""
        return len(self._ready)

    @property
    def in_use(self) -> int:
        """How many VMs are handed out."""
        return len(self._in_use)

    @property
    def starting(self) -> int:
        """How many VMs are being started, or wait to be started after a failure."""
        return self._count(_State.STARTING)

    def _count(self, state: _State) -> int:
        return sum(member.state is state for member in self._members)

    # From start to close.

    async def start(self) -> Self:
        """Start the VMs, and wait until each of them is ready or has failed to start; return the pool.

        A pool of which some have failed starts others. A caller who is cancelled leaves at once, and the pool
        is closed.

        :raises VMStateError: it was started before, or is closed meanwhile.
        :raises NotSupportedError: `clones`, and the host makes no templates of such VMs; the pool was closed.
        :raises UVMError: why they all failed, or the template did; the pool was closed.
        """
        if self._home is not None:
            raise VMStateError(f"{self!r}: a pool is started once")
        self._home = Home.here()
        try:
            self._keeper = Keeper("a pool of VMs", self._opened(), lambda _: self._closing.wait())
            self._host = await self._keeper.open()
            self._settle()
            self._first = set(self._members)
            await self._filled.wait()
        except BaseException:
            self._begin_closing()
            raise
        if self._last_error is not None and self._kept() == self.starting and not self._in_use:
            self._begin_closing()
            await self._closed.wait()
            raise own(self._last_error)
        self._check_open()
        return self

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Backend]:
        """Open the backend until the pool is closed."""
        async with opened(self._backend) as host, self._templated(host):
            try:
                yield host
            finally:
                # The event loop may end first.
                self._begin_closing()
                with anyio.CancelScope(shield=True):
                    try:
                        await self._closed.wait()
                    finally:
                        # asyncio cancels its tasks once, when its loop ends.
                        await self._closed.wait()

    @asynccontextmanager
    async def _templated(self, host: Backend) -> AsyncIterator[None]:
        """Have a template, if the VMs are to be clones, until the pool is closed."""
        if not self._clones:
            yield
            return
        options = evolve(self._options, template=True, scratch_directory="")
        async with UtilityVM.create(options, backend=host, **self._settings) as vm:
            with anyio.CancelScope() as self._booting:
                if self._closing.is_set():
                    self._booting.cancel()
                await self._save(vm)
            self._check_open()
            yield

    async def _save(self, vm: UtilityVM) -> None:
        """Boot a VM, and have the VMs of the pool be clones of it."""
        await vm.start()
        if self._prepare_template is not None:
            await self._call(self._prepare_template, vm, "preparing it as the template of")
        self._options = evolve(self._options, template=False, clone_of=await vm.save_template())

    async def close(self) -> None:
        """Terminate all VMs, those in use too, and wait until nothing of them is left.

        Callers who wait for a VM get an error. A caller who is cancelled leaves at once, and the closing goes
        on; a second close waits for the first. What it failed with is raised by each.
        """
        if self._home is None:
            self._home = Home.here()
        self._home.check(repr(self))
        self._begin_closing()
        await self._closed.wait()
        try:
            if self._keeper is not None:
                await self._keeper.wait_ended()
        except Exception:
            # What was not opened is why the start failed, which has raised that.
            if self._host is not None:
                raise
        if self._close_errors:
            raise own(together("closing a pool", self._close_errors))

    def _begin_closing(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        if self._booting is not None:
            self._booting.cancel()
        while self._waiters:
            self._waiters.popleft().woken.set()
        self._ready.clear()
        for member in self._members:
            self._retire(member)
        self._end()

    def _end(self) -> None:
        """Note that the pool is closed, once all is."""
        if self._closing.is_set() and not self._members:
            self._filled.set()
            self._closed.set()

    async def __aenter__(self) -> Self:
        return await self.start()

    # Callers.

    @enters("; 'await pool.acquire()' returns one")
    async def vm(self) -> AsyncIterator[UtilityVM]:
        """Hand out a VM for an ``async with``, as :meth:`acquire`; one whose body raises is not reused."""
        vm = await self.acquire()
        reuse = False
        try:
            yield vm
            reuse = True
        finally:
            await self.release(vm, reuse=reuse)

    async def acquire(self) -> UtilityVM:
        """Return a started VM that no other caller has, to be released with :meth:`release`.

        If none is ready, it waits for one; a caller who is cancelled loses none.

        :raises VMStateError: the pool is closed, or was not started.
        :raises UVMError: why the VMs failed to start; shortly before the deadline of the caller.
        """
        self._check_open()
        # No turn of the loop, in which other tasks would run, is waited for.
        await anyio.lowlevel.checkpoint_if_cancelled()
        waiter = _Waiter()
        self._waiters.append(waiter)
        self._settle()
        try:
            await self._wait(waiter)
        except BaseException:
            self._leave(waiter)
            raise
        if waiter.member is None:
            self._check_open()
        assert waiter.member is not None
        assert waiter.member.vm is not None
        return waiter.member.vm

    async def _wait(self, waiter: _Waiter) -> None:
        # It has not waited if a VM is ready; without it a woken caller would be cancelled here.
        if waiter.woken.is_set():
            return
        deadline = anyio.current_effective_deadline()
        notice = min(_NOTICE_SECONDS, max(0.0, deadline - anyio.current_time()) / 10)
        with anyio.CancelScope(deadline=deadline - notice if deadline < math.inf else math.inf):
            await waiter.woken.wait()
        if not waiter.woken.is_set() and self._last_error is not None:
            error = own(self._last_error)
            error.add_note(f"no VM was ready before the deadline: {self!r}")
            raise error
        await waiter.woken.wait()

    def _leave(self, waiter: _Waiter) -> None:
        """Forget a caller who leaves without a VM."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if (member := waiter.member) is not None and member.vm in self._in_use:
            del self._in_use[member.vm]
            member.uses -= 1
            if member.usable:
                self._offer(member)
            else:
                self._retire(member)
        self._settle()

    async def release(self, vm: UtilityVM, *, reuse: bool = True) -> None:
        """Release a VM that :meth:`acquire` returned. It takes effect at once; the VM is closed behind it.

        :param reuse: it may be used again, if ``max_uses`` allows it and it still runs.
        :raises VMStateError: the VM is no VM of the pool that is in use.
        """
        if self._home is not None:
            self._home.check(repr(self))
        member = self._in_use.pop(vm, None)
        if member is None:
            if not self._closing.is_set():
                raise VMStateError(f"release {vm!r}: it is not in use, or is no VM of {self!r}")
        elif reuse and member.usable and member.uses < self._max_uses:
            self._offer(member)
        else:
            self._retire(member)
        self._settle()
        await anyio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._home is None:
            raise VMStateError(f"{self!r}: start the pool, or enter it, first")
        self._home.check(repr(self))
        if self._closing.is_set():
            raise VMStateError(f"{self!r}: the pool was closed")

    # What follows from what happened.

    def _kept(self) -> int:
        """Return how many VMs can be used, or will be."""
        returning = sum(member.uses < self._max_uses for member in self._in_use.values())
        return self.ready + self.starting + self._count(_State.CHECKING) + returning

    def _settle(self) -> None:
        """Pair callers with VMs, close what is too many, and start others in place of those that are used."""
        if self._closing.is_set() or self._host is None:
            return
        while len(self._checks) > len(self._waiters):
            # Its caller has left; if it hangs, no other caller waits for it.
            self._checks.popleft()
        while self._ready and len(self._waiters) > len(self._checks):
            member = self._ready.popleft()
            if not member.usable:
                # Its keeper is about to notice.
                continue
            if self._check is None:
                self._hand_over(member)
            else:
                member.state = _State.CHECKING
                self._checks.append(member)
                member.nap.cancel()
        while self._ready and not self._waiters and self._kept() - self.starting > self._target:
            self._retire(self._ready.popleft())
        lacking = max(self._target - self._kept(), len(self._waiters) - self.starting - len(self._checks))
        for _ in range(int(min(lacking, self._target - self.starting, self._max_size - len(self._members)))):
            member = _Member(self._failures)
            self._members.add(member)
            spawn(lambda member=member: self._keep(member), "uvm: keeper of a VM of a pool")  # type: ignore[misc]

    def _hand_over(self, member: _Member) -> None:
        """Hand a VM to the first caller."""
        waiter = self._waiters.popleft()
        member.state = _State.IN_USE
        member.uses += 1
        self._failures, self._last_error = 0, None
        assert member.vm is not None
        self._in_use[member.vm] = member
        waiter.member = member
        waiter.woken.set()

    def _offer(self, member: _Member) -> None:
        """Have a VM be handed out."""
        if self._closing.is_set():
            self._retire(member)
        else:
            member.state = _State.READY
            self._ready.append(member)

    def _retire(self, member: _Member) -> None:
        """Have a VM closed."""
        member.state = _State.CLOSING
        member.scope.cancel()

    def _failed(self, member: _Member, error: Exception, vm_id: str | None = None) -> None:
        """Have a VM closed that failed before it was used, and another be started after a pause."""
        _log.warning(vm_id, "pool: a VM failed, and is replaced: %s", error)
        self._last_error = error
        self._failures = max(self._failures, member.failures + 1)
        self._drop(member)

    def _drop(self, member: _Member) -> None:
        """Hand a VM out no more; its keeper closes it."""
        member.state = _State.CLOSING
        if member in self._ready:
            self._ready.remove(member)
        self._settle()

    def _ended(self, member: _Member) -> None:
        """Note that a VM is closed."""
        self._members.discard(member)
        self._in_use = {vm: other for vm, other in self._in_use.items() if other is not member}
        self._first_ended(member)
        self._settle()
        self._end()

    def _first_ended(self, member: _Member) -> None:
        self._first.discard(member)
        if not self._first:
            self._filled.set()

    # The keeper of a VM.

    async def _keep(self, member: _Member) -> None:
        try:
            with member.scope:
                await self._pause(member)
                assert self._host is not None
                options = await self._options_of_one(self._host)
                async with UtilityVM.create(options, backend=self._host, **self._settings) as vm:
                    try:
                        # Of its own, so that leaving the VM is not cancelled, and raises what it fails with.
                        with anyio.CancelScope() as member.scope:
                            await self._serve(member, vm)
                    except Exception as error:
                        self._failed(member, error, vm.id)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as raised:
            failure = (
                raised if isinstance(raised, Exception) else UVMError(f"starting a VM raised {raised!r}")
            )
            if member.state is not _State.CLOSING:
                self._failed(member, failure)
            elif self._closing.is_set():
                # Else the VM has logged it.
                self._close_errors.append(failure)
        finally:
            self._ended(member)

    async def _options_of_one(self, host: Backend) -> LCOWOptions | WCOWOptions:
        """Return the options of one VM: a clone has a directory of its own."""
        options = self._options
        if options.clone_of is None or not options.scratch_directory:
            return options
        directory = (await host.host()).path.join(options.scratch_directory, host.new_id())
        return evolve(options, scratch_directory=directory)

    async def _pause(self, member: _Member) -> None:
        if member.failures:
            seconds = _FIRST_PAUSE_SECONDS * 2.0 ** min(member.failures - 1, 20)
            await anyio.sleep(min(seconds, _LONGEST_PAUSE_SECONDS))

    async def _serve(self, member: _Member, vm: UtilityVM) -> None:
        """Start a VM, and wait until it is to be closed.

        :raises VMExitedError: it exited before it was handed out.
        """
        await vm.start()
        if self._prepare is not None:
            await self._call(self._prepare, vm, "preparing it for")
        member.vm = vm
        member.expires_at = anyio.current_time() + self._max_age_seconds
        self._offer(member)
        self._first_ended(member)
        self._settle()
        while member.state is not _State.CLOSING:
            if member.state is _State.CHECKING:
                await self._checked(member, vm)
            with anyio.CancelScope(deadline=member.expires_at) as member.nap:
                await vm.wait()
            if member.state is _State.IN_USE and not member.usable:
                # It is closed when its user releases it.
                await anyio.sleep_forever()
            if member.state is _State.READY and not member.usable:
                if vm.exit_status is not None:
                    raise VMExitedError(f"{vm.id}: the VM exited before it was used", vm.exit_status)
                self._drop(member)

    async def _checked(self, member: _Member, vm: UtilityVM) -> None:
        """Check a VM, and hand it to the first caller, or keep it if none is left.

        :raises UVMError: it failed the check.
        """
        assert self._check is not None
        try:
            answer = await self._call(self._check, vm, "the check by")
        finally:
            with suppress(ValueError):
                self._checks.remove(member)
        if answer is False or not member.usable:
            raise UVMError(f"{vm.id}: the VM failed the check of its pool")
        if self._waiters:
            self._hand_over(member)
        else:
            self._offer(member)
        self._settle()

    async def _call(self, hook: Hook, vm: UtilityVM, what: str) -> object:
        """Call a hook, and return its answer; raise what it raises.

        :raises UVMError: it did not end in time, or something that it awaited was cancelled.
        """
        answers: list[object] = []

        async def call() -> None:
            try:
                answers.append(await hook(vm))
            except (Exception, anyio.get_cancelled_exc_class()):
                raise
            except BaseException as error:
                # Raised by a task, it would end the event loop.
                raise UVMError(f"{vm.id}: {what} its pool raised {error!r}") from error

        with anyio.move_on_after(self._hook_seconds):
            # In a task of its own: if that is cancelled, the one that keeps the VM is not.
            for error in await errors_of([call]):
                raise error
        if not answers:
            seconds = f"{self._hook_seconds:g} s"
            raise UVMError(f"{vm.id}: {what} its pool was cancelled, or did not end within {seconds}")
        return answers[0]
