"""The keywords of ``UtilityVM.create``, which ``start_vm`` and ``Pool`` take as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypedDict

from uvm._checks import Check, check_names, checked, function, instance, optional, seconds
from uvm._document.plan import CreationPlan
from uvm._guest.timeouts import GuestTimeouts
from uvm._vm.startup import OutputHandler
from uvm.backend import Concurrency


class CreationSettings(TypedDict, total=False):
    """The keywords of :meth:`UtilityVM.create`, but for the backend."""

    concurrency: Concurrency | None
    amend: Callable[[CreationPlan], CreationPlan] | None
    timeouts: GuestTimeouts | None
    guest_output: OutputHandler | None
    close_grace_seconds: float


_CHECKS: Final[dict[str, Check]] = {
    "concurrency": optional(instance(Concurrency)),
    "amend": optional(function),
    "timeouts": optional(instance(GuestTimeouts)),
    "guest_output": optional(function),
    "close_grace_seconds": seconds,
}


def check_settings(settings: CreationSettings, of: str, others: Iterable[str] = ()) -> None:
    """Refuse keywords that do not exist or cannot work.

    :param of: what takes them.
    :param others: what else may be meant by a wrong one.
    :raises UnknownOptionError: there is no such keyword.
    :raises OptionsError: its value cannot work.
    """
    check_names(of, settings, _CHECKS, others)
    for name, value in settings.items():
        checked(value, _CHECKS[name], name)
