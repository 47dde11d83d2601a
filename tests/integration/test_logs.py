"""What a real worker and a real gateway log: of each request one line, and no line that is anything else."""

import json
import re
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import text

from aries_images import contract
from aries_images.signing import SigningKey
from tests.builders import a_message, poison
from tests.gateways import running_gateway
from tests.integration.conftest import NewDatabase
from tests.service import Service, service_at
from tests.workers import Worker, running_worker, until
from worker.commands.token import PRIVATE, PUBLIC, make_keys
from worker.embedded import RedisServer

#: What a caller sends, and nobody may read in a log.
VALUE = "value-of-a-caller"
PASSWORD = "pa55-of-redis"
TRACE = "0af7651916cd43dd8448eb211c80319c"
#: A request id that would be a line of its own, in red.
HOSTILE = "x\n2026-01-01T00:00:00.000000Z [info    ] answered [worker.logs] code=OK\x1b[31m\u2028"

Line = dict[str, Any]


@pytest.fixture(scope="module")
def service(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With a Redis that asks for a password."""
    with RedisServer(tmp_path_factory.mktemp("redis"), persistent=False) as redis:
        with Redis.from_url(redis.url()) as client:
            client.config_set("requirepass", PASSWORD)
        urls = [redis.url(number).replace("://", f"://:{PASSWORD}@") for number in (0, 1)]
        with service_at(*urls, new_database("postgresql")) as service:
            poison(service.database)
            yield service


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> tuple[SigningKey, Path]:
    """A caller's key, and the file that a worker knows it from."""
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder)
    return SigningKey((folder / PRIVATE).read_bytes(), "orders"), folder / PUBLIC


def lines(log: Path) -> list[Line]:
    """Every line, all of which must be JSON objects."""
    read = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(isinstance(line, dict) for line in read)
    return read


def ask_in_every_way(service: Service, token: str, worker: Worker) -> dict[str, str]:
    """Requests that end in different ways: their ids."""
    image, proof = service.image(), {"authorization": f"Bearer {token}"}
    ids = {how: str(uuid.uuid4()) for how in ("good", "refused", "faulty", "stranger", "hostile")}
    traced = proof | {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    service.ask({"id": image["id"], "description": VALUE}, task_id=ids["good"], headers=traced)
    wrong = {"id": image["id"], "name": None, "os_type": VALUE, HOSTILE: VALUE}
    service.ask(wrong, task_id=ids["refused"], headers=proof)
    service.send({"id": image["id"], "name": f"poison {VALUE}"}, task_id=ids["faulty"], headers=proof)
    service.stored(ids["faulty"])
    service.ask({"id": image["id"]}, task_id=ids["stranger"])
    ids["hostile"] = HOSTILE
    service.push(a_message({"id": VALUE}, headers={"id": HOSTILE, "task": HOSTILE} | proof)[1])
    ids["dead"] = str(uuid.uuid4())
    service.push(a_message({}, headers={"id": ids["dead"], "task": "another"} | proof)[1])
    until(lambda: '"unknown_task"' in worker.log.read_text() and ids["dead"] in worker.log.read_text())
    return ids


@pytest.mark.parametrize("pool", [None, "threads", "prefork"])
def test_every_line_of_a_worker_is_an_object_and_every_request_has_one(
    service: Service, orders: tuple[SigningKey, Path], pool: str | None
) -> None:
    key, public = orders
    token = key.token(60)
    environment = {"ARIES_LOG": "json", "ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(public)}
    with running_worker(service.environment | environment, pool=pool, concurrency=1) as worker:
        ids = ask_in_every_way(service, token, worker)
        if pool == "prefork":
            worker.children()[0].kill()
            until(lambda: "exited with" in worker.log.read_text())
        worker.process.send_signal(signal.SIGTERM)
        worker.process.wait(20)
        logged, everything = lines(worker.log), worker.log.read_text()
    answered = {line["request_id"]: line for line in logged if line["event"] == "answered"}
    assert [line for line in logged if line["level"] == "info" and "request_id" in line] == [*answered.values()]
    good, refused, faulty, stranger, dead = (
        answered[ids[how]] for how in ("good", "refused", "faulty", "stranger", "dead")
    )
    assert {name: good[name] for name in ("task", "caller", "code", "revision", "replayed", "attempt")} == {
        "task": contract.TASK,
        "caller": "orders",
        "code": "OK",
        "revision": 2,
        "replayed": False,
        "attempt": 1,
    }
    assert (good["batch_size"], len(good["batch"]), good["reasons"]) == (1, 12, [])
    assert (good["trace_id"], good["worker"]) == (TRACE, worker.node)
    assert 0 <= good["queue_ms"] <= good["queue_ms"] + good["commit_ms"] <= good["total_ms"] + 1
    assert (refused["code"], refused["revision"]) == ("InvalidParameter", None)
    assert [reason.rpartition(":")[2] for reason in refused["reasons"]] == [
        "null_not_allowed",
        "value_not_allowed",
        "unknown_field",
    ]
    assert (faulty["code"], stranger["code"], stranger["caller"]) == ("InternalError", "Unauthorized", None)
    assert (dead["code"], dead["batch"]) == ("InvalidParameter", None)
    assert {line["request_id"] for line in logged if line.get("reason") == "unknown_task"} >= {ids["dead"]}
    assert len(answered) == len(ids)
    for secret in (PASSWORD, token, token.split(".")[2]):
        assert secret not in everything
    assert VALUE not in "".join(json.dumps(line) for line in logged if line["level"] == "info")


def test_a_request_that_is_tried_again_and_again_has_lines_for_it(service: Service) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    with running_worker(service.environment | {"ARIES_LOG": "json"}) as worker:
        with service.database.transaction() as connection:
            connection.execute(text("SELECT FROM images WHERE id = :id FOR UPDATE"), image)
            sent = service.send({"id": image["id"], "os_name": "x"}, task_id=request_id)
            until(lambda: worker.log.read_text().count("is tried again") > 1)
        assert sent.get(timeout=10)["status"] == 200
        until(lambda: '"answered"' in worker.log.read_text())
        told = [line for line in lines(worker.log) if line.get("request_id") == request_id]
    *tries, last = told
    assert [line["tries"] for line in tries] == [*range(len(tries))]
    assert {(line["level"], line["caller"], line["image_id"]) for line in tries} == {
        ("warning", "anonymous", image["id"])
    }
    assert (last["event"], last["code"]) == ("answered", "OK")


def test_in_text_nobody_writes_a_line_for_the_worker(service: Service) -> None:
    with running_worker(service.environment) as worker:
        service.push(a_message({HOSTILE: 1, "id": HOSTILE}, headers={"id": HOSTILE, "task": HOSTILE})[1])
        refused = service.ask({"id": 1, HOSTILE: 1}, task_id="in-text")
        assert refused["status"] == 400
        until(lambda: "in-text" in worker.log.read_text() and "unknown_task" in worker.log.read_text())
        written = worker.log.read_text()
    assert [line for line in written.splitlines() if line.startswith("2026-01-01")] == []
    assert "\x1b" not in written
    answered = [line for line in written.splitlines() if re.match(r"\S+ \[info    \] answered \[worker.logs\] ", line)]
    assert len(answered) == 2


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_gateway_logs_each_request_in_the_same_form(service: Service, form: str) -> None:
    with running_gateway(service.broker_url, service.result_url, {"ARIES_LOG": form}) as gateway:
        gateway.put({"id": 1}, Idempotency_Key="not-answered", Prefer="wait=1", traceparent=f"00-{TRACE}-{'1' * 16}-01")
        gateway.put(b"no JSON", Idempotency_Key="malformed")
        gateway.ask("GET", "/nothing%0A2026-01-01%1b[31m?secret=" + VALUE)
        gateway.ask("GET", "/healthz")
        until(lambda: gateway.log.read_text().count("gateway.access") == 3)
        written = gateway.log.read_text()
        told = lines(gateway.log) if form == "json" else []
    assert VALUE not in written
    assert "\x1b" not in written
    assert written.count("gateway.access") == 3
    if form == "text":
        assert "request_id=malformed code=InvalidParameter status=400" in written
        return
    late, malformed, nothing = (line for line in told if line["event"] == "answered")
    assert (late["request_id"], late["status"], late["code"]) == ("not-answered", 504, "OutcomeUnknown")
    assert late["trace_id"] == TRACE
    assert 1000 <= late["ms"] < 5000
    assert (malformed["request_id"], malformed["status"]) == ("malformed", 400)
    assert (nothing["status"], nothing["code"], nothing["method"]) == (404, "NotFound", "GET")
    service.broker.delete(contract.QUEUE)
