"""What the pages of the documentation include can be drawn from the code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_every_drawing_that_a_page_includes_is_drawn() -> None:
    runpy.run_path(str(DOCS / "tables.py"))["write_tables"](DOCS / "_build" / "tables")
    included = {
        (page.name, name)
        for page in DOCS.glob("*.md")
        for name in re.findall(r"^```\{include\} (.*)$", page.read_text("utf-8"), re.MULTILINE)
    }
    missing = [(page, name) for page, name in included if not (DOCS / name).is_file()]
    assert included
    assert not missing


def test_a_field_of_a_docstring_begins_its_line_or_it_is_not_rendered() -> None:
    sources = (DOCS.parent / "uvm").rglob("*.py")
    assert [
        (source.name, line)
        for source in sources
        for line in source.read_text("utf-8").splitlines()
        if re.search(r"\S.*[ ;]:(ivar|cvar|param|raises|returns)\b", line)
    ] == []
