"""Real VMs are run by ``make test-qemu``, which installs what they take; in other runs they are skipped."""

from __future__ import annotations

import os
import sys

import pytest

from tests.qemu.setup import ENABLED
from uvm.backends.qemu.guestimage import Image, ImageOptions, build

_HERE = os.path.dirname(__file__) + os.sep

# What they import is Linux's.
collect_ignore_glob = ["test_*.py"] if sys.platform == "win32" else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this directory that need VMs, unless they are asked for."""
    if ENABLED in os.environ:
        return
    for item in items:
        if str(item.path).startswith(_HERE) and item.path.name != "test_setup.py":
            item.add_marker(pytest.mark.skip(reason="boots real VMs: make test-qemu"))


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no test fail for want of time; processes that it starts are :mod:`tests.qemu.patient`'s."""
    from tests.qemu.limits import be_patient

    be_patient(monkeypatch.setattr)


@pytest.fixture(scope="session")
def image() -> Image:
    """The guest image of this machine's own parts."""
    return build(ImageOptions())
