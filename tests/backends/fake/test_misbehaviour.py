"""A guest that misbehaves on demand: what then comes out of the connection."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from tests.backends.fake.guesthost import Host, booted
from tests.backends.fake.support import backend_of
from tests.backends.fake.test_guest_service_containers import create, start
from uvm._wire.frames import HEADER_SIZE, Procedure
from uvm.backends.fake import Misbehaviour, Rule
from uvm.errors import OptionsError, WireError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

DUMP = "dump stacks"


def misbehaviour(host: Host) -> Misbehaviour:
    return backend_of(host.system).misbehaviour


async def pump_on(host: Host) -> None:
    """Take what the guest sends, for ever."""
    while True:
        await host.pump()


@pytest.mark.parametrize(
    ("rule", "settings", "problem"),
    [
        ("garbage", {}, "is not allowed here"),
        ("garbage", {"data": bytes(16)}, "is not allowed here"),
        ("unknown_kind", {}, "is not allowed here"),
        ("oversize", {}, "has 4294967295 bytes"),
        ("oversize", {"size_bytes": 3}, "has 3 bytes"),
        ("bad_json", {}, "is not JSON"),
        ("bad_json", {"payload": b"[]"}, "not an object"),
        ("bad_json", {"payload": b'"\xff"'}, "is not JSON"),
        ("wrong_procedure", {}, "was answered as"),
        ("unknown_id", {}, "which is not open"),
        ("twice", {}, "which is not open"),
    ],
)
async def test_a_spoilt_answer_is_no_message_of_the_protocol(
    rule: str, settings: dict[str, Any], problem: str
) -> None:
    async with booted() as host:
        made: Rule[Any] = getattr(misbehaviour(host), rule)(operation=DUMP, **settings)
        await host.send(Procedure.DUMP_STACKS)
        with pytest.raises(WireError, match=problem):
            await pump_on(host)
        assert (made.seen, made.fired) == (1, 1)


async def test_a_silent_guest_has_done_what_it_was_asked() -> None:
    async with booted() as host:
        rule = misbehaviour(host).silent(operation="execute process")
        await host.send(
            Procedure.EXECUTE_PROCESS, Settings={"ProcessParameters": '{"CommandArgs":["sleep","1000"]}'}
        )
        quick = await host.send(Procedure.GET_PROPERTIES, "nobody")
        assert (await host.answer(quick))["Result"] & 0xFFFFFFFF == HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND
        assert host.answers == {}
        assert len(host.service.processes) == 1
        assert rule.fired == 1


async def test_a_slow_answer_comes_after_those_that_were_asked_for_later() -> None:
    async with booted() as host:
        misbehaviour(host).slow(0.01, operation=DUMP)
        slow = await host.send(Procedure.DUMP_STACKS)
        quick = await host.send(Procedure.GET_PROPERTIES, "nobody")
        await host.answer(slow)
        assert host.order[-2:] == [f"answer {quick}", f"answer {slow}"]


@pytest.mark.parametrize("after_bytes", [0, 5, HEADER_SIZE + 1])
async def test_a_connection_is_lost_at_any_byte_of_an_answer(after_bytes: int) -> None:
    async with booted() as host:
        misbehaviour(host).drop(after_bytes=after_bytes, operation=DUMP)
        await host.send(Procedure.DUMP_STACKS)
        received = b""
        while len(received) < after_bytes:
            received += await host.stream.receive()
        with pytest.raises(anyio.EndOfStream):
            await host.stream.receive()
        assert len(received) == after_bytes
        misbehaviour(host).clear()
        await host.redial()


async def test_a_container_exits_without_a_word() -> None:
    async with booted() as host:
        misbehaviour(host).silent(operation="notification")
        await create(host, "true")
        process = await start(host)
        await process.read()
        assert await process.wait() == 0
        await host.refusal(Procedure.GET_PROPERTIES, "nobody")
        assert host.notifications == []


async def test_an_exit_is_told_over_and_over() -> None:
    async with booted() as host:
        misbehaviour(host).flood(1000, operation="notification")
        await create(host, "true")
        process = await start(host)
        await process.read()
        await process.wait()
        for _ in range(1000):
            assert (await host.notification())["ContainerId"] == "c"
        await host.refusal(Procedure.GET_PROPERTIES, "nobody")
        assert host.notifications == []


async def test_an_exit_of_a_container_that_never_was_is_told() -> None:
    async with booted() as host:
        host.service.notify("nobody", "UnexpectedExit")
        assert (await host.notification())["ContainerId"] == "nobody"


async def test_anything_can_be_sent_at_any_time() -> None:
    async with booted() as host:
        host.service.send(b"\x00")
        assert await host.stream.receive() == b"\x00"


async def test_a_guest_panics_in_place_of_an_answer() -> None:
    async with booted() as host:
        misbehaviour(host).panic(operation=DUMP)
        await host.send(Procedure.DUMP_STACKS)
        with anyio.fail_after(5):
            assert (await host.system.wait()).exit_type == "UnexpectedExit"


async def test_an_answer_can_be_replaced_by_what_a_test_makes_of_it() -> None:
    async with booted() as host:
        misbehaviour(host).replace(lambda frame: [frame[:7], frame[7:]], operation=DUMP)
        assert (await host.ask(Procedure.DUMP_STACKS))["GuestStacks"]


async def test_rules_choose_among_answers_and_are_withdrawn() -> None:
    async with booted() as host:
        rules = misbehaviour(host)
        second = rules.silent(operation=DUMP, nth=2)
        other_vm = rules.silent(vm="vm2")
        await host.ask(Procedure.DUMP_STACKS)
        await host.send(Procedure.DUMP_STACKS)
        await host.ask(Procedure.DUMP_STACKS)
        assert (second.seen, second.fired, other_vm.seen) == (3, 1, 0)
        second.remove()
        second.remove()
        assert list(rules.rules) == [other_vm]
        rules.clear()
        assert not list(rules.rules)


async def test_a_refusal_can_be_spoilt_too() -> None:
    async with booted() as host:
        misbehaviour(host).twice(operation="get properties")
        await host.refusal(Procedure.GET_PROPERTIES, "nobody")
        with pytest.raises(WireError):
            await host.pump()


@pytest.mark.parametrize(
    "matching",
    [
        {"to": "host"},
        {"operation": "connect"},
        {"operation": "listen"},
        {"operation": "notificaton"},
        {"operation": "notification", "request_type": "Add"},
        {"nth": 0},
    ],
    ids=str,
)
def test_misbehaviour_that_can_never_show_is_refused(matching: dict[str, Any]) -> None:
    misbehaviour = Misbehaviour()
    with pytest.raises(OptionsError):
        misbehaviour.twice(**matching)
    assert misbehaviour.rules == ()


@pytest.mark.parametrize(
    ("rule", "arguments"),
    [
        ("slow", {"seconds": "1"}),
        ("garbage", {"data": "text"}),
        ("oversize", {"size_bytes": 2**32}),
        ("bad_json", {"payload": "{"}),
        ("flood", {"count": -1}),
        ("drop", {"after_bytes": -1}),
        ("replace", {"change": b""}),
    ],
)
def test_what_misbehaviour_sends_is_checked_when_it_is_made(rule: str, arguments: dict[str, Any]) -> None:
    misbehaviour = Misbehaviour()
    with pytest.raises(OptionsError, match="must be"):
        getattr(misbehaviour, rule)(**arguments)
    assert misbehaviour.rules == ()
