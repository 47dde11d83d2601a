"""The service as its callers and its operator see it: two Redis databases, a database, and workers started beside."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from celery.result import AsyncResult
from redis import Redis

from aries_images import ImageClient, contract
from tests.builders import Row, an_image, load
from tests.workers import until
from worker.database import Database

#: Seconds that a caller waits.
PATIENCE = 15.0

Event = dict[str, Any]


class Service:
    """What a test does as a caller, and what it can look at as an operator.

    Attributes:
        celery: an application that knows nothing of ours: how a caller without our client calls.
        client: our client.
    """

    def __init__(self, broker_url: str, result_url: str, database_url: str) -> None:
        self.broker_url, self.result_url = broker_url, result_url
        self.environment = {
            "ARIES_AUTH": "off",
            "ARIES_BROKER_URL": broker_url,
            "ARIES_RESULT_URL": result_url,
            "ARIES_DATABASE_URL": database_url,
        }
        self.database = Database(database_url)
        self.celery = Celery(broker=broker_url, backend=result_url, set_as_current=False)
        self.client = ImageClient(broker_url, result_url)
        self.broker, self.results = Redis.from_url(broker_url), Redis.from_url(result_url)
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self.client.close()
        self.celery.close()
        self.database.close()
        self.broker.close()
        self.results.close()

    def image(self, **fields: Any) -> Row:
        """A new image that no other test has to do with."""
        number = next(self._numbers)
        row = an_image(number, **fields)
        load(self.database, row)
        return row

    # --- a caller with Celery alone ---

    def send(self, kwargs: Any, **options: Any) -> AsyncResult:
        return self.celery.send_task(contract.TASK, kwargs=kwargs, queue=contract.QUEUE, **options)

    def ask(self, kwargs: Any, **options: Any) -> dict[str, Any]:
        """The reply document."""
        document: dict[str, Any] = self.send(kwargs, **options).get(timeout=PATIENCE)
        return document

    # --- a caller with Redis alone ---

    def push(self, *entries: str | bytes) -> None:
        self.broker.lpush(contract.QUEUE, *entries)

    def stored(self, request_id: str) -> dict[str, Any]:
        """What the result backend has, as soon as it has it."""
        key = contract.RESULT_KEY_PREFIX + request_id
        until(lambda: self.results.exists(key), PATIENCE)
        record: dict[str, Any] = json.loads(self.results.get(key) or b"")
        return record

    def events(self, queue: str = contract.REPLY_QUEUE, request_id: str | None = None) -> list[Event]:
        """The reply events that wait in a queue, the oldest first: `headers`, `properties` and `body`, decoded."""
        entries = [json.loads(entry) for entry in reversed(self.broker.lrange(queue, 0, -1))]
        events = [entry | {"body": json.loads(entry["body"])} for entry in entries]
        return [event for event in events if request_id in (None, event["body"]["id"])]

    def wait_for_events(self, request_id: str, number: int = 1, queue: str = contract.REPLY_QUEUE) -> list[Event]:
        until(lambda: len(self.events(queue, request_id)) >= number, PATIENCE)
        return self.events(queue, request_id)

    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is held."""
        names = self.broker.keys(f"{contract.QUEUE}*")
        return not [name for name in names if not name.startswith(b"image.update.dead")]


@contextmanager
def service_at(broker_url: str, result_url: str, database_url: str) -> Iterator[Service]:
    service = Service(broker_url, result_url, database_url)
    yield service
    service.close()
