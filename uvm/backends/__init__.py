"""The hypervisors behind uvm, and the choice among them."""

from __future__ import annotations

import logging
import sys

from uvm.backends.base import Backend, backend_factory, backend_names

__all__ = ["open_backend"]

_log = logging.getLogger("uvm")


def open_backend(name: str | None = None) -> Backend:
    """Choose a backend; enter it with ``async with``.

    :param name: insist on one: ``"fake"``, ``"hcs"``, or one that an installed package registered. Without
        it, HCS on Windows where it can be used, the fake elsewhere; the log says which, and why.
    :raises OptionsError: nobody registered that name.
    :raises NotSupportedError: that backend cannot be used here.
    """
    if name is not None:
        _log.info("backend %s: asked for by name", name)
        return backend_factory(name)()
    if sys.platform == "win32" and "hcs" in backend_names():
        _log.info("backend hcs: this is Windows")
        return backend_factory("hcs")()
    _log.info("backend fake: there is no HCS backend for %s here", sys.platform)
    return backend_factory("fake")()
