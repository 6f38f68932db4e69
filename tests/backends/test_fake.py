"""The conformance suite on the in-memory backend."""

from __future__ import annotations

import re

import pytest

from tests.backends.loops import on_both_loops
from tests.clocks import jumping_backends
from uvm.backends.fake import FakeBackend
from uvm.testing.backends import FakeHost, Rig, Scenario

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends


@pytest.mark.parametrize(("anyio_backend", "scenario"), on_both_loops(), ids=str, indirect=["anyio_backend"])
async def test_the_fake_conforms(scenario: Scenario) -> None:
    async with FakeBackend() as fake:
        host = FakeHost(fake)
        rig = Rig(fake, host, host.linux(), host.windows())
        if missing := scenario.lacks(rig):
            pytest.skip(f"the rig lacks {', '.join(missing)}")
        await scenario.play(rig)
        assert [each for each in ids_on_the_host(fake) if not each.startswith(rig.run)] == []


def ids_on_the_host(fake: FakeBackend) -> list[str]:
    """Return the ids of all systems that were created: of VMs, and of containers that HCS hosts."""
    created = fake.request_log.entries(to="lifecycle", operation="create")
    ids = [entry.call.resource or entry.call.vm for entry in created]
    # Under a policy, a container has 64 digits and no other id: there are more of these than of runs.
    return [each for each in ids if not re.fullmatch("[0-9a-f]{64}", each)]
