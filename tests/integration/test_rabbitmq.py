"""RabbitMQ as the broker, with quorum queues, chosen by the URL alone: callers see no difference."""

import asyncio
import json
import re
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
from amqp.exceptions import NotFound
from celery import Celery
from kombu import Connection, Queue
from redis import Redis

from aries_images import (
    DeadlineExceeded,
    ImageClient,
    ImageNameExists,
    ImageNotFound,
    InvalidParameter,
    contract,
)
from aries_images.aio import AsyncImageClient
from tests.builders import an_image, load, stored_image, stored_revisions
from tests.integration.conftest import NewDatabase
from tests.running import peak_memory
from tests.servers import RabbitServer
from tests.workers import Worker, running_worker, until
from worker.amqp import DEAD_QUEUE
from worker.database import Database
from worker.embedded import free_port

PATIENCE = 20.0
#: Where the worker serves its figures.
METRICS = free_port()
OWN_QUEUE = contract.REPLY_QUEUE_PREFIX + contract.ANONYMOUS
GOOD = '[[], {"id": 1}, {}]'


class Town:
    """RabbitMQ, results in Redis, a database with images, a worker; and what callers do."""

    worker: Worker

    def __init__(self, broker_url: str, result_url: str, database_url: str) -> None:
        self.broker_url, self.result_url, self.database_url = broker_url, result_url, database_url
        self.database = Database(database_url)
        self.results = Redis.from_url(result_url)
        self.client = ImageClient(broker_url, result_url, reply_to=OWN_QUEUE)
        load(self.database, *(an_image(number) for number in range(1, 501)))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ARIES_AUTH": "off",
            "ARIES_BROKER_URL": self.broker_url,
            "ARIES_RESULT_URL": self.result_url,
            "ARIES_DATABASE_URL": self.database_url,
            "ARIES_METRICS_PORT": str(METRICS),
        }

    def close(self) -> None:
        self.client.close()
        self.results.close()
        self.database.close()

    def send(
        self, body: Any, headers: Mapping[str, Any] | None = None, queue: str = contract.QUEUE, **properties: Any
    ) -> str:
        """A message with any body and headers; its request id."""
        request_id = str(uuid.uuid4())
        given = {"task": contract.TASK, "id": request_id} | dict(headers or {})
        properties = {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "reply_to": OWN_QUEUE,
        } | properties
        with Connection(self.broker_url) as connection:
            there = Queue(queue, queue_arguments=contract.AMQP_ARGUMENTS)
            connection.Producer().publish(
                body,
                routing_key=queue,
                declare=[there],
                headers={name: value for name, value in given.items() if value is not None},
                **properties,
            )
        return request_id

    def record(self, request_id: str) -> dict[str, Any]:
        key = contract.RESULT_KEY_PREFIX + request_id
        until(lambda: self.results.exists(key), PATIENCE)
        record: dict[str, Any] = json.loads(self.results.get(key) or b"")
        return record

    def take(self, queue: str) -> Any:
        """The next message of a queue, for good; None where there is none."""
        with Connection(self.broker_url) as connection, suppress(NotFound):
            return Queue(queue, channel=connection.default_channel).get(no_ack=True)

    def forget_letters(self) -> None:
        with Connection(self.broker_url) as connection, suppress(NotFound):
            connection.default_channel.queue_purge(DEAD_QUEUE)


def until_some(look: Callable[[], Any]) -> Any:
    found: list[Any] = []
    until(lambda: found or found.extend(filter(None, [look()])), PATIENCE)
    return found[0]


@pytest.fixture(scope="module", params=[None, "threads", "prefork"], ids=["default", "threads", "prefork"])
def town(
    request: pytest.FixtureRequest,
    rabbit_server: RabbitServer,
    module_redis: tuple[str, str],
    new_database: NewDatabase,
) -> Iterator[Town]:
    town = Town(rabbit_server.url, module_redis[1], new_database("postgresql"))
    with running_worker(town.environment, pool=request.param, concurrency=1) as town.worker:
        yield town
    town.close()


def test_an_update_is_applied_and_answered(town: Town) -> None:
    image = town.client.update(1, name="CentOS-7.9-x64-updated", description="over RabbitMQ")
    assert (image.name, image.revision) == ("CentOS-7.9-x64-updated", 2)
    assert stored_image(town.database, 1)["name"] == image.name


def test_refusals_and_resends_are_what_they_always_are(town: Town) -> None:
    with pytest.raises(InvalidParameter):
        town.client.update(2, os_type="bsd")  # type: ignore[arg-type]
    with pytest.raises(ImageNotFound):
        town.client.update(10_000, description="x")
    with pytest.raises(ImageNameExists):
        town.client.update(2, name=stored_image(town.database, 3)["name"])
    request_id = str(uuid.uuid4())
    first = town.client.update(2, description="once", request_id=request_id)
    assert town.client.update(2, description="once", request_id=request_id) == first
    assert len(stored_revisions(town.database, 2)) == 1
    assert town.client.settle(request_id) == first
    with pytest.raises(DeadlineExceeded):
        town.client.settle("never-sent")


def test_many_at_once_are_answered_each_for_itself(town: Town) -> None:
    async def update_all() -> list[int]:
        async with AsyncImageClient(town.broker_url, town.result_url) as client:
            done = await asyncio.gather(*(client.update(image, description="at once") for image in range(101, 301)))
        return [image.id for image in done]

    assert asyncio.run(update_all()) == [*range(101, 301)]


@pytest.mark.parametrize("town", [None], indirect=True, ids=["default"])
def test_what_waits_is_committed_together(town: Town) -> None:
    sent = [town.send(json.dumps([[], {"id": image, "description": "batch"}, {}])) for image in range(301, 331)]
    for request_id in sent:
        assert town.record(request_id)["result"]["status"] == 200
    ids = ",".join(f"'{one}'" for one in sent)
    with town.database.engine.connect() as connection:
        found = connection.exec_driver_sql(
            f"SELECT count(DISTINCT xmin::text), count(*) FROM image_revisions WHERE request_id IN ({ids})"  # noqa: S608
        ).one()
    assert found[1] == len(sent) >= found[0]


def test_reply_events_are_read_whoever_comes_first(town: Town) -> None:
    for queue in (f"{OWN_QUEUE}.{uuid.uuid4()}", contract.REPLY_QUEUE):
        with ImageClient(town.broker_url, town.result_url, reply_to=queue) as client:
            pending = [client.submit(4, description=f"event {number}") for number in range(3)]
            ids = {each.request_id for each in pending}
            assert all(each.result().id == 4 for each in pending)
            found = {event.id for event in client.replies(queue, timeout=2)}
            assert ids <= found
    early, seen = f"{OWN_QUEUE}.{uuid.uuid4()}", []
    with ImageClient(town.broker_url, town.result_url, reply_to=early) as client:
        events = client.replies(early, timeout=PATIENCE)
        pending_ = client.submit(4, description="the reader was first")
        seen.append(next(events).id)
        events.close()  # type: ignore[attr-defined]
    assert seen == [pending_.request_id]


def test_a_reader_may_declare_his_queue_as_he_likes(town: Town) -> None:
    name = f"{OWN_QUEUE}.{uuid.uuid4()}"
    with Connection(town.broker_url) as connection:
        queue = connection.SimpleQueue(name)
        request_id = town.send(GOOD, reply_to=name)
        message = queue.get(timeout=PATIENCE)
        message.ack()
        assert json.loads(message.body)["id"] == request_id
        assert message.properties["correlation_id"] == request_id
        queue.close()


def test_a_stock_celery_caller_needs_one_setting(town: Town) -> None:
    with Celery(broker=town.broker_url, backend=town.result_url, set_as_current=False) as app:
        app.conf.task_create_missing_queue_type = "quorum"
        for queue in contract.QUEUES:
            reply = app.send_task(contract.TASK, kwargs={"id": 5, "description": queue}, queue=queue).get(
                timeout=PATIENCE
            )
            assert reply["image"]["description"] == queue


def test_figures_of_the_queue_are_left_to_rabbitmq(town: Town) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=5) as response:
        figures = response.read().decode()
    assert "aries_last_reply_age_seconds" in figures
    assert "aries_alive 1.0" in figures
    assert not re.search("aries_(broker|waiting|oldest|leases|dead)", figures)
    del town


def test_both_lanes_are_served(town: Town) -> None:
    assert town.record(town.send(GOOD, queue=contract.BULK_QUEUE))["result"]["status"] == 200


ANSWERED: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "not JSON": ("{'id': 1}", {}, {}),
    "invalid UTF-8": (b'[[], {"name": "\xff"}, {}]', {}, {"content_encoding": "binary"}),
    "an empty body": ("", {}, {}),
    "two parts": ('[[], {"id": 1}]', {}, {}),
    "the seed's own body": ('{"id": 1}', {}, {}),
    "pickle": (GOOD, {}, {"content_type": "application/x-python-serialize"}),
    "no content type": (GOOD, {}, {"content_type": None}),
    "compressed": (GOOD, {"compression": "application/x-gzip"}, {}),
    "expires that is a number": (GOOD, {"expires": 1}, {}),
    "an unknown task": (GOOD, {"task": "os.system"}, {}),
    "no task": (GOOD, {"task": None}, {}),
}


@pytest.mark.parametrize(("body", "headers", "properties"), [*ANSWERED.values()], ids=[*ANSWERED])
def test_what_is_no_request_is_answered_so(
    town: Town, body: Any, headers: dict[str, Any], properties: dict[str, Any]
) -> None:
    reply = town.record(town.send(body, headers, **properties))["result"]
    assert reply["error"]["code"] == "InvalidParameter"
    assert [detail["reason"] for detail in reply["error"]["details"]] == ["malformed_message"]
    assert town.client.update(1).id == 1


@pytest.mark.parametrize("town", [None], indirect=True, ids=["default"])
@pytest.mark.parametrize("request_id", ["answered", None])
def test_what_is_compressed_stays_so(town: Town, request_id: str | None) -> None:
    bomb = zlib.compress(bytes(300 << 20), level=1)
    town.forget_letters()
    before = peak_memory(town.worker)
    sent = town.send(bomb, {"compression": "application/x-gzip"} | ({} if request_id else {"id": None}))
    if request_id:
        assert town.record(sent)["result"]["error"]["code"] == "InvalidParameter"
    assert town.client.update(1).id == 1
    assert peak_memory(town.worker) - before < 50 << 20
    kept = until_some(lambda: town.take(DEAD_QUEUE))
    assert bytes(kept.body) == bomb


def test_what_cannot_be_answered_is_kept(town: Town) -> None:
    town.forget_letters()
    town.send("nobody's", {"id": None, "x": 1})
    letter = until_some(lambda: town.take(DEAD_QUEUE))
    assert (letter.body, letter.headers["reason"], letter.headers["list"]) == ("nobody's", "no_id", contract.QUEUE)
    assert letter.headers["message-headers"]["x"] == 1
    assert town.client.update(1).id == 1


def test_deliveries_are_counted_by_the_broker_alone(town: Town) -> None:
    name = f"{OWN_QUEUE}.{uuid.uuid4()}"
    town.send(GOOD, {"deliveries": 99, "x-delivery-count": 99}, reply_to=name)
    message = until_some(lambda: town.take(name))
    assert message.headers["attempt"] == 1
