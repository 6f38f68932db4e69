"""The backend's modules are Linux's: elsewhere nothing here can be imported."""

from __future__ import annotations

import sys

import pytest

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


@pytest.fixture(autouse=True)
def _no_locks_of_the_machine(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have users of QEMUs locked in a directory of the tests', as that of the machine is root's."""
    from uvm.backends.qemu import users

    monkeypatch.setattr(users, "_LOCKS", str(tmp_path_factory.getbasetemp() / "users"))
