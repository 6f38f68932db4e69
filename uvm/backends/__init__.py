"""The hypervisors behind uvm, and the choice among them."""

from __future__ import annotations

import logging

from uvm.backends.base import Backend, backend_factory
from uvm.backends.hcs.availability import absence

__all__ = ["open_backend"]

_log = logging.getLogger("uvm")


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
