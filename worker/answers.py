"""Answers on their way out: results as Celery writes them and reply events, together in one round trip."""

import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import orjson
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.exceptions import Reject
from kombu import Connection, Queue
from redis import ConnectionPool
from redis.client import Pipeline
from redis.exceptions import RedisError

from aries_images import contract
from worker import amqp
from worker.task import Answer, BatchTask, Delivery

logger = logging.getLogger(__name__)

#: What makes two URLs reach the same Redis as the same user.
_SERVER = ("host", "port", "path", "username", "password")

# What Celery's backend does for one result, for many: store it, and announce it on the channel of the same name. A
# reply that the ledger does not keep is never stored over one that it keeps; NX keeps an older one of its kind too,
# which says as little.
_STORE = """
for i, key in ipairs(KEYS) do
  local document = ARGV[i + 2]
  if string.sub(ARGV[2], i, i) == '1' then
    redis.call('SET', key, document, 'EX', ARGV[1])
  else
    redis.call('SET', key, document, 'EX', ARGV[1], 'NX')
  end
  redis.call('PUBLISH', key, document)
end
"""


class _Answering(RedisBackend):  # type: ignore[misc]  # Celery has no types
    """Celery's Redis result backend, which also publishes the reply event of a request that a `BatchTask` answered."""

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, *args: Any, **kwargs: Any) -> None:
        """Store a result; of a `BatchTask`, send the answer."""
        if self._answer(request) is None:
            super().mark_as_done(task_id, result, request, *args, **kwargs)
        else:
            self._send_or_give_back(request.answer)

    def mark_as_failure(
        self, task_id: str, exc: BaseException, traceback: Any = None, request: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Store a fault; of a `BatchTask`, send the answer, made here if the task did not live to make one."""
        task = self.app.tasks.get(getattr(request, "task", None))
        if not isinstance(task, BatchTask) or getattr(request, "is_eager", False):
            super().mark_as_failure(task_id, exc, traceback, request, *args, **kwargs)
            return
        answer = self._answer(request)
        if answer is None:
            delivery = Delivery.of(dict(vars(request)), (), {})
            reply, queue, _ = task.fault(delivery)
            answer = Answer(reply, queue, delivery, delivery.received_at, delivery.received_at)
        self._send_or_give_back(answer)

    def mark_as_revoked(self, task_id: str, reason: str = "", request: Any = None, *args: Any, **kwargs: Any) -> None:
        """Store that a task was revoked; not on an operator's word alone, for its request will be answered."""
        if request is not None:
            super().mark_as_revoked(task_id, reason, request, *args, **kwargs)

    def mark_as_retry(self, task_id: str, exc: BaseException, traceback: Any = None, request: Any = None) -> None:
        """Store that a task is tried again; of a `BatchTask` nothing, for there is no answer yet."""
        if not isinstance(self.app.tasks.get(getattr(request, "task", None)), BatchTask):
            super().mark_as_retry(task_id, exc, traceback, request)

    @staticmethod
    def _answer(request: Any) -> Answer | None:
        return getattr(request, "answer", None)

    def _send_or_give_back(self, answer: Answer) -> None:
        try:
            self.send_answers([answer])
        except (RedisError, OSError) as error:
            # The change is committed and the ledger has the reply: delivered again, the request is answered from it.
            known = {"request_id": answer.reply.request_id, "caller": answer.caller}
            logger.warning("cannot send an answer, its request is given back: %s", error, extra=known)
            raise Reject(error, requeue=True) from error

    def send_answers(self, answers: Sequence[Answer]) -> None:
        """Store and publish all of `answers`: results and events in one round trip where they share a Redis.

        Raises:
            redis.exceptions.ConnectionError: Redis stayed away for longer than the retry policy allows.
        """
        sent_from = time.time()
        self.ensure(self._send, (answers,))
        self.app.tell(answers, sent_from)

    def _send(self, answers: Sequence[Answer]) -> None:
        database = self._reply_queue_database
        with self.client.pipeline(transaction=False) as pipe:
            self._add_results(pipe, answers)
            if database is not None:
                self._add_events(pipe, answers, database)
            pipe.execute()
        if database is None:
            self._publish_events(answers)

    # --- results ---

    def _add_results(self, pipe: Pipeline, answers: Sequence[Answer]) -> None:
        wanted = [answer for answer in answers if answer.delivery.wants_result]
        if wanted:
            keys = [contract.RESULT_KEY_PREFIX + answer.delivery.request_id for answer in wanted]
            documents = [result_document(answer) for answer in wanted]
            stored = "".join("1" if answer.reply.stored else "0" for answer in wanted)
            pipe.eval(_STORE, len(keys), *keys, self.expires, stored, *documents)

    # --- reply events ---

    @cached_property
    def _reply_queue_database(self) -> int | None:
        """The Redis database of the reply queues, if one connection can reach both it and the results."""
        broker = self.app.conf.broker_url
        if not broker.startswith(("redis://", "rediss://", "unix://")) or type(self) is not Backend:
            return None
        options = ConnectionPool.from_url(broker).connection_kwargs
        if any(options.get(name) != self.connparams.get(name) for name in _SERVER):
            return None
        return int(options.get("db", 0))

    def _add_events(self, pipe: Pipeline, answers: Sequence[Answer], database: int) -> None:
        pipe.execute_command("SELECT", database)
        self._push_events(pipe, answers)
        pipe.execute_command("SELECT", self.connparams.get("db", 0))

    def _push_events(self, pipe: Pipeline, answers: Sequence[Answer]) -> None:
        settings = self.app.settings
        for queue, entries in _by_queue(answers).items():
            pipe.lpush(queue, *entries)
            pipe.ltrim(queue, 0, settings.reply_queue_max - 1)
            pipe.expire(queue, settings.reply_queue_ttl)

    def _publish_events(self, answers: Sequence[Answer]) -> None:
        """To a broker that is not where the results are: another Redis, or one that speaks AMQP."""
        with self.app.pool.acquire(block=True) as connection:
            if connection.transport.driver_type == "redis":
                with connection.default_channel.conn_or_acquire() as client, client.pipeline() as pipe:
                    self._push_events(pipe, answers)
                    pipe.execute()
            elif connection.transport.driver_type == "amqp":
                self._publish_by_amqp(connection, answers)
            else:
                self._publish_by_kombu(connection, answers)

    def _publish_by_amqp(self, connection: Connection, answers: Sequence[Answer]) -> None:
        settings = self.app.settings
        limits = {"max_length": settings.reply_queue_max, "expires": settings.reply_queue_ttl}
        messages = [amqp.Outgoing(answer.queue, event_body(answer), _amqp_properties(answer)) for answer in answers]
        amqp.send(connection, messages, {answer.queue: limits for answer in answers})

    def _publish_by_kombu(self, connection: Connection, answers: Sequence[Answer]) -> None:
        settings = self.app.settings
        producer = connection.Producer()
        for answer in answers:
            queue = Queue(
                answer.queue,
                routing_key=answer.queue,
                max_length=settings.reply_queue_max,
                expires=settings.reply_queue_ttl,
            )
            producer.publish(
                event_body(answer),
                routing_key=answer.queue,
                content_type="application/json",
                content_encoding="utf-8",
                headers=event_headers(answer),
                correlation_id=correlation_id(answer),
                declare=[queue],
            )


class Backend(_Answering):
    """For `redis://`, `rediss://` and `unix://`."""


class BackendOnSentinel(_Answering, SentinelBackend):  # type: ignore[misc]  # Celery has no types
    """For `sentinel://`."""


#: Celery's names of the result backends that these take the place of.
BACKENDS = {
    "redis": "worker.answers:Backend",
    "rediss": "worker.answers:Backend",
    "sentinel": "worker.answers:BackendOnSentinel",
}


def result_document(answer: Answer) -> str:
    """What Celery's own backend would store: JSON with the same keys, round the reply document as it stands."""
    reply, headers = answer.reply, answer.delivery.headers
    done = datetime.fromtimestamp(answer.committed_at, UTC).isoformat()
    extra: dict[str, Any] = {"traceback": None, "children": [], "date_done": done}
    if headers.get("group"):
        extra["group_id"] = headers["group"]
    if headers.get("parent_id"):
        extra["parent_id"] = headers["parent_id"]
    extra["task_id"] = answer.delivery.request_id
    status, result = "SUCCESS", reply.text
    if answer.failed:
        message = contract.INTERNAL_ERROR.message
        error = {"exc_type": reply.code, "exc_message": [message], "exc_module": "aries_images.errors"}
        status, result = "FAILURE", _serialise(error)
    return f'{{"status": "{status}", "result": {result}, {_serialise(extra)[1:]}'


def event_body(answer: Answer) -> str:
    """The CloudEvents document; JSON text."""
    return contract.reply_event(answer.reply, datetime.fromtimestamp(answer.committed_at, UTC))


def correlation_id(answer: Answer) -> str:
    """What the caller wants his reply to be known by; the request id if he does not say, or not in text."""
    wanted = answer.delivery.correlation_id
    return wanted if wanted and contract.is_text(wanted) else answer.reply.request_id


def event_headers(answer: Answer) -> dict[str, Any]:
    """What the event says of the journey; times in whole milliseconds."""
    delivery = answer.delivery
    return {
        "replayed": answer.reply.replayed,
        "attempt": delivery.attempt,
        "queue_ms": answer.queue_ms,
        "commit_ms": answer.commit_ms,
        "worker": delivery.worker,
        "traceparent": delivery.traceparent,
    }


def _amqp_properties(answer: Answer) -> dict[str, Any]:
    return {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        "correlation_id": correlation_id(answer),
        "application_headers": event_headers(answer),
    }


def _serialise(document: Mapping[str, Any]) -> str:
    return orjson.dumps(document).decode()


def _by_queue(answers: Iterable[Answer]) -> Mapping[str, list[str]]:
    queues: dict[str, list[str]] = {}
    for answer in answers:
        queues.setdefault(answer.queue, []).append(_entry(answer))
    return queues


def _entry(answer: Answer) -> str:
    """A message as kombu's Redis transport writes it to a list, its body a plain JSON string."""
    return _serialise(
        {
            "body": event_body(answer),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": event_headers(answer),
            "properties": {
                "correlation_id": correlation_id(answer),
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": answer.queue},
                "priority": 0,
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )
