"""Gates: places where calls are parked until a test decides what becomes of each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

import anyio
from attrs import define, field

from uvm.backends.fake.answers import lost_answer, refusal
from uvm.backends.fake.calls import Call, Machine
from uvm.hresult import HResult

T = TypeVar("T")


async def wait_for_exit(machine: Machine | None) -> None:
    """Wait until a VM exits; where the call concerns no VM, until it is cancelled."""
    if machine is None:
        await anyio.sleep_forever()
        return
    exited = anyio.Event()
    machine.add_exit_hook(exited.set)
    try:
        await exited.wait()
    finally:
        machine.remove_exit_hook(exited.set)


@define(eq=False)
class Parked:
    """A call that waits at a gate. Exactly one of its methods is called, once.

    :ivar call: the call, with its document.
    """

    call: Call
    _pending: list[Parked] = field(repr=False)
    _woken: anyio.Event = field(factory=anyio.Event, repr=False)
    _error: BaseException | None = field(default=None, repr=False)
    _lost: bool | None = field(default=None, repr=False)

    def proceed(self) -> None:
        """Let the host or the guest carry it out and answer."""
        self._wake()

    def refuse(self, code: int | BaseException = HResult.E_FAIL, text: str = "") -> None:
        """Refuse it with a result code, or an exception; no change is made."""
        self._wake()
        self._error = refusal(self.call, code, text)

    def lose(self, *, applied: bool) -> None:
        """Lose the answer, with the change made or not."""
        self._wake()
        self._lost = applied

    def _wake(self) -> None:
        if self not in self._pending:
            raise RuntimeError(f"{self.call} is no longer parked")
        self._pending.remove(self)
        self._woken.set()

    async def _decided(self, proceed: Callable[[], Awaitable[T]]) -> T:
        if self._error is not None:
            raise self._error
        if self._lost is None:
            return await proceed()
        raise await lost_answer(self.call, proceed, applied=self._lost)


class Gate:
    """Parks the calls that its rule chooses.

    As a context manager it is closed at the end, which lets go on what is still parked.
    """

    def __init__(self) -> None:
        self._pending: list[Parked] = []
        self._arrival: anyio.Event | None = None
        self._on_close: Callable[[], None] | None = None

    @property
    def pending(self) -> tuple[Parked, ...]:
        """The parked calls, in the order in which they came."""
        return tuple(self._pending)

    async def wait(self, count: int = 1) -> tuple[Parked, ...]:
        """Wait until so many calls are parked, and give them."""
        while len(self._pending) < count:
            if self._arrival is None:
                self._arrival = anyio.Event()
            await self._arrival.wait()
        return self.pending

    def close(self) -> None:
        """Park no more calls, and let go on those that are parked."""
        if self._on_close is not None:
            self._on_close()
        for parked in self.pending:
            parked.proceed()

    def when_closed(self, action: Callable[[], None]) -> None:
        """Have something done at the closing."""
        self._on_close = action

    async def park(self, call: Call, proceed: Callable[[], Awaitable[T]], machine: Machine | None) -> T:
        """Park a call. Where the VM exits meanwhile it goes on, and finds a VM that has exited."""
        parked = Parked(call, self._pending)
        self._pending.append(parked)
        if self._arrival is not None:
            self._arrival.set()
            self._arrival = None

        def exited() -> None:
            if parked in self._pending:
                parked.proceed()

        if machine is not None:
            machine.add_exit_hook(exited)
        try:
            await parked._woken.wait()
        finally:
            if machine is not None:
                machine.remove_exit_hook(exited)
            if parked in self._pending:
                self._pending.remove(parked)
        return await parked._decided(proceed)

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
