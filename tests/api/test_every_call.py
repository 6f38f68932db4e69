"""Each call of the public API, over both ways to the guest and on both loops, whatever becomes of it.

On trio a call that goes over both ways is examined over our own connection alone: the loop is one for both.

A call without a row in the table fails, and so does an error that ``docs/errors.md`` does not list, or lists
and is never seen.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

import uvm
from tests.api.cases import Examined, examine
from tests.api.surface import awaited, calls, protocols
from tests.api.table import ELSEWHERE, ROWS, name_of, row_of
from tests.clocks import jumping_backends

#: What the documentation says of all calls at once.
_ANYWHERE = (uvm.VMStateError, uvm.NotSupportedError, uvm.NoSpaceError, uvm.OrphanError, uvm.UVMErrorGroup)

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

_ROOT = Path(uvm.__file__).parents[1]
_CALLS: dict[str, list[tuple[type | None, str]]] = defaultdict(list)
for _cls, _name in calls():
    _CALLS[name_of(_cls, _name)].append((_cls, _name))


def _documented() -> dict[str, set[str]]:
    """Return the errors of each call by the table of the documentation."""
    text = (_ROOT / "docs" / "errors.md").read_text()
    errors: dict[str, set[str]] = {}
    for names, kinds in re.findall(r"^\| (`.*?) \| (.*?) \|$", text, re.MULTILINE):
        for name in re.findall(r"`([\w.]+)`", names):
            assert name not in errors, f"{name} is in two lines of the table"
            errors[name] = set(re.findall(r"`(\w+)`", kinds))
    return errors


def test_every_call_has_a_row_and_every_row_a_call() -> None:
    assert set(_CALLS) == set(ROWS) | set(ELSEWHERE)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_needs_more_than_a_vm_in_memory_is_tested_elsewhere(name: str) -> None:
    assert name.rpartition(".")[2] in (_ROOT / ELSEWHERE[name]).read_text()


def test_every_call_of_a_backend_is_in_the_conformance_suite_of_backends() -> None:
    suite = "".join(path.read_text() for path in (_ROOT / "uvm" / "testing" / "backends").glob("*.py"))
    assert [
        (cls, name)
        for cls in protocols()
        for name in awaited(cls)
        if name[0] != "_" and f"{name}(" not in suite
    ] == []


def test_the_documentation_has_a_line_for_every_call() -> None:
    assert set(_documented()) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
async def test_whatever_happens_a_call_ends_in_time_with_the_right_error_and_nothing_is_left(
    name: str, anyio_backend_name: str
) -> None:
    found, both = Examined(), anyio_backend_name == "asyncio"
    for cls, method in _CALLS[name]:
        row = row_of(cls, method)
        if cls is None or not row.classes or cls.__name__ in row.classes:
            await examine(f"{cls.__name__}.{method}" if cls else method, row, found, both=both)
    assert found.problems == {}
    documented = [getattr(uvm, kind) for kind in _documented()[name]]
    raised = [kind for kind in found.raised if not issubclass(kind, _ANYWHERE) and kind is not uvm.UVMError]
    assert [kind for kind in raised if not issubclass(kind, tuple(documented))] == [], found.raised
    unseen = [kind for kind in documented if not any(issubclass(each, kind) for each in raised)]
    assert not (both and unseen)
