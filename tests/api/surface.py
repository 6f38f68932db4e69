"""Every call of the public API that is awaited, entered, or iterated over."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pkgutil import iter_modules
from types import FunctionType
from typing import Any, get_type_hints

import uvm
import uvm._buses

__all__ = ["awaited", "calls", "defining", "protocols"]

#: What a function returns that is awaited, entered, or iterated over.
_AWAITED = re.compile(
    r"\b(Opening|Awaitable|Coroutine|AsyncIterator|AsyncIterable|AsyncGenerator|\w*AsyncContextManager)\b"
)
_ASYNC_DUNDERS = ("__aenter__", "__aexit__", "__anext__")


def calls() -> Iterator[tuple[type | None, str]]:
    """Yield each call: the class, None for a function, and the name."""
    for cls in _classes():
        yield from ((cls, name) for name in awaited(cls))
    for name in _names():
        if isinstance(function := getattr(uvm, name), FunctionType) and _is_awaited(function):
            yield None, name


def _names() -> list[str]:
    return [name for name in dir(uvm) if not name.startswith("_")]


def protocols() -> list[type]:
    """Return the protocols of :mod:`uvm.backend`, and the fake's implementation of them."""
    return [each for name in _names() if isinstance(each := getattr(uvm, name), type) and _is_protocol(each)]


def awaited(cls: type) -> Iterator[str]:
    """Yield the names of the methods of a class that are awaited, entered, or iterated over."""
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        if (not name.startswith("_") or name in _ASYNC_DUNDERS) and _is_awaited(member):
            yield name


def defining(cls: type | None, name: str) -> Iterator[str]:
    """Yield the names of the rows that may be about a call, the narrowest first."""
    if cls is None:
        yield name
    else:
        yield from (f"{each.__name__}.{name}" for each in cls.__mro__)


def _classes() -> list[type]:
    """Return the classes that a user gets objects of."""
    public = [each for name in _names() if isinstance(each := getattr(uvm, name), type)]
    # The buses are loaded where they are first used.
    modules = [import_module(each.name) for each in iter_modules(uvm._buses.__path__, "uvm._buses.")]
    loaded = {name: value for module in modules for name, value in vars(module).items()}
    buses = [
        get_type_hints(member.func, localns=loaded)["return"]
        for cls in uvm.UtilityVM.__mro__
        for name, member in vars(cls).items()
        if isinstance(member, cached_property) and not name.startswith("_")
    ]
    bases = {base for each in public for base in each.__mro__[1:]}
    # What a backend is called with is in its conformance suite.
    return [each for each in (*public, *buses) if not (each in bases or _is_protocol(each))]


def _is_protocol(cls: type) -> bool:
    """Return whether it is a protocol of :mod:`uvm.backend`, or the fake's implementation."""
    of_backends = cls.__module__ == "uvm.backend" and getattr(cls, "_is_protocol", False)
    return of_backends or cls is uvm.FakeBackend


def _is_awaited(member: Any) -> bool:
    function = inspect.unwrap(getattr(member, "__func__", member))
    if not isinstance(function, FunctionType):
        return False
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return True
    return bool(_AWAITED.search(str(function.__annotations__.get("return", ""))))
