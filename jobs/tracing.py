"""Traces by OpenTelemetry: which process did what for a batch, and when. Off unless `tracing.endpoint` is set.

    trace <digits> of batch_<digits>    create_batch ── claim, run_shard, commit, finalize; from any process
    trace <digits> of call req_<digits> call; create_batch links to it

Ids of traces have 128 bits, as ours do, so the id of a batch is that of its trace: every process knows it by itself,
nothing is handed on in messages, and who has one id finds the other. Spans have ids and counts, and no words of errors.

Spans are told of when they are over. What a process that was killed had not sent is lost; nothing else depends on it.
"""

import time
import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING

import structlog

from jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.trace import SpanContext, Tracer

    from jobs.settings import Tracing

Value = str | int | float

_tracer: "Tracer | None" = None
# Those of the next span without a parent: (trace, span).
_chosen: ContextVar[tuple[int, int]] = ContextVar("chosen")


def configure(settings: "Tracing", process: str) -> None:
    """Send the spans of this process to a collector from now on, if the settings name one.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """
    global _tracer  # noqa: PLW0603  one a process, as the log is
    if settings.endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased  # noqa: PLC0415
    except ImportError as error:
        message = "PROMPTMILL_TRACING__ENDPOINT is set, and OpenTelemetry is not installed: the extra `otel` brings it."
        raise ConfigurationError(message) from error
    provider = TracerProvider(
        # By the id of the trace, so that all processes choose the same batches.
        sampler=TraceIdRatioBased(settings.share),
        resource=Resource.create({"service.name": f"promptmill-{process}"}),
        id_generator=_ids(),
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.endpoint)))
    _tracer = provider.get_tracer("promptmill")


def _ids() -> "IdGenerator":
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415

    class Chosen(RandomIdGenerator):
        """Gives a span without a parent the ids that were chosen for it."""

        def generate_trace_id(self) -> int:
            return _chosen.get()[0]

        def generate_span_id(self) -> int:
            chosen = _chosen.get(None)
            return chosen[1] if chosen else super().generate_span_id()

    return Chosen()


def note_call(request_id: str, seconds: float, **attributes: Value) -> None:
    """Tell of a call that was answered just now and took `seconds`."""
    if _tracer:
        _root("call", request_id, seconds, None, attributes)


def note_created(batch_id: str, seconds: float, **attributes: Value) -> None:
    """Tell of a batch that was created just now; in a call, it is linked to the call."""
    if _tracer:
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        _root("create_batch", batch_id, seconds, request_id, {"batch_id": batch_id, **attributes})


def note(name: str, batch_id: str, seconds: float, **attributes: Value) -> None:
    """Tell of something that was done for a batch: it is over now, and took `seconds`."""
    if not _tracer or not (created := _place(batch_id)):
        return
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context  # noqa: PLC0415

    parent = set_span_in_context(NonRecordingSpan(created))
    now = time.time_ns()
    span = _tracer.start_span(
        name, parent, attributes={"batch_id": batch_id, **attributes}, start_time=now - int(seconds * 1e9)
    )
    span.end(now)


def _root(name: str, object_id: str, seconds: float, linked: str | None, attributes: dict[str, Value]) -> None:
    """Tell of the first span of a trace, that of `object_id`."""
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace import Link  # noqa: PLC0415

    if not _tracer or not (place := _place(object_id)):
        return
    link = _place(linked) if linked else None
    now = time.time_ns()
    token = _chosen.set((place.trace_id, place.span_id))
    try:
        span = _tracer.start_span(
            name,
            Context(),
            attributes=attributes,
            links=[Link(link)] if link else [],
            start_time=now - int(seconds * 1e9),
        )
    finally:
        _chosen.reset(token)
    span.end(now)


def _place(object_id: str) -> "SpanContext | None":
    """Return trace and first span of an id with 128 bits; None if it is none that OpenTelemetry takes."""
    from opentelemetry.trace import SpanContext, TraceFlags  # noqa: PLC0415

    digits = uuid.UUID(object_id.rpartition("_")[2])
    place = SpanContext(digits.int, digits.int >> 64, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return place if place.is_valid else None
