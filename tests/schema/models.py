"""All models, and values of them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated, Any, get_args, get_origin

from hypothesis import strategies as st
from msgspec.structs import fields

import uvm.schema
from uvm.schema.json import Model

MODULES = [importlib.import_module(f"uvm.schema.{m.name}") for m in pkgutil.iter_modules(uvm.schema.__path__)]
MODELS = [
    cls
    for module in MODULES
    for cls in vars(module).values()
    if isinstance(cls, type) and issubclass(cls, Model) and cls.__module__ == module.__name__
    if cls is not Model
]

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 2**64),
    str: st.text(max_size=5),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    Any: PLAIN,
}


def values(kind: Any, depth: int) -> st.SearchStrategy[Any]:
    """Return values of a field's type; structures end after a few levels."""
    if kind in SCALARS:
        return SCALARS[kind]
    if get_origin(kind) is Annotated:
        return values(get_args(kind)[0], depth)
    if isinstance(kind, type) and issubclass(kind, Model):
        return models(kind, depth)
    empty: Any = {list: [], dict: {}}.get(get_origin(kind) or kind)
    if depth <= 0:
        return st.just(empty)
    inner = values(get_args(kind)[-1 if empty == {} else 0], depth)
    if empty == []:
        return st.lists(inner, max_size=2)
    return st.dictionaries(st.text(max_size=3), inner, max_size=2) if empty == {} else st.none() | inner


def models(cls: Any, depth: int = 2) -> st.SearchStrategy[Any]:
    return st.deferred(lambda: st.builds(cls, **{f.name: values(f.type, depth - 1) for f in fields(cls)}))
