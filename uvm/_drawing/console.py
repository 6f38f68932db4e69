"""Blocks as what rich draws: in colours, to the width of the terminal. What does not fit is wrapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import rule, table
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from uvm._drawing.blocks import Block, Line, Rule, Span, Table


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
                yield Padding(_table(block), (0, 0, 0, block.indent))


def _text(span: Span) -> Text:
    # Never a str, in which rich looks for markup.
    return Text(span.text, span.style)


def _table(block: Table) -> table.Table:
    drawn = table.Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=bool(block.header), header_style=""
    )
    count = max(map(len, (block.header, *block.rows)))
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
