"""RabbitMQ counts deliveries, the worker believes no one else; and the HTTP gateway over RabbitMQ."""

import json
import uuid
from collections.abc import Iterator

import pytest
from kombu import Connection, Queue
from redis import Redis

from aries_images import ImageClient, contract
from tests.builders import an_image, load, stored_image
from tests.gateways import running_gateway
from tests.servers import RabbitServer
from tests.workers import running_worker, until
from worker.amqp import DEAD_QUEUE
from worker.database import Database


class Village:
    """RabbitMQ with nothing in it, and no worker yet."""

    def __init__(self, broker_url: str, result_url: str, database_url: str) -> None:
        self.broker_url, self.result_url = broker_url, result_url
        self.environment = {
            "ARIES_AUTH": "off",
            "ARIES_BROKER_URL": broker_url,
            "ARIES_RESULT_URL": result_url,
            "ARIES_DATABASE_URL": database_url,
        }
        self.database = Database(database_url)
        load(self.database, an_image(1))

    def queue(self, connection: Connection, name: str) -> Queue:
        queue = Queue(name, channel=connection.default_channel, queue_arguments=contract.AMQP_ARGUMENTS)
        queue.declare()
        return queue

    def deliver(self, times: int) -> None:
        """Have the one request in the queue delivered so often to somebody who is gone before it is answered."""
        for _ in range(times):
            with Connection(self.broker_url) as connection:
                queue = self.queue(connection, contract.QUEUE)
                until(queue.get)

    def result(self, request_id: str) -> dict[str, object]:
        key = contract.RESULT_KEY_PREFIX + request_id
        with Redis.from_url(self.result_url) as results:
            until(lambda: results.exists(key), 20)
            record: dict[str, object] = json.loads(results.get(key) or b"")
        return record


@pytest.fixture
def village(rabbit_server: RabbitServer, result_url: str, sqlite_url: str) -> Iterator[Village]:
    village = Village(rabbit_server.url, result_url, sqlite_url)
    with Connection(rabbit_server.url) as connection:
        for name in contract.QUEUES:
            village.queue(connection, name).purge()
        connection.default_channel.queue_delete(DEAD_QUEUE)
    yield village
    village.database.close()


@pytest.fixture
def client(village: Village) -> Iterator[ImageClient]:
    reply_to = f"{contract.REPLY_QUEUE_PREFIX}{contract.ANONYMOUS}.{uuid.uuid4()}"
    with ImageClient(village.broker_url, village.result_url, reply_to=reply_to) as client:
        yield client


def test_a_redelivery_is_counted(village: Village) -> None:
    reply_to = f"{contract.REPLY_QUEUE_PREFIX}{contract.ANONYMOUS}.{uuid.uuid4()}"
    with ImageClient(village.broker_url, village.result_url, reply_to=reply_to) as client:
        pending = client.submit(1, description="the third time")
        village.deliver(2)
        with running_worker(village.environment):
            assert pending.result().description == "the third time"
            events = client.replies(reply_to, timeout=10)
            assert next(events).headers["attempt"] == 3
            events.close()  # type: ignore[attr-defined]


def test_what_is_delivered_too_often_is_given_up_on(village: Village, client: ImageClient) -> None:
    pending = client.submit(1, description="a killer")
    village.deliver(5)
    with running_worker(village.environment):
        record = village.result(pending.request_id)
        assert record["status"] == "FAILURE"
        with Connection(village.broker_url) as connection:
            dead = Queue(DEAD_QUEUE, channel=connection.default_channel)
            found: list[object] = []
            until(lambda: found or found.extend(filter(None, [dead.get(no_ack=True)])))
    [letter] = found
    assert letter.headers["reason"] == "delivered_too_often"  # type: ignore[attr-defined]
    assert stored_image(village.database, 1)["revision"] == 1


def test_the_gateway_over_rabbitmq(village: Village) -> None:
    with running_worker(village.environment), running_gateway(village.broker_url, village.result_url) as gateway:
        answer = gateway.put({"id": 1, "description": "by HTTP"}, authorization="Bearer x")
        assert (answer.status, stored_image(village.database, 1)["description"]) == (200, "by HTTP")
        assert gateway.put({"id": 7}, authorization="Bearer x").status == 404
