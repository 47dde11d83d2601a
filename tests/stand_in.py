"""A worker that says what a test tells it to: takes requests, and stores and publishes results as Celery does."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis import Redis

from aries_images import contract
from aries_images.contract import Detail, Refusal, Reply, digest_of

MOMENT = datetime(2024, 3, 20, 10, 30, tzinfo=UTC)
IMAGE = {
    "id": 1,
    "name": "Ubuntu 22.04 LTS",
    "os_type": "linux",
    "os_name": "Ubuntu",
    "description": "",
    "source_path": "/images/ubuntu-22.04.qcow2",
    "created_at": MOMENT,
    "updated_at": MOMENT,
}


@dataclass
class Taken:
    """A request as the stand-in took it off the queue."""

    envelope: dict[str, Any]
    kwargs: dict[str, Any]

    @property
    def headers(self) -> dict[str, Any]:
        return self.envelope["headers"]

    @property
    def request_id(self) -> str:
        return self.headers["id"]

    def success(self, **changes: Any) -> Reply:
        image = IMAGE | self.kwargs | changes
        return Reply.success(self.request_id, digest_of(self.kwargs), image, revision=2)

    def refusal(self, code: contract.Code, *details: Detail, stored: bool = True) -> Reply:
        return Reply.refused(self.request_id, digest_of(self.kwargs), Refusal(code, details), 1, stored=stored)


def read_request(entry: bytes) -> Taken:
    envelope = json.loads(entry)
    args, kwargs, _ = contract.read_body(base64.b64decode(envelope["body"]))
    assert args == []
    return Taken(envelope, kwargs)


def record_of(reply: Reply, state: str = "SUCCESS") -> bytes:
    """What Celery's Redis backend stores for a task that returned `reply`."""
    record = {"status": state, "result": reply.document, "traceback": None, "children": []}
    return json.dumps(record | {"date_done": "2024-03-20T10:30:00+00:00", "task_id": reply.request_id}).encode()


def failure_of(request_id: str) -> bytes:
    """What Celery's Redis backend stores for a task that raised."""
    result = {"exc_type": "InternalError", "exc_message": ["内部错误"], "exc_module": "aries_images.errors"}
    record = {"status": "FAILURE", "result": result, "traceback": None, "children": [], "task_id": request_id}
    return json.dumps(record).encode()


class StandIn:
    """Answers each request with what `answer` returns: a reply, a record, or None for silence."""

    def __init__(self, broker: Redis, results: Redis, answer: Callable[[Taken], Reply | bytes | None]) -> None:
        self.broker = broker
        self.results = results
        self.answer = answer
        self.taken: list[Taken] = []
        #: Either can be turned off, to see what one alone does.
        self.stores = self.publishes = True
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            entry = self.broker.brpop(contract.QUEUES, timeout=0.2)
            if entry is not None:
                self._handle(read_request(entry[1]))

    def _handle(self, request: Taken) -> None:
        self.taken.append(request)
        answer = self.answer(request)
        if answer is not None:
            self.say(request.request_id, record_of(answer) if isinstance(answer, Reply) else answer)

    def say(self, request_id: str, record: bytes) -> None:
        key = contract.RESULT_KEY_PREFIX + request_id
        with self.results.pipeline(transaction=True) as pipe:
            if self.stores:
                pipe.set(key, record, ex=600)
            if self.publishes:
                pipe.publish(key, record)
            pipe.execute()

    @contextmanager
    def running(self) -> Iterator["StandIn"]:
        thread = threading.Thread(target=self.run, name="stand-in")
        thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            thread.join()


@contextmanager
def stand_in(
    broker_url: str, result_url: str, answer: Callable[[Taken], Reply | bytes | None] = Taken.success
) -> Iterator[StandIn]:
    """A stand-in worker at work."""
    with (
        Redis.from_url(broker_url) as broker,
        Redis.from_url(result_url) as results,
        StandIn(broker, results, answer).running() as worker,
    ):
        yield worker
