"""Checks of a machine for what a backend needs: what each found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Literal, TypeVar

from attrs import frozen

from uvm._repr import Value
from uvm.errors import NotSupportedError, UVMError

E = TypeVar("E")

#: ``missing``: the backend cannot be used; ``limited``: part of it cannot; ``unknown``: the check failed.
Status = Literal["ok", "missing", "limited", "unknown"]


@frozen(repr=False)
class Finding(Value):
    """The result of a check.

    :ivar text: what was found.
    :ivar remedy: what to do about it, unless it is ``ok``.
    """

    status: Status
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


@frozen(repr=False)
class Check(Value, Generic[E]):
    """A check of a machine.

    :ivar name: its subject, in a word or two.
    :ivar decisive: the checks after it make no sense if this is missing.
    """

    name: str
    probe: Callable[[E], Finding]
    decisive: bool = False

    def run(self, environment: E) -> Finding:
        """Run the check; if it fails, the status is ``unknown``."""
        try:
            return self.probe(environment)
        except UVMError as e:
            return Finding("unknown", f"the check failed: {e}")


def run_checks(checks: Iterable[Check[E]], environment: E) -> dict[str, Finding]:
    """Return what the checks find, by name; those after a decisive one that is missing are not run."""
    found: dict[str, Finding] = {}
    for check in checks:
        found[check.name] = finding = check.run(environment)
        if check.decisive and finding.status == "missing":
            break
    return found


def missing(checks: Iterable[Check[E]], environment: E) -> list[str]:
    """Return what is missing, each with what to do about it."""
    return [str(each) for each in run_checks(checks, environment).values() if each.status == "missing"]


def require_none(backend: str, problems: list[str]) -> None:
    """Refuse to make a backend that a machine has problems with.

    :raises NotSupportedError: there are some; the message lists all of them.
    """
    if problems:
        raise unusable(backend, "; ".join(problems))


def unusable(backend: str, why: object) -> NotSupportedError:
    """Return the error of a backend that cannot be used on this machine."""
    return NotSupportedError(f"the backend {backend!r} cannot be used on this machine: {why}")
