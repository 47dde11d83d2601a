"""Traces: a caller, the queue, the batch and its transaction in one, as a receiver of spans sees them."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from aries_images import contract
from tests.builders import a_message, poison
from tests.gateways import running_gateway
from tests.integration.conftest import NewDatabase
from tests.receiver import Receiver, Span, receiver
from tests.service import Service, service_at
from tests.workers import CHECKOUT, Worker, running_worker, until
from worker.leases import Keys

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{CALLER}-01"

Town = tuple[Service, Receiver, Worker]


@pytest.fixture(scope="module")
def service(module_redis: tuple[str, str], new_database: NewDatabase) -> Iterator[Service]:
    with service_at(*module_redis, new_database("sqlite")) as service:
        poison(service.database)
        yield service


@pytest.fixture
def received() -> Iterator[Receiver]:
    with receiver() as received:
        yield received


@pytest.fixture(scope="module")
def town(service: Service) -> Iterator[Town]:
    """The service with a worker whose spans are received; what needs a worker of its own stands before its first use."""
    with receiver() as received, running_worker(service.environment | received.environment) as worker:
        yield service, received, worker


def batch_of(received: Receiver, request: Span) -> Span:
    [batch] = [span for span in received.spans() if request.id in span.links]
    return batch


# --- one request ---


def is_one_trace(received: Receiver, request_id: str, service: Service) -> bool:
    """Whether a request, its batch and what that consists of are one trace, in the right order of time."""
    request = received.of(request_id)
    spans = {span.name: span for span in received.spans(request.trace_id)}
    batch, transaction, answers = (spans[name] for name in ("batch image.update", "transaction", "send answers"))
    assert batch.parent_id == request.id
    assert {transaction.parent_id, answers.parent_id} == {batch.id}
    assert (batch.links, request.links) == ({request.id}, {batch.id})
    assert request.start <= batch.start <= transaction.start <= transaction.end <= answers.start
    assert answers.end == batch.end == request.end <= time.time_ns()
    assert request.events == ["received"]
    assert batch.attributes["messaging.batch.message_count"] == 1
    assert transaction.attributes == {"db.system.name": service.database.engine.dialect.name}
    return True


@pytest.mark.parametrize("pool", [None, "threads", "prefork"])
def test_a_request_is_one_trace_in_every_pool(service: Service, received: Receiver, pool: str | None) -> None:
    """Sent when the worker ends, at the latest."""
    image, request_id = service.image(), f"in-{pool}"
    at_the_end = received.environment | {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with running_worker(service.environment | at_the_end, pool=pool, concurrency=1) as worker:
        service.client.update(image["id"], os_name="x", request_id=request_id, traceparent=SAMPLED)
        assert not received.spans()
        worker.process.send_signal(signal.SIGTERM)
        worker.process.wait(20)
    assert is_one_trace(received, request_id, service)
    request = received.of(request_id)
    assert (request.trace_id, request.parent_id, request.kind) == (TRACE, CALLER, "CONSUMER")
    assert (request.name, request.service, request.is_fault) == ("process image.update", "aries-images", False)
    assert request.attributes == {
        "messaging.system": "redis",
        "messaging.destination.name": contract.QUEUE,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": request_id,
        "aries.caller": "anonymous",
        "aries.code": "OK",
        "aries.reasons": [],
        "aries.image_id": image["id"],
        "aries.revision": 2,
        "aries.replayed": False,
        "aries.attempt": 1,
    }


def test_a_worker_whose_receiver_says_nothing_answers_and_leaves_as_ever(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with running_worker(service.environment | endpoint) as worker:
            assert service.ask({"id": service.image()["id"], "os_name": "x"})["status"] == 200
            worker.process.send_signal(signal.SIGTERM)
            worker.process.wait(9)  # the exporter itself would wait for ten seconds


def test_an_eager_call_is_traced_too(service: Service, received: Receiver) -> None:
    image = service.image()
    code = (
        "from worker.celery import app; app.loader.import_default_modules(); app.conf.task_always_eager = True;"
        f"app.tasks['image.update'].apply_async(kwargs={{'id': {image['id']}, 'os_name': 'x'}}, task_id='eager').get()"
    )
    words = [sys.executable, "-c", code]
    subprocess.run(words, check=True, cwd=CHECKOUT, env=service.environment | received.environment, timeout=60)
    assert is_one_trace(received, "eager", service)


def test_a_refusal_is_no_error_and_a_fault_is_one(town: Town) -> None:
    service, received, _ = town
    image = service.image()
    service.ask({"id": image["id"], "name": None}, task_id="refused")
    service.send({"id": image["id"], "name": "poison"}, task_id="faulty")
    refused, faulty = received.of("refused"), received.of("faulty")
    assert (refused.attributes["aries.code"], refused.attributes["aries.reasons"]) == (
        "InvalidParameter",
        ["name:null_not_allowed"],
    )
    assert not refused.is_fault
    assert "error.type" not in refused.attributes
    assert faulty.is_fault
    assert faulty.attributes["error.type"] == "InternalError"
    [failed] = [span for span in received.spans(faulty.trace_id) if span.name == "transaction"]
    assert failed.attributes["error.type"] == "IntegrityError"


def test_what_the_caller_does_not_want_recorded_is_not(town: Town) -> None:
    service, received, worker = town
    image, trace = service.image(), "1" * 32
    asked = {"id": image["id"], "os_name": "x"}
    service.ask(asked, task_id="unseen", headers={"traceparent": f"00-{trace}-{CALLER}-00"})
    service.ask(asked, task_id="seen", headers={"traceparent": f"00-{trace}-{CALLER}-01"})
    received.of("seen")
    assert {span.attributes.get("messaging.message.id") for span in received.spans(trace)} == {"seen", None}
    assert f"trace_id={trace}" in next(line for line in worker.log.read_text().splitlines() if "=unseen" in line)


def test_the_event_carries_what_the_caller_sent(town: Town) -> None:
    service, _, _ = town
    service.ask({"id": service.image()["id"], "os_name": "x"}, task_id="echoed", headers={"traceparent": SAMPLED})
    [event] = service.wait_for_events("echoed")
    assert event["headers"]["traceparent"] == SAMPLED


def test_what_is_not_a_traceparent_begins_a_trace(town: Town) -> None:
    service, received, _ = town
    request_id, entry = a_message({"id": 1}, headers={"traceparent": "\n" * 55, "task": "another"})
    service.push(entry)
    request = received.of(request_id)
    assert request.parent_id == ""
    assert request.attributes["aries.code"] == "InvalidParameter"
    service.broker.delete(Keys().dead)


# --- batches ---


def test_the_requests_of_a_batch_are_linked_with_it(town: Town) -> None:
    service, received, worker = town
    images = [service.image() for _ in range(3)]
    messages = [
        a_message({"id": image["id"], "os_name": "x"}, headers={"traceparent": f"00-{number:032x}-{CALLER}-01"})
        for number, image in enumerate(images, 1)
    ]
    with Redis.from_url(service.broker_url) as broker:
        worker.process.suspend()
        broker.lpush(contract.QUEUE, *(entry for _, entry in messages))
        worker.process.resume()
    requests = [received.of(request_id) for request_id, _ in messages]
    batches = {batch_of(received, request).id for request in requests}
    assert len(batches) < len(requests), "at least two of them were run together"
    for request in requests:
        batch = batch_of(received, request)
        assert batch.id in request.links
        assert batch.attributes["messaging.batch.message_count"] == len(batch.links)
    assert len({request.trace_id for request in requests}) == len(requests), "each stays in its caller's trace"


# --- callers ---

_CALLER = """
import asyncio, sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from aries_images import ImageClient
from aries_images.aio import AsyncImageClient

provider = TracerProvider(resource=Resource.create({"service.name": "orders"}))
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
image = int(sys.argv[1])


async def asked():
    async with AsyncImageClient() as client:
        await client.update(image, os_name="y", request_id="by-await")


with trace.get_tracer("orders").start_as_current_span("order"):
    with ImageClient() as client:
        client.update(image, os_name="x", request_id="by-call")
        client.update(image, os_name="z", request_id="by-hand", traceparent=sys.argv[2])
    asyncio.run(asked())
"""


def test_a_caller_who_makes_spans_is_part_of_the_trace(town: Town) -> None:
    service, received, _ = town
    image, trace = service.image(), "2" * 32
    words = [sys.executable, "-c", _CALLER, str(image["id"]), f"00-{trace}-{CALLER}-01"]
    subprocess.run(words, check=True, cwd=CHECKOUT, env=service.environment | received.environment, timeout=60)
    [order] = [span for span in received.spans() if span.name == "order"]
    for request_id in ("by-call", "by-await"):
        request = received.of(request_id)
        [sent] = [span for span in received.spans(order.trace_id) if span.id == request.parent_id]
        assert (sent.name, sent.kind, sent.service, sent.parent_id) == (
            "send image.update",
            "PRODUCER",
            "orders",
            order.id,
        )
        assert sent.attributes["messaging.message.id"] == request_id
        assert sent.attributes["messaging.operation.type"] == "send"
    by_hand = received.of("by-hand")
    assert (by_hand.trace_id, by_hand.parent_id) == (trace, CALLER), "what he names himself is left alone"


def test_the_gateway_continues_the_trace_of_its_caller(town: Town) -> None:
    service, received, _ = town
    image, trace = service.image(), "3" * 32
    with running_gateway(
        service.broker_url, service.result_url, received.environment | {"ARIES_LOG": "json"}
    ) as gateway:
        headers = {"traceparent": f"00-{trace}-{CALLER}-01", "Idempotency-Key": "by-http"}
        assert gateway.put({"id": image["id"], "os_name": "x"}, **headers).status == 200
        request = received.of("by-http")
        until(lambda: len(received.spans(trace)) == 6)
        line = json.loads(next(line for line in gateway.log.read_text().splitlines() if "by-http" in line))
    served, sent = (
        next(span for span in received.spans(trace) if span.kind == kind) for kind in ("SERVER", "PRODUCER")
    )
    assert (served.parent_id, sent.parent_id, request.parent_id) == (CALLER, served.id, sent.id)
    assert line["trace_id"] == trace
    [event] = service.wait_for_events("by-http")
    assert event["headers"]["traceparent"] == sent.traceparent
