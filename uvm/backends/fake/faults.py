"""Faults: rules that say which calls go wrong, and how. Deterministic, given the seed and the calls.

A rule is a matcher, a choice among the calls that match, and an action. The rules of a backend apply in
the order in which they were made, so that a delay and a refusal of the same call do both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from random import Random
from typing import Literal, Protocol, TypedDict, TypeVar, Unpack

import anyio
from attrs import define, field, frozen

from uvm.backends.fake.answers import lost_answer, refusal
from uvm.backends.fake.calls import Call, Machine, To
from uvm.backends.fake.gates import Gate, wait_for_exit
from uvm.errors import UnknownOutcomeError

T = TypeVar("T")


class Matching(TypedDict, total=False):
    """Which calls a rule is about; what is not given fits every call.

    ``to``, ``vm``, ``operation`` and ``request_type`` compare with the fields of a
    :class:`~uvm.backends.fake.Call`; ``resource`` is its resource path or resource type and may hold
    ``*`` and ``?``; ``where`` is a function that looks at the call.

    Of the calls that fit, ``nth`` chooses one (from 1), ``every`` each nth, ``first`` the first so many,
    ``probability`` each with that chance, from the backend's seed; all of them by default.
    """

    to: To
    vm: str
    operation: str
    resource: str
    request_type: str
    where: Callable[[Call], bool]
    nth: int
    every: int
    first: int
    probability: float


@frozen
class Matcher:
    """The checked form of :class:`Matching`."""

    to: To | None = None
    vm: str | None = None
    operation: str | None = None
    resource: str | None = None
    request_type: str | None = None
    where: Callable[[Call], bool] | None = None
    nth: int | None = None
    every: int | None = None
    first: int | None = None
    probability: float | None = None

    def __attrs_post_init__(self) -> None:
        choices = [c for c in (self.nth, self.every, self.first) if c is not None]
        if len(choices) + (self.probability is not None) > 1:
            raise ValueError("give one of nth, every, first and probability")
        if any(c < 1 for c in choices):
            raise ValueError("nth, every and first count from 1")
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError("a probability is between 0 and 1")

    def fits(self, call: Call) -> bool:
        """Tell whether the rule is about a call."""
        return (
            self.to in (None, call.to)
            and self.vm in (None, call.vm)
            and self.operation in (None, call.operation)
            and self.request_type in (None, call.request_type)
            and (self.resource is None or fnmatchcase(call.resource, self.resource))
            and (self.where is None or self.where(call))
        )

    def chooses(self, count: int, random: Random) -> bool:
        """Tell whether the rule applies to the call that is the ``count``-th to fit."""
        if self.nth is not None:
            return count == self.nth
        if self.every is not None:
            return count % self.every == 0
        if self.first is not None:
            return count <= self.first
        return self.probability is None or random.random() < self.probability


class Action(Protocol):
    """What a rule does with a call that it chose."""

    async def __call__(self, call: Call, proceed: Callable[[], Awaitable[T]], machine: Machine | None) -> T:
        """Do it; ``proceed`` goes on to the next rule and in the end carries out the call."""


@define(eq=False)
class Rule:
    """A rule in force.

    :ivar seen: how many calls fitted it.
    :ivar fired: to how many of them it was applied.
    """

    matcher: Matcher
    action: Action
    seen: int = 0
    fired: int = 0
    _withdraw: Callable[[Rule], None] = field(kw_only=True, repr=False)

    def remove(self) -> None:
        """Withdraw the rule; nothing happens where that was done."""
        self._withdraw(self)

    def takes(self, call: Call, random: Random) -> bool:
        """Count a call, and tell whether to apply the rule to it."""
        if not self.matcher.fits(call):
            return False
        self.seen += 1
        if not self.matcher.chooses(self.seen, random):
            return False
        self.fired += 1
        return True


class Faults:
    """The rules of one backend."""

    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)
        self._rules: list[Rule] = []

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in force, in the order in which they apply."""
        return tuple(self._rules)

    def clear(self) -> None:
        """Withdraw all rules. Calls that hang or are parked stay so."""
        self._rules.clear()

    def refuse(
        self, code: int | BaseException = 0x80004005, *, text: str = "", **matching: Unpack[Matching]
    ) -> Rule:
        """Refuse calls with a result code (E_FAIL by default), or raise an exception; no change is made.

        A code gives :class:`~uvm.errors.GuestError` where the guest was asked, else
        :class:`~uvm.errors.HostError`.
        """
        return self._add(_Refuse(code, text), matching)

    def delay(self, seconds: float, *, applied: bool = False, **matching: Unpack[Matching]) -> Rule:
        """Delay calls; with ``applied`` only the answer, so that a cancelled caller missed a change."""
        return self._add(_Delay(seconds, applied), matching)

    def hang(self, *, applied: bool = False, **matching: Unpack[Matching]) -> Rule:
        """Give no answer until the call is cancelled or the VM exits; ``applied`` makes the change first."""
        return self._add(_Hang(applied), matching)

    def lose(self, *, applied: bool = True, **matching: Unpack[Matching]) -> Rule:
        """Lose the answer: raise :class:`~uvm.errors.UnknownOutcomeError`, with the change made or not."""
        return self._add(_Lose(applied), matching)

    def crash(self, *, when: Literal["before", "after"] = "before", **matching: Unpack[Matching]) -> Rule:
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
        chosen = [rule for rule in self._rules if rule.takes(call, self._random)]
        for rule in reversed(chosen):
            proceed = _under(rule.action, call, proceed, machine)
        return await proceed()

    def _add(self, action: Action, matching: Matching) -> Rule:
        rule = Rule(Matcher(**matching), action, withdraw=self._remove)
        self._rules.append(rule)
        return rule

    def _remove(self, rule: Rule) -> None:
        if rule in self._rules:
            self._rules.remove(rule)


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
