"""Faults: rules that say which calls go wrong, and how.

They apply in the order in which they were made, so that a delay and a refusal of the same call do both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, Protocol, TypeVar, Unpack

import anyio
from attrs import frozen

from uvm.backends.fake.answers import lost_answer, refusal
from uvm.backends.fake.calls import Call, Machine
from uvm.backends.fake.gates import Gate, wait_for_exit
from uvm.backends.fake.rules import Matching, Rule, Rules
from uvm.errors import UnknownOutcomeError
from uvm.hresult import HResult

T = TypeVar("T")


class Action(Protocol):
    """What a rule does with a call that it chose."""

    async def __call__(self, call: Call, proceed: Callable[[], Awaitable[T]], machine: Machine | None) -> T:
        """Do it; ``proceed`` goes on to the next rule and in the end carries out the call."""


class Faults(Rules[Action]):
    """The rules of one backend. Calls that hang or are parked stay so when their rule is withdrawn."""

    def refuse(
        self, code: int | BaseException = HResult.E_FAIL, *, text: str = "", **matching: Unpack[Matching]
    ) -> Rule[Action]:
        """Refuse calls with a result code (E_FAIL by default), or raise an exception; no change is made.

        A code gives :class:`~uvm.errors.GuestError` where the guest was asked, else
        :class:`~uvm.errors.HostError`.
        """
        return self._add(_Refuse(code, text), matching)

    def delay(self, seconds: float, *, applied: bool = False, **matching: Unpack[Matching]) -> Rule[Action]:
        """Delay calls; with ``applied`` only the answer, so that a cancelled caller missed a change."""
        return self._add(_Delay(seconds, applied), matching)

    def hang(self, *, applied: bool = False, **matching: Unpack[Matching]) -> Rule[Action]:
        """Leave calls unanswered until they are cancelled or the VM exits; `applied` changes first."""
        return self._add(_Hang(applied), matching)

    def lose(self, *, applied: bool = True, **matching: Unpack[Matching]) -> Rule[Action]:
        """Lose the answer: raise :class:`~uvm.errors.UnknownOutcomeError`, with the change made or not."""
        return self._add(_Lose(applied), matching)

    def crash(
        self, *, when: Literal["before", "after"] = "before", **matching: Unpack[Matching]
    ) -> Rule[Action]:
        """Have the VM exit unexpectedly, before or after the change."""
        return self._add(_Crash(when), matching)

    def hold(self, **matching: Unpack[Matching]) -> Gate:
        """Park calls at a gate until the test lets each of them go on, be refused or get lost."""
        gate = Gate()
        rule = self._add(_Hold(gate), matching)
        gate.when_closed(rule.remove)
        return gate

    async def run(self, call: Call, proceed: Callable[[], Awaitable[T]], machine: Machine | None) -> T:
        """Carry out a call under the rules that choose it."""
        # Which rules apply is settled here, before anything is awaited: counts follow the order of calls.
        for rule in reversed(self._choose(call)):
            proceed = _under(rule.action, call, proceed, machine)
        return await proceed()


def _under(
    action: Action, call: Call, proceed: Callable[[], Awaitable[T]], machine: Machine | None
) -> Callable[[], Awaitable[T]]:
    async def run() -> T:
        return await action(call, proceed, machine)

    return run


@frozen
class _Refuse:
    code: int | BaseException
    text: str

    async def __call__(self, call: Call, proceed: Callable[[], Awaitable[T]], machine: Machine | None) -> T:
        raise refusal(call, self.code, self.text)


@frozen
class _Delay:
    seconds: float
    applied: bool

    async def __call__(self, call: Call, proceed: Callable[[], Awaitable[T]], machine: Machine | None) -> T:
        if not self.applied:
            await anyio.sleep(self.seconds)
            return await proceed()
        result = await proceed()
        await anyio.sleep(self.seconds)
        return result


@frozen
class _Hang:
    applied: bool

    async def __call__(self, call: Call, proceed: Callable[[], Awaitable[T]], machine: Machine | None) -> T:
        if not self.applied:
            await wait_for_exit(machine)
            return await proceed()
        await proceed()
        await wait_for_exit(machine)
        raise UnknownOutcomeError(f"{call}: the VM exited before the answer came")


@frozen
class _Lose:
    applied: bool

    async def __call__(self, call: Call, proceed: Callable[[], Awaitable[T]], machine: Machine | None) -> T:
        raise await lost_answer(call, proceed, applied=self.applied)


@frozen
class _Crash:
    when: Literal["before", "after"]

    async def __call__(self, call: Call, proceed: Callable[[], Awaitable[T]], machine: Machine | None) -> T:
        if machine is None:
            return await proceed()
        if self.when == "before":
            machine.crash()
            return await proceed()
        await proceed()
        machine.crash()
        raise UnknownOutcomeError(f"{call}: the VM crashed before the answer came")


@frozen
class _Hold:
    gate: Gate

    async def __call__(self, call: Call, proceed: Callable[[], Awaitable[T]], machine: Machine | None) -> T:
        return await self.gate.park(call, proceed, machine)
