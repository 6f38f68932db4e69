"""The conformance suite on the in-memory backend."""

from __future__ import annotations

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
