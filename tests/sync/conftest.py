"""The loop of uvm.sync: each test on both kinds, and nothing of it is left."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

import uvm
from tests import conftest
from tests.descriptors import collect
from uvm._sync.loop import Loop


def end_of_loops() -> None:
    """Wait until no thread of uvm.sync runs; fail if one stays."""
    loops = [thread for thread in threading.enumerate() if isinstance(thread, Loop)]
    if loops:
        # A context of a frame that a traceback keeps.
        collect()
    for thread in loops:
        thread.join(60)
        assert not thread.is_alive(), "the thread of uvm.sync is left"


@pytest.fixture(params=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    under_wine = "UVM_WINE" in os.environ
    if request.param == "trio" and under_wine:
        pytest.skip("trio is left out under Wine")
    monkeypatch.setattr(Loop, "backend", request.param)
    if under_wine:
        monkeypatch.setattr(Loop, "backend_options", {"loop_factory": conftest._ticking_loop})
    yield request.param
    end_of_loops()


@pytest.fixture
def backend() -> uvm.FakeBackend:
    backend = uvm.FakeBackend()
    backend.files.add(r"C:\vm\scratch.vhdx", size=1 << 30)
    return backend
