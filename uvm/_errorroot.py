"""The root of the errors, and the one of them that a guest's agent knows. No more is loaded in a guest.

They are names of :mod:`uvm.errors`, which has the others.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


class UVMError(Exception):
    """The root of all errors that uvm raises.

    All of them can be pickled and copied, with their fields, notes and cause; they compare by identity. A
    cause, or a part of a group, that cannot be pickled itself is replaced by an exception that says what it
    was.
    """

    __module__ = "uvm.errors"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        make, (cls, args), state = _reduced(self)
        state["__cause__"] = _travelling(state["__cause__"], protocol)
        if isinstance(self, ExceptionGroup):
            args = (args[0], [_travelling(part, protocol) for part in self.exceptions])
        return make, (cls, args), state

    def __copy__(self) -> UVMError:
        return copied(self)


def _travelling(error: BaseException | None, protocol: int) -> BaseException | None:
    """Return an exception that can be pickled, or else one that says what it was."""
    if error is None or isinstance(error, UVMError):
        return error
    # They take long to load, and a guest never needs them.
    import pickle
    import traceback

    try:
        pickle.loads(pickle.dumps(error, protocol))
    except Exception:
        # Whatever it is made of, and however it fails: it is no reason to lose the error that it caused.
        said = traceback.format_exception_only(error)
        return Exception("".join(said).strip())
    return error


def copied(error: E) -> E:
    make, of, state = _reduced(error)
    copy: E = make(*of)
    copy.__setstate__(state)
    return copy


def _reduced(error: E) -> tuple[Any, tuple[type[E], Any], dict[str, Any]]:
    """Return of what an exception is made again, as ``__reduce__`` does: its message is not built anew."""
    # An OSError has more than its `args` say: the file.
    base = OSError if isinstance(error, OSError) else BaseException
    state = {
        **error.__dict__,
        "__cause__": error.__cause__,
        "__suppress_context__": error.__suppress_context__,
    }
    if "__notes__" in state:
        state["__notes__"] = list(state["__notes__"])
    args: Any = base.__reduce__(error)[1]
    return _remade, (type(error), args), state


def _remade(cls: type[E], args: tuple[Any, ...]) -> E:
    # Without an `__init__` of Python, which takes what the message is built of; Python's own sets more than
    # `args`. An OSError leaves its `args` to that.
    error = cls.__new__(cls, *args)
    if not isinstance(cls.__init__, FunctionType):
        cls.__init__(error, *args)
    error.args = error.args or args
    return error


class WireError(UVMError, ValueError):
    """The other end sent bytes that are no message of the protocol, or none that is allowed now."""

    __module__ = "uvm.errors"
