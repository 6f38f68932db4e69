"""What every test shares: the two event loops, and how hard hypothesis tries."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# No deadline in any profile: a slow machine is not a failing test.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, print_blob=True)
settings.register_profile("soak", deadline=None, max_examples=5_000, stateful_step_count=200, print_blob=True)
# Under Wine it is the system calls that differ, not the values.
settings.register_profile("wine", deadline=None, max_examples=10, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops, for every test marked ``anyio``."""
    return str(request.param)
