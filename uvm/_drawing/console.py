"""Blocks as what rich draws: in colours, to the width of the terminal. What does not fit is wrapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from attrs import evolve, frozen
from rich import rule, table
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.text import Text

from uvm._drawing.blocks import Block, Line, Rule, Span, Table

#: How many characters are between columns.
_GAP: Final = 2


def renderables(blocks: Iterable[Block]) -> Iterator[RenderableType]:
    """Yield what rich draws for each block."""
    for block in blocks:
        match block:
            case Line(parts, indent):
                # Without padding, which would cut it where the console leaves long lines to the terminal.
                yield Text.assemble(" " * indent, *map(_text, parts))
            case Rule(title):
                begun = Text.assemble(("── ", "dim"), _text(title))
                yield rule.Rule(begun, align="left", style="dim")
            case Table():
                yield Padding(_Fitted(block), (0, 0, 0, block.indent))


def _text(span: Span) -> Text:
    # Never a str, in which rich looks for markup.
    return Text(span.text, span.style)


@frozen
class _Fitted:
    """A table as it is drawn in the width that there is."""

    block: Table

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Draw it; where its columns are to shrink, without the widths that they have at least.

        rich shrinks the widest columns first, down to one width, and would cut off what passes the end of the
        line if one of them may not.
        """
        count = max(map(len, (self.block.header, *self.block.rows)))
        left = options.max_width - sum(self.block.least) - _GAP * count
        shrinks = left < max(self.block.least, default=0)
        yield _table(evolve(self.block, least=()) if shrinks else self.block, count)


def _table(block: Table, count: int) -> table.Table:
    drawn = table.Table(
        box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=bool(block.header), header_style=""
    )
    for column in range(count):
        drawn.add_column(
            _text(block.header[column]) if column < len(block.header) else "",
            overflow="fold",
            justify="right" if column in block.right else "left",
            min_width=block.least[column] if column < len(block.least) else None,
        )
    for row in block.rows:
        drawn.add_row(*map(_text, row))
    return drawn
