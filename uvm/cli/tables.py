"""Reading the tables of a TOML file; errors say the file, the table, the key and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import attrs
from attrs import frozen

from uvm.cli.errors import UsageError
from uvm.cli.sizes import parse_size
from uvm.errors import OptionsError

T = TypeVar("T")
C = TypeVar("C", bound=attrs.AttrsInstance)

#: A key that has to be there.
_REQUIRED: Final[Any] = object()


class PodFileError(UsageError):
    """A pod file cannot be read, or asks for what there is not."""


@frozen
class Table:
    """One table of a file.

    :ivar file: the file, for messages; :ivar name: the table, as in ``[vm]`` or ``[[layers]] 2``.
    """

    file: str
    name: str
    values: Mapping[str, Any]
    allowed: tuple[str, ...]

    @classmethod
    def of(cls, file: str, name: str, value: Any, allowed: Sequence[str]) -> Table:
        """Look at a value that should be a table with some of the allowed keys.

        :raises PodFileError: it is no table, or has other keys.
        """
        table = cls(file, name, value if isinstance(value, dict) else {}, tuple(allowed))
        if not isinstance(value, dict):
            raise table.error(f"must be a table, not {value!r}")
        for key in value:
            if key not in table.allowed:
                raise table.error(f"{key} is not known here; {_instead(key, table.allowed)}")
        return table

    def error(self, problem: str) -> PodFileError:
        """Make the error that says what is wrong in this table."""
        return PodFileError(
            f"{self.file}: {self.name}: {problem}" if self.name else f"{self.file}: {problem}"
        )

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """Give a string."""
        return self._typed(key, str, "a string", default)

    def whole(self, key: str, default: int, minimum: int = 0) -> int:
        """Give a whole number."""
        number = self._typed(key, int, "a whole number", default)
        if number < minimum:
            raise self.error(f"{key} must be at least {minimum}, not {number}")
        return number

    def flag(self, key: str, default: bool = False) -> bool:
        """Give true or false."""
        return self._typed(key, bool, "true or false", default)

    def texts(self, key: str, default: Sequence[str] = _REQUIRED) -> list[str]:
        """Give a list of strings."""
        value = self._typed(key, list, "a list of strings", default)
        if not all(isinstance(each, str) for each in value):
            raise self.error(f"{key} must be a list of strings, not {value!r}")
        return list(value)

    def size(self, key: str) -> int:
        """Give a size in bytes, written as a whole number of them or as in ``"4 MiB"``."""
        value = self.values[key]
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        if not isinstance(value, str):
            raise self.error(f"{key!r} must be a size such as '4 MiB', or a number of bytes, not {value!r}")
        try:
            return parse_size(value)
        except ValueError as error:
            raise self.error(f"{key!r}: {error}") from None

    def table(self, key: str, allowed: Sequence[str]) -> Table:
        """Give the table ``[key]``, an empty one where there is none."""
        return Table.of(self.file, f"[{self._path(key)}]", self.values.get(key, {}), allowed)

    def open_table(self, key: str) -> Table:
        """Give the table ``[key]``, whatever its keys are."""
        value = self.values.get(key, {})
        return self.table(key, tuple(value) if isinstance(value, dict) else ())

    def tables(self, key: str, allowed: Sequence[str]) -> list[Table]:
        """Give the tables ``[[key]]``, which are numbered from 1 in messages."""
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise self.error(f"{key} must be written as tables [[{self._path(key)}]], not as {value!r}")
        return [
            Table.of(self.file, f"[[{self._path(key)}]] {number}", each, allowed)
            for number, each in enumerate(value, 1)
        ]

    def _path(self, key: str) -> str:
        return f"{self.name.strip('[]')}.{key}" if self.name else key

    def _typed(self, key: str, kind: type[T], what: str, default: Any) -> T:
        if key not in self.values:
            if default is _REQUIRED:
                raise self.error(f"{key} is missing; it takes {', '.join(self.allowed)}")
            return default  # type: ignore[no-any-return]
        value = self.values[key]
        # For Python, true is a number.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"{key} must be {what}, not {value!r}")
        return value


def make(cls: type[C], table: Table, values: Mapping[str, Any]) -> C:
    """Make an attrs class that checks itself from values of a table.

    :raises PodFileError: a value is missing, or is refused.
    """
    fields = attrs.fields(cls)
    for field in fields:
        if field.default is attrs.NOTHING and field.name not in values:
            raise table.error(f"{field.name} is missing")
    try:
        return cls(**values)
    except OptionsError as error:
        raise table.error(str(error)) from None


def _instead(key: str, allowed: Sequence[str]) -> str:
    """Say what may have been meant, or all that is allowed."""
    close = difflib.get_close_matches(key, allowed, 3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"allowed are {', '.join(allowed)}" if allowed else "nothing is allowed"
