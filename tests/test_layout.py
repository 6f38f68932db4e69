"""The tests mirror the packages."""

from __future__ import annotations

from pathlib import Path
from pkgutil import iter_modules

import pytest

import uvm
import uvm.backends

HERE = Path(__file__).parent
PACKAGES = [module.name for module in iter_modules(uvm.__path__) if module.ispkg]
BACKENDS = [module.name for module in iter_modules(uvm.backends.__path__) if module.ispkg]


@pytest.mark.parametrize("package", [*PACKAGES, *(f"backends/{each}" for each in BACKENDS)])
def test_each_package_has_a_directory_of_tests(package: str) -> None:
    tests = HERE / package.removeprefix("_")
    assert list(tests.rglob("test_*.py"))
