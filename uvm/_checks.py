"""Checks of what callers pass: options and other values, which check themselves, and single arguments."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self, TypeVar

import attrs

from uvm._arguments import are_items
from uvm._names import HostPath, guid_text
from uvm._repr import Value, printed
from uvm.errors import OptionsError, UnknownOptionError

#: Key of an option's metadata: the field's name in hcsshim, dotted if it is nested; absent if it is ours.
HCSSHIM = "hcsshim"
#: Key of an option's metadata: True if hcsshim's field says the opposite.
INVERTED = "inverted"
_CHECK = "check"

U16, U32, U64, I32 = 2**16 - 1, 2**32 - 1, 2**64 - 1, 2**31 - 1

T = TypeVar("T")

#: Returns None for an allowed value, else what would be allowed.
Check = Callable[[Any], str | None]

_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def go(name: str | None, check: Check, *, inverted: bool = False) -> dict[str, Any]:
    """Return the metadata of an option: its name in hcsshim (None if it is ours) and its check."""
    return {_CHECK: check, **({HCSSHIM: name} if name else {}), **({INVERTED: True} if inverted else {})}


@cache
def _checked(cls: type) -> tuple[attrgetter[Any], tuple[Any, ...], tuple[attrs.Attribute[Any], ...]]:
    """Return how to get all values, the defaults, and the fields, in the same order."""
    fields = attrs.fields(cls)
    return attrgetter(*(f.name for f in fields)), tuple(f.default for f in fields), fields


class Checked(Value):
    """The base of options and other values, which check what they are made of."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __new__(cls, *args: object, **given: object) -> Self:
            if given and not given.keys() <= _names(cls).keys():
                check_names(cls.__name__, given, _names(cls))
            return object.__new__(cls)

    def __attrs_post_init__(self: Any) -> None:
        check_fields(self)


@cache
def _names(cls: type) -> dict[str, None]:
    """Return the keywords that a class is made of, in order."""
    return dict.fromkeys(str(field.alias) for field in attrs.fields(cls))


def check_names(of: str, given: Iterable[str], names: Collection[str], others: Iterable[str] = ()) -> None:
    """Refuse keywords that are none of some names; a similar one is suggested.

    :param others: what else may be meant.
    :raises UnknownOptionError: naming the first of them.
    """
    for name in given:
        if name not in names:
            raise UnknownOptionError(of, name, similar(name, [*names, *others]))


def similar(name: str, names: Sequence[str]) -> str:
    """Return the names that are like a wrong one; empty if none is."""
    words = [each for each in names if name in each.split("_")]
    from difflib import get_close_matches

    return " or ".join(get_close_matches(name, names, 2) or words[:2])


def suggested(error: TypeError, function: Callable[..., object], given: Iterable[str]) -> TypeError:
    """Return the error of a wrong call, with the parameter that was meant, if one is like what was given."""
    names = [each for each in inspect.signature(function).parameters if each not in ("self", "cls")]
    close = next((similar(name, names) for name in given if name not in names), "")
    # Newer Pythons suggest as well, self for instance.
    said = str(error).partition(". Did you mean")[0]
    return TypeError(f"{said}; did you mean {close}?" if close else said)


def check_fields(options: attrs.AttrsInstance) -> dict[str, Any]:
    """Check each option by itself, and return those that differ from their defaults.

    :raises OptionsError: naming the option, its value (unless it is secret) and what is allowed.
    """
    values, defaults, fields = _checked(options.__class__)
    given = {}
    for value, default, field in zip(values(options), defaults, fields, strict=True):
        if value is default:
            continue
        allowed = field.metadata[_CHECK](value)
        if allowed is not None:
            shown = printed(value) if field.repr else "what was given"
            raise OptionsError(f"{options.__class__.__name__}.{field.name} must be {allowed}, not {shown}")
        if value != default:
            given[field.name] = value
    return given


def checked(value: T, check: Check, what: str) -> T:
    """Return an argument that a check allows.

    :param what: what an error calls it.
    :raises OptionsError: naming it, its value and what is allowed.
    """
    if (allowed := check(value)) is not None:
        raise OptionsError(f"{what} must be {allowed}, not {printed(value)}")
    return value


# Converters leave what is of the wrong type as it is: the checks name it.


def path(value: HostPath) -> str:
    """Return a path as text."""
    fspath: Callable[[HostPath], str] | None = getattr(type(value), "__fspath__", None)
    return value if fspath is None else fspath(value)  # type: ignore[return-value]


def optional_path(value: HostPath | None) -> str | None:
    """Return a path as text; None stays."""
    return None if value is None else path(value)


def items_or_value(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return a copy of a sequence."""
    return tuple(values) if are_items(values) else values  # type: ignore[return-value]


def without_mark(value: str) -> str:
    """Return text that was read from a file without its byte order mark."""
    given: Any = value
    return given.removeprefix("\ufeff") if isinstance(given, str) else value


def plain_guid(value: str) -> str:
    """Return a GUID without braces, in the case in which it was written."""
    given: Any = value
    return guid_text(given) if isinstance(given, str) else value


def guid_of(value: str, what: str) -> str:
    """Return a GUID without braces; `what` is what an error calls it.

    :raises OptionsError: it is none.
    """
    plain = plain_guid(value)
    if (allowed := guid(plain)) is not None:
        raise OptionsError(f"{what} is {allowed}, not {value!r}")
    return plain


def number(
    allowed: str,
    minimum: float = 0,
    maximum: float = math.inf,
    *,
    above: float = -math.inf,
    kind: type = float,
) -> Check:
    """Allow numbers, NaN never; `allowed` says which, and a `kind` of int only whole ones."""
    kinds = (int,) if kind is int else (int, float)

    def check(value: Any) -> str | None:
        good = isinstance(value, kinds) and not isinstance(value, bool)
        # Of other numbers than whole ones a float is made, which not every int fits.
        good = good and (kind is int or value == math.inf or value <= sys.float_info.max)
        return None if good and minimum <= value <= maximum and value > above else allowed

    return check


def whole(maximum: int, minimum: int = 0) -> Check:
    """Allow whole numbers of a range."""
    return number(f"a whole number from {minimum} to {maximum}", minimum, maximum, kind=int)


#: Times: as long as it takes is ``math.inf``.
seconds = number("a number of seconds, 0 or more")
positive_seconds = number("a number of seconds above 0", above=0)


def flag(value: Any) -> str | None:
    """Allow True and False."""
    return None if isinstance(value, bool) else "True or False"


def text(value: Any) -> str | None:
    """Allow strings, which the host takes without NUL."""
    return None if isinstance(value, str) and "\0" not in value else "a string without NUL"


def guid(value: Any) -> str | None:
    """Allow GUIDs without braces, as :func:`plain_guid` makes them."""
    good = isinstance(value, str) and _GUID.fullmatch(value)
    return None if good else "a GUID such as 6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"


def optional_guid(value: Any) -> str | None:
    """Allow what :func:`guid` does, and an empty string for none."""
    return None if value == "" else guid(value)


def choice(*values: str) -> Check:
    """Allow some strings."""
    allowed = " or ".join(map(repr, values))
    return lambda value: None if isinstance(value, str) and value in values else allowed


def instance(*classes: type) -> Check:
    """Allow instances of some classes."""
    allowed = " or ".join(cls.__name__ for cls in classes)
    return lambda value: None if isinstance(value, classes) else allowed


def optional(check: Check) -> Check:
    """Allow None as well."""

    def check_given(value: Any) -> str | None:
        allowed = None if value is None else check(value)
        return allowed and f"{allowed} or None"

    return check_given


def function(value: Any) -> str | None:
    """Allow what can be called, and is no class."""
    return None if callable(value) and not isinstance(value, type) else "a function"


def each(check: Check) -> Check:
    """Allow sequences of allowed values."""

    def check_each(values: Any) -> str | None:
        if not isinstance(values, tuple):
            return "a sequence"
        return next((f"a sequence, each item {a}" for v in values if (a := check(v)) is not None), None)

    return check_each


def items(key: Check, value: Check) -> Check:
    """Allow mappings of allowed keys to allowed values."""

    def check_items(values: Any) -> str | None:
        if not isinstance(values, Mapping):
            return "a mapping"
        wrong: Iterable[str] = (
            f"a mapping, each {what} {allowed}"
            for k, v in values.items()
            for what, allowed in (("key", key(k)), ("value", value(v)))
            if allowed is not None
        )
        return next(iter(wrong), None)

    return check_items
