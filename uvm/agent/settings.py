"""The settings of a request, read by name and kind.

What is absent or null is its kind's zero, as in Go; a value of another kind is refused. Names that are not
asked for are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from uvm.agent.refused import Refused
from uvm.hresult import HResult

T = TypeVar("T")


class Settings:
    """The settings of a request, or a part of them."""

    def __init__(self, values: Any) -> None:
        self._values: Mapping[str, Any] = _checked(values, dict, "Settings") or {}

    def _get(self, name: str, kind: type[T]) -> T | None:
        return _checked(self._values.get(name), kind, name)

    def value(self, name: str) -> Any:
        """Return a value of any kind."""
        return self._values.get(name)

    def text(self, name: str) -> str:
        """Return a text."""
        return self._get(name, str) or ""

    def flag(self, name: str) -> bool:
        """Return a truth value."""
        return self._get(name, bool) or False

    def number(self, name: str, most: int) -> int:
        """Return a whole number from 0 to `most`."""
        value = self._get(name, int) or 0
        if not 0 <= value <= most:
            raise _invalid(name, value)
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        return [_checked(each, str, name) or "" for each in self._get(name, list) or []]

    def numbers(self, name: str, most: int) -> list[int]:
        """Return a list of whole numbers from 0 to `most`."""
        return [Settings({name: each}).number(name, most) for each in self._get(name, list) or []]

    def texts_by_name(self, name: str) -> dict[str, str]:
        """Return an object of texts."""
        return {key: _checked(each, str, name) or "" for key, each in (self._get(name, dict) or {}).items()}

    def part(self, name: str) -> Settings | None:
        """Return an object; None if it is absent."""
        values = self._get(name, dict)
        return None if values is None else Settings(values)

    def parts(self, name: str) -> list[Settings]:
        """Return a list of objects."""
        return [Settings(each) for each in self._get(name, list) or []]

    def path(self, name: str) -> str:
        """Return an absolute path of the guest.

        :raises Refused: it is missing, or none.
        """
        path = self.text(name)
        if not path.startswith("/") or "\0" in path:
            raise Refused(f"{name} {path!r} is no absolute path")
        return path


def _checked(value: Any, kind: type[T], name: str) -> T | None:
    # JSON's true is no number.
    if value is None or (isinstance(value, kind) and type(value) is kind):
        return value
    raise _invalid(name, value)


def _invalid(name: str, value: object) -> Refused:
    return Refused(f"{name} cannot be {value!r}", HResult.ERROR_VMCOMPUTE_INVALID_JSON)
