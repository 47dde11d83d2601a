"""Spans by OpenTelemetry's conventions: of each request from sending to its answer, and of the batch that it was in.

They are made when the answers have been sent, from the times that were noted down: no caller waits for them, and a
request that is tried again and again has one span all the same.
"""

import atexit
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from aries_images import contract
from aries_images.tracing import messaging
from worker.settings import Settings
from worker.task import Answer, Batch, Transaction
from worker.tracing import Tracing

#: Seconds that a process which ends waits for its last spans to be sent.
_LAST_SECONDS = 2.0

#: What a span says of its request, of what the log does.
_TOLD = ("caller", "code", "reasons", "image_id", "revision", "replayed", "attempt")

_batch: ContextVar[Batch | None] = ContextVar("batch", default=None)
_w3c = TraceContextTextMapPropagator()


class _Recorded(NamedTuple):
    """A request of which a span is made."""

    span: Span
    answer: Answer


class Spans(Tracing):
    """The spans of one process. A thread sends them, which begins with the first one: after any fork.

    Raises:
        LookupError: an exporter is asked for that is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self._exporters = [_exporter(name) for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",")]
        self._broker_url = settings.broker_url
        self._database = "sqlite" if settings.database_url.startswith("sqlite") else "postgresql"
        self._limits = SpanLimits(max_links=settings.batch_max)
        self._lock = threading.Lock()
        #: Of the process that the rest belongs to.
        self._pid = 0
        self._ends, self._ended = threading.Event(), threading.Event()
        self._open_tracer: Tracer

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """See `Tracing`."""
        token = _batch.set(batch)
        try:
            yield
        finally:
            _batch.reset(token)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Tracing`."""
        begun_at, failure = time.time(), None
        try:
            yield
        except Exception as error:
            failure = type(getattr(error, "orig", error)).__name__
            raise
        finally:
            if batch := _batch.get():
                batch.transactions.append(Transaction(begun_at, time.time(), failure))

    def answered(self, answers: Sequence[Answer], sent_from: float, sent_at: float) -> list[str | None]:
        """See `Tracing`."""
        spans = [self._of_request(answer) for answer in answers]
        recorded = [_Recorded(*pair) for pair in zip(spans, answers, strict=True) if pair[0].is_recording()]
        if recorded and (batch := answers[0].batch):
            self._of_batch(batch, recorded, sent_from, sent_at)
        for span, _ in recorded:
            span.end(_ns(sent_at))
        return [trace.format_trace_id(span.get_span_context().trace_id) for span in spans]

    def stop(self) -> None:
        """See `Tracing`."""
        if self._pid == os.getpid():
            self._ends.set()
            self._ended.wait(_LAST_SECONDS)

    # --- the way out ---

    @property
    def _tracer(self) -> Tracer:
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._open_tracer = self._open()
            return self._open_tracer

    def _open(self) -> Tracer:
        here = Resource.create({SERVICE_NAME: "aries-images"}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=here, span_limits=self._limits, shutdown_on_exit=False)
        for exporter in self._exporters:
            provider.add_span_processor(BatchSpanProcessor(exporter()))
        # Begun now, for a process that ends can begin no more threads; and a thread, for a receiver that is away is
        # waited for longer than anybody waits for a worker.
        self._ends, self._ended = threading.Event(), threading.Event()
        threading.Thread(target=self._close, args=(provider,), name="last-spans", daemon=True).start()
        atexit.register(self.stop)
        return provider.get_tracer("aries_images")

    def _close(self, provider: TracerProvider) -> None:
        self._ends.wait()
        provider.shutdown()
        self._ended.set()

    # --- the spans of one batch ---

    def _of_request(self, answer: Answer) -> Span:
        """From its sending on. Whether it is recorded his caller has decided, if he is part of a trace."""
        delivery = answer.delivery
        parent = _w3c.extract({contract.TRACEPARENT: delivery.traceparent or ""}, Context())
        span = self._tracer.start_span(
            f"process {delivery.lane}", parent, SpanKind.CONSUMER, start_time=_ns(delivery.queued_since)
        )
        if span.is_recording():
            span.set_attributes(messaging(self._broker_url, "process", delivery.lane) | _outcome(answer))
            span.add_event("received", timestamp=_ns(delivery.received_at))
            if answer.failed:
                span.set_attribute("error.type", contract.INTERNAL_ERROR.name)
                span.set_status(StatusCode.ERROR)
        return span

    def _of_batch(self, batch: Batch, requests: Sequence[_Recorded], sent_from: float, sent_at: float) -> None:
        """Below the first of its requests, since a span has one parent, and linked with each; its parts below it."""
        first, answer = requests[0]
        span = self._tracer.start_span(
            f"batch {answer.delivery.lane}",
            trace.set_span_in_context(first, Context()),
            links=[Link(each.span.get_span_context()) for each in requests],
            attributes={"messaging.batch.message_count": batch.size, "aries.batch": batch.id},
            start_time=_ns(answer.begun_at),
        )
        for each in requests:
            each.span.add_link(span.get_span_context())
        for part in batch.transactions:
            failed = {"error.type": part.failure} if part.failure else {}
            self._part(span, "transaction", {"db.system.name": self._database} | failed, part.begun_at, part.ended_at)
        sent = messaging(self._broker_url, "send", answer.queue) | {"messaging.batch.message_count": len(requests)}
        self._part(span, "send answers", sent, sent_from, sent_at)
        span.end(_ns(sent_at))

    def _part(self, batch: Span, name: str, attributes: dict[str, Any], begun_at: float, ended_at: float) -> None:
        below = trace.set_span_in_context(batch, Context())
        span = self._tracer.start_span(name, below, SpanKind.CLIENT, attributes, start_time=_ns(begun_at))
        span.end(_ns(ended_at))


def _exporter(name: str) -> type[SpanExporter]:
    """A plug-in of OpenTelemetry's, by the name that its specification has for it."""
    name = name.strip()
    plugin = {"otlp": "otlp_proto_http"}.get(name, name)
    for found in entry_points(group="opentelemetry_traces_exporter", name=plugin):
        exporter: type[SpanExporter] = found.load()
        return exporter
    raise LookupError(f"OTEL_TRACES_EXPORTER: there is no exporter {name!r} here")


def _outcome(answer: Answer) -> dict[str, Any]:
    """What the log has of it too; what is None has no place in a span."""
    said = {name: value for name, value in answer.summary.items() if name in _TOLD and value is not None}
    return {"messaging.message.id": answer.delivery.request_id} | {f"aries.{name}": said[name] for name in said}


def _ns(moment: float) -> int:
    return int(moment * 1e9)
