"""Faults: rules that choose calls, and what goes wrong with them.

They apply in the order in which they were made, so that a delay and a refusal of the same call do both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal, TypeVar, Unpack

import anyio

from uvm._checks import checked, choice, flag
from uvm._checks import seconds as check_seconds
from uvm.backends.fake.calls import Call, Machine
from uvm.backends.fake.gates import Action, Gate, Proceed, losing, refusing, wait_for_exit
from uvm.backends.fake.rules import Matching, Rule, Rules
from uvm.errors import UnknownOutcomeError
from uvm.hresult import HResult

T = TypeVar("T")


class Faults(Rules[Action]):
    """The rules of one backend. Calls that hang or are parked stay so when their rule is removed."""

    def refuse(
        self,
        code: int | str | BaseException = HResult.E_FAIL,
        *,
        text: str = "",
        **matching: Unpack[Matching],
    ) -> Rule[Action]:
        """Refuse calls with a result code or its name, or raise an exception; no change is made.

        A code makes a :class:`~uvm.errors.GuestError` of a request to the guest, else a
        :class:`~uvm.errors.HostError`.
        """
        return self._add(refusing(code, text), matching)

    def delay(self, seconds: float, *, applied: bool = False, **matching: Unpack[Matching]) -> Rule[Action]:
        """Delay calls; with ``applied`` only the answer, so that a cancelled caller missed a change."""
        checked(seconds, check_seconds, "seconds"), checked(applied, flag, "applied")

        async def delay(call: Call, proceed: Proceed, machine: Machine | None) -> Any:
            if not applied:
                await anyio.sleep(seconds)
                return await proceed()
            result = await proceed()
            await anyio.sleep(seconds)
            return result

        return self._add(delay, matching)

    def hang(self, *, applied: bool = False, **matching: Unpack[Matching]) -> Rule[Action]:
        """Leave calls unanswered until they are cancelled or the VM exits; `applied` changes first."""
        checked(applied, flag, "applied")

        async def hang(call: Call, proceed: Proceed, machine: Machine | None) -> Any:
            if not applied:
                await wait_for_exit(machine)
                return await proceed()
            await proceed()
            await wait_for_exit(machine)
            raise UnknownOutcomeError(f"{call}: the VM exited before the answer came")

        return self._add(hang, matching)

    def lose(self, *, applied: bool = True, **matching: Unpack[Matching]) -> Rule[Action]:
        """Lose the answer: raise :class:`~uvm.errors.UnknownOutcomeError`, with the change made or not."""
        return self._add(losing(applied=applied), matching)

    def crash(
        self, *, when: Literal["before", "after"] = "before", **matching: Unpack[Matching]
    ) -> Rule[Action]:
        """Have the VM exit unexpectedly, before or after the change."""
        checked(when, choice("before", "after"), "when")

        async def crash(call: Call, proceed: Proceed, machine: Machine | None) -> Any:
            if machine is not None and when == "before":
                machine.crash()
            result = await proceed()
            if machine is None or when == "before":
                return result
            machine.crash()
            raise UnknownOutcomeError(f"{call}: the VM crashed before the answer came")

        return self._add(crash, matching)

    def hold(self, **matching: Unpack[Matching]) -> Gate:
        """Park calls at a gate until the test has each of them proceed, refused or lost."""
        gate = Gate()
        rule = self._add(gate._park, matching)
        gate._when_closed(rule.remove)
        return gate

    async def _run(self, call: Call, apply: Callable[[], T], machine: Machine | None) -> T:
        """Apply a call under the rules that choose it."""
        # Which rules apply is settled here, before anything is awaited: counts follow the order of calls.
        chosen = self._choose(call)
        if not chosen:
            return apply()

        async def proceed() -> T:
            return apply()

        action: Callable[[], Awaitable[T]] = proceed
        for rule in reversed(chosen):
            action = partial(rule._action, call, action, machine)
        return await action()
