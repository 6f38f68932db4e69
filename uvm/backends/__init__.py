"""The hypervisors behind uvm, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from uvm._arguments import kind_of
from uvm._checks import checked, text
from uvm._log import Log
from uvm.backend import Backend
from uvm.backends.checks import require_none, unusable
from uvm.errors import NotSupportedError, OptionsError, UVMError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

__all__ = ["backend_factory", "backend_names", "choose_backend", "open_backend"]

_log = Log("uvm")

_ENTRY_POINTS: Final = "uvm.backends"
_BUILT_IN: Final = {
    "fake": ("uvm.backends.fake", "FakeBackend"),
    "hcs": ("uvm.backends.hcs.backend", "HCSBackend"),
    "qemu": ("uvm.backends.qemu.backend", "QEMUBackend"),
}
#: The built-in backends that run real VMs, in order of preference, and the module whose ``absence`` says why
#: a machine lacks one.
_REAL: Final = {name: f"uvm.backends.{name}.availability" for name in ("hcs", "qemu")}


def open_backend(name: str | None = None) -> Backend:
    """Return a backend; enter it with ``async with``.

    :param name: ``"hcs"``, ``"qemu"``, ``"fake"`` (the in-memory simulation), or the name of an installed
        package's ``uvm.backends`` entry point. Without a name, :func:`choose_backend` decides.
    :raises OptionsError: no backend has that name.
    :raises NotSupportedError: the backend cannot be used on this machine, or there is none to choose.
    """
    if name is None:
        name = choose_backend()
        _log.info(None, "backend %s: the first that this machine has", name)
    else:
        _log.info(None, "backend %s: asked for by name", name)
        require_none(name, _absence(name))
    return backend_factory(name)()


def _absence(name: str, where: Mapping[str, Any] | None = None) -> list[str]:
    """Return why this machine lacks a backend; empty if it has it, and for what runs no real VMs."""
    if name not in _REAL:
        return []
    problems: list[str] = import_module(_REAL[name]).absence(where[name] if where else None)
    return problems


def _made(name: str, factory: Callable[[], Backend]) -> Backend:
    try:
        backend = factory()
    except UVMError:
        raise
    except Exception as e:
        raise unusable(name, repr(e)) from e
    if not is_backend(backend):
        raise NotSupportedError(f"the backend {name!r} cannot be used: it is {kind_of(backend)}")
    return backend


def is_backend(value: object) -> bool:
    """Return whether a value has what every :class:`~uvm.backend.Backend` has, by name; its class has not."""
    names = ("host", "create", "open", "enumerate", "grant_access", "revoke_access", "new_id")
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in names)


def choose_backend(where: Mapping[str, Any] | None = None) -> str:
    """Return the name of the built-in backend that runs real VMs here: HCS on Windows, QEMU on Linux.

    A backend that the machine has but that cannot be used is chosen all the same: its own error says what is
    missing. A simulation or an entry point is never chosen, only asked for by name.

    :param where: the machine to look at instead of this one, as each backend's checks see it.
    :raises NotSupportedError: there is none.
    """
    reasons = []
    for name in _REAL:
        problems = _absence(name, where)
        if not problems:
            return name
        reasons.append(f"{name}: {'; '.join(problems)}")
    raise NotSupportedError(
        f"no backend can run VMs on this machine ({', '.join(reasons)}); for the in-memory simulation, "
        'ask for it by name: "fake"'
    )


def backend_names() -> list[str]:
    """Return the names that :func:`backend_factory` knows: the built-in backends and the entry points."""
    return sorted({*_BUILT_IN, *(point.name for point in _installed())})


def _installed() -> EntryPoints:
    """Return the backends of other packages."""
    # It loads much of what reads packages, and is of no use to those who make a backend themselves.
    from importlib.metadata import entry_points

    return entry_points(group=_ENTRY_POINTS)


def backend_factory(name: str) -> Callable[[], Backend]:
    """Return the callable that makes a backend, built in or from a ``uvm.backends`` entry point.

    :raises OptionsError: no backend has that name.
    :raises NotSupportedError: the backend cannot be imported on this machine.
    """
    built_in = _BUILT_IN.get(checked(name, text, "the name of a backend"))
    point = None if built_in else next((each for each in _installed() if each.name == name), None)
    if built_in is not None:
        return _loaded(name, *built_in)
    try:
        if point is not None:
            return partial(_made, name, point.load())
    except ImportError as e:
        raise unusable(name, e) from e
    raise OptionsError(f"no backend is called {name!r}; there are: {', '.join(backend_names())}")


def _loaded(name: str, module: str, attribute: str) -> Callable[[], Backend]:
    """Return the class of a built-in backend."""
    try:
        made: Callable[[], Backend] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError):
        # The standard library of another system lacks what it uses.
        require_none(name, _absence(name))
        raise
    return made
