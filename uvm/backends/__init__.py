"""The hypervisors behind uvm, and the choice among them."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable

from uvm.backend import Backend
from uvm.backends.hcs.availability import absence
from uvm.errors import NotSupportedError, OptionsError

__all__ = ["backend_factory", "backend_names", "open_backend"]

_log = logging.getLogger("uvm")

_ENTRY_POINTS = "uvm.backends"
_BUILT_IN = {"fake": "uvm.backends.fake:FakeBackend", "hcs": "uvm.backends.hcs.backend:HCSBackend"}


def open_backend(name: str | None = None) -> Backend:
    """Choose a backend; enter it with ``async with``.

    :param name: insist on one: ``"fake"``, ``"hcs"``, or one that an installed package registered. Without
        it, HCS on Windows where it is installed, the fake elsewhere; the log says which, and why.
    :raises OptionsError: nobody registered that name.
    :raises NotSupportedError: that backend cannot be used here.
    """
    if name is not None:
        _log.info("backend %s: asked for by name", name)
        return backend_factory(name)()
    # Never the fake where there is HCS that cannot be used: who meant VMs would get none, and not notice.
    problems = absence()
    if problems:
        _log.info("backend fake: %s", "; ".join(problems))
        return backend_factory("fake")()
    _log.info("backend hcs: this is Windows with HCS")
    return backend_factory("hcs")()


def backend_names() -> list[str]:
    """Name the backends that :func:`backend_factory` knows: the built-in ones and the plugins."""
    plugins = importlib.metadata.entry_points(group=_ENTRY_POINTS)
    return sorted({*_BUILT_IN, *(p.name for p in plugins)})


def backend_factory(name: str) -> Callable[[], Backend]:
    """Find a backend by name, built in or from an installed package's ``uvm.backends`` entry point.

    :raises OptionsError: nobody registered that name.
    :raises NotSupportedError: the backend cannot be imported here.
    """
    target = _BUILT_IN.get(name)
    point = (
        importlib.metadata.EntryPoint(name, target, _ENTRY_POINTS)
        if target
        else next(iter(importlib.metadata.entry_points(group=_ENTRY_POINTS, name=name)), None)
    )
    if point is None:
        raise OptionsError(f"no backend is called {name!r}; there are: {', '.join(backend_names())}")
    try:
        factory: Callable[[], Backend] = point.load()
    except ImportError as e:
        raise NotSupportedError(f"the backend {name!r} cannot be used here: {e}") from e
    return factory
