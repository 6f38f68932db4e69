"""The double reports misuse of the C API, leaks and events, and nothing else."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.backends.hcs.double.control import Answer, Question
from tests.backends.hcs.raw import (
    CALLBACK_ALREADY_SET,
    E_HANDLE,
    NOT_AVAILABLE,
    PATIENCE_SECONDS,
    Raw,
)


class TestMisuse:
    def test_closing_twice(self, raw: Raw, system: Any) -> None:
        operation = raw.operation()
        raw.api.HcsCloseOperation(operation)
        raw.api.HcsCloseOperation(operation)
        raw.api.HcsCloseComputeSystem(system)
        raw.api.HcsCloseComputeSystem(system)
        assert raw.double.misuses() == [
            f"HcsCloseOperation: the operation {raw.number(operation):#x} was closed before",
            f"HcsCloseComputeSystem: the system {raw.number(system):#x} was closed before",
        ]

    def test_using_after_the_close_though_the_place_is_taken_again(self, raw: Raw, system: Any) -> None:
        raw.api.HcsCloseComputeSystem(system)
        successor = raw.system()
        assert raw.start(system, raw.operation()) == E_HANDLE
        assert raw.start(successor, raw.operation()) == 0
        assert raw.double.misuses() == [
            f"HcsStartComputeSystem: the system {raw.number(system):#x} was closed before"
        ]

    def test_a_handle_of_another_kind(self, raw: Raw, system: Any) -> None:
        assert (
            raw.api.HcsTerminateProcess(raw.ffi.cast("HCS_PROCESS", system), raw.null, raw.null) == E_HANDLE
        )
        assert raw.double.misuses() == [
            f"HcsTerminateProcess: {raw.number(system):#x} is the handle of a system, not of a process"
        ]

    @pytest.mark.parametrize("number", [0, 1, 0x12345678, 0xFFFFFFFFFFFFFFFF])
    def test_an_invented_handle(self, raw: Raw, number: int) -> None:
        raw.api.HcsCloseOperation(raw.ffi.cast("HCS_OPERATION", number))
        assert raw.double.misuses() == [f"HcsCloseOperation: {number:#x} never was the handle of anything"]

    def test_closing_an_operation_from_its_own_callback(self, raw: Raw, system: Any) -> None:
        def complete(operation: Any, context: Any) -> None:
            raw.api.HcsCloseOperation(operation)

        raw.start(system, raw.operation(raw.completion(complete)))
        raw.double.drain()
        [line] = raw.double.misuses()
        assert line.startswith("HcsCloseOperation: called for the operation")
        assert line.endswith("from its own callback")

    def test_closing_a_system_from_its_own_callback(self, raw: Raw, system: Any) -> None:
        callback = raw.on_event(lambda event, context: raw.api.HcsCloseComputeSystem(system))
        raw.api.HcsSetComputeSystemCallback(system, 0, raw.null, callback)
        raw.double.event(raw.number(system), 1)
        raw.double.drain()
        assert raw.double.misuses() == [
            "HcsCloseComputeSystem: called for the system vm from its own callback"
        ]

    def test_freeing_to_the_wrong_heap_twice_or_what_is_not_ours(self, raw: Raw) -> None:
        raw.answers["HcsGetServiceProperties"] = Answer(document="{}")
        out = raw.ffi.new("PWSTR *")
        raw.api.HcsGetServiceProperties(raw.null, out)
        raw.double.network.free(out[0])
        raw.double.core.free(out[0])
        raw.double.core.free(raw.text("mine"))
        raw.double.core.free(raw.null)
        assert raw.double.misuses() == [
            "CoTaskMemFree: a string of HcsGetServiceProperties, which is for LocalFree",
            "LocalFree: a string was freed twice",
            "LocalFree: not a string of ours",
        ]

    def test_a_string_that_was_freed_is_no_text_any_more(self, raw: Raw) -> None:
        raw.answers["HcsGetServiceProperties"] = Answer(document="{}")
        out = raw.ffi.new("PWSTR *")
        raw.api.HcsGetServiceProperties(raw.null, out)
        raw.double.core.free(out[0])
        assert raw.ffi.string(out[0]) == "\udddd\udddd"

    def test_reporting_operations_as_events_makes_their_callbacks_fail(self, raw: Raw, system: Any) -> None:
        callback = raw.on_event(lambda event, context: None)
        raw.api.HcsSetComputeSystemCallback(system, 1, raw.null, callback)
        operation = raw.operation(raw.completion(lambda operation, context: None))
        assert raw.start(system, operation) == CALLBACK_ALREADY_SET
        assert raw.start(system, raw.operation()) == 0
        [line] = raw.double.misuses()
        assert line.startswith("HcsSetComputeSystemCallback: with this option")

    def test_waiting_for_the_host_on_the_event_loops_thread(self, raw: Raw) -> None:
        raw.answers["HcsGrantVmAccess"] = None
        assert raw.api.HcsGrantVmAccess(raw.text("vm"), raw.text("C:\\a")) == NOT_AVAILABLE
        assert raw.double.misuses() == [
            "HcsGrantVmAccess: it waits, and was called on the event loop's thread"
        ]

    def test_fetching_the_handles_of_a_process_twice(self, raw: Raw, system: Any) -> None:
        operation = raw.operation()
        raw.process(system, operation)
        for _ in range(2):
            information = raw.ffi.new("HCS_PROCESS_INFORMATION *")
            assert raw.api.HcsGetOperationResultAndProcessInfo(operation, information, raw.null) == 0
        assert raw.double.misuses() == [
            "HcsGetOperationResultAndProcessInfo: the handles were fetched before"
        ]


class TestLeaks:
    def test_everything_that_is_open_is_listed(self, raw: Raw, system: Any) -> None:
        raw.answers["HcsGetServiceProperties"] = Answer(document='{"a":1}')
        raw.api.HcsSetComputeSystemCallback(system, 0, raw.null, raw.on_event(lambda event, context: None))
        operation, out = raw.operation(), raw.ffi.new("PWSTR *")
        raw.api.HcsGetServiceProperties(raw.null, out)
        assert raw.double.leaks() == [
            f"system {raw.number(system):#x} of vm was not closed, and its callback is registered",
            f"operation {raw.number(operation):#x} was not closed (no call, never used)",
            'a string of HcsGetServiceProperties was not freed: {"a":1}',
        ]

    def test_nothing_is_left_of_many_calls(self, raw: Raw, system: Any) -> None:
        raw.answers["HcsStartComputeSystem"] = Answer(document="{}")
        objects, strings = raw.double.objects, raw.double.strings
        for _ in range(2_000):
            operation = raw.operation()
            raw.start(system, operation)
            assert raw.result(operation) == (0, "{}")
            raw.api.HcsCloseOperation(operation)
        assert (raw.double.objects, raw.double.strings) == (objects, strings)
        assert raw.double.misuses() == []


class TestEvents:
    def test_they_come_in_order_with_their_data(self, raw: Raw, system: Any) -> None:
        seen: list[tuple[int, str, int]] = []

        def happened(event: Any, context: Any) -> None:
            number = int(raw.ffi.cast("uintptr_t", context))
            seen.append((event.Type, raw.ffi.string(event.EventData), number))

        raw.api.HcsSetComputeSystemCallback(system, 0, raw.ffi.cast("void *", 9), raw.on_event(happened))
        for i in range(50):
            raw.double.event(raw.number(system), i, str(i))
        raw.double.drain()
        assert seen == [(i, str(i), 9) for i in range(50)]

    def test_there_is_one_callback_on_a_handle_until_it_is_taken_away(self, raw: Raw, system: Any) -> None:
        calls: list[str] = []
        register = raw.api.HcsSetComputeSystemCallback
        first = raw.on_event(lambda event, context: calls.append("first"))
        second = raw.on_event(lambda event, context: calls.append("second"))
        assert register(system, 0, raw.null, first) == 0
        assert register(system, 0, raw.null, second) == CALLBACK_ALREADY_SET
        assert register(system, 0, raw.null, raw.null) == 0
        raw.double.event(raw.number(system), 1)
        assert register(system, 0, raw.null, second) == 0
        raw.double.event(raw.number(system), 1)
        raw.double.drain()
        assert calls == ["second"]

    def test_a_close_waits_for_the_callback_in_progress(self, raw: Raw, system: Any) -> None:
        order: list[str] = []
        begun, go_on = threading.Event(), threading.Event()

        def happened(event: Any, context: Any) -> None:
            begun.set()
            go_on.wait(PATIENCE_SECONDS)
            order.append("callback ended")

        def ask(question: Question) -> None:
            order.append(question.call)
            raw.ask(question)

        raw.double.plug(ask)
        raw.api.HcsSetComputeSystemCallback(system, 0, raw.null, raw.on_event(happened))
        raw.double.event(raw.number(system), 1)
        raw.double.event(raw.number(system), 2)
        assert begun.wait(PATIENCE_SECONDS)
        closing = raw.in_thread(lambda: raw.api.HcsCloseComputeSystem(system))
        # Once the handle is refused, the close is in progress.
        callback = raw.on_event(lambda event, context: None)
        while raw.api.HcsSetComputeSystemCallback(system, 0, raw.null, callback) != E_HANDLE:
            pass
        go_on.set()
        closing.join()
        raw.double.drain()
        assert order == ["callback ended", "HcsCloseComputeSystem"]

    def test_events_before_the_registration_are_not_sent(self, raw: Raw, system: Any) -> None:
        calls: list[int] = []
        raw.double.event(raw.number(system), 1)
        callback = raw.on_event(lambda event, context: calls.append(event.Type))
        raw.api.HcsSetComputeSystemCallback(system, 0, raw.null, callback)
        raw.double.drain()
        assert calls == []
