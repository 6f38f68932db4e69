"""Whatever is asked of a guest may be cancelled at any moment, and leaves nothing behind, there or here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

import uvm
from tests.gcs.guests import undone
from tests.gcs.support import PATIENCE_SECONDS
from uvm._gcs.connection import GuestConnection
from uvm._guest.specs import linux_container
from uvm._wire.ports import FIRST_STDIO_PORT, vsock_service_id
from uvm.backends.fake import FakeBackend
from uvm.backends.fake.guest.service import GuestService
from uvm.backends.fake.vm import FakeVM

pytestmark = pytest.mark.anyio

CONTAINER = linux_container(
    {
        "process": {"args": ["sleep", "1000"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {},
        "windows": {"network": {"networkNamespace": "c1"}},
    },
    bundle_path="/run/gcs/c/1",
)

Operation = Callable[[GuestConnection], Awaitable[object]]


async def run_a_program(guest: GuestConnection) -> None:
    assert (await guest.run(["cat"], input=b"hello")).stdout == b"hello"


async def talk_to_a_program(guest: GuestConnection) -> None:
    process = await guest.open_process(["cat"])
    try:
        await process.stdin.send(b"hello")
        await process.stdin.send_eof()
        assert [data async for data in process.stdout] == [b"hello"]
        assert await process.wait() == 0
    finally:
        with anyio.CancelScope(shield=True):
            await process.kill()
            await process.aclose()


async def signal_a_program(guest: GuestConnection) -> None:
    process = await guest.open_process(["sleep", "1000"])
    try:
        await process.signal("TERM")
        assert await process.wait() == 0xFFFFFFFF
    finally:
        with anyio.CancelScope(shield=True):
            await process.kill()
            await process.aclose()


async def run_in_a_container(guest: GuestConnection) -> None:
    async with await guest.create_container("c1", CONTAINER) as container:
        await container.open_init(stdout=False, stderr=False)
        assert (await container.run(["echo", "hello"])).stdout == b"hello\n"


@pytest.mark.parametrize(
    "operation", [run_a_program, talk_to_a_program, signal_a_program, run_in_a_container]
)
async def test_an_operation_that_is_cancelled_after_any_number_of_steps_leaves_nothing_behind(
    operation: Operation,
) -> None:
    async with FakeBackend() as backend, uvm.UtilityVM.create(uvm.LCOWOptions(), backend=backend) as vm:
        await vm.start()
        service = backend.vms[vm.id].service
        with anyio.fail_after(PATIENCE_SECONDS):
            steps = 0
            while await cancelled_after(steps, operation, vm.guest):
                await undone(vm.guest)
                await until_idle(service)
                assert not ports_listened_to(backend.vms[vm.id])
                steps += 1
            assert steps > 10, "it was not cancelled on its way"
            await operation(vm.guest)


def ports_listened_to(vm: FakeVM) -> list[int]:
    """Find out which ports of standard streams the host listens to."""
    found: list[int] = []
    for port in range(FIRST_STDIO_PORT, FIRST_STDIO_PORT + 1_000):
        with suppress(ConnectionRefusedError):
            vm.dial(vsock_service_id(port)).close()
            found.append(port)
    return found


async def cancelled_after(steps: int, operation: Operation, guest: GuestConnection) -> bool:
    """Cancel an operation after so many steps of the event loop; tell whether it was on its way."""

    async def cancel() -> None:
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel)
        with anyio.CancelScope() as scope:
            await operation(guest)
        tasks.cancel_scope.cancel()
    return scope.cancelled_caught


async def until_idle(service: GuestService) -> None:
    """Wait until nothing is in the guest any more; the VM's tasks end what a cancelled caller left."""
    while service.containers or any(process.alive for process in service.processes.values()):
        await anyio.lowlevel.checkpoint()
