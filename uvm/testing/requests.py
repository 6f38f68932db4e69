"""What was asked of the in-memory host, held against what a test expects, with a difference to read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any

from attrs import frozen

from uvm.backends.fake.request_log import Entry
from uvm.errors import OptionsError
from uvm.schema.secrets import scrub

__all__ = ["assert_requests", "request_line"]

#: A line, or a line and what the document holds, among other keys.
Expected = str | tuple[str, Mapping[str, Any]]


def request_line(entry: Entry) -> str:
    r"""Return a request as a line: what it was to, what it was, and what about.

    ``host Add VirtualMachine/Devices/Plan9/Shares``, ``guest execute process``, ``grant C:\disk.vhdx``;
    a grant and a revocation name their path.
    """
    return str(entry)


def assert_requests(entries: Iterable[Entry], expected: Sequence[Expected]) -> None:
    r"""Check that requests are the expected ones, in this order.

    An expected request is a line as of :func:`request_line`, in which ``*`` stands for anything and ``?`` for
    any character, or such a line with what the settings (of a modify request) or the document hold, among
    other keys::

        assert_requests(
            backend.request_log.entries(to=("grant", "host", "guest")),
            [
                r"grant C:\vm\disk.vhdx",
                ("host Add */Attachments/0", {"Path": r"C:\vm\disk.vhdx"}),
                "guest Add MappedVirtualDisk",
            ],
        )

    :param entries: of a request log, filtered as you like.
    :raises AssertionError: they differ; the text has both side by side, secrets left out.
    :raises OptionsError: an expected request is neither a line nor a pair.
    """
    __tracebackhide__ = True  # To pytest, the line that calls this is what failed.
    logged, wanted = list(entries), [_Wanted.of(each) for each in expected]
    if len(logged) == len(wanted) and all(map(_Wanted.fits, wanted, logged)):
        return
    raise AssertionError(
        "\n".join(["the logged requests are not the expected ones:", *_compare(wanted, logged)])
    )


@frozen
class _Wanted:
    """An expected request."""

    line: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, expected: Any) -> _Wanted:
        match expected:
            case str():
                return cls(expected, {})
            case (str() as line, Mapping() as settings):
                return cls(line, settings)
        raise OptionsError(f"an expected request is a line, or a line and a mapping, not {expected!r}")

    def names(self, entry: Entry) -> bool:
        """Return whether the line is that of a request."""
        return fnmatchcase(request_line(entry), self.line.replace("[", "[[]"))

    def fits(self, entry: Entry) -> bool:
        """Return whether a request is the expected one."""
        return self.names(entry) and _holds(_settings(entry), self.settings)

    def __str__(self) -> str:
        return f"{self.line} {_shown(self.settings)}" if self.settings else self.line


def _settings(entry: Entry) -> Any:
    document = entry.document
    modifies = entry.call.operation == "modify" and isinstance(document, Mapping)
    return document.get("Settings") if modifies else document


def _holds(value: Any, wanted: Any) -> bool:
    """Return whether a value is the wanted one, or a mapping that has all of it."""
    if isinstance(wanted, Mapping):
        return isinstance(value, Mapping) and all(
            key in value and _holds(value[key], each) for key, each in wanted.items()
        )
    return bool(value == wanted)


def _shown(value: Any) -> str:
    return json.dumps(scrub(value), ensure_ascii=False, default=str)


def _compare(wanted: list[_Wanted], logged: list[Entry]) -> Iterable[str]:
    """Yield both as one list: ``  `` both have it, ``- `` expected alone, ``+ `` logged alone."""
    # A request and what is expected of it get the same number if the line fits, so that the rest is compared.
    lines = [next((f"={n}" for n, each in enumerate(wanted) if each.names(entry)), "") for entry in logged]
    numbers = [next(n for n, other in enumerate(wanted) if other.line == each.line) for each in wanted]
    matcher = SequenceMatcher(None, [f"={number}" for number in numbers], lines, autojunk=False)
    for kind, first, last, begin, end in matcher.get_opcodes():
        for each, entry in zip_longest(wanted[first:last], logged[begin:end]):
            if kind == "equal" and each.fits(entry):
                yield f"    {request_line(entry)}"
                continue
            if each is not None:
                yield f"  - {each}"
            if entry is not None:
                detail = f" {_shown(_settings(entry))}" if kind == "equal" else ""
                yield f"  + {request_line(entry)}{detail}"
