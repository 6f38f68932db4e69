"""Tables of a TOML file, read as attrs classes; errors name the file, the table, the key, what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import attrs
from attrs import frozen

from uvm._checks import similar
from uvm.cli.errors import UsageError
from uvm.errors import OptionsError

C = TypeVar("C", bound=attrs.AttrsInstance)


@frozen
class Table:
    """One table of a file.

    :ivar file: the file, for messages.
    :ivar name: the table, as in ``[vm]`` or ``[[layers]] 2``.
    """

    file: str
    name: str
    values: Mapping[str, Any]

    def error(self, problem: str) -> UsageError:
        """Return an error that names the file and this table."""
        return UsageError(": ".join(filter(None, (self.file, self.name, problem))))

    def table(self, key: str) -> Table:
        """Return the table ``[key]``, an empty one if there is none.

        :raises UsageError: the value is not a table.
        """
        return self._of(f"[{self._path(key)}]", self.values.get(key, {}))

    def tables(self, key: str) -> list[Table]:
        """Return the tables ``[[key]]``, numbered from 1 in messages.

        :raises UsageError: the value is not a list of tables.
        """
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise self.error(f"{key} must be written as tables [[{self._path(key)}]], not as {value!r}")
        return [self._of(f"[[{self._path(key)}]] {number}", each) for number, each in enumerate(value, 1)]

    def make(self, cls: type[C], **read: Any) -> C:
        """Make an attrs class that checks itself.

        :param read: values instead of the table's own, or in addition to them.
        :raises UsageError: a key is unknown or missing, or a value is refused.
        """
        names = [field.name for field in attrs.fields(cls)]
        self.check_keys(names)
        values = {**self.values, **read}
        for field in attrs.fields(cls):
            if field.default is attrs.NOTHING and field.name not in values:
                raise self.error(f"{field.name} is missing; the keys are {', '.join(names)}")
        try:
            return cls(**values)
        except OptionsError as error:
            raise self.error(str(error).removeprefix(f"{cls.__name__}.")) from None

    def check_keys(self, allowed: Sequence[str]) -> None:
        """Refuse every other key.

        :raises UsageError: there is one.
        """
        for key in self.values:
            if key not in allowed:
                close = similar(key, allowed)
                instead = f"did you mean {close}?" if close else f"the keys are {', '.join(allowed)}"
                raise self.error(f"{key} is unknown here; {instead}")

    def _path(self, key: str) -> str:
        return f"{self.name.strip('[]')}.{key}" if self.name else key

    def _of(self, name: str, value: Any) -> Table:
        table = Table(self.file, name, value)
        if not isinstance(value, dict):
            raise table.error(f"must be a table, not {value!r}")
        return table
