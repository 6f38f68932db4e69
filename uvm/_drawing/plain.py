"""Blocks as plain text: columns are as wide as what is in them, and nothing is cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Final

from uvm._drawing.blocks import Block, Line, Rule, Table

_BETWEEN: Final = "  "
#: How long a rule is.
_COLUMNS: Final = 100


def lines_of(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield the lines of blocks, without white space at their ends."""
    for block in blocks:
        match block:
            case Line(parts, indent):
                yield (" " * indent + "".join(part.text for part in parts)).rstrip()
            case Rule(title):
                yield f"── {title.text} ".ljust(_COLUMNS, "─")
            case Table():
                yield from _table(block)


def _table(block: Table) -> Iterator[str]:
    rows = [[cell.text for cell in row] for row in (block.header, *block.rows) if row]
    columns = zip_longest(*rows, fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    widths = [max(pair) for pair in zip_longest(widths, block.least[: len(widths)], fillvalue=0)]
    for row in rows:
        padded = (
            cell.rjust(width) if column in block.right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        yield (" " * block.indent + _BETWEEN.join(padded)).rstrip()
