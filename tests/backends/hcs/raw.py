"""The raw C API of the double, for its own tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from attrs import Factory, define

from tests.backends.hcs.double.control import Answer, Double, Question

__all__ = [
    "ALREADY_STARTED",
    "CALLBACK_ALREADY_SET",
    "E_FAIL",
    "E_HANDLE",
    "NOT_AVAILABLE",
    "NOT_STARTED",
    "PATIENCE_SECONDS",
    "PENDING",
    "Once",
    "Raw",
]

E_FAIL = -0x7FFFBFFB
E_HANDLE = -0x7FF8FFFA
NOT_AVAILABLE = -0x7FC8FEEC
NOT_STARTED = -0x7FC8FEEB
ALREADY_STARTED = -0x7FC8FEEA
PENDING = -0x7FC8FEE9
CALLBACK_ALREADY_SET = -0x7FC8FEE7

#: Longer than anything takes that works.
PATIENCE_SECONDS = 30.0


@define
class Raw:
    """The raw C API, and a host that answers each question at once.

    :ivar answers: the answer to each call, by its name; None leaves it unanswered. Others succeed.
    :ivar questions: what the host was asked.
    """

    double: Double
    answers: dict[str, Answer | None] = Factory(dict)
    questions: list[Question] = Factory(list)
    kept: list[Any] = Factory(list)

    @property
    def api(self) -> Any:
        return self.double.core.functions

    @property
    def ffi(self) -> Any:
        return self.double.core.ffi

    @property
    def null(self) -> Any:
        return self.ffi.NULL

    def ask(self, question: Question) -> None:
        self.questions.append(question)
        answer = self.answers.get(question.call, Answer())
        if answer is not None:
            self.double.answer(question.number, answer)

    def text(self, text: str) -> Any:
        return self.ffi.new("char16_t[]", text)

    def completion(self, function: Callable[[Any, Any], None]) -> Any:
        self.kept.append(self.ffi.callback("HCS_OPERATION_COMPLETION", function))
        return self.kept[-1]

    def on_event(self, function: Callable[[Any, Any], None]) -> Any:
        self.kept.append(self.ffi.callback("HCS_EVENT_CALLBACK", function))
        return self.kept[-1]

    def operation(self, callback: Any = None) -> Any:
        return self.api.HcsCreateOperation(self.null, callback or self.null)

    def start(self, system: Any, operation: Any) -> int:
        return int(self.api.HcsStartComputeSystem(system, operation, self.null))

    def result(self, operation: Any) -> tuple[int, str]:
        document = self.ffi.new("PWSTR *")
        hresult = self.api.HcsGetOperationResult(operation, document)
        if document[0] == self.null:
            return hresult, ""
        text = self.ffi.string(document[0])
        self.double.core.free(document[0])
        return hresult, text

    def system(self) -> Any:
        """Create a system."""
        system, operation = self.ffi.new("HCS_SYSTEM *"), self.operation()
        name, document = self.text("vm"), self.text("{}")
        assert self.api.HcsCreateComputeSystem(name, document, operation, self.null, system) == 0
        self.api.HcsCloseOperation(operation)
        return system[0]

    def number(self, handle: Any) -> int:
        return int(self.ffi.cast("uintptr_t", handle))

    def process(self, system: Any, operation: Any) -> Any:
        process = self.ffi.new("HCS_PROCESS *")
        parameters = self.text("{}")
        assert self.api.HcsCreateProcess(system, parameters, operation, self.null, process) == 0
        return process[0]

    def in_thread(self, function: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=function)
        thread.start()
        return thread


class Once:
    """A callback of either kind that records when it was called, and in which thread."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.threads: list[int] = []
        self.data: list[tuple[int, str]] = []

    def complete(self, operation: Any, context: Any) -> None:
        self.threads.append(threading.get_ident())
        self.called.set()

    def wait(self) -> None:
        assert self.called.wait(PATIENCE_SECONDS)
