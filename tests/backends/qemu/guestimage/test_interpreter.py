"""An interpreter is asked what it loads, and compiles it into a zip from which it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from uvm.backends.qemu.guestimage.interpreter import ask, this_interpreter
from uvm.errors import NotSupportedError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="about interpreters on Linux")


def test_the_interpreter_of_a_venv_is_the_one_that_it_was_made_of() -> None:
    found = ask(sys.executable, [])
    assert found.executable == this_interpreter() == os.path.realpath(sys.executable)
    assert found.version == ".".join(map(str, sys.version_info[:3]))


def test_what_is_no_interpreter_is_refused() -> None:
    with pytest.raises(NotSupportedError, match=r"takes CPython from 3.11 on, and /bin/true is none"):
        ask("/bin/true", [])


def test_it_says_what_it_loads_and_from_where() -> None:
    found = ask(sys.executable, ["subprocess", "unicodedata"])
    assert {"subprocess", "encodings.latin_1", "traceback"} <= found.loaded
    assert found.sources["subprocess"] == subprocess.__file__
    assert all(path.endswith(".so") for path in found.binaries.values())
    assert found.library == os.path.dirname(os.__file__)
    assert found.archive in sys.path
    # Nothing of this environment's packages.
    assert not any("site-packages" in path for path in found.files.values())


def test_a_module_that_has_put_another_into_its_place_is_found() -> None:
    assert ask(sys.executable, ["collections.abc"]).sources["collections.abc"].endswith("collections/abc.py")


def test_what_cannot_be_imported_is_left_out() -> None:
    assert "winreg" not in ask(sys.executable, ["winreg", "no.such.module"]).loaded


def test_it_runs_from_the_zip_that_it_compiles(tmp_path: Path) -> None:
    package = tmp_path / "app" / "__init__.py"
    package.parent.mkdir()
    package.write_text('"""Not kept."""\nassert False\nname = __name__\n')
    module = tmp_path / "app" / "part.py"
    module.write_text("import app\nprint(app.name, app.__doc__, __file__)\n")
    archive = tmp_path / "all.zip"
    ask(sys.executable, []).compile({"app": str(package), "app.part": str(module)}, str(archive))
    program = "import sys; sys.path.insert(0, sys.argv[1]); import app.part"
    command = [sys.executable, "-I", "-S", "-c", program, str(archive)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["app", "None", f"{archive}/app/part.pyc"]


def test_the_same_sources_make_the_same_zip(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text("x = 1\n")
    made = []
    for name in ("one.zip", "two.zip"):
        ask(sys.executable, []).compile({"a": str(source)}, str(tmp_path / name))
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["a.pyc"]


def test_what_does_not_compile_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text("x = (\n")
    with pytest.raises(NotSupportedError, match="SyntaxError"):
        ask(sys.executable, []).compile({"a": str(source)}, str(tmp_path / "a.zip"))


def stand_in(tmp_path: Path, script: str) -> str:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match="cannot be started"):
        ask(str(tmp_path / "python"), [])
    with pytest.raises(NotSupportedError, match="broken"):
        ask(stand_in(tmp_path, "echo broken >&2; exit 1"), [])


@pytest.mark.parametrize(("name", "version"), [("cpython", "[3, 10, 13]"), ("pypy", "[3, 11, 0]")])
def test_other_pythons_are_refused_by_name(tmp_path: Path, name: str, version: str) -> None:
    said = f'{{"implementation": "{name}", "version": {version}}}'
    with pytest.raises(NotSupportedError, match=f"CPython from 3.11 on, and .* is {name} 3"):
        ask(stand_in(tmp_path, f"echo '{said}'"), [])
