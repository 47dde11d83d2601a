"""Two worker processes and one request: whichever takes it, and however often it comes, it is applied once."""

import json
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from aries_images import contract
from tests.builders import a_message, refusal_in, stored_image, stored_revisions
from tests.integration.conftest import NewDatabase
from tests.service import PATIENCE, Service, service_at
from tests.workers import running_worker, until


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def service(
    request: pytest.FixtureRequest, module_redis: tuple[str, str], new_database: NewDatabase
) -> Iterator[Service]:
    """One worker with the default pool, one with prefork."""
    with (
        service_at(*module_redis, new_database(request.param)) as service,
        running_worker(service.environment),
        running_worker(service.environment, pool="prefork", concurrency=2),
    ):
        yield service


def copies(body: dict[str, object], request_id: str, number: int) -> list[str]:
    return [a_message(body, headers={"id": request_id})[1] for _ in range(number)]


def waiting(connection: psycopg.Connection) -> int:
    """How many transactions wait for a lock."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    [(number,)] = connection.execute(asked).fetchall()
    return int(number)


def test_one_request_many_times_at_once_is_applied_once(service: Service) -> None:
    image = service.image()
    for round_ in range(5):
        request_id = str(uuid.uuid4())
        body = {"id": image["id"], "description": str(round_)}
        service.push(*copies(body, request_id, 8))
        events = service.wait_for_events(request_id, 8)
        assert len({json.dumps(event["body"]["data"]) for event in events}) == 1
        assert sorted(event["headers"]["replayed"] for event in events) == [False] + [True] * 7
        assert service.stored(request_id)["result"] == events[0]["body"]["data"]
    assert [row["revision"] for row in stored_revisions(service.database, image["id"])] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("service", ["postgresql"], indirect=True)  # by a row lock, which SQLite has not
def test_both_workers_at_one_request_at_the_same_moment(service: Service) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    url = service.database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    sent = 0
    with psycopg.connect(url) as lock, psycopg.connect(url, autocommit=True) as look:
        lock.execute("SELECT FROM images WHERE id = %s FOR UPDATE", [image["id"]])
        while waiting(look) < 2:
            assert sent < 50
            service.push(*copies({"id": image["id"], "description": "x"}, request_id, 1))
            sent += 1
            until(lambda: not service.broker.llen(contract.QUEUE))
        lock.rollback()
        events = service.wait_for_events(request_id, sent)
    assert len({json.dumps(event["body"]["data"]) for event in events}) == 1
    assert sum(not event["headers"]["replayed"] for event in events) == 1
    assert stored_image(service.database, image["id"])["revision"] == 2


def test_two_bodies_under_one_id_at_once_are_one_request(service: Service) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    bodies = [{"id": image["id"], "description": text} for text in ("one", "other")]
    service.push(*[entry for _ in range(4) for body in bodies for entry in copies(body, request_id, 1)])
    documents = [event["body"]["data"] for event in service.wait_for_events(request_id, 8)]
    good = [document for document in documents if document["status"] == 200]
    bad = [document for document in documents if document["status"] != 200]
    assert len(good) == len(bad) == 4
    assert good == [good[0]] * 4
    assert refusal_in(bad[0]) == ("InvalidParameter", [(None, "request_id_reused")])
    assert {document["digest"] for document in bad} == {
        contract.digest_of(body) for body in bodies if body["description"] != good[0]["image"]["description"]
    }
    assert service.stored(request_id)["result"] == good[0], "what is not kept never takes the place of what is"
    assert stored_image(service.database, image["id"])["description"] == good[0]["image"]["description"]
    assert stored_image(service.database, image["id"])["revision"] == 2


def test_one_request_one_after_the_other_is_replayed(service: Service) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    body = {"id": image["id"], "description": "x"}
    documents = [service.send(body, task_id=request_id).get(timeout=PATIENCE) for _ in range(6)]
    assert documents == [documents[0]] * 6
    events = service.wait_for_events(request_id, 6)
    assert {event["headers"]["replayed"] for event in events[1:]} == {True}
    assert len(stored_revisions(service.database, image["id"])) == 1
