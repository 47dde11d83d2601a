"""Traces: spans are made of what a worker does, where OpenTelemetry's own variables say where to send them."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from worker.settings import Settings
from worker.task import Answer, Batch, Delivery

logger = logging.getLogger(__name__)

#: Each says that spans are wanted, and where.
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing:
    """No spans; `worker.spans` has those."""

    def watch(self, _batch: Batch) -> AbstractContextManager[None]:
        """Around a batch: its transactions are noted down."""
        return nullcontext()

    def transaction(self) -> AbstractContextManager[None]:
        """Around a transaction."""
        return nullcontext()

    def answered(self, answers: Sequence[Answer], _sent_from: float, _sent_at: float) -> list[str | None]:
        """Answers of one batch were sent, between these Unix times in seconds; the trace that each belongs to."""
        return [trace_id_of(answer.delivery) for answer in answers]

    def stop(self) -> None:
        """The process ends."""


def trace_id_of(delivery: Delivery) -> str | None:
    """The caller's, if he names one."""
    return delivery.traceparent and delivery.traceparent.split("-")[1]


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables ask for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporters = environment.get("OTEL_TRACES_EXPORTER", "")
    return exporters != "none" and bool(exporters or any(map(environment.get, _ENDPOINTS)))


def tracing_for(settings: Settings) -> Tracing:
    """Spans, where they are asked for and the extra `tracing` is installed; nothing of it is imported elsewhere."""
    if not is_wanted(os.environ):
        return Tracing()
    try:
        from worker.spans import Spans  # noqa: PLC0415  # not before somebody wants it

        return Spans(settings)
    except ImportError as error:
        logger.warning("no traces, for the extra `tracing` is not installed: %s", error)
    except LookupError as error:
        logger.warning("no traces: %s", error)
    return Tracing()
