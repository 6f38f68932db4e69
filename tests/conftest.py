"""What every test shares: the two event loops, and how hard hypothesis tries."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import settings

_TICK_SECONDS = 0.5

# Tests make few cycles: looking for them after each 700 objects, as is the default, is a sixth of the run.
gc.set_threshold(50_000)

# No deadline in any profile: a slow machine is not a failing test.
settings.register_profile("dev", deadline=None, max_examples=30)
settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True, print_blob=True)
settings.register_profile("soak", deadline=None, max_examples=5_000, stateful_step_count=200, print_blob=True)
# Under Wine, and with other versions of the dependencies, it is not the values that differ.
settings.register_profile("few", deadline=None, max_examples=10, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="module", autouse=True)
def _frozen_for_a_module() -> Iterator[None]:
    """Let what `tests.descriptors` has frozen be collected once it is garbage: it is closed, or warns."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
    """Both event loops, for every test marked ``anyio``."""
    if request.param == "asyncio" and "UVM_WINE" in os.environ:
        return "asyncio", {"loop_factory": _ticking_loop}
    return str(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave trio out under Wine, save for the tests of what calls the system there."""
    if "UVM_WINE" not in os.environ:
        return
    calls_the_system = Path(__file__).parent / "backends" / "hcs"
    items[:] = [item for item in items if calls_the_system in item.path.parents or not _runs_on_trio(item)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have trio run what is ready in the order of the last time, where hypothesis tries its values again."""
    if settings().derandomize and _runs_on_trio(item):
        trio._core._run._r.seed(item.nodeid)


def pytest_collection_finish() -> None:
    """Have the garbage collector leave out what stays: modules and tests, which are most of what there is."""
    gc.collect()
    gc.freeze()


def _runs_on_trio(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get("anyio_backend") == "trio"


def _ticking_loop() -> asyncio.AbstractEventLoop:
    """Make a loop that looks about every now and then.

    Under Wine 8 a wake-up of asyncio's proactor loop by another thread is lost now and then: the byte that
    ``call_soon_threadsafe`` writes does not end the loop's sleep. A timer does.
    """
    loop = asyncio.new_event_loop()

    def tick() -> None:
        loop.call_later(_TICK_SECONDS, tick)

    tick()
    return loop
