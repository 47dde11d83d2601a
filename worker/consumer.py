"""Celery's consumer, made safe: whatever arrives under a task's name reaches the task, which answers it."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from celery.worker import consumer as celery_consumer
from kombu import Message
from kombu.serialization import register

from aries_images import contract
from aries_images.contract import MalformedMessageError
from worker.task import MALFORMED, RECEIVED_AT, BatchTask, read_deadline

logger = logging.getLogger(__name__)

#: Requests are decoded as plain JSON, in every pool. Celery's own decoder revives {"__type__": …} objects, takes
#: NaN, and keeps the last of two equal keys; so the consumer marks each request with a content type of its own.
SERIALIZER, CONTENT_TYPE = "aries-request", "application/vnd.aries.request+json"

#: Events that go out in one message, if one turn of the loop brings so many; Celery's 24 cost a round trip each.
_EVENTS_AT_ONCE = 1000

_JSON = "application/json"
_NOTHING = "[[], {}, {}]"
#: What `embed` may hold of Celery's canvas, without asking the worker to send further messages.
_EMBED = ("callbacks", "errbacks", "chain", "chord")
#: Headers that are passed on, with the type they must have to be.
_HEADERS: dict[str, type | tuple[type, ...]] = {
    "lang": str,
    "task": str,
    "root_id": str,
    "parent_id": str,
    "group": str,
    "origin": str,
    "argsrepr": str,
    "kwargsrepr": str,
    "ignore_result": bool,
    "retries": int,
    "deliveries": int,
    "eta": str,
    "expires": str,
    "authorization": str,
    contract.IF_REVISION: object,
    contract.TRACEPARENT: str,
    contract.SENT_AT: (int, float),
}
_NO_TYPE: tuple[type, ...] = ()


def register_serializer() -> None:
    """Tell kombu how a request is read; once per process that runs tasks."""
    register(SERIALIZER, json.dumps, contract.read_json, CONTENT_TYPE, "utf-8")


class Consumer(celery_consumer.Consumer):  # type: ignore[misc]  # Celery has no types
    """A consumer that no message can stop."""

    def start(self) -> None:
        """Consume until the worker stops, with the window that the pool asks for; Celery counts processes."""
        self.initial_prefetch_count = self.max_prefetch_count
        super().start()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """Celery's handler, behind a check of each message for a `BatchTask`."""
        handle = super().create_task_handler(*args, **kwargs)
        if self.event_dispatcher is not None:
            self.event_dispatcher.buffer_limit = _EVENTS_AT_ONCE

        def on_task_received(message: Message) -> None:
            headers = message.headers
            task = self.app.tasks.get(headers.get("task")) if isinstance(headers, Mapping) else None
            if isinstance(task, BatchTask) and is_attributable(headers.get("id")):
                make_readable(message)
            handle(message)

        return on_task_received


def is_attributable(request_id: object) -> bool:
    """Whether an answer can be addressed by that id, well-formed or not."""
    if isinstance(request_id, str):
        return 0 < len(request_id) <= 255  # noqa: PLR2004  # as long as a good one may be
    return type(request_id) is int


def make_readable(message: Message) -> None:
    """Make `message` one that Celery can run: as it came where it is right, else empty and marked with what is wrong.

    Celery stops the worker, or drops the message without an answer, over each of the things that are checked here.
    """
    problem = _problem(message)
    headers = {
        name: value for name, value in message.headers.items() if isinstance(value, _HEADERS.get(name, _NO_TYPE))
    }
    headers["id"] = str(message.headers["id"])
    headers[RECEIVED_AT] = time.time()
    if problem is not None:
        headers[MALFORMED] = problem
        message.body = _NOTHING
        for name in ("eta", "expires"):
            headers.pop(name, None)
    stamps, stamped = message.headers.get("stamps"), message.headers.get("stamped_headers")
    if isinstance(stamps, dict) and isinstance(stamped, list):
        headers |= {"stamps": stamps, "stamped_headers": stamped}
    message.headers = headers
    message.content_type, message.content_encoding = CONTENT_TYPE, "utf-8"
    message.properties = message.properties if isinstance(message.properties, Mapping) else {}


def _problem(message: Message) -> str | None:
    headers = message.headers
    if not contract.is_request_id(headers["id"]):
        return contract.REQUEST_ID_RULE
    if headers.get("compression") is not None:
        return "compressed messages are not accepted"
    if message.content_type != _JSON or str(message.content_encoding).lower() not in ("utf-8", "utf8", "binary"):
        return "the body must be application/json in UTF-8"
    try:
        _, _, embed = contract.read_body(message.body)
    except MalformedMessageError as malformed:
        return str(malformed)
    if any(embed.get(name) for name in _EMBED):
        return "callbacks, chains and chords are not accepted"
    for name in ("expires", "eta"):
        try:
            read_deadline(headers.get(name))
        except (ValueError, OverflowError):
            return f"{name} must be an ISO 8601 moment"
    return None
