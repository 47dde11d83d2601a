"""Where a test receives spans: what OpenTelemetry's collector would do with them, as far as it listens."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent

from tests.workers import until


@dataclass(frozen=True)
class Span:
    """A span as it was sent."""

    name: str
    service: str
    trace_id: str
    id: str
    parent_id: str
    kind: str
    #: Unix times in nanoseconds.
    start: int
    end: int
    attributes: dict[str, Any]
    events: list[str]
    links: set[str]
    is_fault: bool

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.id}-01"


class Receiver:
    """Takes what is sent by OTLP over HTTP."""

    def __init__(self, port: int) -> None:
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        self._spans: list[Span] = []

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            self._spans += [_span(sent, service) for scope in resource.scope_spans for sent in scope.spans]

    def spans(self, trace_id: str | None = None) -> list[Span]:
        """What has come, of one trace or of all."""
        return [span for span in self._spans if trace_id in (None, span.trace_id)]

    def of(self, request_id: str) -> Span:
        """The span of a request in the worker, as soon as it is there."""
        until(lambda: self._of(request_id))
        [span] = self._of(request_id)
        return span

    def _of(self, request_id: str) -> list[Span]:
        return [
            span
            for span in self._spans
            if span.kind == "CONSUMER" and span.attributes["messaging.message.id"] == request_id
        ]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver that listens until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received = Receiver(server.server_port)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()


def _span(sent: Sent, service: str) -> Span:
    return Span(
        name=sent.name,
        service=service,
        trace_id=sent.trace_id.hex(),
        id=sent.span_id.hex(),
        parent_id=sent.parent_span_id.hex(),
        kind=Sent.SpanKind.Name(sent.kind).removeprefix("SPAN_KIND_"),
        start=sent.start_time_unix_nano,
        end=sent.end_time_unix_nano,
        attributes=_values(sent.attributes),
        events=[event.name for event in sent.events],
        links={link.span_id.hex() for link in sent.links},
        is_fault=sent.status.code == 2,  # STATUS_CODE_ERROR
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    given = getattr(value, kind)
    return [_value(each) for each in given.values] if kind == "array_value" else given
