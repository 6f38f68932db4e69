"""How the values of annotations are written: each reader returns what a text says, or refuses it.

hcsshim warns of a value that it cannot read, and goes on without it; here it is refused, under the name of
its annotation.

Source: hcsshim internal/oci/annotations.go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from uvm._arguments import kind_of
from uvm._checks import I32, U32, U64, guid, plain_guid
from uvm._repr import printed
from uvm.errors import OptionsError
from uvm.options.common import HvSocketService
from uvm.options.hcsshim import registry_value, services
from uvm.options.wcow import RegistryValue

#: Returns the value, or raises OptionsError that says what is allowed.
Reader = Callable[[str], Any]

#: What Go's ``strconv.ParseBool`` takes.
_FLAGS: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
#: What a pod may set in the registry of its VM: a hive, and the beginning of a key.
_PERMITTED: Final = (
    ("System", r"CurrentControlSet\Services"),
    ("System", r"CurrentControlSet\Policies"),
    ("System", "Software"),
    ("Software", ""),
)
_VALUES: Final = ("string_value", "binary_value", "dword_value", "qword_value")


def checked_annotations(annotations: object) -> dict[str, str]:
    """Return a copy of annotations.

    :raises OptionsError: they are no mapping of strings to strings.
    """
    if not isinstance(annotations, Mapping):
        raise OptionsError(f"annotations are a mapping of names to strings, not {kind_of(annotations)}")
    for name, value in annotations.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise OptionsError(f"annotation {printed(name)} is {kind_of(value)}, not a string")
    return dict(annotations)


def read(name: str, reader: Reader, text: str) -> Any:
    """Return what the value of an annotation says.

    :raises OptionsError: it is not written as it has to be.
    """
    try:
        return reader(text)
    except OptionsError as error:
        raise OptionsError(f"annotation {name}: {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise OptionsError(f"annotation {name} has another form than {printed(text)}: {error}") from None


def flag(text: str) -> bool:
    """Read True or False."""
    value = _FLAGS.get(text)
    if value is None:
        raise OptionsError(f"it is true or false, not {printed(text)}")
    return value


def inverted(text: str) -> bool:
    """Read a flag that says the opposite."""
    return not flag(text)


def text(text: str) -> str:
    """Read any text."""
    return text


def whole(maximum: int, minimum: int = 0) -> Callable[[str], int]:
    """Read a whole number of a range."""

    def read_whole(text: str) -> int:
        if not re.fullmatch("[0-9]{1,20}", text) or not minimum <= int(text) <= maximum:
            raise OptionsError(f"it is a whole number from {minimum} to {maximum}, not {printed(text)}")
        return int(text)

    return read_whole


i32: Reader = whole(I32)
u32: Reader = whole(U32)
u64: Reader = whole(U64)


def numbers(item: Callable[[str], int]) -> Callable[[str], tuple[int, ...]]:
    """Read whole numbers with commas between them."""
    return lambda text: tuple(map(item, text.split(","))) if text else ()


def names(text: str) -> tuple[str, ...]:
    """Read names with commas between them."""
    return tuple(text.split(",")) if text else ()


def choice(*values: str) -> Reader:
    """Read one of some texts."""

    def read_choice(text: str) -> str:
        if text not in values:
            raise OptionsError(f"it is {' or '.join(map(repr, values))}, not {printed(text)}")
        return text

    return read_choice


def identifier(text: str) -> str:
    """Read a GUID."""
    plain = plain_guid(text)
    if allowed := guid(plain):
        raise OptionsError(f"it is {allowed}, not {printed(text)}")
    return plain


def _json(text: str, kind: type, what: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionsError(f"it is {what}: {error}") from None
    if not isinstance(value, kind):
        raise OptionsError(f"it is {what}, not {kind_of(value)}")
    return value


def service(text: str) -> HvSocketService:
    """Read the configuration of a Hyper-V socket service."""
    made: HvSocketService = services({"": _json(text, dict, "a JSON object")})[""]
    return made


def registry_values(text: str) -> tuple[RegistryValue, ...]:
    """Read values for the registry of the VM; only some places are permitted."""
    found = _json(text, list, "a JSON array of objects") if text else []
    return tuple(map(_registry_value, found))


def _registry_value(given: Any) -> RegistryValue:
    if not isinstance(given, dict):
        raise OptionsError(f"it is a JSON array of objects, not of {kind_of(given)}")
    made: RegistryValue = registry_value(given)
    where = f"the value {made.name!r} of {made.hive}\\{made.key}"
    if not (made.hive and made.key and made.name and made.type):
        raise OptionsError(f"{where} needs a hive, a key, a name and a type")
    if len(several := [name for name in _VALUES if getattr(made, name)]) > 1:
        raise OptionsError(f"{where} has several values: {', '.join(several)}")
    if not any(made.hive == hive and made.key.lower().startswith(key.lower()) for hive, key in _PERMITTED):
        places = ", ".join(f"{hive}\\{key}" for hive, key in _PERMITTED)
        raise OptionsError(f"{where} is not permitted; permitted are {places}")
    return made
