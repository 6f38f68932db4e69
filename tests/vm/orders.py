"""Examples in which hypothesis says what happens next: what begins, is answered, and when a VM exits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import anyio.abc
import trio._core._run as trio_scheduler
from attrs import define, field
from hypothesis import strategies as st

from tests.clocks import run_without_waiting
from tests.vm.support import Attempt, Running, quiet
from uvm.backends.fake import Gate, Parked
from uvm.errors import UVMError

__all__ = ["Choose", "World", "run_example"]

#: Trio runs the tasks that are ready in random order; from one seed, so that examples can be repeated.
_TRIO_ORDER = trio_scheduler._r
Choose = Callable[..., Any]


@define(eq=False)
class World(ABC):
    """One example: a VM, the tasks that use it, and the calls that wait for an answer.

    :cvar exit_odds: the VM exits in one of so many steps.
    :cvar answers: how a call may be answered.
    :cvar steps: how many steps are taken.
    """

    run: Running
    tasks: anyio.abc.TaskGroup
    gate: Gate
    choose: Choose
    begun: list[Attempt] = field(factory=list)

    exit_odds = 10
    steps = range(5, 30)
    answers: ClassVar[tuple[str, ...]] = ("proceed", "proceed", "refuse", "lose", "lose applied")

    @abstractmethod
    def beginning(self) -> Callable[[], Awaitable[Any]]:
        """Choose what a task begins."""

    @abstractmethod
    def spoiled(self, parked: Parked, how: str) -> None:
        """Take note of a call that is about to be refused, or whose answer is about to be lost."""

    async def play(self) -> None:
        """Take some steps."""
        for _ in range(self.choose(self.steps, "steps")):
            self._step()
            if self.choose([True, True, False], "settle"):
                await quiet()

    def wind_up(self) -> None:
        """Answer everything, and cancel everything."""
        self.gate.close()
        for each in self.begun:
            each.scope.cancel()

    def check_errors(self) -> None:
        """Look that what failed was told with errors of the library."""
        errors = [each.error for each in self.begun if each.error is not None]
        assert [each for each in errors if not isinstance(each, UVMError | ExceptionGroup)] == []

    def _step(self) -> None:
        """Do one thing out of those that are possible now."""
        waiting = [each for each in self.begun if not each.done]
        actions = [self._begin]
        if waiting:
            actions.append(partial(self._cancel, waiting))
        if self.gate.pending:
            actions += [self._answer] * 4
        exits = [False] * (self.exit_odds - 1) + [True]
        if self.run.vm.exit_status is None and self.choose(exits, "may exit"):
            actions = [self.run.backend.vms[self.run.vm.id].crash]
        self.choose(actions, "action")()

    def _begin(self) -> None:
        self.begun.append(Attempt.begin(self.tasks, self.beginning()))

    def _cancel(self, waiting: list[Attempt]) -> None:
        self.choose(waiting, "cancel").scope.cancel()

    def _answer(self) -> None:
        parked: Parked = self.choose(list(self.gate.pending), "answer")
        how = self.choose(self.answers, "answer how")
        if how == "proceed":
            parked.proceed()
            return
        self.spoiled(parked, how)
        if how == "refuse":
            parked.refuse()
        else:
            parked.lose(applied=how == "lose applied")


def run_example(example: Callable[[Choose], Awaitable[None]], backend: str, data: st.DataObject) -> None:
    """Run an example on an event loop; on trio, hypothesis says in which order tasks go on, too.

    What it does depends on nothing else: not on how long anything takes.
    """

    def choose(options: Any, label: str) -> Any:
        return data.draw(st.sampled_from(options), label=label)

    _TRIO_ORDER.seed(data.draw(st.integers(0, 9), label="order"))
    with patch.object(trio_scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True):
        run_without_waiting(example, choose, backend=backend)
