"""What is done for VMs, observed at the doors that all of it passes: a record of the log for each, a span.

How it works
------------

Whatever the library does for a VM passes one of these doors::

    what is done            door
    -----------------------+----------------------------------------------------------
    operations of the VM    uvm._errands.Errand.make; uvm._vm.vm, for its creation
    operations on devices   uvm._buses.driver.Driver.in_turn
    requests to the host    asked(), around its backend and its compute system
    requests to the guest   uvm._gcs.bridge.Bridge.submit, to uvm._gcs.calls.Call.end

Each makes an :class:`Observed`, which begins once and ends once, with an outcome. While it is carried out it
is what its task does (:data:`uvm._log.doing`), and what it causes has its device. Its end is a record at
DEBUG. The :class:`Hook`, if one is set, has both as well; :mod:`uvm.otel` makes spans of them. Requests are
observed only if either wants them, so that they cost nothing otherwise. What is observed is none of the
observers' business: what a hook raises is logged, and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from enum import Enum
from functools import partial
from typing import Any, Final, Literal, ParamSpec, Protocol, TypeVar, cast

from attrs import define, field

from uvm._log import Log, doing
from uvm.errors import (
    AccessDeniedError,
    AlreadyReleasedError,
    HostPathError,
    NoSpaceError,
    NotAttachedError,
    NotSupportedError,
    OptionsError,
    OrphanError,
    RefusedError,
    RPCError,
    VMStateError,
    is_refusal,
)

P = ParamSpec("P")
T = TypeVar("T")

_log = Log("uvm")

Outcome = Literal["ok", "refused", "unknown", "cancelled"]

#: What says of an operation of several steps too that nothing was changed, or all of it was rolled back.
_REFUSALS: Final = (
    AccessDeniedError,
    AlreadyReleasedError,
    HostPathError,
    NoSpaceError,
    NotAttachedError,
    NotSupportedError,
    OptionsError,
    OrphanError,
    RPCError,
    RefusedError,
    VMStateError,
)

#: What is asked of a backend for one VM, and of a compute system.
BACKEND_REQUESTS: Final = frozenset({"create", "grant_access", "revoke_access"})
SYSTEM_REQUESTS: Final = frozenset(
    {"start", "shutdown", "terminate", "crash", "pause", "resume", "save", "modify", "properties"}
    | {"create_process", "open_process", "listen"}
)


class Door(Enum):
    """The doors."""

    VM = "VM"
    DEVICE = "device"
    HOST = "host"
    GUEST = "guest"


class Hook(Protocol):
    """What is called at the beginning and the end of all that is observed. What it raises is logged."""

    def begin(self, what: Observed) -> object:
        """Note a beginning; return what :meth:`within` and :meth:`end` are called with."""

    def within(self, begun: object) -> AbstractContextManager[object]:
        """Return a context in which it is carried out."""

    def end(self, begun: object, what: Observed) -> None:
        """Note the end."""


_hook: Hook | None = None


def set_hook(hook: Hook | None) -> None:
    """Have a hook called, in place of the one that was; None for none."""
    global _hook  # noqa: PLW0603
    _hook = hook


def watched() -> bool:
    """Return whether there is a reason to observe."""
    return _hook is not None or _log.traces


@define(eq=False, repr=False)
class Observed:
    """An operation or a request, from its beginning to its end.

    :ivar operation: what is done: one of a few names, without ids.
    :ivar device: the device, or the container, that it concerns.
    :ivar error: what it failed with.
    """

    door: Door
    vm_id: str
    operation: str
    _describe: Callable[[], str] | None = None
    outcome: Outcome | None = field(default=None, init=False)
    error: BaseException | None = field(default=None, init=False)
    duration_seconds: float = field(default=0.0, init=False)
    _device: str | None = field(default=None, init=False)
    _began: float = field(factory=time.perf_counter, init=False)
    _hook: Hook | None = field(default=None, init=False)
    _begun: object = field(default=None, init=False)

    @property
    def device(self) -> str | None:
        """The device, in words; made when it is first asked for."""
        if self._device is None and self._describe is not None:
            self._device = self._describe()
        return self._device

    def begin(self) -> AbstractContextManager[object]:
        """Begin; return the context in which it is carried out."""
        self._inherit()
        if _hook is None:
            return nullcontext()
        try:
            self._begun = _hook.begin(self)
            # It has begun, so that it ends, also if the next fails.
            self._hook = _hook
            return _Within(self, _hook.within(self._begun))
        except Exception:
            self.log_failure()
            return nullcontext()

    def log_failure(self) -> None:
        """Log what a hook has just raised."""
        _log.exception(self.vm_id, "an observer of %s failed", self.operation)

    def _inherit(self) -> None:
        """Take the device of what this is a part of."""
        part_of = doing.get()
        if part_of is not None and part_of.outcome is None and part_of.vm_id == self.vm_id:
            self._describe = self._describe or (lambda: part_of.device or "")

    def end(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """End with an outcome."""
        self.outcome, self.error = outcome, error
        self.duration_seconds = time.perf_counter() - self._began
        if self._hook is not None:
            try:
                self._hook.end(self._begun, self)
            except Exception:
                self.log_failure()
        if _log.traces:
            _log.debug(
                self.vm_id,
                "%s %s%s: %s, after %.2f ms",
                self.door.value,
                self.operation,
                f" of {self.device}" if self.device else "",
                outcome,
                self.duration_seconds * 1000,
                operation=self.operation,
                device=self.device or None,
                duration_seconds=self.duration_seconds,
                outcome=outcome,
            )


@define(eq=False)
class _Within:
    """A context of a hook: what entering and leaving it raises is logged, and it swallows nothing."""

    _what: Observed
    _context: AbstractContextManager[object]

    def __enter__(self) -> None:
        try:
            self._context.__enter__()
        except Exception:
            self._what.log_failure()
            self._context = nullcontext()

    def __exit__(self, *raised: Any) -> None:
        try:
            self._context.__exit__(*raised)
        except Exception:
            self._what.log_failure()


def outcome_of(error: BaseException) -> Outcome:
    """Return how an operation ended that raised."""
    if not isinstance(error, Exception):
        return "cancelled"
    return "refused" if isinstance(error, _REFUSALS) and is_refusal(error) else "unknown"


def _done(result: object) -> tuple[Outcome, None]:
    return "ok", None


async def observe(
    what: Observed,
    call: Callable[[], Awaitable[T]],
    judge: Callable[[T], tuple[Outcome, BaseException | None]] = _done,
    failed: Callable[[BaseException], Outcome] = outcome_of,
) -> T:
    """Make a call, and have it observed.

    :param judge: returns the outcome, and the error, by what the call returned.
    :param failed: returns the outcome by what the call raised.
    """
    context, before = what.begin(), doing.get()
    doing.set(what)
    try:
        with context:
            result = await call()
    except BaseException as error:
        what.end(failed(error), error)
        raise
    finally:
        doing.set(before)
    what.end(*judge(result))
    return result


def bound(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
    """Return a call for later, whose spans belong to what the caller of now does."""
    call = partial(function, *args, **kwargs)
    return call if _hook is None else partial(copy_context().run, call)


def asked(target: T, vm_id: str, requests: frozenset[str]) -> T:
    """Return a backend, or a system, whose requests for a VM are observed."""
    return cast(T, _Asked(target, vm_id, requests))


class _Asked:
    """Has all attributes of what it stands for."""

    __slots__ = ("_requests", "_target", "_vm_id")

    def __init__(self, target: object, vm_id: str, requests: frozenset[str]) -> None:
        self._target = target
        self._vm_id = vm_id
        self._requests = requests

    def __repr__(self) -> str:
        return repr(self._target)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return partial(self._ask, name, found) if name in self._requests and watched() else found

    async def _ask(self, name: str, request: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        what = Observed(Door.HOST, self._vm_id, name.replace("_", " "))
        return await observe(what, partial(request, *args, **kwargs))
