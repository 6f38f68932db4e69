"""The fields of schema models: JSON name, zero value, and whether the zero value is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import NOTHING, Factory, field

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
