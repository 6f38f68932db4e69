"""The conformance suite itself: it finds faults, and states what it did not check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from tests.clocks import jumping_backends
from uvm.backend import JSON
from uvm.backends.fake import FakeBackend, FakeHostProcess, FakeListener, FakeStream, FakeSystem
from uvm.errors import ExitStatus, HostError, NotSupportedError
from uvm.hresult import HResult
from uvm.testing.backends import SCENARIOS, Control, FakeHost, Host, Rig, Scenario

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


async def play(name: str, *, timeout_seconds: float = 30.0) -> None:
    fake = FakeBackend()
    host = FakeHost(fake)
    rig = Rig(fake, host, host.linux(), host.windows(), timeout_seconds)
    await BY_NAME[name].play(rig)


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(SCENARIOS)


def test_there_is_a_scenario_for_each_control() -> None:
    assert {control for scenario in SCENARIOS for control in scenario.needs} == set(Control)


async def test_a_rig_without_any_control_plays_what_needs_none() -> None:
    played: list[Scenario] = []
    for scenario in SCENARIOS:
        rig = Rig(FakeBackend())
        if scenario.lacks(rig):
            continue
        await scenario.play(rig)
        played.append(scenario)
    assert [scenario.name for scenario in played] == [s.name for s in SCENARIOS if not s.needs]
    assert played


def test_what_a_rig_lacks_is_named() -> None:
    lacks = BY_NAME["a_linux_vm_runs_from_creation_to_exit"].lacks(Rig(FakeBackend()))
    assert "Linux VMs" in lacks
    assert "an audit of the host" in lacks


@pytest.mark.parametrize(
    "use",
    [
        lambda host: host.put_file("a"),
        lambda host: host.put_directory("a"),
        lambda host: host.put_link("a", "b"),
        lambda host: host.path_of("a"),
        lambda host: host.put_network(1),
        lambda host: host.put_device("a"),
        lambda host: host.crash("vm1"),
        lambda host: host.calls(),
        lambda host: host.refuse(),
        lambda host: host.hold(),
        lambda host: host.answer_twice(),
        lambda host: host.undisturbed(),
        lambda host: host.leftovers(),
        lambda host: host.differences(None),
    ],
)
def test_a_control_that_a_host_does_not_have_says_so(use: Callable[[Any], object]) -> None:
    with pytest.raises(NotSupportedError, match=r"^Host (cannot|has no|does not)"):
        use(Host())


async def test_a_backend_with_leftovers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forget(self: FakeBackend, path: str, to: str) -> None:
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(FakeBackend, "revoke_access", forget)
    with pytest.raises(AssertionError, match="what is left on the host"):
        await play("a_windows_vm_runs_from_creation_to_exit", timeout_seconds=5)


async def test_a_backend_that_refuses_with_another_code_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: FakeBackend, system_id: str) -> FakeSystem:
        raise HostError("open", HResult.E_FAIL)

    monkeypatch.setattr(FakeBackend, "open", refuse)
    with pytest.raises(AssertionError, match="E_FAIL"):
        await play("what_does_not_exist_cannot_be_opened")


async def test_a_backend_that_does_not_refuse_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def enumerate_nothing(self: FakeBackend, query: JSON | None = None) -> list[JSON]:
        await anyio.lowlevel.checkpoint()
        return []

    async def grant(self: FakeBackend, path: str, to: str, mask: str = "read") -> None:
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(FakeBackend, "grant_access", grant)
    monkeypatch.setattr(FakeBackend, "enumerate", enumerate_nothing)
    with pytest.raises(AssertionError, match="it was not refused"):
        await play("access_is_granted_to_what_exists_and_revoked_more_than_once")
    with pytest.raises(AssertionError):
        await play("systems_are_found_by_owner_by_id_and_by_type")


async def test_a_backend_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: FakeListener) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(FakeListener, "accept", never)
    with pytest.raises(TimeoutError):
        await play("what_a_guest_sends_arrives_and_is_answered", timeout_seconds=0.1)


async def test_a_backend_that_forgets_a_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    modify = FakeSystem.modify

    async def forgetful(self: FakeSystem, request: JSON) -> None:
        if "MappedPipes" not in request.get("ResourcePath", ""):
            await modify(self, request)

    monkeypatch.setattr(FakeSystem, "modify", forgetful)
    with pytest.raises(AssertionError, match="the ledgers have"):
        await play("a_windows_vm_runs_from_creation_to_exit")


async def test_a_backend_that_reports_no_exit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = FakeSystem.wait

    async def graceful(self: FakeSystem) -> ExitStatus:
        await wait(self)
        return ExitStatus("GracefulExit")

    monkeypatch.setattr(FakeSystem, "wait", graceful)
    with pytest.raises(AssertionError, match="the type of the exit"):
        await play("a_system_saved_as_a_template_only_ends")


async def test_a_handle_that_a_cancelled_start_leaves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    create = FakeSystem.create_process

    async def slow_to_answer(self: FakeSystem, parameters: JSON) -> FakeHostProcess:
        process = await create(self, parameters)
        await anyio.lowlevel.checkpoint()
        return process

    monkeypatch.setattr(FakeSystem, "create_process", slow_to_answer)
    with pytest.raises(AssertionError, match="handle of process"):
        await play("a_start_whose_caller_is_cancelled_leaves_no_handle", timeout_seconds=0.5)


async def test_a_stream_that_loses_what_it_received_when_cancelled_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receive = FakeStream.receive

    async def careless(self: FakeStream, max_bytes: int = 65536) -> bytes:
        data = await receive(self, max_bytes)
        await anyio.lowlevel.checkpoint()
        return data

    monkeypatch.setattr(FakeStream, "receive", careless)
    with pytest.raises(AssertionError, match="what was received"):
        await play("a_reader_cancelled_with_the_data_loses_none")


async def test_a_process_that_is_killed_by_any_signal_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeHostProcess, "signal", lambda self, options: self.terminate())
    with pytest.raises(AssertionError, match="Ctrl"):
        await play("a_signalled_process_exits_otherwise_than_a_killed_one")


async def test_a_fault_that_fails_names_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeHost, "refuse", lambda self, code, *, operation, nth: None)
    with pytest.raises(AssertionError, match="the refusal was reported") as caught:
        await play("any_call_of_a_linux_vm_fails_at_once")
    assert caught.value.__notes__ == [
        "in the run of a linux VM, own connection, the fault was at its call 1: enumerate"
    ]
