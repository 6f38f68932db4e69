"""What a program imports is found by reading it, without importing anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from uvm.backends.qemu.guestimage.imports import program

SOURCES = {
    "app/__init__.py": "from typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n    import attrs\nelse:\n    import zlib\n",
    "app/__main__.py": "import os.path\nfrom app.parts import one\nfrom . import two\n",
    "app/parts/__init__.py": "",
    "app/parts/one.py": "def late():\n    import json, app.three\n    from ..two import name\n",
    "app/two.py": "from .parts.four import *\nfrom app import __main__\n",
    "app/three.py": "raise RuntimeError('nothing is imported')\n",
    "app/parts/four.py": "",
    "app/unused.py": "import unused\n",
}


@pytest.fixture
def root(tmp_path: Path) -> str:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(tmp_path)


def test_its_own_modules_are_those_that_it_reaches(root: str) -> None:
    found = program(["app.__main__"], [root])
    assert [*found.files] == [
        "app", "app.__main__", "app.parts", "app.parts.four", "app.parts.one", "app.three", "app.two",
    ]  # fmt: skip
    assert found.files["app.parts"] == f"{root}/app/parts/__init__.py"


def test_all_else_that_it_imports_is_named_but_what_is_for_type_checkers(root: str) -> None:
    imported = program(["app.__main__"], [root]).imported
    assert {"os", "os.path", "json", "zlib", "typing"} <= set(imported)
    assert not {"attrs", "unused", "app.two.name"} & set(imported)


def test_the_first_root_that_has_a_module_has_it(root: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "app").mkdir(parents=True)
    (other / "app/two.py").write_text("")
    assert program(["app.__main__"], [str(other), root]).files["app.two"] == f"{other}/app/two.py"


def test_a_module_of_pythons_own_is_never_taken_from_a_root(root: str, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("import nothing\n")
    found = program(["app.__main__"], [root])
    assert "json" in found.imported
    assert "json" not in found.files


def test_a_program_that_is_not_there_is_an_error(root: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no module app\.five"):
        program(["app.five"], [root])
