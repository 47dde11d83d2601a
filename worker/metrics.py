"""What a worker tells Prometheus: counts and times of its own work, and what it finds in Redis when it is asked."""

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from kombu import Connection
from kombu.exceptions import OperationalError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from redis.exceptions import RedisError

from aries_images import contract
from worker import backlog
from worker.database import Cause
from worker.intake import LEASING_SCHEMES
from worker.task import Answer

#: Upper ends of the buckets: seconds, and requests.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 60, 300)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """The figures of one process. With Celery's prefork pool each child has its own, and they are not shown."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # processor time, memory, open files; on Linux
        self._replies = self._counter("replies", "Replies that were sent, by code", "code", "OK", *contract.CODES)
        self._replayed = self._counter("replayed", "Replies out of the ledger")
        self._redelivered = self._counter("redelivered", "Replies to requests that were delivered before")
        self._again = self._counter("tries_again", "Requests put off to another try")
        failed = "Transactions that came to nothing and are tried again while there is time, by cause"
        self._failed = self._counter("failed_transactions", failed, "cause", *Cause)
        queue = self._seconds("queue", "From sending a request to the batch that answered it", "queue")
        total = self._seconds("total", "From sending a request to sending its answer", "queue")
        self._batch = self._seconds("batch", "From the beginning of a batch to its commit")
        self._size = Histogram("aries_batch_requests", "Requests in a batch", buckets=_SIZES, registry=registry)
        self._last_reply = time.time()
        self.gauge(
            "last_reply_age_seconds", "Since the last reply, or the start", lambda: time.time() - self._last_reply
        )
        self._queues = {name: (queue.labels(name), total.labels(name)) for name in contract.QUEUES}

    def gauge(self, name: str, documentation: str, look: Callable[[], float]) -> None:
        """Show what `look` finds whenever somebody asks."""
        Gauge(f"aries_{name}", documentation, registry=self.registry).set_function(look)

    def _counter(self, name: str, documentation: str, label: str = "", *values: str) -> Counter:
        counter = Counter(f"aries_{name}", documentation, [label] if label else [], registry=self.registry)
        for value in values:  # each from 0: to Prometheus the first value that it sees is no growth
            counter.labels(value)
        return counter

    def _seconds(self, name: str, documentation: str, *labels: str) -> Histogram:
        return Histogram(f"aries_{name}_seconds", documentation, labels, buckets=_SECONDS, registry=self.registry)

    def failed(self, cause: Cause) -> None:
        """A transaction came to nothing."""
        self._failed.labels(cause).inc()

    def ran(self, outcomes: Sequence[Answer | None]) -> None:
        """A batch was run, with these answers; None for a request that is put off to another try."""
        self._size.observe(len(outcomes))
        answers = [answer for answer in outcomes if answer]
        self._again.inc(len(outcomes) - len(answers))
        if answers:
            self._batch.observe(answers[0].committed_at - answers[0].begun_at)

    def sent(self, answers: Sequence[Answer]) -> None:
        """These answers were sent."""
        self._last_reply = now = time.time()
        for code, number in Tally(answer.reply.code or "OK" for answer in answers).items():
            self._replies.labels(code).inc(number)
        self._replayed.inc(sum(answer.reply.replayed for answer in answers))
        self._redelivered.inc(sum(answer.delivery.attempt > 1 for answer in answers))
        for answer in answers:
            since = answer.delivery.queued_since
            queue, total = self._queues[answer.delivery.queue]
            queue.observe(max(0.0, answer.begun_at - since))
            total.observe(max(0.0, now - since))


class InRedis:
    """What is in the queue's Redis, looked up when somebody asks: every worker says the same."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def collect(self) -> Iterator[Metric]:
        """Prometheus' hook. Of a Redis that is away nothing is said but that it is."""
        try:
            self._connection.ensure_connection(max_retries=1, interval_start=0)  # kombu's own patience is seconds
            client = self._connection.default_channel.client
            client.ping()
        except (RedisError, OSError, OperationalError):
            yield GaugeMetricFamily("aries_broker_up", "Whether Redis answers", 0)
            return
        yield GaugeMetricFamily("aries_broker_up", "Whether Redis answers", 1)
        for look in (_of_requests, _of_server):
            # Not every user of Redis may ask for all of this; what can't be had is not said.
            with suppress(RedisError, OSError):
                yield from look(client)


def _of_requests(client: Any) -> list[Metric]:
    there = backlog.look(client)
    waiting = GaugeMetricFamily("aries_waiting", "Requests in a queue", labels=["queue"])
    said = "Since the oldest request in a queue was sent"
    oldest = GaugeMetricFamily("aries_oldest_waiting_seconds", said, labels=["queue"])
    for queue, lane in there.lanes.items():
        waiting.add_metric([queue], lane.waiting)
        if not lane.waiting:
            oldest.add_metric([queue], 0)
        elif lane.oldest_sent_at is not None:
            oldest.add_metric([queue], max(0.0, time.time() - lane.oldest_sent_at))
    held = GaugeMetricFamily("aries_leases", "Requests that workers hold", there.leases)
    dead = GaugeMetricFamily("aries_dead_letters", "Messages that were given up on", there.dead_letters)
    return [waiting, oldest, held, dead]


def _of_server(client: Any) -> list[Metric]:
    memory, files = client.info("memory"), client.info("persistence")
    statuses = [files.get(name, "ok") for name in ("aof_last_write_status", "rdb_last_bgsave_status")]
    used, most = int(memory["used_memory"]), int(memory.get("maxmemory", 0))
    return [
        GaugeMetricFamily("aries_broker_writes", "Whether Redis can write its files", statuses == ["ok", "ok"]),
        GaugeMetricFamily("aries_broker_memory_bytes", "Memory that Redis uses", used),
        GaugeMetricFamily("aries_broker_memory_limit_bytes", "Memory that Redis may use; 0: no limit", most),
    ]


def look_inside(app: Any) -> None:
    """Have the figures of a worker include what is looked up when somebody asks."""
    app.metrics.gauge("alive", "Whether /healthz says so", lambda: not app.health.troubles())
    if app.conf.broker_url.startswith(LEASING_SCHEMES):
        app.metrics.registry.register(InRedis(app.connection_for_read()))
