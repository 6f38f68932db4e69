"""What is done for VMs is observed: fields of the log, and spans."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    use_span,
)

import uvm
import uvm.otel
from tests.session import WAYS, play
from tests.vm.support import SHARED, running, wcow
from uvm._observed import watched

pytestmark = pytest.mark.anyio

FIELDS = {"vm_id", "device", "operation", "duration_seconds", "outcome"}
DISK = r"C:\d.vhdx"
SPEC = {"process": {"args": ["true"], "cwd": "/"}, "linux": {}}


@pytest.fixture
def tracing() -> Iterator[tuple[InMemorySpanExporter, TracerProvider]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    uvm.otel.instrument(provider)
    yield exporter, provider
    uvm.otel.uninstrument()
    provider.shutdown()


@pytest.mark.parametrize("way", WAYS)
async def test_every_record_of_a_session_has_every_field(way: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="uvm")
    os, options = WAYS[way]
    await play(lambda **held: None, os, **options)
    assert caplog.records
    assert [each.getMessage() for each in caplog.records if not vars(each).keys() >= FIELDS] == []
    assert "vm1" in {vars(each)["vm_id"] for each in caplog.records} <= {"vm1", None}


async def test_an_operation_is_logged_with_its_device_its_duration_and_its_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as run:
        run.backend.files.add(DISK)
        caplog.set_level(logging.DEBUG, logger="uvm")
        run.backend.faults.refuse(to="host", request_type="Remove", nth=1)
        lease = await run.vm.scsi.attach(DISK)
        with pytest.raises(uvm.HostError):
            await lease.release()
    ended = [vars(each) for each in caplog.records if vars(each)["duration_seconds"] is not None]
    of_disk = [(each["operation"], each["outcome"]) for each in ended if each["device"] == f"disk {DISK}"]
    assert of_disk[:4] == [
        ("grant access", "ok"),
        ("modify", "ok"),
        ("attach", "ok"),
        ("modify settings", "ok"),
    ]
    # The guest had let go of it.
    assert ("detach", "unknown") in of_disk
    assert all(each["duration_seconds"] >= 0 for each in ended)


async def test_a_record_made_meanwhile_says_what_is_being_done(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as run:
        run.backend.files.add(DISK)
        run.backend.faults.refuse(to="revoke", nth=1)
        await (await run.vm.scsi.attach(DISK)).release()
        [said] = [vars(each) for each in caplog.records if "was not revoked" in each.getMessage()]
        assert said["vm_id"] == run.vm.id


async def test_a_task_that_outlives_what_started_it_is_not_logged_as_a_part_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as run:
        caplog.set_level(logging.INFO, logger="uvm")
        async with run.vm.create_container("k", SPEC) as container, container.open_init():
            await container.wait()
    # The task that reads what the guest sends was started with the VM.
    [exited] = [vars(each) for each in caplog.records if "container k has exited" in each.getMessage()]
    assert (exited["vm_id"], exited["operation"]) == (run.vm.id, None)


async def test_requests_are_spans_within_those_of_operations_and_of_the_caller(
    tracing: tuple[InMemorySpanExporter, TracerProvider],
) -> None:
    exporter, provider = tracing
    tracer = provider.get_tracer("test")
    async with running() as run:
        run.backend.files.add(DISK)
        exporter.clear()
        with tracer.start_as_current_span("mine"):
            await run.vm.scsi.attach(DISK)
            await run.vm.pause()
    spans = exporter.get_finished_spans()
    assert ("modify", "uvm attach device", "mine") in {lineage(each, spans) for each in spans}
    assert ("pause", "uvm pause", "mine") in {lineage(each, spans) for each in spans}


async def test_operations_that_wait_for_their_turn_are_children_of_what_asked_for_them(
    tracing: tuple[InMemorySpanExporter, TracerProvider],
) -> None:
    exporter, provider = tracing
    tracer = provider.get_tracer("test")
    disks = [rf"C:\{number}.vhdx" for number in range(3)]
    async with running(concurrency=uvm.Concurrency(scsi=1)) as run:
        for disk in disks:
            run.backend.files.add(disk)

        async def attach(disk: str) -> None:
            with tracer.start_as_current_span(disk):
                await run.vm.scsi.attach(disk)

        async with anyio.create_task_group() as tasks:
            for disk in disks:
                tasks.start_soon(attach, disk)
    spans = exporter.get_finished_spans()
    attached = [each for each in spans if each.name == "uvm attach device"]
    assert {
        lineage(each, spans)[1]: each.attributes and each.attributes["uvm.device"] for each in attached
    } == {disk: f"disk {disk}" for disk in disks}


async def test_what_a_task_does_after_the_span_that_it_was_begun_in_has_a_trace_of_its_own_with_a_link(
    tracing: tuple[InMemorySpanExporter, TracerProvider],
) -> None:
    exporter, provider = tracing
    tracer = provider.get_tracer("test")
    async with running(wcow(external_guest_connection=False, no_direct_map=True)) as run:
        with tracer.start_as_current_span("first"):
            container = await run.vm.create_container("c1", {"Container": {}})
            await container.start()
            await run.vm.mount_in_container(container, SHARED, "C:\\data")
        with tracer.start_as_current_span("second"):
            # A task of the VM releases the mount when the container has ended.
            await container.aclose()
        await run.vm.settled()
    spans = exporter.get_finished_spans()
    of_id = {each.context.span_id: each for each in spans if each.context is not None}
    [release] = [each for each in spans if each.name == "uvm unmount in container"]
    assert release.parent is None
    assert [of_id[link.context.span_id].name for link in release.links] == ["uvm mount in container"]
    late = [
        lineage(each, spans)
        for each in spans
        if each.parent is not None
        and (begun := each.start_time or 0) > (of_id[each.parent.span_id].end_time or begun)
    ]
    assert late == []


async def test_what_is_not_sampled_stays_so(tracing: tuple[InMemorySpanExporter, TracerProvider]) -> None:
    exporter, _ = tracing
    async with running() as run:
        exporter.clear()
        unsampled = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0)))
        with use_span(unsampled):
            await run.vm.pause()
        assert exporter.get_finished_spans() == ()


async def test_spans_have_the_attributes_of_rpc(
    tracing: tuple[InMemorySpanExporter, TracerProvider],
) -> None:
    exporter, _ = tracing
    async with running() as run:
        run.backend.files.add(DISK)
        run.backend.faults.refuse("E_FAIL", to="guest", request_type="Add", nth=1)
        with pytest.raises(uvm.GuestError):
            await run.vm.scsi.attach(DISK, mount=uvm.Mount())
        vm_id = run.vm.id
    refused = [each for each in exporter.get_finished_spans() if each.status.status_code is StatusCode.ERROR]
    request, operation = refused
    assert (request.name, request.kind) == ("modify settings", SpanKind.CLIENT)
    assert request.attributes == {
        "uvm.vm.id": vm_id,
        "uvm.device": operation.attributes and operation.attributes["uvm.device"],
        "uvm.outcome": "refused",
        "rpc.system.name": "gcs",
        "rpc.method": "modify settings",
        "rpc.response.status_code": "E_FAIL",
        "error.type": "GuestError",
    }
    assert (operation.name, operation.kind) == ("uvm attach device", SpanKind.INTERNAL)


@pytest.mark.parametrize("way", WAYS)
async def test_a_session_ends_every_span_and_changes_nothing(
    way: str, tracing: tuple[InMemorySpanExporter, TracerProvider]
) -> None:
    exporter, _ = tracing
    os, options = WAYS[way]
    await play(lambda **held: None, os, **options)
    count = Counter(each.name for each in exporter.get_finished_spans())
    assert count["uvm create"] == count["uvm start"] == count["uvm close"] == 1
    assert all(each.end_time for each in exporter.get_finished_spans())


async def test_nothing_is_observed_once_it_is_not_wanted() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    uvm.otel.instrument(provider)
    assert watched()
    uvm.otel.uninstrument()
    async with running():
        pass
    assert exporter.get_finished_spans() == ()
    provider.shutdown()


def test_without_opentelemetry_the_error_says_what_to_install() -> None:
    program = "import sys; sys.modules['opentelemetry.trace'] = None; import uvm.otel"
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert "pip install 'utilityvm[otel]'" in run.stderr.splitlines()[-1]


def test_every_module_of_the_library_logs_through_the_same_door() -> None:
    root = Path(uvm.__file__).parent
    # The agent runs in guests, and has a log of its own; the command only handles what is logged.
    alone = {root / "_log.py", root / "cli" / "progress.py"}
    found = [
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if path not in alone and "agent" not in path.relative_to(root).parts
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("getLogger", "LoggerAdapter")
    ]
    assert found == []


def lineage(span: ReadableSpan, spans: tuple[ReadableSpan, ...]) -> tuple[str, ...]:
    """Return the name of a span, and those of what it is a part of."""
    of_id = {each.context.span_id: each for each in spans if each.context is not None}
    names = [span.name]
    while span.parent is not None and (parent := of_id.get(span.parent.span_id)) is not None:
        span = parent
        names.append(span.name)
    return tuple(names)
