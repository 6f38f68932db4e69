"""The scenarios against the fake's guest."""

from __future__ import annotations

import anyio
import pytest

from tests.backends.fake.guesthost import booted
from tests.guestsuite.guests import Guest
from tests.guestsuite.scenarios import SCENARIOS, Scenario

pytestmark = pytest.mark.anyio


async def _root(container: str) -> str:
    # What is in it does not matter: the fake runs its own programs.
    return f"/run/gcs/c/{container}/rootfs"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.__name__)
async def test_of_the_fake(scenario: Scenario) -> None:
    with anyio.fail_after(20):
        await _play(scenario)


async def _play(scenario: Scenario) -> None:
    async with booted() as host:
        await scenario(Guest(host, _root, forgets_running=True))
        assert not host.notifications
        assert not host.service.containers
