"""Schema models, and their JSON.

A model is a msgspec struct. The JSON name of a field is its own in Pascal case, or the one that it states.
Writing omits what Go's ``omitempty`` omits, so that a model becomes exactly the fields that hcsshim sends: it
omits a zero value, unless the field is :func:`always` written. Reading sets missing and null fields to their
zero values, and is strict about types: a number is not accepted for a string, nor a string for a list.

What msgspec lacks is here: it takes null for no string or list, writes NaN as null and sets as lists, and a
class that refuses unknown fields would refuse them always.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache, partial
from types import NoneType
from typing import (
    Annotated,
    Any,
    Final,
    NamedTuple,
    Self,
    TypeAlias,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
)

import msgspec
from msgspec.structs import FieldInfo, astuple, fields, replace

from uvm._arguments import kind_of
from uvm._repr import brief
from uvm.errors import UVMError

T = TypeVar("T")

_SECRET: Final = msgspec.Meta(extra={"secret": True})

#: The type of a field that is left out of the model's ``repr``, so that it never reaches a log.
Secret = Annotated[T, _SECRET]


class SchemaError(UVMError, ValueError):
    """A value that does not fit the schema, or that JSON cannot represent; the message has its path."""


def always(zero: Any, *, name: str | None = None) -> Any:
    """Declare a field that is written even if it holds its zero value, as Go does without ``omitempty``.

    :param zero: the value, or the function that makes it.
    :param name: the name in JSON, if it is not the field's in Pascal case.
    """
    # msgspec omits nothing that a function makes; but list and dict themselves it knows.
    make = partial(zero) if callable(zero) else lambda: zero
    return msgspec.field(default_factory=make, name=name)


def _json_name(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class _ModelType(msgspec.StructMeta):
    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any], **config: Any) -> _ModelType:
        # The only setting that a class does not inherit.
        return super().__new__(cls, name, bases, space, kw_only=True, **config)


class Model(msgspec.Struct, metaclass=_ModelType, omit_defaults=True, rename=_json_name):
    """The base of schema models: structs whose fields all have a zero value, made by keywords alone."""

    def __repr__(self) -> str:
        zero, secrets = type(self)(), _secrets(type(self))
        given = {n: v for n in self.__struct_fields__ if (v := getattr(self, n)) != getattr(zero, n)}
        shown = (f"{name}={'...' if name in secrets else repr(value)}" for name, value in given.items())
        return brief(f"{type(self).__name__}({', '.join(shown)})")

    def replaced(self, **changes: Any) -> Self:
        """Return a copy with other values of some fields; the copy shares the rest."""
        return replace(self, **changes)


# What the types of a class's fields say: a model, a scalar or anything; a list or dict of it; or None.


@cache
def _fields(cls: type[Model]) -> tuple[FieldInfo, ...]:
    # Each time that they are asked for, the types are read from their text.
    return fields(cls)


def _parts(kind: Any) -> Iterator[Any]:
    yield kind
    for part in get_args(kind):
        yield from _parts(part)


def _model_in(kind: Any) -> Any:
    return next((each for each in _parts(kind) if isinstance(each, _ModelType)), None)


@cache
def _secrets(cls: type[Model]) -> frozenset[str]:
    return frozenset(each.name for each in _fields(cls) if _SECRET in _parts(each.type))


class _Object(NamedTuple):
    """The names in a JSON object, and the models in it, with what holds each: a list, a dict or nothing."""

    names: frozenset[str]
    models: dict[str, tuple[type[Model], type | None]]


@cache
def _object(cls: type[Model]) -> _Object:
    models: dict[str, tuple[type[Model], type | None]] = {}
    for each in _fields(cls):
        if model := _model_in(each.type):
            holders = {get_origin(part) for part in _parts(each.type)}
            models[each.encode_name] = model, list if list in holders else dict if dict in holders else None
    return _Object(frozenset(cls.__struct_encode_fields__), models)


# Writing.


def to_json(model: Model) -> dict[str, Any]:
    """Return a model as a JSON object, without fields that hold their zero value.

    A field of free form (``settings``, ``guest_request``) is omitted only if it is None.

    :raises SchemaError: it holds what JSON cannot represent, or nests too deeply.
    """
    try:
        if not _fits(model):
            _check(model, type(model))
        return msgspec.to_builtins(model, enc_hook=_plain)  # type: ignore[no-any-return]
    except (RecursionError, TypeError, ValueError) as e:
        raise _unwritable(model, e) from None


def dumps(value: Any) -> str:
    """Return a model, or a JSON value that may hold models, as compact JSON text.

    :raises SchemaError: it holds what JSON cannot represent, or nests too deeply.
    """
    try:
        if not _fits(value):
            _check(value, type(value))
        return _encode(value).decode()
    except (RecursionError, TypeError, ValueError) as e:
        raise _unwritable(value, e) from None


def _plain(value: Any) -> Any:
    """Return the plain value of one whose class msgspec does not know."""
    if isinstance(value, str):
        return "".join(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    raise TypeError(f"{kind_of(value)} is no JSON value")


_encode: Final = msgspec.json.Encoder(enc_hook=_plain).encode

#: Classes of which JSON can represent every value.
_WRITABLE: Final = frozenset({NoneType, bool, int, str})

_KEYS: Final = frozenset({str})

#: Made once: a union of classes is made anew each time that it is written.
_LISTS: Final = (list, tuple)

#: The class of a value to be written; or a place and the name or number of what is in it.
_Place: TypeAlias = "type | tuple[_Place, str | int]"


def _fits(value: Any) -> bool:
    """Return whether JSON can represent a value of a class that may hold others.

    It is false of some that fit, too, so that it is quick; :func:`_check` knows.
    """
    kind: Any = type(value)
    parts: Any
    if type(kind) is _ModelType:
        parts = astuple(value)
    elif kind is list:
        parts = value
    elif kind is dict and _KEYS.issuperset(map(type, value)):
        parts = value = tuple(value.values())
    elif isinstance(value, str):
        return not _HALF.search(value)
    else:
        return False
    if not _WRITABLE.issuperset(map(type, parts)):
        for each in parts:
            # What is empty is a zero value of a model, of whatever class.
            if type(each) not in _WRITABLE and (each or parts is value) and not _fits(each):
                return False
    return True


def _check(value: Any, place: _Place, writable: frozenset[type] = _WRITABLE) -> None:
    """Refuse what JSON cannot represent: msgspec writes most of it, in some form."""
    kind: Any = type(value)
    if type(kind) is _ModelType:
        values = astuple(value)
        if not writable.issuperset(map(type, values)):
            for name, each in zip(kind.__struct_encode_fields__, values, strict=True):
                # What is empty is a zero value, of whatever class.
                if each and type(each) not in writable:
                    _check(each, (place, name), writable)
    elif isinstance(value, dict):
        for key, each in value.items():
            if type(key) is not str and not isinstance(key, str):
                raise SchemaError(f"{_path(place)} has a key that is no string")
            if type(each) not in writable:
                _check(each, (place, key), writable)
    elif isinstance(value, _LISTS):
        for number, each in enumerate(value):
            if type(each) not in writable:
                _check(each, (place, number), writable)
    elif problem := _problem(value):
        raise SchemaError(f"{_path(place)} is {problem}")


def _problem(value: Any) -> str:
    """Return why JSON cannot represent a value that has no parts; empty if it can."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{value}, which is no JSON number"
    if isinstance(value, str):
        return "text with half of a surrogate pair" if _HALF.search(value) else ""
    return "" if isinstance(value, int) else f"{kind_of(value)}, which is no JSON value"


_HALF: Final = re.compile("[\ud800-\udfff]")


def _path(place: _Place) -> str:
    if isinstance(place, type):
        return place.__name__
    outer, inner = place
    return _path(outer) + (f".{inner}" if isinstance(inner, str) else f"[{inner}]")


def _unwritable(value: Any, error: Exception) -> SchemaError:
    """Return the error of a value that cannot be written, without the value."""
    if isinstance(error, SchemaError):
        return error
    where = type(value).__name__
    if isinstance(error, RecursionError):
        return SchemaError(f"{where} nests too deeply, or contains itself")
    if isinstance(error, UnicodeEncodeError):
        try:
            _check(msgspec.to_builtins(value, enc_hook=_plain), type(value), _WRITABLE - {str})
        except SchemaError as e:
            return e
        return SchemaError(f"{where} has a key with half of a surrogate pair")
    return SchemaError(f"{where}: {error}")


# Reading.


def from_json(cls: type[T], value: Any, *, forbid_extra: bool = False) -> T:
    """Return the model of a JSON object.

    :param value: checked for its size and depth, if it comes from a guest; see :mod:`uvm._wire.frames`.
    :param forbid_extra: refuse unknown fields, as HCS does. Otherwise they are ignored, so that newer hosts
        and guests can be read.
    :raises SchemaError: a value has the wrong type, or a field is unknown.
    """
    where = cls.__name__
    try:
        return msgspec.convert(_without_nulls(cls, value, where, forbid_extra), cls)
    except msgspec.ValidationError as e:
        # "Expected `str`, got `int` - at `$.Owner`": no values, as long as no field is of an enum's type.
        problem, _, place = str(e).partition(" - at ")
        # Of a key it is "`key` in `$.Owner`".
        of, _, place = place.replace("`", "").rpartition(" in ")
        said = f"{problem} for a {of}" if of else problem
        raise SchemaError(f"{where}{place.removeprefix('$')}: {said}") from None
    except UnicodeEncodeError:
        raise SchemaError(f"{where} has half of a surrogate pair for a name or a number") from None


def _without_nulls(cls: Any, value: Any, where: str, forbid_extra: bool) -> Any:
    """Return the JSON object of a model without what is null, in the models in it as well."""
    if not isinstance(value, dict):
        return value
    names, models = _object(cls)
    if forbid_extra and not value.keys() <= names:
        raise SchemaError(f"{where} has no field {', '.join(sorted(map(repr, value.keys() - names)))}")
    if None in value.values():
        value = {name: each for name, each in value.items() if each is not None}
    inside = {}
    for name, (model, holder) in models.items():
        if name in value:
            place = f"{where}.{name}"
            inside[name] = _models_without_nulls(model, holder, value[name], place, forbid_extra)
    return {**value, **inside} if inside else value


def _models_without_nulls(model: Any, holder: type | None, value: Any, where: str, forbid_extra: bool) -> Any:
    if holder is list and isinstance(value, list):
        items = enumerate(value)
        return [_without_nulls(model, each, f"{where}[{number}]", forbid_extra) for number, each in items]
    if holder is dict and isinstance(value, dict):
        pairs = value.items()
        return {key: _without_nulls(model, each, f"{where}[{key!r}]", forbid_extra) for key, each in pairs}
    return _without_nulls(model, value, where, forbid_extra)
