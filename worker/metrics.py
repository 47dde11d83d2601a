"""What a worker tells Prometheus: counts and times of its own replies, and what it finds in Redis when it is asked."""

import time
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from typing import Any

from kombu import Connection
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from redis.exceptions import RedisError

from aries_images import contract
from worker.intake import LEASING_SCHEMES
from worker.leases import Keys
from worker.task import Answer

#: Upper ends of the buckets: seconds, and requests.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """The figures of one process. With Celery's prefork pool each child has its own, and they are not shown."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._replies = Counter("aries_replies", "Replies, by code", ["code"], registry=registry)
        self._replayed = Counter("aries_replayed", "Replies that came out of the ledger", registry=registry)
        self._redelivered = Counter("aries_redelivered", "Requests that were delivered before", registry=registry)
        self._again = Counter("aries_tries_again", "Requests put off to another try", registry=registry)
        self._queue = Histogram(
            "aries_queue_seconds", "From sending a request to its batch", buckets=_SECONDS, registry=registry
        )
        self._batch = Histogram(
            "aries_batch_seconds", "From the beginning of a batch to its commit", buckets=_SECONDS, registry=registry
        )
        self._size = Histogram("aries_batch_requests", "Requests in a batch", buckets=_SIZES, registry=registry)
        self.last_reply = time.time()
        for code in ("OK", *contract.CODES):
            self._replies.labels(code)

    def ran(self, answers: Sequence[Answer | None]) -> None:
        """A batch was run, with these answers; None for a request that is put off to another try."""
        self._size.observe(len(answers))
        answered = [answer for answer in answers if answer]
        self._again.inc(len(answers) - len(answered))
        for code, number in Tally(answer.reply.code or "OK" for answer in answered).items():
            self._replies.labels(code).inc(number)
        self._replayed.inc(sum(answer.reply.replayed for answer in answered))
        self._redelivered.inc(sum(answer.delivery.attempt > 1 for answer in answered))
        for answer in answered:
            self._queue.observe(max(0.0, answer.begun_at - answer.delivery.queued_since))
        if answered:
            self._batch.observe(answered[0].committed_at - answered[0].begun_at)
            self.last_reply = answered[0].committed_at


class InRedis:
    """What is in the queue's Redis, looked up when somebody asks: every worker says the same."""

    def __init__(self, metrics: Metrics, connection: Connection) -> None:
        self._metrics = metrics
        self._connection = connection

    def collect(self) -> Iterator[Metric]:
        """Prometheus' hook. Of a Redis that is away nothing is said but that it is."""
        since = time.time() - self._metrics.last_reply
        yield GaugeMetricFamily("aries_last_reply_age_seconds", "Since this worker's last reply", since)
        try:
            *waiting, held, dead = self._look()
        except (RedisError, OSError, *self._connection.connection_errors):
            yield GaugeMetricFamily("aries_broker_up", "Whether Redis answers", 0)
            return
        yield GaugeMetricFamily("aries_broker_up", "Whether Redis answers", 1)
        requests = GaugeMetricFamily("aries_waiting", "Requests in a queue", labels=["queue"])
        for queue, number in zip(contract.QUEUES, waiting, strict=True):
            requests.add_metric([queue], number)
        yield requests
        yield GaugeMetricFamily("aries_leases", "Requests that workers hold", held)
        yield GaugeMetricFamily("aries_dead_letters", "Messages that were given up on", dead)

    def _look(self) -> list[int]:
        keys = Keys()
        with self._connection.default_channel.client.pipeline(transaction=False) as pipe:
            for queue in contract.QUEUES:
                pipe.llen(queue)
            pipe.hlen(keys.leases).xlen(keys.dead)
            found: list[int] = pipe.execute()
        return found


def look_into_redis(app: Any) -> None:
    """Have the figures of a worker include what is in its Redis, if it takes its requests from one."""
    if app.conf.broker_url.startswith(LEASING_SCHEMES):
        app.metrics.registry.register(InRedis(app.metrics, app.connection_for_read()))
