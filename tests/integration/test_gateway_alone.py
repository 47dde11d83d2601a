"""The HTTP route before workers that start, stop, ask for proof, or are stand-ins that can be told what to do."""

import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from redis import Redis

from aries_images import contract
from aries_images.contract import Detail, Reply
from aries_images.signing import SigningKey
from tests.builders import stored_revisions
from tests.gateways import ROUTE, Gateway, is_an_error, running_gateway
from tests.integration.conftest import NewDatabase
from tests.service import Service, service_at
from tests.stand_in import Taken, failure_of, stand_in
from tests.workers import running_worker, until
from worker.commands.token import PRIVATE, PUBLIC, make_keys
from worker.embedded import RedisServer

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def service(module_redis: tuple[str, str], new_database: NewDatabase) -> Iterator[Service]:
    """A service without a worker."""
    with service_at(*module_redis, new_database("sqlite")) as service:
        yield service


@pytest.fixture(scope="module")
def gateway(module_redis: tuple[str, str]) -> Iterator[Gateway]:
    with running_gateway(*module_redis) as gateway:
        yield gateway


# --- what the worker says ---


@pytest.mark.parametrize("code", contract.CODES.values(), ids=contract.CODES)
def test_every_code_of_the_worker_has_its_status(
    code: contract.Code, gateway: Gateway, module_redis: tuple[str, str]
) -> None:
    def answer(taken: Taken) -> Reply | bytes:
        return (
            failure_of(taken.request_id)
            if code is contract.INTERNAL_ERROR
            else taken.refusal(code, Detail("id", "missing", "y"))
        )

    with stand_in(*module_redis, answer):
        said = gateway.put({"id": 1})
    is_an_error(said, code.status, code.name, *([] if code is contract.INTERNAL_ERROR else ["missing"]))
    assert said.document["message"] == code.message
    assert ("retry-after" in said.headers) == (code.retry == "backoff")
    assert ("www-authenticate" in said.headers) == (code is contract.UNAUTHORIZED)


def test_the_worker_alone_decides_who_may_ask(gateway: Gateway, service: Service, tmp_path: Path) -> None:
    make_keys(tmp_path)
    token = SigningKey((tmp_path / PRIVATE).read_bytes(), "orders").token(600)
    keys = {"ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(tmp_path / PUBLIC)}
    image = service.image()
    with running_worker(service.environment | keys):
        nobody = gateway.put({"id": image["id"], "os_name": "x"})
        forged = gateway.put({"id": image["id"], "os_name": "x"}, Authorization="Bearer x.y.z")
        known = gateway.put({"id": image["id"], "os_name": "x"}, Authorization=f"Bearer {token}")
    revisions = stored_revisions(service.database)
    is_an_error(nobody, 401, "Unauthorized")
    assert nobody.headers["www-authenticate"] == 'Bearer realm="aries-images"'
    is_an_error(forged, 401, "Unauthorized")
    assert forged.headers["www-authenticate"] == 'Bearer realm="aries-images", error="invalid_token"'
    assert known.status == 200
    assert [row["caller"] for row in revisions] == ["orders"]


# --- headers ---


def test_trace_context_is_passed_on(gateway: Gateway, module_redis: tuple[str, str]) -> None:
    with stand_in(*module_redis) as worker:
        assert gateway.put({"id": 1}, traceparent=TRACE).status == 200
        assert gateway.put({"id": 1}, traceparent="nonsense").status == 200
    assert [taken.headers.get("traceparent") for taken in worker.taken] == [TRACE, None]


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [("wait=2", 2), ("respond-async, Wait = 5; x=y", 5), ('wait="7"', 7), ("wait=0", 1), ("wait=9999", 60), ("wait=-1", 30), ("", 30)],
)  # fmt: skip
def test_the_deadline_is_what_the_caller_waits(
    prefer: str, seconds: int, gateway: Gateway, module_redis: tuple[str, str]
) -> None:
    with stand_in(*module_redis) as worker:
        before = time.time()
        assert gateway.put({"id": 1}, Prefer=prefer).status == 200
    expires = datetime.fromisoformat(worker.taken[0].headers["expires"]).timestamp()
    assert seconds <= expires - before < seconds + 1


def test_no_proof_of_its_own_is_ever_sent_for_a_caller(gateway: Gateway, module_redis: tuple[str, str]) -> None:
    with stand_in(*module_redis) as worker:
        gateway.put({"id": 1})
        gateway.put({"id": 1}, Authorization="Basic eDp5")
    assert [taken.headers.get("authorization") for taken in worker.taken] == [None, "Basic eDp5"]


# --- no answer ---


def test_no_answer_in_time_is_said_with_what_to_do(gateway: Gateway, module_redis: tuple[str, str]) -> None:
    with stand_in(*module_redis, lambda _: None):
        begun = time.monotonic()
        answer = gateway.put({"id": 1}, Prefer="wait=1", Idempotency_Key="order-1")
    assert 0.9 < time.monotonic() - begun < 4
    is_an_error(answer, 504, "OutcomeUnknown", "no_answer")
    assert answer.document["request_id"] == "order-1"
    assert "Idempotency-Key: order-1" in answer.document["details"][0]["message"]


def test_an_answer_that_was_only_stored_is_found(gateway: Gateway, module_redis: tuple[str, str]) -> None:
    with stand_in(*module_redis) as worker:
        worker.publishes = False
        assert gateway.put({"id": 1}, Prefer="wait=1", Idempotency_Key="order-1").status == 200


def test_a_queue_that_is_away_is_said_soon_and_the_next_request_goes_through(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, running_gateway(server.url(0), server.url(1)) as gateway:
        with stand_in(server.url(0), server.url(1)):
            assert gateway.put({"id": 1}).status == 200
        server.stop()
        begun = time.monotonic()
        answer = gateway.put({"id": 1})
        assert time.monotonic() - begun < 5
        is_an_error(answer, 503, "ServiceUnavailable", "no_answer")
        assert int(answer.headers["retry-after"]) > 0
        assert gateway.ask("GET", "/healthz").status == 200
        assert gateway.ask("GET", "/readyz").status == 503
        server.start()
        with stand_in(server.url(0), server.url(1)):
            until(lambda: gateway.put({"id": 1}).status == 200)


def test_callers_who_hang_up_early_cost_nothing(gateway: Gateway, module_redis: tuple[str, str]) -> None:
    with stand_in(*module_redis, lambda _: None), Redis.from_url(module_redis[1]) as results:
        for sent in (b'{"id":1', b'{"id":1}') * 50:
            with socket.create_connection(("127.0.0.1", gateway.port)) as line:
                head = f"PUT {ROUTE} HTTP/1.1\r\nHost: x\r\nPrefer: wait=1\r\nContent-Length: 8\r\n\r\n"
                line.sendall(head.encode() + sent)
        until(lambda: not results.pubsub_channels())
        assert len(results.client_list(_type="pubsub")) <= 1
        log = gateway.log.read_text()
    assert "Traceback" not in log


def test_it_is_ready_only_while_a_worker_listens(gateway: Gateway, service: Service) -> None:
    assert gateway.ask("GET", "/healthz").status == 200
    assert gateway.ask("GET", "/readyz").body == b"no worker listens\n"
    with running_worker(service.environment) as worker:
        until(lambda: gateway.ask("GET", "/readyz").status == 200)
        log = worker.log.read_text()
        worker.kill()
        until(lambda: gateway.ask("GET", "/readyz").status == 503)
    assert "Traceback" not in log
