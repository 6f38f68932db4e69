"""A drawing, and where it is shown. What a terminal or a page needs is loaded when it asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen

from uvm._drawing.blocks import Block
from uvm._drawing.plain import lines_of


@frozen
class Drawing:
    """A drawing: what ``str``, rich and notebooks show."""

    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        return "\n".join(lines_of(self.blocks))

    def _repr_html_(self) -> str:
        from uvm._drawing.html import html_of

        return html_of(self.blocks)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from uvm._drawing.console import renderables

        yield from renderables(self.blocks)
