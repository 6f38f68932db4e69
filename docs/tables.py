"""Pages of the documentation that are drawn from the code: nothing in them is written twice."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from textwrap import dedent
from typing import Any

import attrs

from uvm.devices.base import TRANSITIONS, State
from uvm.options import HCSSHIM, INVERTED, LCOWOptions, WCOWOptions
from uvm.options.annotations import NOT_SUPPORTED, OF_VMS, READ_ELSEWHERE


def write_tables(directory: Path) -> None:
    """Write the pages, for ``{include}``."""
    directory.mkdir(parents=True, exist_ok=True)
    tables = {
        "transitions.md": _transitions(),
        "options.md": _options(),
        "annotations.md": _annotations(),
        "layers.md": _layers(),
    }
    for name, lines in tables.items():
        (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for module in _drawn(directory.parents[1]):
        (directory / f"{module}.md").write_text(_drawing(module), encoding="utf-8")


def _drawn(pages: Path) -> set[str]:
    """Return the modules whose drawings the pages include."""
    texts = [page.read_text("utf-8") for page in pages.glob("*.md")]
    return {module for text in texts for module in re.findall(r"_build/tables/(uvm\..+)\.md", text)}


def _drawing(module: str) -> str:
    """Return the first literal block of a module's docstring."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    _, found, after = text.partition("::\n\n")
    if not found:
        raise ValueError(f"{module} draws nothing in its docstring")
    block = takewhile(lambda line: not line or line.startswith(" "), after.splitlines())
    drawing = dedent("\n".join(block)).strip("\n")
    return f"```text\n{drawing}\n```\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _layers() -> Iterator[str]:
    """Draw the layers of packages, the highest first, as import-linter holds them."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    (contract,) = (each for each in project["tool"]["importlinter"]["contracts"] if each["type"] == "layers")
    yield "```text"
    for layer in contract["layers"]:
        yield "   ".join(each.strip() for each in layer.split("|") if "(" not in each)
    yield "```"


def _transitions() -> Iterator[str]:
    """Draw the ledger's table: a row per state, a column per event, the states that may follow."""
    events = list(dict.fromkeys(event for _, event in TRANSITIONS))
    yield _row(["state", *events])
    yield _row(["---"] * (len(events) + 1))
    for state in dict.fromkeys(state for state, _ in TRANSITIONS):
        following = [TRANSITIONS.get((state, event), frozenset()) for event in events]
        cells = [", ".join(each.value for each in State if each in states) for states in following]
        yield _row([f"**{state.value}**", *cells])


def _options() -> Iterator[str]:
    """Draw the options of both guests beside hcsshim's names for them."""
    linux, windows = attrs.fields_dict(LCOWOptions), attrs.fields_dict(WCOWOptions)
    yield _row(["option", "hcsshim", "guest", "default"])
    yield _row(["---"] * 4)
    for name in dict.fromkeys([*linux, *windows]):
        field = linux.get(name) or windows[name]
        guest = "both" if name in linux and name in windows else "Linux" if name in linux else "Windows"
        yield _row([f"`{name}`", _hcsshim_name(field), guest, _default(field)])


def _annotations() -> Iterator[str]:
    """Draw what becomes of each annotation."""
    yield _row(["annotation", "guest", "sets"])
    yield _row(["---"] * 3)
    for name, sets in sorted(OF_VMS.items()):
        options = dict.fromkeys(f"`{each.option}`" for each in sets.values())
        yield _row(
            [f"`{name}`", "both" if len(sets) > 1 else next(iter(sets)).capitalize(), ", ".join(options)]
        )
    yield ""
    yield _row(["annotation", "is read by, or is refused since"])
    yield _row(["---"] * 2)
    for name, why in sorted({**READ_ELSEWHERE, **NOT_SUPPORTED}.items()):
        yield _row([f"`{name}`", why])


def _hcsshim_name(field: attrs.Attribute[Any]) -> str:
    if HCSSHIM not in field.metadata:
        return "-"
    return f"`{field.metadata[HCSSHIM]}`" + (", inverted" if field.metadata.get(INVERTED) else "")


def _default(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return "must be given"
    if field.default is None:
        return "by the host"
    return f"`{field.default!r}`" if field.repr else "-"
