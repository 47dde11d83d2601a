"""Who may ask, with a real worker: what callers with tokens can do, and what those without cannot."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aries_images import (
    Forbidden,
    ImageClient,
    ImageNotFound,
    InvalidParameter,
    TooManyRequests,
    Unauthorized,
    contract,
)
from aries_images.signing import SigningKey
from tests.builders import a_message, ledger, refusal_in, stored_image, stored_revisions
from tests.integration.conftest import NewDatabase
from tests.service import Service, service_at
from tests.workers import CHECKOUT, Worker, running_worker, until
from worker.commands.token import PRIVATE, PUBLIC, make_keys
from worker.leases import Keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder)
    return folder


@pytest.fixture(scope="module", params=[None, "prefork", "threads"], ids=["default", "prefork", "threads"])
def town(
    request: pytest.FixtureRequest, module_redis: tuple[str, str], new_database: NewDatabase, keys: Path
) -> Iterator[tuple[Service, Worker]]:
    with service_at(*module_redis, new_database("sqlite")) as service:
        service.environment |= {"ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(keys / PUBLIC)}
        with running_worker(service.environment, pool=request.param, concurrency=1) as worker:
            yield service, worker


@pytest.fixture
def service(town: tuple[Service, Worker]) -> Service:
    return town[0]


def key_of(keys: Path, caller: str) -> SigningKey:
    return SigningKey((keys / PRIVATE).read_bytes(), caller)


@pytest.fixture
def orders(keys: Path) -> str:
    return key_of(keys, "orders").token(600)


def client_of(service: Service, token: str | None = None, **options: Any) -> ImageClient:
    return ImageClient(service.broker_url, service.result_url, token=token, **options)


def ask(service: Service, token: str | None, kwargs: dict[str, Any], **headers: Any) -> dict[str, Any]:
    """The reply to a message as any language would push it."""
    proof = {} if token is None else {"authorization": f"Bearer {token}"}
    request_id, entry = a_message(kwargs, headers=proof | headers)
    service.push(entry)
    service.wait_for_events(request_id)
    reply: dict[str, Any] = service.stored(request_id)["result"]
    return reply


def test_the_caller_is_written_down(town: tuple[Service, Worker], orders: str) -> None:
    service, worker = town
    image, request_id = service.image(), str(uuid.uuid4())
    with client_of(service, orders) as client:
        client.update(image["id"], description="x", request_id=request_id)
    assert stored_revisions(service.database, image["id"])[0]["caller"] == "orders"
    assert ledger(service.database)[request_id]["caller"] == "orders"
    until(lambda: request_id in worker.log.read_text())  # written when the answer is out
    [line] = [line for line in worker.log.read_text().splitlines() if "answered" in line and request_id in line]
    assert "caller=orders" in line


def test_plain_celery_proves_it_with_a_header(service: Service, orders: str) -> None:
    image = service.image()
    proof = {"authorization": f"Bearer {orders}"}
    assert service.ask({"id": image["id"], "description": "x"}, headers=proof)["status"] == 200


@pytest.mark.parametrize("token", [None, "x", "a.b.c"])
def test_without_a_good_token_nothing_is_done_nor_remembered(service: Service, token: str | None) -> None:
    image = service.image()
    reply = ask(service, token, {"id": image["id"], "description": "x"})
    assert refusal_in(reply) == ("Unauthorized", [])
    assert stored_image(service.database, image["id"]) == image
    assert reply["request_id"] not in ledger(service.database)
    with client_of(service, token) as client, pytest.raises(Unauthorized):
        client.update(image["id"], description="x")
    with client_of(service, token) as client, pytest.raises(Unauthorized):
        client.settle("anything")


def test_a_stranger_uses_up_nobodys_request_id(service: Service, orders: str) -> None:
    """Neither with a good request, nor with nonsense, nor with a settlement."""
    image, request_id = service.image(), str(uuid.uuid4())
    for entry in (
        a_message({"id": image["id"]}, headers={"id": request_id})[1],
        a_message(body="nonsense", headers={"id": request_id})[1],
        a_message({"request_id": request_id}, headers={"task": contract.SETTLE_TASK})[1],
    ):
        service.push(entry)
    until(service.is_idle)
    with client_of(service, orders) as client:
        assert client.update(image["id"], description="x", request_id=request_id).description == "x"
        # Nor does he take the stored result away.
        service.push(a_message({"id": image["id"]}, headers={"id": request_id})[1])
        until(service.is_idle)
        assert service.stored(request_id)["result"]["status"] == 200


def test_the_answer_to_another_caller_is_not_told(service: Service, keys: Path, orders: str) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    with client_of(service, orders) as client, client_of(service, key_of(keys, "mallory").token(60)) as mallory:
        client.update(image["id"], description="secret", request_id=request_id)
        for again in (
            lambda: mallory.update(image["id"], description="secret", request_id=request_id),
            lambda: mallory.settle(request_id),
        ):
            with pytest.raises(Forbidden) as refused:
                again()
            assert "secret" not in str(refused.value)


def test_without_the_scope_one_may_not(service: Service, keys: Path) -> None:
    image = service.image()
    token = key_of(keys, "orders").token(60, scope="image:read")
    for kwargs in ({"id": image["id"], "description": "x"}, {"id": image["id"], "name": " "}):
        assert refusal_in(ask(service, token, kwargs)) == ("Forbidden", [])
    with client_of(service, token) as client, pytest.raises(Forbidden):
        client.settle("anything")
    assert stored_image(service.database, image["id"]) == image


def test_what_was_answered_is_told_again_without_the_scope(service: Service, keys: Path, orders: str) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    body = {"id": image["id"], "description": "x"}
    first = ask(service, orders, body, id=request_id)
    service.broker.delete(contract.REPLY_QUEUE)
    assert ask(service, key_of(keys, "orders").token(60, scope=""), body, id=request_id) == first


def test_an_image_outside_the_claim_is_not_there(service: Service, keys: Path) -> None:
    mine, other = service.image(), service.image()
    with client_of(service, key_of(keys, "orders").token(60, images=[mine["id"]])) as client:
        assert client.update(mine["id"], description="x").description == "x"
        with pytest.raises(ImageNotFound):
            client.update(other["id"], description="x")
    assert stored_image(service.database, other["id"]) == other


def test_a_malformed_message_is_told_so_before_anything_else(service: Service) -> None:
    request_id, entry = a_message(body="nonsense")
    service.push(entry)
    assert refusal_in(service.stored(request_id)["result"]) == ("InvalidParameter", [(None, "malformed_message")])
    assert request_id not in ledger(service.database)


def test_a_caller_with_a_key_makes_a_token_for_each_request(service: Service, keys: Path) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    with client_of(service, key=key_of(keys, "billing")) as client:
        first = client.update(image["id"], description="x", request_id=request_id)
        assert client.settle(request_id) == first
    assert stored_revisions(service.database, image["id"])[0]["caller"] == "billing"


def test_a_token_is_no_good_for_another_request(service: Service, keys: Path) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    kwargs = {"id": image["id"], "description": "x"}
    token = key_of(keys, "billing").token_for(request_id, contract.digest_of(kwargs), 60)
    assert refusal_in(ask(service, token, kwargs))[0] == "Unauthorized"
    assert refusal_in(ask(service, token, kwargs | {"description": "y"}, id=request_id))[0] == "Unauthorized"
    service.broker.delete(contract.REPLY_QUEUE)
    assert ask(service, token, kwargs, id=request_id)["status"] == 200


def test_events_go_to_the_callers_own_queue_and_to_no_other(service: Service, orders: str) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    service.broker.delete("image.replies.orders")
    with client_of(service, orders, reply_to="image.replies.orders.x") as client:
        client.update(image["id"], request_id=request_id)
    assert service.wait_for_events(request_id, queue="image.replies.orders.x")
    for queue in ("image.replies.billing", "image.update", "celery"):
        with client_of(service, orders, reply_to=queue) as client, pytest.raises(InvalidParameter) as refused:
            client.update(image["id"])
        assert refused.value.details[0].reason == "reply_to_not_allowed"
        assert service.broker.llen(queue) == 0
    with client_of(service, None, reply_to="image.replies.orders") as client, pytest.raises(Unauthorized):
        client.update(image["id"])
    assert service.broker.llen("image.replies.orders") == 0, "whoever proves nothing has no queue of his own"


def test_a_message_that_is_given_up_is_told_to_the_common_queue(service: Service, orders: str) -> None:
    for token, queue in ((orders, "image.replies.orders"), ("forged", contract.REPLY_QUEUE)):
        request_id, entry = a_message(
            {},
            headers={"task": "another", "authorization": f"Bearer {token}"},
            properties={"reply_to": "image.replies.orders"},
        )
        service.push(entry)
        assert service.wait_for_events(request_id, queue=queue)
    service.broker.delete(Keys().dead)


def test_no_token_is_written_anywhere(town: tuple[Service, Worker], keys: Path) -> None:
    service, worker = town
    image, forged = service.image(), key_of(keys, "orders").token(60)[:-8] + "AAAAAAAA"
    token = key_of(keys, "orders").token(60)
    ask(service, token, {"id": image["id"], "description": "x"})
    ask(service, forged, {"id": image["id"], "description": "x"})
    ask(service, token, {"id": image["id"], "name": None})
    told = [worker.log.read_text()]
    inspect = service.celery.control.inspect([worker.node], timeout=5)
    told += [
        json.dumps([inspect.stats(), inspect.conf(), inspect.active(), inspect.reserved(), inspect.query_task("x")])
    ]
    for redis in (service.broker, service.results):
        told += [repr(redis.dump(name)) for name in redis.scan_iter()]
    for secret in (token, forged, token.split(".")[2]):
        assert not [text for text in told if secret in text]
    assert "unauthorized: Signature verification failed" in worker.log.read_text()


# --- at the start ---


def start(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "celery", "-A", "worker", "worker"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ARIES_")}
    return subprocess.run(
        words, cwd=CHECKOUT, env=inherited | environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "must name a JWKS file or URL"),
        ("", "it can't be read: [Errno 2]"),
        ("no JSON", "it can't be read: Expecting value"),
        ("[]", "it can't be read: it is no JWKS document"),
        ('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "it has no key"),
    ],
)
def test_a_worker_without_keys_does_not_start(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "jwks.json"
    if text:
        file.write_text(text)
    done = start({"ARIES_DATABASE_URL": "sqlite://"} | ({} if text is None else {"ARIES_JWT_KEYS": str(file)}))
    assert done.returncode == 1
    assert f"ARIES_JWT_KEYS: {says}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_that_asks_nobody_says_so(broker_url: str, result_url: str, sqlite_url: str) -> None:
    with service_at(broker_url, result_url, sqlite_url) as service, running_worker(service.environment) as worker:
        assert "ARIES_AUTH=off: whoever can reach the queue can update every image" in worker.log.read_text()


def test_callers_are_held_back_one_by_one(broker_url: str, result_url: str, sqlite_url: str, keys: Path) -> None:
    with service_at(broker_url, result_url, sqlite_url) as service:
        image = service.image()
        limits = {"ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(keys / PUBLIC), "ARIES_RATE_PER_CALLER": "2"}
        with running_worker(service.environment | limits):
            with client_of(service, key_of(keys, "orders").token(60)) as client:
                pending = [client.submit(image["id"]) for _ in range(10)]
                with pytest.raises(TooManyRequests) as told:
                    [update.result() for update in pending]
            assert told.value.retry == "backoff"
            with client_of(service, key_of(keys, "billing").token(60)) as client:
                assert client.update(image["id"]).id == image["id"]
