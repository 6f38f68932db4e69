"""Protobuf messages: attrs classes whose fields say their numbers, and the ``protobuf`` package as the codec.

The classes of the package are made at run time, of the attrs classes; nothing is generated. Fields of a
message that its class does not have are dropped, as proto3 wants it.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final, TypeVar, cast

import attrs
from attrs import frozen

from uvm.errors import NotSupportedError, OptionsError, WireError

_WIRE: Final = "protobuf"

#: ``FieldDescriptorProto.Type`` and ``Label``.
_INT64, _INT32, _STRING, _MESSAGE, _BYTES, _UINT32 = 3, 5, 9, 11, 12, 13
_OPTIONAL: Final = 1


class Message:
    """The base of messages."""

    __slots__ = ()


M = TypeVar("M", bound=Message)


@frozen
class _Field:
    number: int
    wire_type: int
    of: type[Message] | None = None


def string(number: int) -> str:
    """Return a field of text."""
    return cast(str, _field(_Field(number, _STRING), ""))


def octets(number: int) -> bytes:
    """Return a field of bytes."""
    return cast(bytes, _field(_Field(number, _BYTES), b""))


def uint32(number: int) -> int:
    """Return a field of an unsigned number of 32 bits."""
    return cast(int, _field(_Field(number, _UINT32), 0))


def int32(number: int) -> int:
    """Return a field of a number of 32 bits, or of an enumeration."""
    return cast(int, _field(_Field(number, _INT32), 0))


def int64(number: int) -> int:
    """Return a field of a number of 64 bits."""
    return cast(int, _field(_Field(number, _INT64), 0))


def nested(number: int, of: type[M]) -> M | None:
    """Return a field of another message, which may be absent."""
    return cast("M | None", _field(_Field(number, _MESSAGE, of), None))


def _field(wire: _Field, default: Any) -> Any:
    return attrs.field(default=default, metadata={_WIRE: wire})


@frozen
class AnyMessage(Message):
    """A value of a type that is named beside it (``google.protobuf.Any``)."""

    type_url: str = string(1)
    value: bytes = octets(2)


def encode(message: Message) -> bytes:
    """Return a message as bytes.

    :raises OptionsError: protobuf has no form for a value in it.
    """
    made = _class_of(type(message))()
    try:
        _fill(made, message)
        return made.SerializeToString()  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise OptionsError(f"{type(message).__name__}: {error}; nothing was sent") from None


def decode(kind: type[M], data: bytes) -> M:
    """Return the message of bytes.

    :raises WireError: they are none of that kind.
    """
    made = _class_of(kind)()
    try:
        made.ParseFromString(data)
    except (runtime("message").DecodeError, UnicodeDecodeError):
        # Its text, which quotes what came, is not passed on. The one without C raises the other for text.
        raise WireError(f"{len(data)} bytes are no {kind.__name__} of protobuf") from None
    return _read(kind, made)


def runtime(module: str) -> ModuleType:
    """Return a module of the ``protobuf`` package.

    :raises NotSupportedError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(f"google.protobuf.{module}")
    except ImportError as error:
        raise NotSupportedError(
            'network configuration proxies need the protobuf package: pip install "utilityvm[ncproxy]"'
        ) from error


def _fill(made: Any, message: Message) -> None:
    for name, wire in _fields(type(message)):
        value = getattr(message, name)
        if wire.of is None:
            setattr(made, name, value)
        elif value is not None:
            getattr(made, name).SetInParent()
            _fill(getattr(made, name), value)


def _read(kind: type[M], made: Any) -> M:
    values: dict[str, Any] = {}
    for name, wire in _fields(kind):
        if wire.of is None:
            values[name] = getattr(made, name)
        elif made.HasField(name):
            values[name] = _read(wire.of, getattr(made, name))
    return kind(**values)


def _fields(kind: type[Message]) -> Iterator[tuple[str, _Field]]:
    for each in attrs.fields(kind):  # type: ignore[arg-type]
        yield each.name, each.metadata[_WIRE]


#: The package's classes of messages.
_classes: dict[type[Message], Any] = {}


def _class_of(kind: type[Message]) -> Any:
    if kind not in _classes:
        _classes[kind] = _new_class(kind)
    return _classes[kind]


def _new_class(kind: type[Message]) -> Any:
    """Return the package's class of a message, made of its fields."""
    file = runtime("descriptor_pb2").FileDescriptorProto(name=f"{kind.__name__}.proto", syntax="proto3")
    kinds = [kind]
    for each in kinds:
        described = file.message_type.add(name=each.__name__)
        for name, wire in _fields(each):
            field = described.field.add(name=name, number=wire.number, type=wire.wire_type, label=_OPTIONAL)
            if wire.of is not None:
                field.type_name = f".{wire.of.__name__}"
                kinds += [] if wire.of in kinds else [wire.of]
    pool = runtime("descriptor_pool").DescriptorPool()
    pool.Add(file)
    return runtime("message_factory").GetMessageClass(pool.FindMessageTypeByName(kind.__name__))
