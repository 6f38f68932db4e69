"""What the pages of the documentation include can be drawn from the code."""

from __future__ import annotations

import ast
import asyncio
import re
import runpy
from pathlib import Path
from typing import Any

import attrs

import uvm

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


def test_every_picture_that_a_page_shows_is_drawn_without_what_a_server_has() -> None:
    runpy.run_path(str(DOCS / "pictures.py"))["write_pictures"](DOCS / "_build" / "pictures")
    shown = {
        name
        for page in DOCS.glob("*.md")
        for name in re.findall(r"_build/pictures/([\w.]+)", page.read_text("utf-8"))
    }
    drawn = {name: (DOCS / "_build" / "pictures" / name).read_text("utf-8") for name in shown}
    assert {"devices.svg", "devices.html"} <= drawn.keys()
    for picture in drawn.values():
        assert "SCSI" in picture
        assert not re.search(r"""(url\(|src=|href=)["']?http""", picture)


def test_a_field_of_a_docstring_begins_its_line_or_it_is_not_rendered() -> None:
    sources = (DOCS.parent / "uvm").rglob("*.py")
    assert [
        (source.name, line)
        for source in sources
        for line in source.read_text("utf-8").splitlines()
        if re.search(r"(?<=[ ;]):(ivar|cvar|param|raises|returns)\b", line.lstrip())
    ] == []


def test_the_cells_of_the_page_on_notebooks_run_as_in_one_kernel() -> None:
    page = (DOCS / "notebooks.md").read_text("utf-8")
    cells = re.findall(r"^```py3\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}

    async def run() -> None:
        for cell in cells:
            code = compile(cell, "notebooks.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if (made := eval(code, names)) is not None:
                await made

    asyncio.run(run())
    assert names["backend"].leftovers() == []


def test_each_option_stands_beside_its_task_under_its_guest() -> None:
    columns: dict[str, set[str]] = {"both": set(), "Linux": set(), "Windows": set()}
    for line in (DOCS / "options-by-task.md").read_text("utf-8").splitlines():
        if line.startswith("| ") and not line.startswith("| to |"):
            for found, cell in zip(columns.values(), line.split("|")[2:5], strict=True):
                found |= {*re.findall(r"`(\w+)`", cell)}
    linux, windows = {*attrs.fields_dict(uvm.LCOWOptions)}, {*attrs.fields_dict(uvm.WCOWOptions)}
    assert columns == {"both": linux & windows, "Linux": linux - windows, "Windows": windows - linux}
