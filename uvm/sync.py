"""The API of :mod:`uvm` for synchronous programs: the same classes and names, without ``await``.

One event loop in a thread of its own, which runs from the first VM, pool or backend to the last, carries out
every call, from any thread. See :mod:`uvm._sync.faces` for how these classes are made, and
:mod:`uvm._sync.loop` for the loop and for what ctrl-C does.
"""

from __future__ import annotations

import sys
from typing import Any


def __getattr__(name: str) -> Any:
    from importlib import import_module

    from uvm._sync.names import OWN, faced, names

    if name == "__all__":
        return names()
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    for module, listed in OWN.items():
        if name in listed:
            return globals().setdefault(name, getattr(import_module(module), name))
    if name not in faced():
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}: it may be in uvm",
            name=name,
            obj=sys.modules[__name__],
        )
    from uvm._sync.faces import face_of, function_face

    value = faced()[name]
    face = face_of(value) if isinstance(value, type) else function_face(value)
    return globals().setdefault(name, face)


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")} - {"sys"})
