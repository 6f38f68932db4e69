"""The double obeys its rules, on which the library's tests rely; checked by raw calls of its C API."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any
from uuid import UUID

import pytest

from tests.backends.hcs.double.build import NoCompilerError, build
from tests.backends.hcs.double.control import Answer, FaultKind, Question
from tests.backends.hcs.harness import require_double
from tests.backends.hcs.raw import (
    ALREADY_STARTED,
    E_FAIL,
    E_HANDLE,
    NOT_AVAILABLE,
    NOT_STARTED,
    PATIENCE_SECONDS,
    PENDING,
    Once,
    Raw,
)
from uvm.hresult import HResult


class TestOperations:
    def test_one_completes_on_another_thread_and_then_has_its_result(self, raw: Raw, system: Any) -> None:
        raw.answers["HcsStartComputeSystem"] = Answer(document='{"A":"ü"}')
        done = Once()
        operation = raw.operation(raw.completion(done.complete))
        assert raw.start(system, operation) == 0
        done.wait()
        assert done.threads != [threading.get_ident()]
        assert raw.result(operation) == (0, '{"A":"ü"}')
        raw.api.HcsCloseOperation(operation)
        assert raw.double.misuses() == []

    def test_there_is_no_result_before_the_start(self, raw: Raw) -> None:
        assert raw.result(raw.operation()) == (NOT_STARTED, "")

    def test_there_is_no_result_before_the_end(self, raw: Raw, system: Any) -> None:
        raw.answers["HcsStartComputeSystem"] = None
        operation = raw.operation()
        raw.start(system, operation)
        assert raw.result(operation) == (PENDING, "")
        raw.double.answer(raw.questions[-1].number, Answer(HResult.E_FAIL, "why"))
        assert raw.result(operation) == (E_FAIL, "why")

    def test_one_is_good_for_one_call(self, raw: Raw, system: Any) -> None:
        operation = raw.operation()
        raw.start(system, operation)
        assert raw.start(system, operation) == ALREADY_STARTED
        assert raw.double.misuses() == [
            "HcsStartComputeSystem: the operation was used before, by HcsStartComputeSystem"
        ]

    def test_no_callback_arrives_after_the_close(self, raw: Raw, system: Any) -> None:
        raw.answers["HcsStartComputeSystem"] = None
        done = Once()
        operation = raw.operation(raw.completion(done.complete))
        raw.start(system, operation)
        raw.api.HcsCloseOperation(operation)
        raw.double.answer(raw.questions[-1].number, Answer())
        raw.double.drain()
        assert done.threads == []
        assert raw.double.misuses() == []

    def test_the_question_names_the_object_and_the_call(self, raw: Raw, system: Any) -> None:
        raw.api.HcsModifyComputeSystem(system, raw.operation(), raw.text('{"x":1}'), raw.null)
        question = raw.questions[-1]
        assert question.call == "HcsModifyComputeSystem"
        assert (question.object, question.document) == (raw.number(system), '{"x":1}')
        assert (raw.questions[0].subject, raw.questions[0].object) == ("vm", raw.number(system))


class TestFaults:
    def test_a_call_that_fails_at_once_never_completes(self, raw: Raw, system: Any) -> None:
        raw.double.fault("HcsStartComputeSystem", FaultKind.AT_ONCE, HResult.E_FAIL, "why")
        done, asked = Once(), len(raw.questions)
        operation = raw.operation(raw.completion(done.complete))
        assert raw.start(system, operation) == E_FAIL
        raw.double.drain()
        assert done.threads == []
        assert len(raw.questions) == asked
        assert raw.result(operation) == (E_FAIL, "why")

    def test_a_create_that_fails_at_once_returns_no_handle(self, raw: Raw) -> None:
        raw.double.fault("HcsCreateComputeSystem", FaultKind.AT_ONCE, HResult.E_FAIL)
        out, objects = raw.ffi.new("HCS_SYSTEM *"), raw.double.objects
        operation = raw.operation()
        args = (raw.text("vm"), raw.text("{}"), operation, raw.null, out)
        assert raw.api.HcsCreateComputeSystem(*args) == E_FAIL
        raw.api.HcsCloseOperation(operation)
        assert out[0] == raw.null
        assert raw.double.objects == objects

    def test_one_that_fails_later_completes_without_the_host(self, raw: Raw, system: Any) -> None:
        raw.double.fault("HcsStartComputeSystem", FaultKind.LATER, HResult.E_FAIL, "why")
        done, asked = Once(), len(raw.questions)
        operation = raw.operation(raw.completion(done.complete))
        assert raw.start(system, operation) == 0
        done.wait()
        assert len(raw.questions) == asked
        assert raw.result(operation) == (E_FAIL, "why")

    def test_one_that_never_completes_stays_pending(self, raw: Raw, system: Any) -> None:
        raw.double.fault("HcsStartComputeSystem", FaultKind.NEVER)
        operation = raw.operation()
        assert raw.start(system, operation) == 0
        assert raw.result(operation)[0] == PENDING

    def test_the_second_completion_arrives_even_after_the_close(self, raw: Raw, system: Any) -> None:
        raw.double.fault("HcsStartComputeSystem", FaultKind.TWICE)
        calls: list[int] = []
        first, closed, second = threading.Event(), threading.Event(), threading.Event()

        def complete(operation: Any, context: Any) -> None:
            calls.append(int(raw.ffi.cast("uintptr_t", context)))
            (first if len(calls) == 1 else second).set()

        operation = raw.api.HcsCreateOperation(raw.ffi.cast("void *", 7), raw.completion(complete))
        raw.start(system, operation)
        assert first.wait(PATIENCE_SECONDS)
        raw.api.HcsCloseOperation(operation)
        closed.set()
        assert second.wait(PATIENCE_SECONDS)
        assert calls == [7, 7]
        assert raw.double.misuses() == []

    def test_one_may_complete_on_the_callers_thread_before_it_returns(self, raw: Raw, system: Any) -> None:
        raw.double.fault("HcsStartComputeSystem", FaultKind.SYNCHRONOUSLY)
        done = Once()
        raw.start(system, raw.operation(raw.completion(done.complete)))
        assert done.threads == [threading.get_ident()]
        assert raw.double.misuses() == []

    def test_a_host_that_does_not_answer_at_once_is_reported(self, raw: Raw, system: Any) -> None:
        raw.double.fault("HcsStartComputeSystem", FaultKind.SYNCHRONOUSLY)
        raw.answers["HcsStartComputeSystem"] = None
        raw.start(system, raw.operation())
        assert raw.double.misuses() == ["HcsStartComputeSystem: the host did not answer while it was asked"]

    def test_the_host_carries_a_call_out_and_reports_a_failure(self, raw: Raw, system: Any) -> None:
        raw.double.fault("HcsStartComputeSystem", FaultKind.DONE_BUT, HResult.E_FAIL)
        raw.start(system, raw.operation())
        assert (raw.questions[-1].fault, raw.questions[-1].fault_result) == (
            FaultKind.DONE_BUT,
            HResult.E_FAIL,
        )

    def test_faults_apply_in_order_and_as_often_as_said(self, raw: Raw, system: Any) -> None:
        raw.double.fault("HcsStartComputeSystem", FaultKind.AT_ONCE, HResult.E_FAIL, times=2)
        raw.double.fault("HcsStartComputeSystem", FaultKind.AT_ONCE, HResult.E_HANDLE)
        results = [raw.start(system, raw.operation()) for _ in range(4)]
        assert results == [E_FAIL, E_FAIL, E_HANDLE, 0]

    def test_calls_that_do_not_ask_the_host_can_fail_too(self, raw: Raw, system: Any) -> None:
        operation = raw.operation()
        raw.start(system, operation)
        for call in ("HcsCreateOperation", "HcsGetOperationResult", "HcsSetComputeSystemCallback"):
            raw.double.fault(call, FaultKind.AT_ONCE, HResult.E_FAIL)
        callback = raw.on_event(lambda event, context: None)
        assert raw.operation() == raw.null
        assert raw.result(operation) == (E_FAIL, "")
        assert raw.api.HcsSetComputeSystemCallback(system, 0, raw.null, callback) == E_FAIL
        assert raw.result(operation) == (0, "")

    def test_a_call_that_waits_can_fail_as_well(self, raw: Raw) -> None:
        raw.double.fault("HcsGrantVmAccess", FaultKind.LATER, HResult.E_FAIL)
        assert raw.api.HcsGrantVmAccess(raw.text("vm"), raw.text("C:\\a")) == E_FAIL
        assert raw.api.HcsGrantVmAccess(raw.text("vm"), raw.text("C:\\a")) == 0
        assert (raw.questions[-1].subject, raw.questions[-1].document) == ("vm", "C:\\a")


class TestTheHost:
    def test_without_one_the_service_is_not_available(self, raw: Raw, system: Any) -> None:
        raw.double.unplug()
        out = raw.ffi.new("HCS_SYSTEM *")
        assert raw.start(system, raw.operation()) == NOT_AVAILABLE
        assert raw.api.HcsOpenComputeSystem(raw.text("vm"), 0, out) == NOT_AVAILABLE
        assert raw.api.HcsGrantVmAccess(raw.text("vm"), raw.text("C:\\a")) == NOT_AVAILABLE
        raw.api.HcsCloseComputeSystem(system)
        assert raw.number(system) not in _open(raw)
        assert raw.double.misuses() == []

    def test_calls_in_progress_fail_when_the_host_is_removed(self, raw: Raw) -> None:
        results: list[int] = []
        asked, out = threading.Event(), raw.ffi.new("HCS_SYSTEM *")
        raw.double.plug(lambda question: asked.set())
        opening = raw.in_thread(lambda: results.append(raw.api.HcsOpenComputeSystem(raw.text("vm"), 0, out)))
        assert asked.wait(PATIENCE_SECONDS)
        raw.double.unplug()
        opening.join()
        assert results == [NOT_AVAILABLE]
        assert out[0] == raw.null

    def test_a_call_that_waits_returns_with_the_answer(self, raw: Raw) -> None:
        asked, out = threading.Event(), raw.ffi.new("HCS_SYSTEM *")
        results: list[int] = []
        questions: list[Question] = []

        def ask(question: Question) -> None:
            questions.append(question)
            asked.set()

        raw.double.plug(ask)
        opening = raw.in_thread(lambda: results.append(raw.api.HcsOpenComputeSystem(raw.text("vm"), 0, out)))
        assert asked.wait(PATIENCE_SECONDS)
        raw.double.answer(questions[0].number, Answer())
        opening.join()
        assert results == [0]
        assert raw.number(out[0]) == questions[0].object

    def test_answers_to_no_question_are_ignored(self, raw: Raw) -> None:
        raw.double.answer(0, Answer())
        raw.double.answer(0xFFFF_FFFF_FFFF_FFFF, Answer(document="{}"))
        assert raw.double.misuses() == []


@pytest.mark.skipif(os.name == "nt", reason="a HANDLE is a file descriptor on POSIX only")
class TestHandlesOfProcesses:
    def test_they_belong_to_the_caller_that_fetches_them(self, raw: Raw, system: Any) -> None:
        with socket.socket() as a, socket.socket() as b, socket.socket() as c:
            handles = (a.fileno(), b.fileno(), c.fileno())
            raw.answers["HcsCreateProcess"] = Answer(pid=42, handles=handles)
            operation = raw.operation()
            raw.process(system, operation)
            information = raw.ffi.new("HCS_PROCESS_INFORMATION *")
            raw.api.HcsGetOperationResultAndProcessInfo(operation, information, raw.null)
            raw.api.HcsCloseOperation(operation)
            streams = (information.StdInput, information.StdOutput, information.StdError)
            assert information.ProcessId == 42
            assert tuple(raw.number(each) for each in streams) == handles
            assert all(os.fstat(handle) for handle in handles)

    @pytest.mark.parametrize("when", ["closed in flight", "closed after"])
    def test_those_that_were_not_fetched_are_closed(self, raw: Raw, system: Any, when: str) -> None:
        ours, theirs = socket.socketpair()
        raw.answers["HcsCreateProcess"] = None
        answer = Answer(pid=1, handles=(0, theirs.detach(), 0))
        operation = raw.operation()
        raw.process(system, operation)
        number = raw.questions[-1].number
        if when == "closed in flight":
            raw.api.HcsCloseOperation(operation)
            raw.double.answer(number, answer)
        else:
            raw.double.answer(number, answer)
            raw.api.HcsCloseOperation(operation)
        with ours:
            assert ours.recv(1) == b""


class TestNetwork:
    ID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"

    def guid(self, raw: Raw) -> Any:
        value = raw.double.network.ffi.new("GUID *")
        raw.double.network.ffi.buffer(value)[:] = UUID(self.ID).bytes_le
        return value

    def test_a_namespace_is_opened_by_its_guid_and_queried(self, raw: Raw) -> None:
        network = raw.double.network
        api, ffi = network.functions, network.ffi
        raw.answers["HcnQueryNamespaceProperties"] = Answer(document='{"ID":"x"}')
        out, text = ffi.new("HCN_NAMESPACE *"), ffi.new("PWSTR *")
        assert api.HcnOpenNamespace(self.guid(raw), out, ffi.NULL) == 0
        assert raw.questions[-1].subject == self.ID
        assert api.HcnQueryNamespaceProperties(out[0], ffi.new("char16_t[]", "{}"), text, ffi.NULL) == 0
        assert ffi.string(text[0]) == '{"ID":"x"}'
        network.free(text[0])
        assert api.HcnCloseNamespace(out[0]) == 0
        assert api.HcnCloseNamespace(out[0]) == E_HANDLE
        assert len(raw.double.misuses()) == 1
        assert raw.double.leaks() == []

    def test_what_is_refused_has_an_error_record_of_the_other_heap(self, raw: Raw) -> None:
        network = raw.double.network
        api, ffi = network.functions, network.ffi
        raw.answers["HcnOpenEndpoint"] = Answer(HResult.HCN_E_ENDPOINT_NOT_FOUND, '{"Error":"gone"}')
        out, error = ffi.new("HCN_ENDPOINT *"), ffi.new("PWSTR *")
        assert api.HcnOpenEndpoint(self.guid(raw), out, error) == HResult.HCN_E_ENDPOINT_NOT_FOUND - (1 << 32)
        assert (out[0], ffi.string(error[0])) == (ffi.NULL, '{"Error":"gone"}')
        raw.double.core.free(error[0])
        assert raw.double.misuses() == ["LocalFree: a string of HcnOpenEndpoint, which is for CoTaskMemFree"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has what was built for it")
class TestBuilding:
    def test_without_a_compiler_it_says_which_it_looked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CC", raising=False)
        with pytest.raises(NoCompilerError, match="cc, gcc, clang"):
            build()

    def test_what_was_built_is_built_once(self) -> None:
        require_double()
        built = build().computecore
        assert build().computecore.stat().st_mtime_ns == built.stat().st_mtime_ns


def _open(raw: Raw) -> list[int]:
    """Return the handles in the list of leaks."""
    return [int(line.split()[1], 16) for line in raw.double.leaks()]
