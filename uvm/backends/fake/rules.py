"""Rules: faults, and misbehaviour of the guest.

A rule is a matcher, a choice among the calls that match, and an action. Those of one backend apply in the
order in which they were made. Their choice is deterministic, given the seed and the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import ClassVar, Final, Generic, TypedDict, TypeVar

from attrs import define, field, frozen

from uvm._checks import function, go, number
from uvm._repr import showing
from uvm.backends.fake.calls import Call, To
from uvm.backends.fake.filters import FAULTY, Filter
from uvm.errors import OptionsError

A = TypeVar("A")


class Matching(TypedDict, total=False):
    """The calls that a rule is about; what is left out fits every call.

    ``to`` (one or several), ``vm``, ``operation`` and ``request_type`` compare with the fields of a
    :class:`~uvm.backends.fake.Call`; ``resource`` is its resource path or resource type and may hold
    ``*`` and ``?``; ``where`` is a function that looks at the call.

    Of the calls that fit, ``nth`` chooses one (from 1), ``every`` each nth, ``first`` the first so many,
    ``probability`` each with that chance, from the backend's seed; all of them by default.
    A rule that no call can fit is refused.
    """

    to: To | Iterable[To]
    vm: str
    operation: str
    resource: str
    request_type: str
    where: Callable[[Call], bool]
    nth: int
    every: int
    first: int
    probability: float


_COUNT: Final = go(None, number("a whole number: they count from 1", 1, kind=int))


@frozen(repr=False)
class Matcher(Filter):
    """The checked form of :class:`Matching`."""

    where: Callable[[Call], bool] | None = field(default=None, repr=False, metadata=go(None, function))
    nth: int | None = field(default=None, metadata=_COUNT)
    every: int | None = field(default=None, metadata=_COUNT)
    first: int | None = field(default=None, metadata=_COUNT)
    probability: float | None = field(
        default=None, metadata=go(None, number("a number between 0 and 1", maximum=1))
    )

    def __attrs_post_init__(self) -> None:
        Filter.__attrs_post_init__(self)
        if sum(each is not None for each in (self.nth, self.every, self.first, self.probability)) > 1:
            raise OptionsError("give one of nth, every, first and probability: a rule chooses by one")

    def fits(self, call: Call) -> bool:
        """Return whether the rule is about a call."""
        return Filter.fits(self, call) and (self.where is None or self.where(call))

    def chooses(self, count: int, random: Random) -> bool:
        """Return whether the rule applies to the call that is the ``count``-th to fit."""
        if self.nth is not None:
            return count == self.nth
        if self.every is not None:
            return count % self.every == 0
        if self.first is not None:
            return count <= self.first
        return self.probability is None or random.random() < self.probability


@showing("matcher", "seen", "fired")
@define(eq=False, repr=False)
class Rule(Generic[A]):
    """A rule in force.

    :ivar seen: how many calls fitted it.
    :ivar fired: to how many of them it was applied.
    """

    matcher: Matcher
    _action: A
    _rules: list[Rule[A]]
    seen: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def remove(self) -> None:
        """Remove the rule; does nothing if it was removed."""
        if self in self._rules:
            self._rules.remove(self)

    def _takes(self, call: Call, random: Random) -> bool:
        """Count a call, and return whether the rule applies to it."""
        if not self.matcher.fits(call):
            return False
        self.seen += 1
        chosen = self.matcher.chooses(self.seen, random)
        self.fired += chosen
        return chosen


@showing("rules")
class Rules(Generic[A]):
    """The rules of one kind that a backend has."""

    #: The calls that a rule may be for.
    _calls: ClassVar[Mapping[To, Sequence[str]]] = FAULTY

    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)
        self._rules: list[Rule[A]] = []

    @property
    def rules(self) -> tuple[Rule[A], ...]:
        """The rules in force, in the order in which they apply."""
        return tuple(self._rules)

    def clear(self) -> None:
        """Remove all rules."""
        self._rules.clear()

    def _add(self, action: A, matching: Matching) -> Rule[A]:
        matcher = Matcher(**matching)
        matcher.check_fits_any(self._calls)
        rule = Rule(matcher, action, self._rules)
        self._rules.append(rule)
        return rule

    def _choose(self, call: Call) -> list[Rule[A]]:
        """Return the rules that apply to a call, which each of them counts."""
        return [rule for rule in self._rules if rule._takes(call, self._random)]
