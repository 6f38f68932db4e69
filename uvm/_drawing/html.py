"""Blocks as HTML that needs no style sheet, for notebooks and pages. Every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import groupby
from typing import Final

from uvm._drawing.blocks import Block, Line, Rule, Span, Style, Table

#: Notebooks set what is between dollars as mathematics, by MathJax 2 and 3, but in what says not to.
_CLASSES: Final = "uvm-drawing tex2jax_ignore mathjax_ignore"
#: Colours that are read on white as well as on black.
_CSS: Final[dict[Style, str]] = {
    "bold": "font-weight:bold",
    "dim": "opacity:0.65",
    "red": "color:#e5484d",
    "green": "color:#2f9e63",
    "yellow": "color:#b78103",
    "blue": "color:#3d8bfd",
    "magenta": "color:#c255b8",
    "cyan": "color:#1295a8",
}
_FRAME: Final = "font-family:monospace;line-height:1.3;overflow-x:auto"
_BARE: Final = "padding:0;border:0;background:none"
_PRE: Final = f"{_BARE};margin:0;color:inherit;line-height:inherit;font-size:inherit"
_TABLE: Final = "margin:0 0 0 {indent}ch;border-collapse:collapse;border:0;width:auto"
_CELL: Final = f"{_BARE};padding-right:2ch;vertical-align:top;white-space:pre;text-align:"


def html_of(blocks: Iterable[Block]) -> str:
    """Return blocks as one element."""
    groups = groupby(blocks, key=lambda block: isinstance(block, Line))
    parts = [_lines(group) if are_lines else "".join(map(_block, group)) for are_lines, group in groups]
    return f'<div class="{_CLASSES}" style="{_FRAME}">{"".join(parts)}</div>'


def _lines(blocks: Iterable[Block]) -> str:
    lines = (" " * each.indent + "".join(map(_span, each.parts)) for each in blocks if isinstance(each, Line))
    # A line end that follows <pre> is dropped, and so might be an empty line.
    text = "".join(each + "\n" for each in lines)
    return f'<pre style="{_PRE}">\n{text}</pre>'


def _block(block: Block) -> str:
    match block:
        case Rule(title):
            return f"<hr><div>{_span(title)}</div>"
        case Table():
            head = f"<thead>{_row(block, block.header, 'th')}</thead>" if block.header else ""
            body = "".join(_row(block, row, "td") for row in block.rows)
            style = _TABLE.format(indent=block.indent)
            return f'<table style="{style}">{head}<tbody>{body}</tbody></table>'
        case _:
            raise AssertionError(block)


def _row(block: Table, row: tuple[Span, ...], element: str) -> str:
    cells = (
        f'<{element} style="{_CELL}{"right" if column in block.right else "left"}">{_span(cell)}</{element}>'
        for column, cell in enumerate(row)
    )
    return f'<tr style="background:none">{"".join(cells)}</tr>'


def _span(span: Span) -> str:
    text = escape(span.text)
    return f'<span style="{_CSS[span.style]}">{text}</span>' if span.style and text else text
