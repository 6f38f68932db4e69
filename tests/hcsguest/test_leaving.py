"""What HCS never answers bounds no caller, and what it owes is bounded."""

from __future__ import annotations

import anyio
import pytest

import uvm
from tests.clocks import jumping_backends
from uvm.errors import VMStateError

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends


async def test_starts_that_hcs_never_answers_are_left_at_once_and_bounded() -> None:
    backend = uvm.FakeBackend()
    backend.faults.hang(operation="create process")
    create = uvm.UtilityVM.create(
        uvm.LCOWOptions(external_guest_connection=False),
        backend=backend,
        timeouts=uvm.GuestTimeouts(max_late_starts=2),
    )
    async with create as vm:
        await vm.start()
        for _ in range(2):
            with anyio.move_on_after(1) as scope:
                await vm.run(["true"])
            assert scope.cancelled_caught
        with pytest.raises(VMStateError, match="owes the answers to 2 starts whose callers have left"):
            await vm.run(["true"])
        assert (await vm.properties())["State"] == "Running"
        assert vm.state is uvm.VMState.RUNNING
    assert backend.leftovers() == []
