"""The caller's part of a trace: spans by OpenTelemetry in a program that makes spans itself, nothing in any other."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aries_images import contract
from aries_images._request import Outgoing

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer, TracerProvider

#: What OpenTelemetry calls a broker, where that is not the scheme of its URL.
_SYSTEMS = {"amqp": "rabbitmq", "amqps": "rabbitmq", "pyamqp": "rabbitmq", "rediss": "redis", "sentinel": "redis"}


def messaging(broker_url: str, operation: str, queue: str) -> dict[str, Any]:
    """The attributes of a span that deals with messages, by OpenTelemetry's conventions."""
    scheme = broker_url.partition("://")[0]
    return {
        "messaging.system": _SYSTEMS.get(scheme, scheme),
        "messaging.destination.name": queue,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }


@contextmanager
def sending(request: Outgoing, broker_url: str) -> Iterator[None]:
    """Around the sending of `request`: a span, which it names as its parent unless the caller has named one."""
    tracer = _tracer()
    if tracer is None or contract.TRACEPARENT in request.headers:
        yield
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - as in _tracer

    attributes = messaging(broker_url, "send", request.queue) | {"messaging.message.id": request.request_id}
    with tracer.start_as_current_span(f"send {request.queue}", kind=SpanKind.PRODUCER, attributes=attributes) as span:
        if traceparent := current_traceparent():
            request.headers[contract.TRACEPARENT] = traceparent
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            raise


def current_traceparent() -> str | None:
    """The span that the program is in, as W3C writes it; None where it makes none."""
    if _tracer() is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 - as above

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(contract.TRACEPARENT)


def _tracer() -> "Tracer | None":
    """The program's own: whoever has set up OpenTelemetry has loaded it before."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace  # noqa: PLC0415 - it may not be there, and is not to be loaded without need

    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider) else _tracer_of(provider)


@lru_cache(1)
def _tracer_of(provider: "TracerProvider") -> "Tracer":
    return provider.get_tracer("aries_images")
