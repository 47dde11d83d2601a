"""The main job, end to end, with every pool: a real queue, a real worker process, a real database, both callers."""

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kombu import Connection

from aries_images import (
    DeadlineExceeded,
    ImageClient,
    ImageNameExists,
    ImageNotFound,
    InternalError,
    InvalidParameter,
    PreconditionFailed,
    contract,
)
from tests.builders import (
    SECRET,
    SEED_BODY,
    ledger,
    poison,
    refusal_in,
    stored_image,
    stored_revisions,
)
from tests.integration.conftest import NewDatabase
from tests.service import PATIENCE, Service, service_at
from tests.workers import running_worker, until

SITES = [
    ("default", "sqlite"),
    ("prefork", "sqlite"),
    ("threads", "sqlite"),
    ("solo", "sqlite"),
    ("default", "postgresql"),
    ("prefork", "postgresql"),
]
SETTINGS = {"ARIES_RESULT_TTL": "600", "ARIES_REPLY_QUEUE_MAX": "20", "ARIES_REPLY_QUEUE_TTL": "300"}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module", params=SITES, ids=["-".join(site) for site in SITES])
def service(
    request: pytest.FixtureRequest, module_redis: tuple[str, str], new_database: NewDatabase
) -> Iterator[Service]:
    pool, kind = request.param
    with service_at(*module_redis, new_database(kind)) as service:
        poison(service.database)
        concurrency = {"prefork": 2, "threads": 4}.get(pool)
        with running_worker(
            service.environment | SETTINGS, pool=None if pool == "default" else pool, concurrency=concurrency
        ) as worker:
            stats = service.celery.control.inspect([worker.node], timeout=5).stats()[worker.node]
            assert {"default": "group_commit", "threads": "concurrency.thread"}.get(pool, pool) in stats["pool"][
                "implementation"
            ]
            yield service


def own_queue() -> str:
    return f"image.replies.anonymous.{uuid.uuid4()}"


# --- the answer ---


def test_the_seeds_example_by_plain_celery(service: Service) -> None:
    image = service.image()
    body = SEED_BODY | {"id": image["id"], "name": f"CentOS-{image['id']}"}
    document = service.ask(body)
    row = stored_image(service.database, image["id"])
    assert document["image"] == body | {
        "source_path": "/path/to/image/file.iso",
        "created_at": "2024-03-20T10:30:00Z",
        "updated_at": contract.rfc3339(row["updated_at"]),
    }
    assert (document["status"], document["revision"]) == (200, 2)
    assert document["digest"] == contract.digest_of(body)
    assert {field: row[field] for field in contract.FIELDS} == body
    assert json.loads(ledger(service.database)[document["request_id"]]["reply"]) == document


def test_the_seeds_example_by_our_client(service: Service) -> None:
    image = service.image()
    fields = {field: SEED_BODY[field] for field in ("os_type", "os_name", "description")}
    updated = service.client.update(image["id"], name=f"CentOS-{image['id']}", **fields, timeout=PATIENCE)
    assert (updated.name, updated.revision, updated.description) == (f"CentOS-{image['id']}", 2, fields["description"])
    assert updated.model_dump() == stored_image(service.database, image["id"]) | {
        "updated_at": updated.updated_at,
    }


def test_a_stock_caller_need_not_know_the_queue(service: Service) -> None:
    image = service.image()
    result = service.celery.send_task("image.update", kwargs={"id": image["id"], "description": "x"})
    assert result.get(timeout=PATIENCE)["revision"] == 2


def refusals(service: Service) -> Iterator[tuple[dict[str, Any], dict[str, Any], str, list[tuple[str | None, str]]]]:
    """Body, headers, code and details."""
    image, other = service.image(), service.image()
    id_ = image["id"]
    yield {"id": id_, "name": " x"}, {}, "InvalidParameter", [("name", "white_space")]
    yield (
        {"id": id_, "name": None, "size": 1},
        {},
        "InvalidParameter",
        [("name", "null_not_allowed"), ("size", "unknown_field")],
    )
    yield {"id": id_, "self": 1}, {}, "InvalidParameter", [("self", "unknown_field")]
    yield {}, {}, "InvalidParameter", [("id", "missing")]
    yield {"id": id_, "source_path": image["source_path"]}, {}, "InvalidParameter", [("source_path", "read_only")]
    yield {"id": id_}, {"if_revision": "1"}, "InvalidParameter", [("if_revision", "wrong_type")]
    yield {"id": id_}, {"if_revision": True}, "InvalidParameter", [("if_revision", "wrong_type")]
    yield {"id": 10**9}, {}, "ImageNotFound", []
    yield {"id": id_, "name": other["name"]}, {}, "ImageNameExists", [("name", "taken")]
    yield {"id": id_, "name": f"new-{id_}"}, {"if_revision": 2}, "PreconditionFailed", []


def test_each_refusal_by_plain_celery(service: Service) -> None:
    for body, headers, code, details in refusals(service):
        result = service.send(body, headers=headers)
        document = result.get(timeout=PATIENCE)
        assert refusal_in(document) == (code, details)
        assert (document["status"], document["error"]["message"]) == (
            contract.CODES[code].status,
            contract.CODES[code].message,
        )
        assert document["digest"] == contract.digest_of(body)
        assert result.state == "SUCCESS"


def test_each_refusal_by_our_client(service: Service) -> None:
    image, other = service.image(), service.image()
    update, id_ = service.client.update, image["id"]
    with pytest.raises(InvalidParameter) as invalid:
        update(id_, name=" x", os_type="bsd")
    assert [(d.field, d.reason) for d in invalid.value.details] == [
        ("name", "white_space"),
        ("os_type", "value_not_allowed"),
    ]
    with pytest.raises(ImageNotFound):
        update(10**9, description="x")
    with pytest.raises(ImageNameExists) as taken:
        update(id_, name=other["name"])
    assert "镜像名称已存在" in str(taken.value)
    with pytest.raises(PreconditionFailed):
        update(id_, description="x", if_revision=9)
    with pytest.raises(InternalError) as fault:
        update(id_, name=f"poison-{id_}")
    assert fault.value.retry == "backoff"
    assert SECRET not in str(fault.value)
    assert stored_image(service.database, id_) == image


def test_positional_arguments_are_refused(service: Service) -> None:
    result = service.celery.send_task(contract.TASK, args=[1, "x"], queue=contract.QUEUE)
    assert refusal_in(result.get(timeout=PATIENCE)) == ("InvalidParameter", [(None, "malformed_message")])


def test_a_fault_is_a_failure_that_says_nothing_of_its_cause(service: Service) -> None:
    image, queue = service.image(), own_queue()
    result = service.send({"id": image["id"], "name": f"poison-{image['id']}"}, reply_to=queue)
    with pytest.raises(InternalError, match=r"^内部错误$"):
        result.get(timeout=PATIENCE)
    record = service.stored(result.id)
    assert (record["status"], record["traceback"]) == ("FAILURE", None)
    assert record["result"] == {
        "exc_type": "InternalError",
        "exc_message": ["内部错误"],
        "exc_module": "aries_images.errors",
    }
    [event] = service.wait_for_events(result.id, queue=queue)
    assert event["body"]["type"] == "aries.image.update_failed"
    assert event["body"]["data"]["error"] == {
        "code": "InternalError",
        "message": "内部错误",
        "retry": "backoff",
        "details": [],
    }
    for text in (json.dumps(record), json.dumps(event)):
        assert not [word for word in (SECRET, "UPDATE", "Traceback", "sqlalchemy", "psycopg") if word in text]
    assert result.id not in ledger(service.database)
    assert stored_image(service.database, image["id"]) == image


# --- where the answer is ---


def test_a_result_is_as_celery_writes_it_and_expires(service: Service) -> None:
    document = service.ask({"id": service.image()["id"]})
    record = service.stored(document["request_id"])
    assert record.pop("date_done") <= datetime.now(UTC).isoformat()
    assert record == {
        "status": "SUCCESS",
        "result": document,
        "traceback": None,
        "children": [],
        "task_id": document["request_id"],
    }
    assert all(0 < service.results.ttl(key) <= 600 for key in service.results.keys("celery-task-meta-*"))


def test_the_event_of_who_names_no_queue_is_on_the_common_one(service: Service) -> None:
    document = service.ask({"id": service.image()["id"], "description": "new"})
    [event] = service.wait_for_events(document["request_id"])
    assert event["body"] == {
        "specversion": "1.0",
        "id": document["request_id"],
        "source": "/aries/images",
        "type": "aries.image.updated",
        "subject": f"image/{document['image']['id']}",
        "time": event["body"]["time"],
        "datacontenttype": "application/json",
        "data": document,
    }
    assert event["content-type"] == "application/json"
    assert event["properties"]["correlation_id"] == document["request_id"]
    headers = event["headers"]
    assert list(headers) == ["replayed", "attempt", "queue_ms", "commit_ms", "worker", "traceparent"]
    assert (headers["replayed"], headers["attempt"], headers["traceparent"]) == (False, 1, None)
    assert 0 <= headers["queue_ms"] < PATIENCE * 1000
    assert 0 <= headers["commit_ms"] < PATIENCE * 1000
    assert "@" in headers["worker"]


def test_the_event_is_on_the_queue_that_the_caller_names(service: Service) -> None:
    queue = own_queue()
    options: dict[str, Any] = {"reply_to": queue, "correlation_id": "order-7", "headers": {"traceparent": TRACE}}
    document = service.ask({"id": service.image()["id"], "description": "x"}, **options)
    [event] = service.wait_for_events(document["request_id"], queue=queue)
    assert event["headers"]["traceparent"] == TRACE
    assert service.events(request_id=document["request_id"]) == []
    assert stored_revisions(service.database, document["image"]["id"])[0]["traceparent"] == TRACE
    assert event["properties"]["correlation_id"] == "order-7"


def test_the_event_can_be_read_by_any_kombu_consumer(service: Service) -> None:
    queue = own_queue()
    document = service.ask({"id": service.image()["id"]}, reply_to=queue)
    with Connection(service.broker_url) as connection, connection.SimpleQueue(queue) as events:
        event = events.get(timeout=5)
        assert event.payload["data"] == document
        event.ack()


def test_the_event_can_be_read_by_our_client(service: Service) -> None:
    queue, image = own_queue(), service.image()
    with ImageClient(service.broker_url, service.result_url, reply_to=queue) as client:
        client.update(image["id"], description="x")
        [event] = client.replies(queue, timeout=0.5)
    assert event.image is not None
    assert event.image.description == "x"


@pytest.mark.parametrize("name", ["image.update", "celery", "image.replies.billing", "image.replies.anonymous2"])
def test_no_event_is_pushed_to_a_queue_that_is_not_the_callers(service: Service, name: str) -> None:
    result = service.send({"id": service.image()["id"], "description": "x"}, reply_to=name)
    assert refusal_in(result.get(timeout=PATIENCE)) == ("InvalidParameter", [("reply_to", "reply_to_not_allowed")])
    assert len(service.wait_for_events(result.id)) == 1
    until(lambda: service.broker.llen(name) == 0)


def test_reply_queues_are_bounded_and_go_away(service: Service) -> None:
    queue, id_ = own_queue(), service.image()["id"]
    results = [service.send({"id": id_, "description": str(number)}, reply_to=queue) for number in range(25)]
    assert all(result.get(timeout=PATIENCE)["status"] == 200 for result in results)
    until(lambda: results[-1].id in [event["body"]["id"] for event in service.events(queue)])
    assert service.broker.llen(queue) == 20
    assert 0 < service.broker.ttl(queue) <= 300
    assert 0 < service.broker.ttl("image.replies") <= 300


def test_who_ignores_the_result_gets_the_event_alone(service: Service) -> None:
    queue = own_queue()
    result = service.send({"id": service.image()["id"]}, ignore_result=True, reply_to=queue)
    service.wait_for_events(result.id, queue=queue)
    assert not service.results.exists(contract.RESULT_KEY_PREFIX + result.id)


# --- the same request again ---


def test_a_resend_gets_the_same_reply_and_changes_nothing(service: Service) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    body = {"id": image["id"], "name": f"new-{image['id']}"}
    first = service.ask(body, task_id=request_id)
    service.ask({"id": image["id"], "name": f"newer-{image['id']}"})
    service.results.delete(contract.RESULT_KEY_PREFIX + request_id)
    assert service.ask(body, task_id=request_id) == first
    assert service.client.update(**body, request_id=request_id).name == body["name"]
    events = service.wait_for_events(request_id, 3)
    assert {json.dumps(event["body"]["data"]) for event in events} == {json.dumps(first)}
    assert len(stored_revisions(service.database, image["id"])) == 2


def test_an_id_with_another_body_is_refused_and_the_stored_result_stays(service: Service) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    first = service.ask({"id": image["id"], "description": "first"}, task_id=request_id)
    kept = service.stored(request_id)
    queue = own_queue()
    service.send({"id": image["id"], "description": "second"}, task_id=request_id, reply_to=queue)
    [event] = service.wait_for_events(request_id, queue=queue)
    assert refusal_in(event["body"]["data"]) == ("InvalidParameter", [(None, "request_id_reused")])
    assert service.stored(request_id) == kept
    assert kept["result"] == first
    with pytest.raises(InvalidParameter) as reused:
        service.client.update(image["id"], description="second", request_id=request_id)
    assert [detail.reason for detail in reused.value.details] == ["request_id_reused"]
    assert service.client.update(image["id"], description="first", request_id=request_id).revision == 2
    assert len(stored_revisions(service.database, image["id"])) == 1


def test_a_refusal_that_is_kept_takes_the_place_of_a_fault(service: Service) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    bad = {"id": image["id"], "name": f"poison-{image['id']}"}
    with pytest.raises(InternalError):
        service.ask(bad, task_id=request_id)
    assert service.stored(request_id)["status"] == "FAILURE"
    good = {"id": image["id"], "description": "x"}
    service.send(good, task_id=request_id)
    until(lambda: service.stored(request_id)["status"] == "SUCCESS")
    assert service.stored(request_id)["result"]["revision"] == 2


# --- deadlines ---


def test_an_expired_request_is_answered_and_stays_expired(service: Service) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    body = {"id": image["id"], "description": "late"}
    past = datetime.now(UTC) - timedelta(seconds=1)
    document = service.ask(body, task_id=request_id, expires=past)
    assert refusal_in(document) == ("DeadlineExceeded", [])
    assert (document["status"], document["error"]["retry"]) == (504, "new_request")
    assert service.ask(body, task_id=request_id) == document
    with pytest.raises(DeadlineExceeded):
        service.client.update(**body, request_id=request_id)
    assert stored_image(service.database, image["id"]) == image


def test_a_request_in_time_is_applied(service: Service) -> None:
    assert service.ask({"id": service.image()["id"], "description": "x"}, expires=60)["revision"] == 2


def test_a_revoked_request_is_answered_and_never_applied(service: Service) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    service.celery.control.revoke(request_id, reply=True, timeout=0.5)
    service.send({"id": image["id"], "description": "x"}, task_id=request_id)
    [event] = service.wait_for_events(request_id)
    assert refusal_in(event["body"]["data"]) == ("DeadlineExceeded", [])
    # Celery stores REVOKED when it is told so; the answer takes its place.
    assert service.stored(request_id)["result"] == event["body"]["data"]
    assert stored_image(service.database, image["id"]) == image


# --- many ---


def test_many_requests_at_once_are_all_answered_and_none_is_left(service: Service) -> None:
    ids = [service.image()["id"] for _ in range(5)]
    results = [service.send({"id": ids[number % 5], "description": str(number)}) for number in range(60)]
    assert [result.get(timeout=PATIENCE)["status"] for result in results] == [200] * 60
    for id_ in ids:
        revisions = stored_revisions(service.database, id_)
        assert [row["revision"] for row in revisions] == list(range(2, 14))
    until(service.is_idle)
