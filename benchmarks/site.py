"""Where a run takes place: its own Redis and PostgreSQL, a worker, and what each of them costs."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import psycopg
from redis import Redis

from models.migrations import upgrade
from tests.servers import PostgresServer
from worker.embedded import RedisServer, end_child, start_child

QUEUE = "image.update"
RESULT = "celery-task-meta-"


@dataclass(frozen=True)
class Contender:
    """A worker to be measured: its name in the tables, and the words of its command line after `celery`."""

    name: str
    words: tuple[str, ...]


CONTENDERS = (
    Contender("aries-images", ("-A", "worker", "worker")),
    Contender("same task, threads", ("-A", "worker", "worker", "-P", "threads", "-c", "2")),
    Contender("same task, prefork", ("-A", "worker", "worker", "-P", "prefork", "-c", "2")),
    Contender("tutorial Celery", ("-A", "benchmarks.baseline", "worker", "-P", "prefork", "-c", "2")),
)


@dataclass(frozen=True)
class Request:
    """One request: an image gets a description, and a name that no other has or had."""

    id: str
    image: int
    renames: bool = True

    @property
    def message(self) -> str:
        """As a stock Celery caller writes it."""
        fields = {"description": f"d-{self.id}"} | ({"name": f"n-{self.id}"} if self.renames else {})
        body = [[], {"id": self.image, **fields}, {}]
        properties = {"delivery_tag": self.id, "delivery_info": {"exchange": "", "routing_key": QUEUE}, "priority": 0}
        headers = {"task": QUEUE, "id": self.id, "argsrepr": "()", "kwargsrepr": "{}", "ignore_result": False}
        return json.dumps(
            {
                "body": json.dumps(body), "content-type": "application/json", "content-encoding": "utf-8",
                "headers": headers, "properties": properties,
            }
        )  # fmt: skip


def requests(count: int, rows: int) -> list[Request]:
    """`count` requests, spread over the images."""
    return [Request(str(uuid.uuid4()), number % rows + 1) for number in range(count)]


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the worker, PostgreSQL and Redis, and the worker's memory in MiB."""

    worker: float
    postgresql: float
    redis: float
    memory: int


class Site:
    """Servers of a run's own, filled with images."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.rows = rows
        self._redis = RedisServer(folder / "redis")
        self._postgres = PostgresServer(folder / "postgres")

    def __enter__(self) -> Self:
        self._redis.start()
        self._postgres.start()
        self.broker, self.results = Redis.from_url(self._redis.url(0)), Redis.from_url(self._redis.url(1))
        upgrade(self._postgres.url)
        self.database = psycopg.connect(self._postgres.url, autocommit=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()
        self._postgres.stop()
        self._redis.stop()

    @property
    def urls(self) -> dict[str, str]:
        """The environment that a worker finds the site by."""
        return {
            "ARIES_AUTH": "off",
            "ARIES_BROKER_URL": self._redis.url(0),
            "ARIES_RESULT_URL": self._redis.url(1),
            "ARIES_DATABASE_URL": self._postgres.url,
        }

    def clear(self) -> None:
        """As if nothing had happened yet."""
        self.broker.flushall()
        self.database.execute("TRUNCATE images, image_revisions, requests")
        self.database.execute(
            "INSERT INTO images SELECT i, 'image ' || i, 'linux', 'CentOS', '', '/images/' || i, now(), now(), 1"
            " FROM generate_series(1, %s) AS i",
            [self.rows],
        )
        self.database.execute("VACUUM ANALYZE")
        self.database.execute("CHECKPOINT")

    @contextmanager
    def worker(self, contender: Contender, processes: int = 1) -> Iterator[list[psutil.Process]]:
        """The contender's worker (or several of them), up and consuming."""
        command = [sys.executable, "-m", "celery", *contender.words, "--loglevel=WARNING", "--task-events"]
        started = [
            start_child(
                [*command, f"--hostname=bench{number}@%h"], env={**os.environ, **self.urls}, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(processes)
        ]  # fmt: skip
        try:
            first = requests(processes * 20, self.rows)
            self.push(first)
            self.wait_for(len(first), seconds=60)
            yield [psutil.Process(process.pid) for process in started]
        finally:
            for process in started:
                end_child(process, signal.SIGTERM)

    def push(self, asked: Sequence[Request]) -> None:
        """Put requests into the queue."""
        messages = [request.message for request in asked]
        for start in range(0, len(messages), 500):
            self.broker.lpush(QUEUE, *messages[start : start + 500])

    def wait_for(self, results: int, seconds: float) -> None:
        """Until so many results are there.

        Raises:
            TimeoutError: they did not come.
        """
        until = time.monotonic() + seconds
        while self.results.dbsize() < results:
            if time.monotonic() > until:
                raise TimeoutError(f"{self.results.dbsize()} of {results} results")
            time.sleep(0.005)

    def cost(self, workers: Sequence[psutil.Process]) -> Cost:
        """What everyone has used since he was started."""
        trees = [tree(worker) for worker in workers]
        return Cost(
            worker=sum(map(cpu, trees)),
            postgresql=cpu(tree(psutil.Process(self._postgres.process.pid))),  # type: ignore[union-attr]
            redis=cpu(tree(psutil.Process(self._redis.process.pid))),  # type: ignore[union-attr]
            memory=sum(process.memory_info().rss for processes in trees for process in processes) >> 20,
        )

    def check(self, asked: Sequence[Request]) -> str | None:
        """What is wrong with the answers or the rows after a run; None if nothing is."""
        answers = [json.loads(document or "{}") for document in self.results.mget([RESULT + each.id for each in asked])]
        good = sum(answer.get("result", {}).get("status") == 200 for answer in answers)  # noqa: PLR2004  # HTTP's
        ids = [each.id for each in asked]
        [(recorded,)] = self.database.execute(
            "SELECT count(*) FROM image_revisions WHERE request_id = ANY(%s)", [ids]
        ).fetchall()
        last = {each.image: f"n-{each.id}" for each in asked if each.renames}
        [(named,)] = self.database.execute("SELECT count(*) FROM images WHERE name = ANY(%s)", [list(last.values())])
        found = (good, recorded, named)
        expected = (len(asked), len(asked), len(last))
        return None if found == expected else f"answers, revisions, names: {found}, not {expected}"


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its children."""
    return [process, *process.children(recursive=True)]


def cpu(processes: Sequence[psutil.Process]) -> float:
    """CPU seconds, user and system; children that have ended count with their parents."""
    times = [process.cpu_times() for process in processes]
    ended = processes[0].cpu_times()
    return sum(each.user + each.system for each in times) + ended.children_user + ended.children_system
