"""Gates: calls are parked there until a test decides what becomes of each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from attrs import define, field

from uvm._async import Flag, Line
from uvm._checks import I32, U32, checked, flag, similar, whole
from uvm._checks import text as check_text
from uvm._repr import showing
from uvm.backends.fake.calls import Call, Machine
from uvm.errors import GuestError, HostError, OptionsError, UnknownOutcomeError, UVMError, own
from uvm.hresult import HResult

#: Goes on to the next rule, and in the end carries out the call.
Proceed: TypeAlias = Callable[[], Awaitable[Any]]
#: What a rule does with a call that it chose.
Action: TypeAlias = Callable[[Call, Proceed, Machine | None], Awaitable[Any]]


def refusing(code: int | str | BaseException, text: str = "") -> Action:
    """Return the action that refuses a call with a code of the guest or the host, or with an exception.

    :raises OptionsError: it is neither, or the code of a success.
    """
    if not isinstance(code, BaseException):
        code = _code(code)
    checked(text, check_text, "the text of a refusal")

    async def refuse(call: Call, proceed: Proceed, machine: Machine | None) -> Any:
        if isinstance(code, BaseException):
            raise own(code)
        refused = GuestError if call.to == "guest" else HostError
        raise refused(str(call), code, text)

    return refuse


def _code(code: int | str) -> int:
    """Return a result code, or that of a name."""
    found = HResult.__members__.get(code, code) if isinstance(code, str) else code
    if not isinstance(found, int) or isinstance(found, bool) or not found or not -I32 - 1 <= found <= U32:
        close = similar(code, list(HResult.__members__)) if isinstance(code, str) else ""
        raise OptionsError(
            f"a refusal has a result code, the name of one in HResult, or an exception, not {code!r}"
            + (f"; did you mean {close}?" if close else "")
        )
    return found


def losing(*, applied: bool) -> Action:
    """Return the action that loses the answer to a call. A refusal is an answer too; it becomes the cause."""
    checked(applied, flag, "applied")

    async def lose(call: Call, proceed: Proceed, machine: Machine | None) -> Any:
        refused: UVMError | None = None
        if applied:
            try:
                await proceed()
            except UVMError as e:
                refused = e
        raise UnknownOutcomeError(f"{call}: the answer was lost") from refused

    return lose


async def _proceed(call: Call, proceed: Proceed, machine: Machine | None) -> Any:
    return await proceed()


@contextmanager
def on_exit(machine: Machine | None, hook: Callable[[], None]) -> Iterator[None]:
    """Call a hook if the VM of a call exits within the context, or has exited before."""
    if machine is not None:
        machine.add_exit_hook(hook)
    try:
        yield
    finally:
        if machine is not None:
            machine.remove_exit_hook(hook)


async def wait_for_exit(machine: Machine | None) -> None:
    """Wait until a VM exits; if the call concerns no VM, until the call is cancelled."""
    exited = Flag()
    with on_exit(machine, exited.set):
        await exited.wait()


@showing("call")
@define(eq=False, repr=False)
class Parked:
    """A call that waits at a gate. Exactly one of its methods is called, once.

    :ivar call: the call, with its document.
    """

    call: Call
    _pending: dict[Parked, None]
    _woken: Flag = field(factory=Flag)
    _action: Action = _proceed

    def proceed(self) -> None:
        """Carry out the call, and answer it."""
        self._decide(_proceed)

    def refuse(self, code: int | str | BaseException = HResult.E_FAIL, text: str = "") -> None:
        """Refuse the call with a result code, its name, or an exception; no change is made."""
        self._decide(refusing(code, text))

    def lose(self, *, applied: bool) -> None:
        """Lose the answer, with the change made or not."""
        self._decide(losing(applied=applied))

    def _decide(self, action: Action) -> None:
        if self not in self._pending:
            raise RuntimeError(f"{self.call} is no longer parked")
        del self._pending[self]
        self._action = action
        self._woken.set()

    def _exited(self) -> None:
        if self in self._pending:
            self.proceed()

    async def _decided(self, machine: Machine | None) -> Action:
        try:
            with on_exit(machine, self._exited):
                await self._woken.wait()
        finally:
            self._pending.pop(self, None)
        return self._action


@showing("pending")
class Gate:
    """Parks the calls that its rule chooses.

    As a context manager it is closed at the end, which lets all that is still parked proceed.
    """

    def __init__(self) -> None:
        self._pending: dict[Parked, None] = {}
        self._arrival = Line()
        self._on_close: Callable[[], None] | None = None

    @property
    def pending(self) -> tuple[Parked, ...]:
        """The parked calls, in the order of their arrival."""
        return tuple(self._pending)

    async def wait(self, count: int = 1) -> tuple[Parked, ...]:
        """Wait until that many calls are parked (from 1), and return them."""
        checked(count, whole(U32, 1), "count")
        while len(self._pending) < count:
            await self._arrival.wait()
        return self.pending

    def close(self) -> None:
        """Park no more calls, and let those that are parked proceed."""
        if self._on_close is not None:
            self._on_close()
        for parked in self.pending:
            parked.proceed()

    def _when_closed(self, action: Callable[[], None]) -> None:
        """Call a function when the gate is closed."""
        self._on_close = action

    async def _park(self, call: Call, proceed: Proceed, machine: Machine | None) -> Any:
        """Park a call. If the VM exits meanwhile the call proceeds, and finds a VM that has exited."""
        parked = Parked(call, self._pending)
        self._pending[parked] = None
        self._arrival.wake()
        action = await parked._decided(machine)
        return await action(call, proceed, machine)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
