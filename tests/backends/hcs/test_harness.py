"""The harness itself: what fails a test that uses it, and how the fake appears through the C API."""

from __future__ import annotations

import os
from collections.abc import Callable

import anyio
import pytest

from tests.backends.hcs.harness import Host
from tests.backends.hcs.support import driven, relayed, started
from uvm.backend import ByteStream
from uvm.errors import HostError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio


async def everything(stream: ByteStream) -> bytes:
    received = b""
    try:
        while True:
            received += await stream.receive()
    except anyio.EndOfStream:
        return received


def close_what_never_was(host: Host) -> None:
    core = host.platform.core
    core.functions.HcsCloseOperation(core.ffi.cast("HCS_OPERATION", 16))


def leave_an_operation_open(host: Host) -> None:
    core = host.platform.core
    core.functions.HcsCreateOperation(core.ffi.NULL, core.ffi.NULL)


@pytest.mark.parametrize(
    ("do", "complaint"),
    [
        (close_what_never_was, "HcsCloseOperation: 0x10 never was the handle of anything"),
        (leave_an_operation_open, r"operation 0x\w+ was not closed \(no call, never used\)"),
    ],
)
async def test_misuse_and_leaks_fail_the_test_that_caused_them(
    do: Callable[[Host], None], complaint: str
) -> None:
    async def run() -> None:
        async with driven() as (host, _):
            do(host)

    with pytest.raises(AssertionError, match=complaint):
        await run()


async def test_what_a_test_knows_of_does_not_fail_it() -> None:
    async with driven() as (host, _):
        close_what_never_was(host)
        leave_an_operation_open(host)
        assert len(host.misuses()) == 1
        assert len(host.leaks()) == 1


async def test_one_test_does_not_fail_for_the_one_before() -> None:
    async with driven() as (host, _):
        assert host.complaints() == []


async def test_what_the_library_asks_for_happens_on_the_fake() -> None:
    async with driven() as (host, backend), started(backend, "vm1") as system:
        assert host.fake.vms["vm1"].started_ticks is not None
        await system.pause()
        assert host.fake.vms["vm1"].state == "Paused"
        await system.terminate()
        assert str(await system.wait()) == "ForcedExit"
        await system.close()
        assert host.fake.leftovers() == []


async def test_a_call_that_completes_before_it_returns_was_carried_out() -> None:
    async with driven() as (host, backend), started(backend, "vm1") as system:
        host.faults.synchronously("HcsPauseComputeSystem")
        await system.pause()
        assert host.fake.vms["vm1"].state == "Paused"


async def test_a_call_may_be_carried_out_although_it_fails() -> None:
    async with driven() as (host, backend), started(backend, "vm1") as system:
        host.faults.done_but("HcsPauseComputeSystem", HResult.E_FAIL)
        with pytest.raises(HostError, match="E_FAIL"):
            await system.pause()
        assert host.fake.vms["vm1"].state == "Paused"


async def test_an_exit_of_the_fake_is_reported() -> None:
    async with driven() as (host, backend), started(backend, "vm1") as system:
        host.fake.vms["vm1"].crash()
        assert (await system.wait()).exit_type == "UnexpectedExit"


@pytest.mark.parametrize("result", ["succeeds", "fails"])
async def test_the_streams_of_a_process_are_those_of_the_fake(result: str) -> None:
    async with driven() as (host, backend), started(backend, document=relayed()) as system:
        if result == "fails":
            host.faults.done_but("HcsCreateProcess", HResult.E_FAIL)
        process = await system.create_process(
            {"CommandArgs": ["cat"], "CreateStdInPipe": True, "CreateStdOutPipe": True}
        )
        assert process.stdin is not None
        assert process.stdout is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.stdin.send, b"x" * 300_000)
            received = await process.stdout.receive()
            while len(received) < 300_000:
                received += await process.stdout.receive()
        await process.stdin.send_eof()
        assert await everything(process.stdout) == b""
        assert await process.wait() == 0
        await process.close()


async def test_a_connection_of_the_guest_arrives_with_its_bytes_and_its_end() -> None:
    service = "0000f0f0-facb-11e6-bd58-64006a7986d3"
    async with driven() as (host, backend), started(backend, "vm1") as system:
        listener = await system.listen(service)
        guest = host.fake.vms["vm1"].dial(service)
        stream = await listener.accept()
        await guest.send(b"from the guest")
        await guest.send_eof()
        assert await everything(stream) == b"from the guest"
        await stream.send(b"from the host")
        assert await guest.receive() == b"from the host"
        await stream.aclose()
        await listener.aclose()


# Wine shuts every connection down when it closes it, and so cannot reset one.
BROKEN = (anyio.BrokenResourceError, anyio.EndOfStream) if os.name == "nt" else anyio.BrokenResourceError


async def test_a_connection_breaks_when_the_vm_exits() -> None:
    service = "0000f0f0-facb-11e6-bd58-64006a7986d3"
    async with driven() as (host, backend), started(backend, "vm1") as system:
        listener = await system.listen(service)
        host.fake.vms["vm1"].dial(service)
        stream = await listener.accept()
        host.fake.vms["vm1"].crash()
        with pytest.raises(BROKEN):
            await stream.receive()
        await stream.aclose()
