"""How a schema model writes a field: its JSON name, its zero value, whether it is always written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import NOTHING, Factory, field

__all__ = ["ALWAYS", "JSON_NAME", "named"]

#: Key of a field's metadata: the name in JSON.
JSON_NAME = "json"
#: Key of a field's metadata: True where Go writes the field even when it holds its zero value.
ALWAYS = "always"


def named(
    json_name: str,
    *,
    default: Any = NOTHING,
    factory: Callable[[], Any] | None = None,
    always: bool = False,
    secret: bool = False,
) -> Any:
    """Declare a field under its JSON name.

    :param default: the zero value; ``factory`` makes it where it is mutable.
    :param always: write the zero value too. Otherwise it is left out, as Go's ``omitempty`` does:
        0, False, an empty string, list or mapping, and None.
    :param secret: leave the field out of the model's ``repr``, so that it never reaches a log.
    """
    value = default if factory is None else Factory(factory)
    return field(default=value, repr=not secret, metadata={JSON_NAME: json_name, ALWAYS: always})
