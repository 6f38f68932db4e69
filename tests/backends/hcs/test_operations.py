"""One call over the C API: refused, completed, cancelled; nothing stays open."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread
import pytest
from attrs import evolve

from tests.backends.fake.support import expect_refusal, lcow
from tests.backends.hcs.support import driven, started
from uvm.backends.hcs import calls
from uvm.backends.hcs.backend import HCSBackend
from uvm.backends.hcs.calls import ComputeService
from uvm.backends.hcs.dlls import Library
from uvm.backends.hcs.system import HCSSystem
from uvm.backends.workers import Workers
from uvm.errors import ErrorRecord, HostError, OptionsError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio


#: Each call on a started system that takes an operation, by the function behind it.
CALLS: dict[str, Callable[[HCSSystem], Awaitable[object]]] = {
    "HcsStartComputeSystem": HCSSystem.start,
    "HcsShutDownComputeSystem": HCSSystem.shutdown,
    "HcsTerminateComputeSystem": HCSSystem.terminate,
    "HcsCrashComputeSystem": HCSSystem.crash,
    "HcsPauseComputeSystem": HCSSystem.pause,
    "HcsResumeComputeSystem": HCSSystem.resume,
    "HcsSaveComputeSystem": HCSSystem.save,
    "HcsGetComputeSystemProperties": HCSSystem.properties,
    "HcsModifyComputeSystem": lambda system: system.modify({"ResourcePath": "nowhere"}),
}

ACCOUNT = (
    '{"Error": -2147467259, "ErrorMessage": "it did not work", "ErrorEvents": ['
    '{"Message": "the disk is gone", "Provider": "a-provider", "EventId": 7, "Source": "a-source"}]}'
)


@pytest.mark.parametrize("function", CALLS)
async def test_a_call_that_is_refused_at_once_says_why_and_the_system_goes_on(function: str) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.at_once(function, HResult.E_ACCESSDENIED)
        with expect_refusal(HResult.E_ACCESSDENIED) as caught:
            await CALLS[function](system)
        assert "vm1" in caught.value.operation
        assert (await system.properties())["State"] == "Running"


@pytest.mark.parametrize("function", CALLS)
async def test_a_call_that_fails_later_has_the_error_document_of_the_host(function: str) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.later(function, HResult.E_FAIL, ACCOUNT)
        with expect_refusal(HResult.E_FAIL) as caught:
            await CALLS[function](system)
        assert caught.value.text == "it did not work"
        assert caught.value.records == (ErrorRecord("the disk is gone", "a-provider", 7, "a-source"),)
        assert caught.value.name == "E_FAIL"


@pytest.mark.parametrize("function", CALLS)
async def test_a_call_that_never_ends_can_be_cancelled(function: str) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.never(function)
        with anyio.move_on_after(0.01) as scope:
            await CALLS[function](system)
        assert scope.cancelled_caught
        assert backend._host.service.operations == 0


@pytest.mark.parametrize("function", ["HcsGetComputeSystemProperties", "HcsPauseComputeSystem"])
async def test_a_second_completion_does_not_count(function: str) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.twice(function)
        await CALLS[function](system)


async def test_a_call_may_complete_before_it_returns() -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.synchronously("HcsGetComputeSystemProperties")
        assert (await system.properties())["Id"] == "vm1"


async def test_any_number_of_calls_may_be_in_progress_at_once() -> None:
    async with driven() as (host, backend), started(backend) as system:
        with host.fake.faults.hold(operation="properties") as gate:
            async with anyio.create_task_group() as tasks:
                for _ in range(300):
                    tasks.start_soon(system.properties)
                for parked in await gate.wait(300):
                    parked.proceed()
        assert backend._host.service.operations == 0


@pytest.mark.parametrize(
    "name",
    ['vm "ä" \N{SNOWMAN} \N{PILE OF POO} \\ \n', "half a \ud83d character", "x" * 100_000],
    ids=["special", "surrogate", "long"],
)
async def test_every_text_reaches_the_host_as_it_was(name: str) -> None:
    async with driven() as (host, backend), started(backend, name) as system:
        assert system.id == name
        assert list(host.fake.vms) == [name]
        assert [entry["Id"] for entry in await backend.enumerate()] == [name]


async def test_a_name_with_a_nul_in_it_is_refused_rather_than_cut() -> None:
    async with driven() as (host, backend):
        with pytest.raises(OptionsError, match="NUL"):
            await backend.create("vm\0other", lcow())
        assert not host.fake.vms


async def test_a_document_that_is_no_json_is_refused_before_it_is_sent() -> None:
    async with driven() as (host, backend), started(backend) as system:
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await system.modify({"Settings": {1, 2}})
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await system.modify({"Settings": float("nan")})
        assert not host.fake.request_log.entries(operation="modify")


async def test_an_error_document_that_is_not_json_is_kept_as_text() -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.later("HcsPauseComputeSystem", HResult.E_FAIL, "<not json>")
        with expect_refusal(HResult.E_FAIL) as caught:
            await system.pause()
        assert caught.value.text == "<not json>"


async def test_what_the_in_memory_host_refuses_is_refused_over_the_c_api_with_the_same_code() -> None:
    async with driven() as (_, backend), started(backend) as system:
        with expect_refusal(HResult.HCS_E_INVALID_STATE):
            await system.start()
        with expect_refusal(HResult.HCS_E_SYSTEM_NOT_FOUND):
            await backend.open("another")


async def test_a_closed_handle_refuses_every_call() -> None:
    async with driven() as (_, backend):
        async with started(backend) as system:
            await system.close()
        for call in (*CALLS.values(), HCSSystem.close, HCSSystem.wait, HCSSystem.working_set_bytes):
            with expect_refusal(HResult.E_HANDLE):
                await call(system)
        with expect_refusal(HResult.E_HANDLE):
            await system.listen("11111111-2222-3333-4444-555555555555")
        with expect_refusal(HResult.E_HANDLE):
            await system.open_process(1)


async def test_calls_without_an_operation_do_not_hold_up_the_loop() -> None:
    async with driven() as (host, backend):
        host.faults.never("HcsGetServiceProperties")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.service_properties)
            async with started(backend) as system:
                assert (await system.properties())["State"] == "Running"
            tasks.cancel_scope.cancel()


async def test_hosts_properties_and_access_go_through_the_c_api() -> None:
    async with driven() as (host, backend):
        await backend.grant_access(r"C:\disks\a.vhdx", "vm1")
        assert list(host.fake.access.entries()) == [(r"C:\disks\a.vhdx", "vm1")]
        await backend.revoke_access(r"C:\disks\a.vhdx", "vm1")
        assert not list(host.fake.access.entries())
        with pytest.raises(HostError):
            await backend.grant_access(r"C:\nowhere", "vm1")


async def test_changes_of_the_access_to_one_path_wait_for_each_other_in_every_spelling() -> None:
    async with driven() as (_, backend):
        turn = backend._turn(r"C:\disks\a.vhdx")
        assert backend._turn("c:/DISKS/A.vhdx") is backend._turn(r"\\?\C:\disks\a.vhdx") is turn
        assert backend._turn(r"C:\disks\b.vhdx") is not turn


STRANGE = ("[]", '"text"', "5", "true", "<no json>")


@pytest.mark.parametrize("answer", STRANGE)
async def test_an_answer_that_has_to_be_an_object_and_is_not_is_refused(answer: str) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.later("HcsGetComputeSystemProperties", 0, answer)
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await system.properties("Memory")
        host.faults.later("HcsGetServiceProperties", 0, answer)
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await backend.service_properties("Basic")
        host.faults.later("HcsGetComputeSystemProperties", 0, answer)
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await backend.open("vm1")


@pytest.mark.parametrize("answer", ["{}", "[[]]", '["text"]', "[{}, null]", "5", "<no json>"])
async def test_a_list_of_systems_that_is_none_is_refused(answer: str) -> None:
    async with driven() as (host, backend):
        host.faults.later("HcsEnumerateComputeSystems", 0, answer)
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await backend.enumerate()


@pytest.mark.parametrize("answer", ["", "null"])
async def test_no_answer_is_an_empty_one(answer: str) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.later("HcsGetComputeSystemProperties", 0, answer)
        assert await system.properties("Memory") == {}
        host.faults.later("HcsEnumerateComputeSystems", 0, answer)
        assert await backend.enumerate() == []


@pytest.mark.parametrize("account", ["[]", "5", '"text"', '{"ErrorMessage": 5, "ErrorEvents": {}}', "<none>"])
async def test_an_account_in_words_of_its_own_does_not_hide_the_error(account: str) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.later("HcsPauseComputeSystem", HResult.E_FAIL, account)
        with expect_refusal(HResult.E_FAIL):
            await system.pause()


@pytest.mark.parametrize("code", [0x1, 0x00370103])
async def test_a_positive_result_is_success(code: int) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.later("HcsPauseComputeSystem", code)
        await system.pause()


@pytest.mark.parametrize("code", [HResult.HCS_E_OPERATION_PENDING, HResult.ERROR_VMCOMPUTE_OPERATION_PENDING])
@pytest.mark.parametrize("fault", ["at_once", "later"])
@pytest.mark.parametrize("call", ["HcsShutDownComputeSystem", "HcsTerminateComputeSystem"])
async def test_an_end_that_is_pending_was_asked_for(call: str, fault: str, code: int) -> None:
    async with driven() as (host, backend), started(backend) as system:
        getattr(host.faults, fault)(call, code)
        await CALLS[call](system)
        with expect_refusal(code):
            getattr(host.faults, fault)("HcsPauseComputeSystem", code)
            await system.pause()


async def test_no_operation_to_be_had_is_an_error() -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.at_once("HcsCreateOperation", HResult.E_FAIL)
        with expect_refusal(HResult.E_OUTOFMEMORY):
            await system.pause()


async def test_a_result_that_cannot_be_fetched_is_an_error() -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.at_once("HcsGetOperationResult", HResult.HCS_E_OPERATION_PENDING)
        with expect_refusal(HResult.HCS_E_OPERATION_PENDING):
            await system.pause()


async def test_two_threads_that_come_at_once_get_the_same_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_services", {})
    both = threading.Barrier(2)

    class Slow:
        def callback(self, *args: object) -> object:
            with suppress(threading.BrokenBarrierError):
                both.wait(0.2)
            return object()

    library: Library[Any] = Library(None, Slow(), lambda pointer: None)
    found: list[ComputeService] = []

    def find() -> None:
        found.append(ComputeService.of(library))

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(anyio.to_thread.run_sync, find)
    assert found[0] is found[1]


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
async def test_another_loop_in_another_thread_uses_the_same_service(loop: str) -> None:
    async with driven() as (host, backend), started(backend) as system:

        async def use() -> str:
            other = HCSBackend(platform=evolve(host.platform, workers=Workers()))
            opened = await other.open("vm1")
            try:
                for _ in range(50):
                    assert (await opened.properties())["Id"] == "vm1"
                await opened.terminate()
                return str(await opened.wait())
            finally:
                await opened.close()

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(system.properties)
            exits = [await anyio.to_thread.run_sync(lambda: anyio.run(use, backend=loop))]
        exits.append(str(await system.wait()))
        assert exits == ["ForcedExit", "ForcedExit"]
