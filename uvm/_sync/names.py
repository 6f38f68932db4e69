"""The names of :mod:`uvm.sync`, and what they stand for."""

from __future__ import annotations

from functools import cache, cached_property
from importlib import import_module
from inspect import getattr_static
from pkgutil import iter_modules
from typing import Any, Final

#: By module, what is only in uvm.sync as it is, and what is given its face as that of uvm is.
OWN: Final = {
    "uvm._sync.files": ("ProcessInput", "ProcessOutput"),
    "uvm._sync.loop": ("event_loop", "timeout"),
}
_ADDED: Final = ("create_vm", "delete_template")
#: What is used as it is: a backend that the caller makes, and a value.
_AS_IT_IS: Final = ("FakeBackend", "Template")


@cache
def faced() -> dict[str, Any]:
    """Return all that has a face, by name: classes and functions of uvm, and the buses of VMs."""
    from uvm._sync import additions
    from uvm._sync.annotations import has_awaited, is_awaited

    public = import_module("uvm")
    own = {name for names in OWN.values() for name in names}
    found = {name: getattr(public, name) for name in public.__all__ if name not in (*own, *_AS_IT_IS)}
    found |= {name: getattr(additions, name) for name in _ADDED}
    found |= _buses(found["UtilityVM"])
    return {
        name: each
        for name, each in found.items()
        if name == "open_backend" or (has_awaited(each) if isinstance(each, type) else is_awaited(each))
    }


def _buses(vm: type) -> dict[str, Any]:
    """Return the classes of the buses of a VM, which are loaded where they are first used."""
    loaded: dict[str, Any] = {}
    for each in iter_modules(import_module("uvm._buses").__path__):
        loaded |= vars(import_module(f"uvm._buses.{each.name}"))
    members = [getattr_static(vm, name) for name in dir(vm) if not name.startswith("_")]
    buses = [each.func.__annotations__["return"] for each in members if isinstance(each, cached_property)]
    return {name: loaded[name] for name in buses}


def names() -> list[str]:
    """Return the names of :mod:`uvm.sync`."""
    return sorted((*faced(), *(name for names in OWN.values() for name in names)))
