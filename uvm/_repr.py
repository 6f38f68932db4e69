"""What is printed of an object: short, and nothing of it that is private or secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from attrs import NOTHING, Factory, fields

from uvm.errors import UVMError

T = TypeVar("T")

_MAX_CHARACTERS = 300
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def brief(text: str) -> str:
    """Return a text, cut before its last character if it is long."""
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 4]}...{text[-1]}"


def printed(value: object) -> str:
    """Return what a value prints, cut if it is long; its type, if it cannot be printed."""
    try:
        return brief(repr(value))
    except Exception:
        # A number has too many digits, or a class of the caller's fails.
        return f"<{type(value).__name__}>"


def arguments_of(value: Any) -> str:
    """Return the fields of an attrs object that differ from their defaults, as arguments.

    A secret, a field without ``repr``, is shown as ``...``, which makes no other object.
    """
    arguments = []
    for each in fields(type(value)):
        if each.name.startswith("_") or not each.init:
            continue
        default, given = each.default, getattr(value, each.name)
        if isinstance(default, Factory):  # type: ignore[arg-type]
            default = NOTHING if default.takes_self else default.factory()
        if given != default:
            arguments.append(f"{each.name}={given!r}" if each.repr else f"{each.name}=...")
    return ", ".join(arguments)


def call_of(value: Any) -> str:
    """Return the call that makes an attrs object."""
    return f"{type(value).__name__}({arguments_of(value)})"


def brief_call(value: Any) -> str:
    """Return the call that makes an attrs object, as far as it is short."""
    return brief(call_of(value))


class Value:
    """The base of values that are printed as the calls that make them, as far as these are short."""

    __slots__ = ()

    def __repr__(self) -> str:
        return brief_call(self)


def showing(*names: str) -> Callable[[type[T]], type[T]]:
    """Have a class print its name, and attributes of these names, of which collections are counted."""

    def text(value: object) -> str:
        return brief(f"<{' '.join([type(value).__name__, *(_shown(value, name) for name in names)])}>")

    def with_text(cls: type[T]) -> type[T]:
        cls.__repr__ = text  # type: ignore[method-assign]
        return cls

    return with_text


def _shown(value: object, name: str) -> str:
    found = getattr(value, name)
    if callable(found):
        found = found()
    return f"{name}={len(found) if hasattr(found, '__len__') and not isinstance(found, str) else repr(found)}"


def counted(number: int, plural: str) -> str:
    """Return a number with what is counted."""
    return f"{number:,} {plural.removesuffix('s') if number == 1 else plural}"


def format_size(size_bytes: int) -> str:
    """Return a number of bytes in the largest unit that it fills, with two decimals at most."""
    power = min(max(size_bytes.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{size_bytes / (1 << 10 * power):.2f}".rstrip("0").rstrip(".") + f" {_UNITS[power]}"


def described(error: BaseException) -> str:
    """Return an error and its notes as text: of a group, with each of its errors."""
    said = f"{type(error).__name__}: {error}"
    # A group of uvm's own says what its errors are.
    if isinstance(error, BaseExceptionGroup) and not isinstance(error, UVMError):
        said = f"{error.message}: {'; and '.join(map(described, error.exceptions))}"
    return "; ".join((said, *getattr(error, "__notes__", ())))
