"""Carries out the double's questions on the in-memory host, and returns its answers.

Each question gets a task in the test's own event loop. A handle of the double stands for a handle of the
fake; exits of systems and processes become events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from tests.backends.hcs.documents import (
    error_document,
    exit_document,
    network_error_document,
    process_status,
    read,
    write,
)
from tests.backends.hcs.double.control import Answer, Double, FaultKind, Question
from tests.backends.hcs.networks import Networks
from tests.backends.hcs.processes import HostedProcess
from tests.backends.hcs.stepping import run_at_once
from tests.backends.hcs.wires import HostStreams
from uvm.backend import HostProcess
from uvm.backends.fake import FakeBackend, FakeListener, FakeSystem
from uvm.backends.waker import Waker
from uvm.errors import HostError, UnknownOutcomeError
from uvm.hresult import HResult

__all__ = ["Switchboard"]

# HCS_EVENT_TYPE of computedefs.h.
SYSTEM_EXITED: Final = 0x1
PROCESS_EXITED: Final = 0x10000


#: The calls that return a handle before they complete.
_MAKING: Final = frozenset({"HcsCreateComputeSystem", "HcsCreateProcess"})

_Handler = Callable[[Question], Awaitable[Answer]]


class Switchboard:
    """The host behind the double, made inside of the test's event loop.

    :param streams: makes the pipes of processes.
    :param task_group: runs the guests of the fake, and the questions.
    """

    def __init__(
        self, double: Double, fake: FakeBackend, streams: HostStreams, task_group: TaskGroup
    ) -> None:
        self._double = double
        self._fake = fake
        self._task_group = task_group
        self._waker = Waker()
        self._questions: deque[Question] = deque()
        self._asked = anyio.Event()
        self._streams = streams
        self._systems: dict[int, FakeSystem] = {}
        self._processes: dict[int, HostedProcess] = {}
        #: Handles that are being made; a close waits for them.
        self._making: dict[int, anyio.Event] = {}
        self._handlers: Mapping[str, _Handler] = {**self._host_handlers(), **Networks(fake.network).handlers}

    def ask(self, question: Question) -> None:
        """Take a question, from any thread."""
        if question.fault is FaultKind.SYNCHRONOUSLY:
            self._double.answer(question.number, run_at_once(self._find_answer(question)))
        elif not self._waker.call_soon(self._take, question):
            self._double.answer(question.number, Answer(HResult.HCS_E_SERVICE_NOT_AVAILABLE))

    async def serve(self) -> None:
        """Carry out questions until cancelled."""
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            while self._questions:
                self._task_group.start_soon(self._carry_out, self._questions.popleft())

    def handles(self, system_id: str) -> list[int]:
        """Return the open handles of a system. From any thread."""
        return [handle for handle, system in self._systems.copy().items() if system.id == system_id]

    async def listen(self, runtime_id: str, service_id: str) -> FakeListener:
        """Listen for connections of the guest of a VM."""
        for system in self._systems.values():
            if system.runtime_id == runtime_id:
                return await system.listen(service_id)
        raise HostError(f"listen {service_id}", HResult.HCS_E_SYSTEM_NOT_FOUND, runtime_id)

    # Questions and answers

    def _take(self, question: Question) -> None:
        """Pass a question to the task that serves: this is called outside of any task."""
        if question.call in _MAKING:
            self._making[question.object] = anyio.Event()
        self._questions.append(question)
        self._asked.set()

    async def _carry_out(self, question: Question) -> None:
        try:
            answer = await self._find_answer(question)
        except UnknownOutcomeError:
            # The answer was lost: none is sent.
            return
        finally:
            if question.call in _MAKING:
                self._making.pop(question.object).set()
        self._double.answer(question.number, answer)

    async def _find_answer(self, question: Question) -> Answer:
        try:
            answer = await self._handlers[question.call](question)
            if question.fault is FaultKind.DONE_BUT:
                raise HostError(question.call, question.fault_result, "it was done nevertheless")
        except HostError as e:
            about = network_error_document if question.call.startswith("Hcn") else error_document
            return Answer(e.hresult, about(e))
        except UnknownOutcomeError:
            system = self._systems.get(question.object)
            if system is None or system.vm.exit_status is None:
                raise
            # Operations in progress on a system end with it.
            return Answer(HResult.HCS_E_UNEXPECTED_EXIT)
        return answer

    def _host_handlers(self) -> Mapping[str, _Handler]:
        on_system = self._on_system
        return {
            "HcsEnumerateComputeSystems": self._enumerate,
            "HcsCreateComputeSystem": self._create,
            "HcsOpenComputeSystem": self._open,
            "HcsCloseComputeSystem": self._close,
            "HcsStartComputeSystem": on_system(lambda s, _: s.start()),
            "HcsShutDownComputeSystem": on_system(lambda s, options: s.shutdown(options)),
            "HcsTerminateComputeSystem": on_system(lambda s, _: s.terminate()),
            "HcsCrashComputeSystem": on_system(lambda s, options: s.crash(options)),
            "HcsPauseComputeSystem": on_system(lambda s, options: s.pause(options)),
            "HcsResumeComputeSystem": on_system(lambda s, _: s.resume()),
            "HcsSaveComputeSystem": on_system(lambda s, options: s.save(options)),
            "HcsModifyComputeSystem": on_system(lambda s, request: s.modify(request)),
            "HcsGetComputeSystemProperties": on_system(_properties),
            "HcsCreateProcess": self._create_process,
            "HcsOpenProcess": self._open_process,
            "HcsCloseProcess": self._close_process,
            "HcsTerminateProcess": self._on_process(lambda p, _: p.terminate()),
            "HcsSignalProcess": self._on_process(lambda p, options: p.signal(options)),
            "HcsGetProcessInfo": self._process_info,
            "HcsGetProcessProperties": self._on_process(lambda p, _: p.properties()),
            "HcsModifyProcess": self._on_process(lambda p, request: p.modify(request)),
            "HcsGetServiceProperties": self._service_properties,
            "HcsModifyServiceSettings": self._modify_service,
            "HcsGrantVmAccess": self._grant,
            "HcsRevokeVmAccess": self._revoke,
        }

    # Systems

    def _on_system(self, call: Callable[[FakeSystem, Any], Awaitable[Any]]) -> _Handler:
        async def carry_out(question: Question) -> Answer:
            result = await call(self._system(question.object), read(question.document))
            return Answer(document=None if result is None else write(result))

        return carry_out

    def _system(self, handle: int) -> FakeSystem:
        found = self._systems.get(handle)
        if found is None:
            # The handle of a system whose creation failed.
            raise HostError("use a system", HResult.HCS_E_SYSTEM_NOT_FOUND)
        return found

    async def _create(self, question: Question) -> Answer:
        self._adopt(question.object, await self._fake.create(question.subject, read(question.document)))
        return Answer()

    async def _open(self, question: Question) -> Answer:
        self._adopt(question.object, await self._fake.open(question.subject))
        return Answer()

    def _adopt(self, handle: int, system: FakeSystem) -> None:
        self._systems[handle] = system
        self._task_group.start_soon(self._attend, handle, system)

    async def _attend(self, handle: int, system: FakeSystem) -> None:
        """Wait for the exit, in which the guest runs, and send its event."""
        try:
            status = await system.wait()
        except HostError:
            # The handle was closed.
            return
        self._double.event(handle, SYSTEM_EXITED, exit_document(status))

    async def _close(self, question: Question) -> Answer:
        await self._made(question.object)
        system = self._systems.pop(question.object, None)
        if system is not None:
            await system.close()
        return Answer()

    async def _made(self, handle: int) -> None:
        making = self._making.get(handle)
        if making is not None:
            await making.wait()

    async def _enumerate(self, question: Question) -> Answer:
        return Answer(document=write(await self._fake.enumerate(read(question.document))))

    # Processes

    def _on_process(self, call: Callable[[HostProcess, Any], Awaitable[Any]]) -> _Handler:
        async def carry_out(question: Question) -> Answer:
            hosted = self._process(question.object)
            result = await call(hosted.process, read(question.document))
            return Answer(document=None if result is None else write(result))

        return carry_out

    def _process(self, handle: int) -> HostedProcess:
        found = self._processes.get(handle)
        if found is None:
            # The handle of a process that could not be started.
            raise HostError("use a process", HResult.ERROR_NOT_FOUND)
        return found

    async def _create_process(self, question: Question) -> Answer:
        system = self._system(question.parent)
        process = await system.create_process(read(question.document))
        hosted = self._adopt_process(question.object, process)
        # A failed result hands out no handles.
        return Answer() if question.fault is FaultKind.DONE_BUT else hosted.answer()

    async def _open_process(self, question: Question) -> Answer:
        process = await self._system(question.parent).open_process(int(question.subject))
        return self._adopt_process(question.object, process).answer()

    def _adopt_process(self, handle: int, process: HostProcess) -> HostedProcess:
        hosted = HostedProcess(process, self._task_group, self._streams)
        self._processes[handle] = hosted
        self._task_group.start_soon(self._attend_process, handle, process)
        return hosted

    async def _attend_process(self, handle: int, process: HostProcess) -> None:
        try:
            code = await process.wait()
        except HostError:
            return
        self._double.event(handle, PROCESS_EXITED, write(process_status(process.pid, code)))

    async def _process_info(self, question: Question) -> Answer:
        return self._process(question.object).answer()

    async def _close_process(self, question: Question) -> Answer:
        await self._made(question.object)
        hosted = self._processes.pop(question.object, None)
        if hosted is not None:
            await hosted.process.close()
        return Answer()

    # The host

    async def _service_properties(self, question: Question) -> Answer:
        types = (read(question.document) or {}).get("PropertyTypes") or ()
        return Answer(document=write(await self._fake.service_properties(*types)))

    async def _modify_service(self, question: Question) -> Answer:
        await self._fake.modify_service(read(question.document))
        return Answer()

    async def _grant(self, question: Question) -> Answer:
        await self._fake.grant_access(question.document, question.subject)
        return Answer()

    async def _revoke(self, question: Question) -> Answer:
        path = question.document
        await self._fake.revoke_access(path, question.subject)
        if await self._fake.files.stat(path) is None:
            # Windows removes no entry from a path that does not exist.
            raise HostError(question.call, HResult.ERROR_FILE_NOT_FOUND, path)
        return Answer()


def _properties(system: FakeSystem, query: Any) -> Awaitable[Any]:
    asked = query or {}
    return system.properties(*(asked.get("PropertyTypes") or ()), queries=asked.get("Queries"))
