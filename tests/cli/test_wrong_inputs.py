"""What a user may get wrong, on the command line and in files: it is said in one line, and never a traceback.

An exception of :func:`uvm.cli.main` is the traceback that a user would see.
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.conftest import Run
from tests.cli.support import LCOW, TRACES, WCOW
from uvm.cli import main

HUGE = "9" * 5000
#: As a file name, or an argument, that is no text.
NO_TEXT = "\udcff"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--memory", f"{HUGE}G", "true"),
        ("run", "--disk", "relative.vhdx", "true"),
        ("run", "--disk", f"C:\\{NO_TEXT}", "true"),
        ("run", "--share", "C:\\missing:/a b", "true"),
        ("run", "--network", NO_TEXT, "true"),
        ("run", "--env", f"A={NO_TEXT}", "true"),
        ("run", "--env", f"{NO_TEXT}=1", "true"),
        ("run", "--cwd", NO_TEXT, "true"),
        ("run", NO_TEXT),
        ("run", ""),
        ("shell", "--cwd", "/missing"),
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_what_cannot_run_is_said_in_one_line(arguments: tuple[str, ...], run: Run) -> None:
    command, *others = arguments
    ran = run(command, "--backend", "fake", *others)
    assert ran.status in (2, 125, 127)
    assert ran.output == ""
    assert ran.error.count("\n") == 1
    assert ran.error.startswith("uvm: ")


@pytest.mark.parametrize(
    "given",
    [
        ["document", NO_TEXT],
        ["pod", "."],
        ["replay", "."],
        ["init", str(LCOW / "below-a-file")],
        ["ps", "--backend", NO_TEXT],
    ],
    ids=" ".join,
)
def test_what_cannot_be_read_or_is_none_is_said_in_one_line(given: list[str], run: Run) -> None:
    ran = run(*given)
    assert (ran.status, ran.output, ran.error.count("\n")) == (2, "", 1)


def test_sizes_of_files_may_be_as_large_as_they_like(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "pod.toml"
    file.write_text(f'[vm]\nos = "linux"\n[host.files]\n"C:\\\\x" = "{HUGE} GiB"\n')
    ran = run("document", str(file))
    assert (ran.status, ran.error.count("\n")) == (2, 1)
    assert "files" in ran.error


# Files with anything in them.

SAMPLES = {path.name: tomllib.loads(path.read_text("utf-8")) for path in (LCOW, WCOW)}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["C:\\", "\0", "\ud800", "4 MiB", "linux", "windows", "read", "a\nb"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield all that is in a value: what holds it, and its key there."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def spoil(data: st.DataObject, sample: Any) -> Any:
    """Return a sample of which some values are others, or are gone."""
    spoilt = copy.deepcopy(sample)
    for _ in range(data.draw(st.integers(1, 2))):
        if not (there := list(places(spoilt))):
            break
        holder, key = data.draw(st.sampled_from(there))
        if data.draw(st.booleans()):
            holder[key] = data.draw(VALUES)
        else:
            del holder[key]
    return spoilt


def judged(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status = main(command)
    err = capsys.readouterr().err
    assert status in (0, 1, 2)
    if status == 2:
        assert err.startswith("uvm: error: ")
        assert err.count("\n") == 1


ANY_FILE = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20
)
#: The shortest, of both kinds of guests.
SCRIPTS = sorted(json.loads(TRACES.read_text("utf-8")), key=lambda case: len(json.dumps(case)))[:12]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("command", ["document", "pod"])
@ANY_FILE
@given(data=st.data())
def test_whatever_a_pod_file_has_there_is_no_traceback(
    command: str, sample: str, data: st.DataObject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pod.json"
    file.write_text(json.dumps(spoil(data, SAMPLES[sample])))
    judged([command, str(file)], capsys)


@ANY_FILE
@given(data=st.data())
def test_whatever_a_file_of_scripts_has_there_is_no_traceback(
    data: st.DataObject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = data.draw(st.sampled_from(SCRIPTS))
    file = tmp_path / "traces.json"
    file.write_text(json.dumps([{**spoil(data, case), "name": "x"}]))
    judged(["replay", str(file), "--script", "x"], capsys)
