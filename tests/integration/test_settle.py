"""Settling: what is said of a request, once it is said for good, stays true, whatever else is on its way."""

import json
import random
import uuid
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from operator import itemgetter

import pytest

from aries_images import DeadlineExceeded, ImageNameExists, InvalidParameter, contract
from tasks.apply_updates import FENCE, Request
from tests.builders import a_message, a_request, again, an_image, decide, ledger, load, stored_image, stored_revisions
from tests.integration.conftest import NewDatabase
from tests.service import Service, service_at
from tests.workers import running_worker, until
from worker.database import Database

LONG_AGO = datetime.now(UTC) - timedelta(days=1)


def settling(request: Request) -> Request:
    """A settlement of `request`."""
    return Request(request.id, None, request.caller, FENCE)


# --- in the transaction ---


def test_what_is_settled_before_it_comes_is_never_applied(shared_database: Database) -> None:
    request = a_request(1, description="late")
    [settled, came, again_settled] = decide([settling(request), request, settling(request)], shared_database)
    assert (settled.code, settled.stored, settled.replayed) == ("DeadlineExceeded", True, False)
    assert settled.document["digest"] is None, "the body is not known"
    assert settled.text == came.text == again_settled.text
    assert came.replayed
    assert stored_revisions(shared_database) == []


def test_a_fence_holds_for_every_body(shared_database: Database) -> None:
    request = a_request(1, description="late")
    decide([settling(request)], shared_database)
    [reply] = decide([again(request, description="another")], shared_database)
    assert reply.code == "DeadlineExceeded"


def test_what_was_answered_is_settled_with_that_answer(shared_database: Database) -> None:
    requests = [a_request(404), a_request(1, name=" x"), replace(a_request(1, name="x"), deadline=LONG_AGO)]
    for request, reply in zip(requests, decide(requests, shared_database), strict=True):
        [settled] = decide([settling(request)], shared_database)
        assert (settled.text, settled.replayed) == (reply.text, True)


def test_another_caller_settles_nothing(shared_database: Database) -> None:
    request = a_request(404)
    decide([request], shared_database)
    [reply] = decide([replace(settling(request), caller="mallory")], shared_database)
    assert (reply.code, reply.stored) == ("Forbidden", False)


@pytest.mark.parametrize("seed", range(4))
def test_settled_as_not_applied_implies_never_applied(database_url: str, seed: int) -> None:
    """Requests, resends, expired resends and settlements of hundreds of ids in every order, four threads at once."""
    database = Database(database_url)
    choices = random.Random(seed)
    load(database, an_image(1))
    placed: list[tuple[float, Request]] = []
    for number in range(400):
        request = a_request(1, description=f"{seed}-{number}")
        kinds = [request, request, replace(request, deadline=LONG_AGO), settling(request), settling(request)]
        # Near each other, so that they meet, but over the border of a batch or a thread.
        placed += [(number + choices.uniform(0, 10), each) for each in choices.sample(kinds, choices.randint(2, 5))]
    work = [request for _, request in sorted(placed, key=itemgetter(0))]
    batches = [work[start : start + size] for start, size in cuts(len(work), choices)]
    with ThreadPoolExecutor(4) as threads:
        replies = [
            reply for answered in threads.map(lambda batch: decide(batch, database, 30), batches) for reply in answered
        ]

    said = defaultdict(set)
    for reply in replies:
        said[reply.request_id].add(reply.text)
    assert all(len(texts) == 1 for texts in said.values()), "one value for each id"
    applied = {row["request_id"] for row in stored_revisions(database, 1)}
    succeeded = {id_ for id_, [text] in said.items() if json.loads(text)["status"] == 200}
    assert applied == succeeded
    assert 0 < len(applied) < len(said), "both happen"
    assert {id_: row["reply"] for id_, row in ledger(database).items()} == {id_: text for id_, [text] in said.items()}
    database.close()


def cuts(length: int, choices: random.Random) -> Iterator[tuple[int, int]]:
    start = 0
    while start < length:
        size = choices.choice((1, 1, 2, 5, 20))
        yield start, size
        start += size


# --- through the queue ---


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def service(
    request: pytest.FixtureRequest, module_redis: tuple[str, str], new_database: NewDatabase
) -> Iterator[Service]:
    """One worker with the default pool, one with threads."""
    with (
        service_at(*module_redis, new_database(request.param)) as service,
        running_worker(service.environment),
        running_worker(service.environment, pool="threads", concurrency=2),
    ):
        yield service


def test_the_client_settles(service: Service) -> None:
    image, other = service.image(), service.image()
    client, ids = service.client, [str(uuid.uuid4()) for _ in range(3)]
    applied = client.update(image["id"], description="x", request_id=ids[0])
    assert client.settle(ids[0]) == applied
    with pytest.raises(ImageNameExists) as refused:
        client.update(image["id"], name=other["name"], request_id=ids[1])
    with pytest.raises(ImageNameExists) as settled:
        client.settle(ids[1])
    assert str(settled.value) == str(refused.value)
    for _ in range(2):
        with pytest.raises(DeadlineExceeded) as fenced:
            client.settle(ids[2])
        assert fenced.value.request_id == ids[2]
    with pytest.raises(DeadlineExceeded):
        client.update(image["id"], description="late", request_id=ids[2])
    assert stored_image(service.database, image["id"])["revision"] == 2


def test_an_id_that_is_none_is_not_settled(service: Service) -> None:
    with pytest.raises(InvalidParameter):
        service.client.settle("not an id")


@pytest.mark.parametrize(
    "kwargs", [{}, {"request_id": "a b"}, {"request_id": 7}, {"request_id": "x", "id": 1}, {"request_id": None}]
)
def test_a_settlement_that_names_no_request_is_refused(service: Service, kwargs: dict[str, object]) -> None:
    request_id, entry = a_message(kwargs, headers={"task": contract.SETTLE_TASK})
    service.push(entry)
    reply = service.stored(request_id)["result"]
    assert (reply["request_id"], reply["error"]["code"]) == (request_id, "InvalidParameter")


def test_a_settlement_is_answered_under_its_own_id_and_published_under_the_requests(service: Service) -> None:
    asked, settles = str(uuid.uuid4()), str(uuid.uuid4())
    service.push(a_message({"request_id": asked}, headers={"task": contract.SETTLE_TASK, "id": settles})[1])
    reply = service.stored(settles)["result"]
    assert (reply["request_id"], reply["status"]) == (asked, 504)
    [event] = service.wait_for_events(asked)
    assert event["body"]["data"] == reply


def test_requests_and_settlements_on_their_way_to_two_workers(service: Service) -> None:
    choices = random.Random(1)
    image = service.image()
    ids = [str(uuid.uuid4()) for _ in range(150)]
    settlements: dict[str, str] = {}
    entries: list[tuple[float, str]] = []
    for number, request_id in enumerate(ids):
        body = {"id": image["id"], "description": str(number)}
        own_id, settlement = a_message({"request_id": request_id}, headers={"task": contract.SETTLE_TASK})
        settlements[own_id] = request_id
        twice = [a_message(body, headers={"id": request_id})[1] for _ in range(2)]
        entries += [(number + choices.uniform(0, 20), entry) for entry in (settlement, *twice)]
    for _, entry in sorted(entries):
        service.push(entry)
    settled = {request_id: service.stored(own_id)["result"] for own_id, request_id in settlements.items()}
    until(service.is_idle, 15)
    applied = {row["request_id"] for row in stored_revisions(service.database, image["id"])}
    assert applied == {request_id for request_id, reply in settled.items() if reply["status"] == 200}
    for request_id in ids:
        assert service.stored(request_id)["result"] == settled[request_id]
