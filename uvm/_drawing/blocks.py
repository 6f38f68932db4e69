"""What a drawing is made of: styled text in lines and tables, below titles. Plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal, TypeAlias

from attrs import field, frozen

from uvm.schema.secrets import printable

Style: TypeAlias = Literal["", "bold", "dim", "red", "green", "yellow", "blue", "magenta", "cyan"]


def _harmless(text: str) -> str:
    # No character is escaped by more than ten, so nothing is cut.
    return printable(text, 10 * len(text))


@frozen
class Span:
    """Text in one style; what is not printable in it is escaped."""

    text: str = field(converter=_harmless)
    style: Style = ""


Part: TypeAlias = "Span | str"


def _span(part: Part) -> Span:
    return part if isinstance(part, Span) else Span(part)


@frozen
class Line:
    """One line of text, which is empty without parts."""

    parts: tuple[Span, ...] = ()
    indent: int = 0


@frozen
class Rule:
    """The line that a section begins with."""

    title: Span


@frozen
class Table:
    """Rows of cells in columns.

    :ivar header: the names of the columns; empty for none.
    :ivar right: the columns whose cells stand to the right.
    :ivar least: how wide the first columns are at least, in characters, so that tables match.
    """

    header: tuple[Span, ...]
    rows: tuple[tuple[Span, ...], ...]
    indent: int = 0
    right: tuple[int, ...] = ()
    least: tuple[int, ...] = ()


Block: TypeAlias = Line | Rule | Table


def line(*parts: Part, indent: int = 0) -> Line:
    """Return a line of texts, each with a style or without."""
    return Line(tuple(map(_span, parts)), indent)


def cells(spans: Iterable[Span], indent: int = 0) -> Line:
    """Return a line of many short texts, those of one style next to each other as one."""
    runs = groupby(spans, key=lambda span: span.style)
    return line(*(Span("".join(span.text for span in run), style) for style, run in runs), indent=indent)


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[Part]],
    *,
    indent: int = 0,
    right: tuple[int, ...] = (),
    least: tuple[int, ...] = (),
) -> Table:
    """Return a table."""
    spans = tuple(tuple(map(_span, row)) for row in rows)
    return Table(tuple(Span(each, "dim") for each in header), spans, indent, right, least)
