"""Pictures of the documentation, drawn from the objects that its examples make: none of them is committed."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path
from typing import Any

from rich.console import Console

#: How wide the terminal of a picture is.
COLUMNS = 132


def write_pictures(directory: Path) -> None:
    """Draw the ``devices`` of the first example of ``drawings.md``, as on a terminal and in a notebook."""
    directory.mkdir(parents=True, exist_ok=True)
    devices = _run_example(directory.parents[1] / "drawings.md")["devices"]
    (directory / "devices.svg").write_text(_svg(devices), encoding="utf-8")
    (directory / "devices.html").write_text(devices._repr_html_(), encoding="utf-8")


def _run_example(page: Path) -> dict[str, Any]:
    found = re.search(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"{page} has no example")
    # Its failures are meant, and not logged in the build.
    logging.getLogger("uvm").addHandler(logging.NullHandler())
    names: dict[str, Any] = {"print": lambda *_: None}
    exec(compile(found[1], str(page), "exec"), names)
    return names


def _svg(drawn: object) -> str:
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="standard"
    )
    console.print(drawn)
    svg = console.export_svg(title="rich.print(vm.devices())", unique_id="devices")
    # Rich names a font of a server, which a page is not to ask.
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
