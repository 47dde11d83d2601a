"""A town to be hit by faults: Redis and PostgreSQL of its own, reached by workers through proxies, and callers."""

import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from redis import Redis
from redis.exceptions import RedisError

from aries_images import ImageClient, contract
from models.migrations import upgrade
from tests import servers
from tests.builders import an_image, load
from tests.faults.account import Book
from tests.faults.proxy import Proxy
from tests.servers import PostgresServer
from tests.workers import CHECKOUT
from worker.database import Database
from worker.embedded import RedisServer, start_child
from worker.leases import Keys

#: Images of a town, numbered from 1.
IMAGES = 40
LEASE_SECONDS = 2.0

_numbers = itertools.count(1)

WorkerProcess = subprocess.Popen[bytes]


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `condition` returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


class Town:
    """Servers, proxies and workers, and what can be done to them."""

    #: Servers that may be killed: there are none where others were given.
    redis: RedisServer
    postgres: PostgresServer

    def __init__(self, stack: ExitStack, folder: Path, *, on_sqlite: bool = False, own: bool = False) -> None:
        self._stack = stack
        self.folder = folder
        self.redis_url = self._a_redis(own=own)
        self.broker_url, self.result_url = (f"{self.redis_url}/{servers.first_redis_db() + n}" for n in (0, 1))
        self.to_redis = stack.enter_context(Proxy(self.redis_url))
        if on_sqlite:
            self.database_url = self.workers_database_url = f"sqlite:///{folder / 'images.db'}"
        else:
            self.database_url = self._a_postgres(own=own)
            self.to_database = stack.enter_context(Proxy(self.database_url))
            # In the clear, so that the proxy knows what it loses.
            through = urlsplit(self.to_database.through(self.database_url))
            self.workers_database_url = through._replace(query="sslmode=disable").geturl()
        upgrade(self.database_url)
        self.database = Database(self.database_url)
        stack.callback(self.database.close)
        load(self.database, *(an_image(number) for number in range(1, IMAGES + 1)))
        self.database.close()
        self.broker = stack.enter_context(Redis.from_url(self.broker_url))
        self.results = stack.enter_context(Redis.from_url(self.result_url))
        self.broker.flushdb()
        self.results.flushdb()
        self.client = stack.enter_context(ImageClient(self.broker_url, self.result_url))
        self.app = Celery(broker=self.broker_url, backend=self.result_url, set_as_current=False)
        stack.callback(self.app.close)
        self.workers: list[WorkerProcess] = []
        self._names: dict[int, str] = {}
        stack.callback(self._end_workers)

    def _a_redis(self, *, own: bool) -> str:
        """A Redis for the time of the test, without a database number."""
        if (given := os.environ.get("ARIES_TEST_REDIS_URL")) and not own:
            return given.rstrip("/")
        self.redis = self._stack.enter_context(RedisServer(self.folder / "redis"))
        return self.redis.url().removesuffix("/0")

    def _a_postgres(self, *, own: bool) -> str:
        """An empty database for the time of the test."""
        if (given := os.environ.get("ARIES_TEST_DATABASE_URL")) and not own:
            return self._stack.enter_context(servers.database_on(given))
        self.postgres = self._stack.enter_context(PostgresServer(self.folder / "postgres", fsync=False))
        return self.postgres.url

    # --- workers ---

    def worker(
        self,
        *words: str,
        pool: str | None = None,
        concurrency: int | None = None,
        prefix: Sequence[str] = (),
        **env: str,
    ) -> WorkerProcess:
        """A new worker process; it is there a second or two later. `prefix`: words before its command."""
        node = f"fault-{os.getpid()}-{next(_numbers)}@town"
        command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "-n", node, "-l", "INFO"]
        command += ["--without-mingle", "--without-gossip", *words]
        command += [f"--pool={pool}"] if pool else []
        command += [f"--concurrency={concurrency}"] if concurrency else []
        settings = {
            "ARIES_AUTH": "off",
            "ARIES_BROKER_URL": self.to_redis.through(self.broker_url),
            "ARIES_RESULT_URL": self.to_redis.through(self.result_url),
            "ARIES_DATABASE_URL": self.workers_database_url,
            "ARIES_LEASE_SECONDS": str(LEASE_SECONDS),
            "ARIES_REPLY_QUEUE_MAX": "1000000",
            "PYTHONPATH": str(CHECKOUT),
        }
        with (self.folder / "workers.log").open("ab") as log:
            process = start_child(
                [*prefix, *command],
                death=signal.SIGKILL,
                cwd=CHECKOUT,
                env=os.environ | settings | env,
                stdout=log,
                stderr=log,
            )
        self.workers.append(process)
        self._names[process.pid] = node
        return process

    def name_of(self, worker: WorkerProcess) -> str:
        """What a worker calls itself in what it answers."""
        return self._names[worker.pid]

    def _answers(self, node: str) -> bool:
        try:
            return bool(self.app.control.ping([node], timeout=0.5))
        except RedisError:
            # Kombu keeps connections for the whole process, and a test before this one may have had the server cut them.
            return False

    def ready(self, *workers: WorkerProcess) -> None:
        """Wait until these workers, or all, answer."""
        for worker in workers or self.workers:
            node = self._names[worker.pid]
            until(lambda node=node: self._answers(node))

    def end(self, worker: WorkerProcess, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill a worker with all its processes, or ask it to leave, and wait until it has."""
        if number is signal.SIGKILL:
            os.killpg(worker.pid, number)
        else:
            worker.send_signal(number)
        worker.wait(30)
        self.workers.remove(worker)

    def _end_workers(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()

    def log(self) -> str:
        """What all workers have logged."""
        log = self.folder / "workers.log"
        return log.read_text(errors="replace") if log.exists() else ""

    # --- looking ---

    def book(self, **options: Any) -> Book:
        """A new account book."""
        return Book(self.client, IMAGES, **options)

    def is_at_rest(self) -> bool:
        """Whether nothing waits, and nothing is held."""
        try:
            return not self.broker.exists(*contract.QUEUES, Keys().leases, Keys().ends)
        except RedisError:
            return False

    def settle_accounts(self, book: Book) -> dict[str, int]:
        """The reckoning, when everything has come to rest; nothing may be among the dead letters."""
        until(self.is_at_rest, 60)
        self.database.close()
        assert all(worker.poll() is None for worker in self.workers), "a worker has ended"
        assert not self.broker.exists(Keys().dead)
        return book.check(self.database, self.broker, self.results)


@contextmanager
def town(*, on_sqlite: bool = False, own: bool = False, workers: int = 2, **options: Any) -> Iterator[Town]:
    """A town with workers that are ready; what they have logged is printed in the end.

    Its servers are those of ARIES_TEST_REDIS_URL and ARIES_TEST_DATABASE_URL, unless it has to `own` them: to kill
    them, or to do what would harm others who use them.
    """
    with tempfile.TemporaryDirectory(prefix="aries-town-") as folder, ExitStack() as stack:
        there = Town(stack, Path(folder), on_sqlite=on_sqlite, own=own)
        for _ in range(workers):
            there.worker(**options)
        there.ready()
        try:
            yield there
        finally:
            print(there.log()[-20_000:])


def pauses(seed: int, shortest: float, longest: float) -> Iterator[None]:
    """Wait for a while, again and again; the random times of faults."""
    choices = random.Random(seed)
    while True:
        time.sleep(choices.uniform(shortest, longest))
        yield
