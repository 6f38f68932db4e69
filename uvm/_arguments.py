"""What a caller passes: taken if its meaning is plain, copied, or refused."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping
from enum import Enum
from typing import TypeVar

from uvm.errors import OptionsError

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


def kind_of(value: object) -> str:
    """Name the type of a value, never the value: it may be secret."""
    name = type(value).__name__
    return "nothing" if value is None else f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def are_items(values: object) -> bool:
    """Return whether a value is a sequence of items; text, a path and a mapping are not."""
    return isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping)


def items_of(values: Iterable[T], what: str) -> tuple[T, ...]:
    """Return the items of a sequence.

    :param what: what an error calls the sequence; its items, which may be secret, are not shown.
    :raises OptionsError: it is no sequence.
    """
    if not are_items(values):
        raise OptionsError(f"{what} must be a sequence such as a list of strings, not {kind_of(values)}")
    return tuple(values)


def own(argument: object) -> object:
    """Return a copy of a list, document or model, which its caller may go on changing; others as they are."""
    # A model is known by what all have: this module is below uvm.schema.
    if not isinstance(argument, list | dict) and not hasattr(argument, "replaced"):
        return argument
    try:
        return copy.deepcopy(argument)
    except (RecursionError, TypeError):
        # What cannot be copied cannot be written as JSON either, and is refused there.
        return argument


def member_of(cls: type[E], value: object, what: str) -> E:
    """Return the member of an enum that a caller means by the member or by its value.

    :raises OptionsError: there is none.
    """
    try:
        return cls(value)
    except ValueError:
        members = ", ".join(f"{cls.__name__}.{each.name} ({each.value!r})" for each in cls)
        given = repr(value) if isinstance(value, str) else kind_of(value)
        raise OptionsError(f"{what} must be one of {members}, not {given}") from None


def refuse_twice(what: str, keys: Iterable[Hashable]) -> None:
    """Refuse keys of which one is there twice.

    :param what: what an error calls what has the keys.
    :param keys: the names, in one spelling; an error shows them.
    :raises OptionsError: a key is there twice.
    """
    seen = set()
    for key in keys:
        if key in seen:
            raise OptionsError(f"{what} has {key} twice")
        seen.add(key)
