"""The base of schema models, and their fields: JSON name, zero value, and whether that is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self, dataclass_transform

from attrs import NOTHING, Factory, define, field

from uvm._repr import brief_call

#: Key of a field's metadata: the name in JSON.
JSON_NAME = "json"
#: Key of a field's metadata: True if Go writes the field even when it holds its zero value.
ALWAYS = "always"


def named(
    json_name: str,
    *,
    default: Any = NOTHING,
    factory: Callable[[], Any] | None = None,
    always: bool = False,
    secret: bool = False,
) -> Any:
    """Declare a field by its JSON name.

    :param default: the zero value; for a mutable one, ``factory`` makes it.
    :param always: write the zero value too. Otherwise it is omitted, as by Go's ``omitempty``:
        0, False, an empty string, list or mapping, and None.
    :param secret: leave the field out of the model's ``repr``, so that it never reaches a log.
    """
    value = default if factory is None else Factory(factory)
    return field(default=value, repr=not secret, metadata={JSON_NAME: json_name, ALWAYS: always})


@dataclass_transform(kw_only_default=True, field_specifiers=(named,))
class Model:
    """The base of schema models: attrs classes of which each field is :func:`named`, by keyword alone."""

    __attrs_attrs__: ClassVar[tuple[Any, ...]]

    def __repr__(self) -> str:
        return brief_call(self)

    def __init_subclass__(cls) -> None:
        # With slots, attrs would create the class again.
        define(cls, kw_only=True, slots=False, repr=False)

    def replaced(self, **changes: Any) -> Self:
        """Return a copy with other values of some fields; the copy shares the rest."""
        return type(self)(**vars(self) | changes)
