"""Conversion of schema models to JSON values and back.

Writing omits what Go's ``omitempty`` omits, so that a model becomes exactly the fields that hcsshim sends.
Reading sets missing and null fields to their zero values, and is strict about types: a number is not accepted
for a string, nor a string for a list.

cattrs generates one function per class and direction; it is imported by the first call, so that importing the
models costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from json import JSONEncoder
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import attrs

from uvm.errors import UVMError
from uvm.schema.field import ALWAYS, JSON_NAME

if TYPE_CHECKING:
    from cattrs import Converter


T = TypeVar("T")

_KINDS = {int: "a whole number", str: "a string", bool: "true or false", float: "a number"}


class SchemaError(UVMError, ValueError):
    """A JSON value that does not fit the schema; the message names each invalid field."""


def to_json(model: Any) -> dict[str, Any]:
    """Return a model as a JSON object, without fields that hold their zero value.

    A field of free form (``settings``, ``guest_request``) is omitted only if it is None.
    """
    cls = model.__class__
    writer = _writers.get(cls)
    if writer is None:
        _require_model(cls)
        writer = _writers[cls] = _converter(False).get_unstructure_hook(cls)
    return writer(model)


def from_json(cls: type[T], value: Any, *, forbid_extra: bool = False) -> T:
    """Return the model of a JSON object.

    :param forbid_extra: refuse unknown fields, as HCS does. Otherwise they are ignored, so that newer hosts
        and guests can be read.
    :raises SchemaError: a value has the wrong type, or a field is unknown.
    """
    converter = _converter(forbid_extra)
    try:
        return converter.structure(value, cls)
    except Exception as e:
        from cattrs.errors import BaseValidationError

        if not isinstance(e, BaseValidationError | TypeError):
            raise
        # Without the cause: cattrs's own report repeats the values, which may be secret.
        raise SchemaError("; ".join(_problems(e, cls.__name__))) from None


def dumps(value: Any) -> str:
    """Return a model, or a JSON value that may hold models, as compact JSON text.

    :raises TypeError: it holds a value that JSON cannot represent.
    :raises ValueError: it holds a number that is not finite, or nests too deeply.
    """
    try:
        return _encode(value)
    except RecursionError:
        raise ValueError("the value nests too deeply, or contains itself") from None


def _fields(model: Any) -> dict[str, Any]:
    """Return the fields of a model unchanged: the encoder asks again for the models in them."""
    cls = model.__class__
    writer = _field_writers.get(cls)
    if writer is None:
        _require_model(cls)
        writer = _field_writers[cls] = _class_writer(cls, _shallow_converter())
    return writer(model)


def _require_model(cls: type) -> None:
    if not attrs.has(cls):
        raise TypeError(f"{cls.__name__} is not a schema model")


_writers: dict[type, Callable[[Any], dict[str, Any]]] = {}
_field_writers: dict[type, Callable[[Any], dict[str, Any]]] = {}
_encode = JSONEncoder(separators=(",", ":"), check_circular=False, allow_nan=False, default=_fields).encode


@cache
def _converter(forbid_extra: bool) -> Converter:
    """Return the converter of one strictness."""
    from cattrs import Converter

    converter = Converter(omit_if_default=True, forbid_extra_keys=forbid_extra)
    converter.register_unstructure_hook_factory(attrs.has, lambda cls: _class_writer(cls, converter))
    converter.register_structure_hook_factory(attrs.has, lambda cls: _class_reader(cls, converter))
    for kind in _KINDS:
        converter.register_structure_hook(kind, _scalar)
    converter.register_structure_hook_factory(_is_generic(list), lambda kind: _list_reader(kind, converter))
    converter.register_structure_hook_factory(_is_generic(dict), lambda kind: _dict_reader(kind, converter))
    return converter


@cache
def _shallow_converter() -> Converter:
    """Return the converter that leaves the values of fields unchanged."""
    from cattrs import Converter
    from cattrs.fns import identity

    converter = Converter(omit_if_default=True)
    converter.register_unstructure_hook_factory(lambda kind: True, lambda kind: identity)
    return converter


def _is_generic(origin: type) -> Callable[[Any], bool]:
    return lambda kind: bool(get_origin(kind) == origin)


def _class_writer(cls: Any, converter: Converter) -> Callable[[Any], dict[str, Any]]:
    from cattrs.gen import make_dict_unstructure_fn, override

    fields = attrs.fields(attrs.resolve_types(cls))
    overrides: dict[str, Any] = {
        field.name: override(
            rename=field.metadata[JSON_NAME], omit_if_default=not field.metadata.get(ALWAYS, False)
        )
        for field in fields
    }
    return make_dict_unstructure_fn(cls, converter, **overrides)


def _class_reader(cls: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    from cattrs.gen import make_dict_structure_fn, override

    fields = attrs.fields(attrs.resolve_types(cls))
    names = frozenset(field.metadata[JSON_NAME] for field in fields)
    overrides: dict[str, Any] = {field.name: override(rename=field.metadata[JSON_NAME]) for field in fields}
    read = make_dict_structure_fn(cls, converter, **overrides)

    def structure(value: Any, of: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"should be an object, not {_kind_of(value)}")
        if None in value.values():
            value = {k: v for k, v in value.items() if v is not None or k not in names}
        return read(value, of)

    return structure


def _scalar(value: Any, kind: type) -> Any:
    # bool is a subclass of int in Python, but no number in JSON; 1 is a valid float.
    if value.__class__ is kind or (kind is float and value.__class__ is int):
        return value
    raise TypeError(f"should be {_KINDS[kind]}, not {_kind_of(value)}")


def _list_reader(kind: Any, converter: Converter) -> Callable[[Any, Any], list[Any]]:
    (item,) = get_args(kind)

    def structure(value: Any, of: Any) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise TypeError(f"should be a list, not {_kind_of(value)}")
        return [v for _, v in _each(enumerate(value), item, converter)]

    return structure


def _dict_reader(kind: Any, converter: Converter) -> Callable[[Any, Any], dict[str, Any]]:
    _, item = get_args(kind)

    def structure(value: Any, of: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise TypeError(f"should be an object, not {_kind_of(value)}")
        return dict(_each(value.items(), item, converter))

    return structure


def _each(items: Iterable[tuple[Any, Any]], kind: Any, converter: Converter) -> Iterator[tuple[Any, Any]]:
    """Convert the items of a list or mapping; an error is noted with its index or key."""
    from cattrs.errors import IterableValidationError, IterableValidationNote

    for key, value in items:
        try:
            yield key, converter.structure(value, kind)
        except Exception as e:
            e.add_note(IterableValidationNote("item", key, kind))
            raise IterableValidationError("items", [e], kind) from None


def _problems(error: BaseException, where: str) -> Iterator[str]:
    """Yield cattrs's errors in words, each with the JSON path of the value."""
    from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

    if isinstance(error, ForbiddenExtraKeysError):
        yield f"{where} has no field {', '.join(sorted(map(repr, error.extra_fields)))}"
    elif isinstance(error, ClassValidationError):
        of_fields, of_object = error.group_exceptions()
        fields = attrs.fields_dict(error.cl)
        for inner, note in of_fields:
            yield from _problems(inner, f"{where}.{fields[note.name].metadata[JSON_NAME]}")
        for inner in of_object:
            yield from _problems(inner, where)
    elif isinstance(error, IterableValidationError):
        of_items, _ = error.group_exceptions()
        for inner, item in of_items:
            yield from _problems(inner, f"{where}[{item.index!r}]")
    else:
        yield f"{where} {error}"


def _kind_of(value: Any) -> str:
    """Return the JSON kind of a value, never the value."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return _KINDS.get(type(value), type(value).__name__)
