"""Which calls on the fake are meant, by rules and by who reads the request log; and which there are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, get_args

from attrs import field, frozen
from attrs.converters import optional

from uvm._arguments import are_items
from uvm._checks import Checked, choice, go, similar, text
from uvm._wire.frames import Procedure, procedure_name
from uvm.backends.fake.calls import Call, To
from uvm.errors import OptionsError
from uvm.schema.requests import ADD, PRE_ADD, REMOVE, UPDATE

_PROCEDURES: Final = (
    "modify",
    *(procedure_name(each) for each in Procedure if each != Procedure.MODIFY_SETTINGS),
)
#: By what a call is to: its operations.
OPERATIONS: Final[Mapping[To, tuple[str, ...]]] = {
    "grant": ("grant",),
    "revoke": ("revoke",),
    "host": ("modify", "listen", "modify service"),
    "guest": (
        *_PROCEDURES,
        "connect",
        *(f"{verb} process" for verb in ("create", "signal", "terminate", "modify")),
    ),
    "lifecycle": (
        *("create", "open", "start", "shutdown", "terminate", "crash", "pause", "resume", "save", "close"),
        *("open process", "close process"),
    ),
    "network": (
        *("namespace", "endpoint", "namespace endpoints"),
        *("add endpoint", "remove endpoint", "create namespace", "delete namespace"),
        *("network", "create endpoint", "delete endpoint"),
    ),
    "query": ("properties", "service properties", "process properties", "working set", "enumerate"),
}
#: Those that are carried out at once, and never fail.
_AT_ONCE: Final = ("close", "close process")
#: By what a call is to: the operations that a fault can be in.
FAULTY: Final[Mapping[To, tuple[str, ...]]] = {
    to: tuple(name for name in names if name not in _AT_ONCE) for to, names in OPERATIONS.items()
}
#: What a guest sends of itself: the answers to its procedures, and the exit of a container.
MESSAGES: Final[Mapping[To, tuple[str, ...]]] = {"guest": (*_PROCEDURES, "notification")}
_UNKNOWN_PROCEDURE: Final = re.compile("procedure 0x[0-9A-F]{8}")
_MODIFY: Final = "modify"


def _targets(to: Any) -> Any:
    return tuple(to) if are_items(to) else (to,)


def _to(targets: tuple[Any, ...] | None) -> str | None:
    known = get_args(To)
    unknown = [each for each in targets or () if each not in known]
    return f"one or several of {', '.join(known)}" if unknown else None


@frozen(repr=False)
class Filter(Checked):
    """Which calls are meant: those that have all that is not None; `resource` may hold ``*`` and ``?``."""

    to: tuple[To, ...] | None = field(default=None, converter=optional(_targets), metadata=go(None, _to))
    vm: str | None = field(default=None, metadata=go(None, text))
    operation: str | None = field(default=None, metadata=go(None, text))
    resource: str | None = field(default=None, metadata=go(None, text))
    request_type: str | None = field(default=None, metadata=go(None, choice(ADD, REMOVE, PRE_ADD, UPDATE)))

    def check_fits_any(self, calls: Mapping[To, Sequence[str]] = OPERATIONS) -> None:
        """Refuse a filter that no call can fit.

        :param calls: the operations that there are, by what they are to.
        :raises OptionsError: it is one.
        """
        to = [each for each in calls if self.to is None or each in self.to]
        names = list(dict.fromkeys(name for each in to for name in calls[each]))
        where = f" to {' or '.join(to)}" if self.to else ""
        if not to:
            raise OptionsError(f"no call fits: there are those to {', '.join(calls)}, not to {self.to!r}")
        if self.operation is not None and self.operation not in names and not self._is_procedure(to):
            close = similar(self.operation, names)
            instead = f"did you mean {close}?" if close else f"there are {', '.join(names)}"
            raise OptionsError(f"no call{where} has the operation {self.operation!r}; {instead}")
        modified = _MODIFY in names and self.operation in (None, _MODIFY)
        if self.request_type is not None and not modified:
            raise OptionsError(f"no call{where} that is no modify request has a request_type")

    def _is_procedure(self, to: Sequence[To]) -> bool:
        """Return whether it means a request of the guest that has no name."""
        return "guest" in to and _UNKNOWN_PROCEDURE.fullmatch(self.operation or "") is not None

    def fits(self, call: Call) -> bool:
        """Return whether a call is meant."""
        return (
            (self.to is None or call.to in self.to)
            and self.vm in (None, call.vm)
            and self.operation in (None, call.operation)
            and self.request_type in (None, call.request_type)
            and (self.resource is None or fnmatchcase(call.resource, self.resource))
        )
