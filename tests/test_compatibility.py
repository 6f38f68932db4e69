"""The table by hcsshim's names: what it says is here exists under that name, and every row says something."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, get_type_hints

import pytest
from attrs import frozen

import uvm
import uvm._buses

_PAGE = Path(__file__).parents[1] / "docs" / "from-hcsshim.md"
_HEADER = ("hcsshim", "version", "uvm")
_VERSIONS = {"0.8", "0.15", "both"}
#: What the names of ours begin with; of the options, one of the two has it.
_ROOTS: dict[str, tuple[Any, ...]] = {
    "uvm": (uvm,),
    "vm": (uvm.UtilityVM,),
    "options": (uvm.LCOWOptions, uvm.WCOWOptions),
    "plan": (uvm.CreationPlan,),
    "container": (uvm.Container,),
    "process": (uvm.Process,),
    "backend": (uvm.Backend,),
}
#: `vm.scsi.attach`, or with one of its parameters: `vm.scsi.attach(type=)`.
_OURS = re.compile(r"([a-z_]+(?:\.\w+)+)(?:\((\w+)=\))?")
#: A reason has words.
_NONE = re.compile(r"none( yet)?: \w+ \w+.*")


@frozen
class Row:
    """A row of the table: names of hcsshim, which versions have them, and what is here."""

    names: str
    version: str
    here: str


def _section() -> list[str]:
    _, found, after = _PAGE.read_text("utf-8").partition("\n## By hcsshim's names\n")
    assert found
    return after.partition("\n## ")[0].splitlines()


def _tables() -> Iterator[list[tuple[str, ...]]]:
    """Yield the tables of the section: each the cells of its lines."""
    table: list[tuple[str, ...]] = []
    for line in [*_section(), ""]:
        if line.startswith("|"):
            table.append(tuple(cell.strip() for cell in line.strip().strip("|").split("|")))
        elif table:
            yield table
            table = []


def _quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


ROWS = [Row(*cells) for table in _tables() for cells in table[2:]]
NAMES = sorted({name for row in ROWS for name in _quoted(row.here)})


def _exists(name: str) -> bool:
    """Return whether a name of ours is there, and takes the parameter that is named."""
    match = _OURS.fullmatch(name)
    if match is None:
        return False
    root, *path = match[1].split(".")
    return any(_leads(start, path, match[2]) for start in _ROOTS.get(root, ()))


def _leads(start: Any, path: list[str], parameter: str | None) -> bool:
    at = start
    for name in path:
        try:
            at = _member(_value(at), name)
        except (AttributeError, ModuleNotFoundError):
            return False
    return parameter is None or parameter in inspect.signature(at).parameters


def _member(of: Any, name: str) -> Any:
    if isinstance(of, ModuleType):
        return getattr(of, name) if hasattr(of, name) else import_module(f"{of.__name__}.{name}")
    static = inspect.getattr_static(of, name)
    return static if isinstance(static, property | cached_property) else getattr(of, name)


def _value(member: Any) -> Any:
    """Return a member, or of a property the class of its value."""
    if isinstance(member, property | cached_property):
        function = member.fget if isinstance(member, property) else member.func
        return get_type_hints(function, localns=_loaded())["return"]
    return member


def _loaded() -> dict[str, Any]:
    """Return the names of the buses, which are loaded where they are first used."""
    modules = [import_module(each.name) for each in iter_modules(uvm._buses.__path__, "uvm._buses.")]
    return {name: value for module in modules for name, value in vars(module).items()}


def test_every_table_of_the_section_is_read_and_has_the_same_columns() -> None:
    tables = list(_tables())
    lines = [line for line in _section() if line.lstrip().startswith("|")]
    headings = [line for line in _section() if line.startswith("### ")]
    assert len(tables) == len(headings) >= 9
    assert {table[0] for table in tables} == {_HEADER}
    assert len(ROWS) == len(lines) - 2 * len(tables) >= 100


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.names.partition(",")[0].strip("`"))
def test_a_row_says_where_it_is_or_why_it_is_not(row: Row) -> None:
    assert re.fullmatch(r"`[\w.]+`(, `[\w.]+`)*", row.names)
    assert row.version in _VERSIONS
    if row.here.startswith("none"):
        assert _NONE.fullmatch(row.here)
    else:
        assert _quoted(row.here)


def test_no_name_of_hcsshim_is_in_two_rows() -> None:
    counts = Counter(name for row in ROWS for name in _quoted(row.names))
    assert [name for name, count in counts.items() if count > 1] == []


def test_each_name_of_ours_exists() -> None:
    assert [name for name in NAMES if not _exists(name)] == []


def test_a_name_that_is_misspelt_does_not() -> None:
    for name in NAMES:
        path, parenthesis, parameter = name.partition("(")
        assert not _exists(f"{path}x{parenthesis}{parameter}"), name
        assert not parameter or not _exists(f"{path}(x{parameter}"), name
