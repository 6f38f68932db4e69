"""What observes a VM, a handler of the log or what takes spans, changes nothing of it, whatever it raises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import uvm
import uvm.otel
from tests.vm.support import DISK, LAYER, SCRATCH, running
from uvm._observed import Door, Hook, Observed, observe, set_hook
from uvm.backends.fake import FakeBackend

pytestmark = pytest.mark.anyio

SPEC = {"process": {"args": ["/opt/s3cr3t-tool", "--password=hunter2"], "cwd": "/"}, "linux": {}}


class Broken(logging.Handler):
    """A handler that raises at some records, and counts them."""

    def __init__(self, wanted: Callable[[logging.LogRecord], bool]) -> None:
        super().__init__()
        self.raised = 0
        self._wanted = wanted

    def emit(self, record: logging.LogRecord) -> None:
        if self._wanted(record):
            self.raised += 1
            raise RuntimeError("a handler")


class BrokenSpans(SpanProcessor):
    """What takes spans, and raises at the beginning or the end of each."""

    def __init__(self, at: str) -> None:
        self.raised = 0
        self._at = at

    def on_start(self, span: object, parent_context: object = None) -> None:
        self._raise_at("start")

    def on_end(self, span: ReadableSpan) -> None:
        self._raise_at("end")

    def _raise_at(self, at: str) -> None:
        if at == self._at:
            self.raised += 1
            raise RuntimeError("a processor of spans")


class BrokenContext(Hook):
    """A hook whose contexts cannot be entered, or left."""

    def __init__(self, at: str) -> None:
        self.ended: list[str] = []
        self._at = at

    def begin(self, what: Observed) -> object:
        return what.operation

    def within(self, begun: object) -> AbstractContextManager[object]:
        if self._at == "within":
            raise RuntimeError("within")
        return self._context()

    @contextmanager
    def _context(self) -> Iterator[None]:
        if self._at == "enter":
            raise RuntimeError("enter")
        try:
            yield
        except ValueError:
            if self._at == "swallow":
                return
            raise
        if self._at == "leave":
            raise RuntimeError("leave")

    def end(self, begun: object, what: Observed) -> None:
        self.ended.append(str(begun))


@contextmanager
def handled_by(handler: Broken) -> Iterator[Broken]:
    log = logging.getLogger("uvm")
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


async def use_all(backend: FakeBackend) -> None:
    """Have a VM start, attach, combine layers, run something, and close."""
    for path in (DISK, LAYER, SCRATCH):
        backend.files.add(path, size=1 << 20)
    async with uvm.UtilityVM.create(uvm.LCOWOptions(), backend=backend) as vm:
        await vm.start()
        lease = await vm.scsi.attach(DISK, mount=uvm.Mount())
        root = await vm.mount_layers("c1", [LAYER], SCRATCH)
        assert (await vm.run(["true"])).exit_code == 0
        await root.release()
        await lease.release()
        await vm.terminate()


async def test_a_handler_that_raises_at_every_record_changes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    backend = FakeBackend()
    with handled_by(Broken(lambda record: True)) as handler:
        await use_all(backend)
    assert handler.raised > 10
    assert backend.leftovers() == []
    assert "RuntimeError: a handler" in capsys.readouterr().err


@pytest.mark.parametrize("at", ["start", "end"])
async def test_a_processor_of_spans_that_raises_changes_nothing(
    at: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend, provider, broken = FakeBackend(), TracerProvider(), BrokenSpans(at)
    provider.add_span_processor(broken)
    uvm.otel.instrument(provider)
    try:
        await use_all(backend)
    finally:
        uvm.otel.uninstrument()
    assert broken.raised > 10
    assert backend.leftovers() == []
    logged = [each for each in caplog.records if "an observer of" in each.getMessage()]
    assert len(logged) == broken.raised


async def test_waiters_learn_of_the_exit_though_the_end_of_their_spans_raises() -> None:
    provider, broken = TracerProvider(), BrokenSpans("end")
    learnt: list[str] = []

    async def wait(process: uvm.Process) -> None:
        with pytest.raises(uvm.VMExitedError):
            await process.wait()
        learnt.append("exited")

    async with running() as run:
        first, second = [await run.vm.open_process(["sleep", "9"]) for _ in range(2)]
        uvm.otel.instrument(provider)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, first)
                tasks.start_soon(wait, second)
                await anyio.wait_all_tasks_blocked()
                provider.add_span_processor(broken)
                await run.vm.terminate()
        finally:
            uvm.otel.uninstrument()
    assert len(learnt) == 2
    assert broken.raised


@pytest.mark.parametrize("at", ["within", "enter", "leave", "swallow"])
async def test_a_context_of_a_hook_that_fails_changes_neither_result_nor_error(at: str) -> None:
    async def answer() -> str:
        return "done"

    async def fail() -> str:
        raise ValueError("its own")

    hook = BrokenContext(at)
    set_hook(hook)
    try:
        assert await observe(Observed(Door.VM, "vm1", "one"), answer) == "done"
        with pytest.raises(ValueError, match="its own"):
            await observe(Observed(Door.VM, "vm1", "two"), fail)
    finally:
        set_hook(None)
    assert hook.ended == ["one", "two"]


async def test_spans_have_no_text_of_the_guest() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with running() as run:
        uvm.otel.instrument(provider)
        try:
            # The guest's answer quotes what it could not execute.
            with pytest.raises(uvm.GuestError, match="s3cr3t-tool"):
                async with run.vm.create_container("k", SPEC) as container, container.open_init():
                    pass
        finally:
            uvm.otel.uninstrument()
    spans = exporter.get_finished_spans()
    assert [each.name for each in spans if "s3cr3t" in each.to_json()] == []
    assert "refused: E_FAIL" in {each.status.description for each in spans}
