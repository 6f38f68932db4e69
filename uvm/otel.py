"""Spans of OpenTelemetry for what is done for VMs: the extra ``utilityvm[otel]``.

How it works
------------

:func:`instrument` sets the hook of :mod:`uvm._observed`, for all VMs of this process. Each operation is a
span, and so is each request, a child of the operation that it belongs to; operations are children of what the
caller does. What a task of the VM does once the span has ended that the task was begun in, such as the
release of a mount whose container ends, is in a trace of its own, with a link to that span. Nothing else in
the library imports OpenTelemetry.

Names and attributes are those of the `semantic conventions of RPC
<https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/>`_ as far as these go::

    span                 kind      attributes
    --------------------+---------+------------------------------------------------------------
    "uvm start"          internal  uvm.vm.id
    "uvm attach device"  internal  uvm.vm.id, uvm.device
    "modify"             client    the same, rpc.system.name "hcs", rpc.method
    "modify settings"    client    the same, rpc.system.name "gcs", rpc.method
    what did not succeed           uvm.outcome, error.type, rpc.response.status_code of a refusal

The message of an error is no part of a span: it may quote the guest, and the guest what it was asked to run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

import uvm
from uvm._observed import Door, Hook, Observed, set_hook
from uvm.errors import RefusedError

try:
    from opentelemetry.context import Context
    from opentelemetry.trace import (
        Link,
        NonRecordingSpan,
        Span,
        SpanKind,
        StatusCode,
        Tracer,
        TracerProvider,
        get_current_span,
        get_tracer,
        use_span,
    )
except ImportError as _error:
    raise ImportError(
        "uvm.otel needs OpenTelemetry, which is not installed; install it with: pip install 'utilityvm[otel]'"
    ) from _error

__all__ = ["instrument", "uninstrument"]

_NAMES: Final = {Door.VM: "uvm {}", Door.DEVICE: "uvm {} device", Door.HOST: "{}", Door.GUEST: "{}"}
#: Whom requests go to: the Host Compute Service, or a backend that answers in its place; the guest's service.
_SYSTEMS: Final = {Door.HOST: "hcs", Door.GUEST: "gcs"}


def instrument(tracer_provider: TracerProvider | None = None) -> None:
    """Have all that is done for VMs from now on make spans.

    :param tracer_provider: in place of the one that is set for the process.
    """
    set_hook(_Spans(get_tracer("uvm", uvm.__version__, tracer_provider)))


def uninstrument() -> None:
    """Have no more spans made. Those that have begun end."""
    set_hook(None)


class _Spans(Hook):
    """Makes spans."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, what: Observed) -> Span:
        attributes = {"uvm.vm.id": what.vm_id}
        if what.device:
            attributes["uvm.device"] = what.device
        if (system := _SYSTEMS.get(what.door)) is not None:
            attributes |= {"rpc.system.name": system, "rpc.method": what.operation}
        kind = SpanKind.INTERNAL if system is None else SpanKind.CLIENT
        name = _NAMES[what.door].format(what.operation)
        parent = get_current_span()
        if parent.is_recording() or isinstance(parent, NonRecordingSpan):
            return self._tracer.start_span(name, kind=kind, attributes=attributes)
        # It has ended, in a trace that may be another caller's. One that is not sampled is no such span.
        links = [Link(parent.get_span_context())]
        return self._tracer.start_span(name, Context(), kind=kind, attributes=attributes, links=links)

    def within(self, begun: object) -> AbstractContextManager[Span]:
        assert isinstance(begun, Span)
        return use_span(begun, record_exception=False, set_status_on_exception=False)

    def end(self, begun: object, what: Observed) -> None:
        assert isinstance(begun, Span)
        begun.set_attribute("uvm.outcome", str(what.outcome))
        if what.error is not None:
            begun.set_attribute("error.type", type(what.error).__qualname__)
        status = str(what.outcome)
        if isinstance(what.error, RefusedError):
            begun.set_attribute("rpc.response.status_code", what.error.name)
            status += f": {what.error.name}"
        if what.outcome in ("refused", "unknown"):
            begun.set_status(StatusCode.ERROR, status)
        begun.end()
