"""A site where real workers run: a Redis and a PostgreSQL database of its own, and what a test does to them."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil  # type: ignore[import-untyped]
import psycopg
from celery import Celery
from redis import Redis

from aries_images import contract
from models.migrations import upgrade
from tests.builders import an_image, load
from tests.servers import database_on
from tests.workers import CHECKOUT
from worker.database import Database
from worker.embedded import RedisServer, end_child, start_child
from worker.leases import Keys

#: Images that a site has, numbered from 1.
IMAGES = 1000

Found = TypeVar("Found")


def until(look: Callable[[], Found], seconds: float = 10.0) -> Found:
    """What `look` returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise TimeoutError(f"it did not happen within {seconds} s")
        time.sleep(0.01)
    return found


def request(image: int, request_id: str | None = None, **fields: Any) -> dict[str, Any]:
    """The message of a caller who asks for an update."""
    request_id = request_id or str(uuid.uuid4())
    return {
        "body": json.dumps([[], {"id": image, **fields}, {}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": contract.TASK, "id": request_id},
        "properties": {
            "correlation_id": request_id,
            "delivery_tag": request_id,
            "delivery_info": {"exchange": "", "routing_key": contract.QUEUE},
        },
    }


def id_of(message: dict[str, Any]) -> str:
    request_id: str = message["headers"]["id"]
    return request_id


class Event(NamedTuple):
    """A reply event as it stands in a reply queue."""

    headers: dict[str, Any]
    reply: dict[str, Any]


class Worker:
    """A worker process."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self.process = process
        self.name = name
        self.log = log

    @property
    def is_up(self) -> bool:
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait()

    def leave(self, seconds: float = 30.0) -> float:
        """SIGTERM; how many seconds it took to end."""
        began = time.monotonic()
        self.send(signal.SIGTERM)
        self.process.wait(seconds)
        return time.monotonic() - began


class Site:
    """Everything that a worker needs, and the ways in which a test looks at it."""

    def __init__(self, server: RedisServer, database_url: str, folder: Path) -> None:
        self.server = server
        self.database_url = database_url
        self.folder = folder
        self.broker_url, self.result_url = server.url(0), server.url(1)
        self._stack = ExitStack()
        self.broker = self._stack.enter_context(Redis.from_url(self.broker_url))
        self.results = self._stack.enter_context(Redis.from_url(self.result_url))
        #: A caller's Celery, which knows nothing of us.
        self.app = Celery(broker=self.broker_url, backend=self.result_url, set_as_current=False)
        self._stack.callback(self.app.close)
        self.database = Database(database_url)
        self._stack.callback(self.database.close)

    def close(self) -> None:
        self._stack.close()

    # --- workers ---

    def start(self, *words: str, name: str = "worker", **environment: str) -> Worker:
        """A worker process; it may take a second or two until it is there."""
        log = self.folder / f"{name}.log"
        variables = {
            "AUTH": "off",
            "BROKER_URL": self.broker_url,
            "RESULT_URL": self.result_url,
            "DATABASE_URL": self.database_url,
        }
        settings = {f"ARIES_{variable}": value for variable, value in variables.items()} | environment
        command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "-n", f"{name}@site", "-l", "WARNING"]
        with log.open("ab") as output:
            process = start_child(
                [*command, *words],
                stdout=output,
                stderr=output,
                cwd=CHECKOUT,
                env=os.environ | settings | {"PYTHONPATH": str(CHECKOUT)},
            )
        return Worker(process, f"{name}@site", log)

    @contextmanager
    def worker(self, *words: str, name: str = "worker", **environment: str) -> Iterator[Worker]:
        """A worker that is there, and is killed in the end if it still is."""
        worker = self.start(*words, name=name, **environment)
        try:
            until(lambda: not worker.is_up or self.app.control.ping([worker.name], timeout=0.2), seconds=30)
            assert worker.is_up, worker.log.read_text()
            yield worker
        finally:
            if worker.is_up:
                worker.send(signal.SIGCONT)
                end_child(worker.process, signal.SIGKILL)

    @contextmanager
    def paused(self, worker: Worker) -> Iterator[None]:
        """Let the worker stand still meanwhile, and take nothing more."""
        worker.send(signal.SIGSTOP)
        # What it has asked for is still given to it: this one.
        taken = request(1)
        self.push(taken)
        with suppress(TimeoutError):
            until(lambda: self.holds(id_of(taken)), seconds=1.5)
        yield
        worker.send(signal.SIGCONT)

    # --- Redis ---

    def push(self, *messages: dict[str, Any] | str | bytes, queue: str = contract.QUEUE) -> None:
        """What a caller does; in this order."""
        self.broker.lpush(queue, *(json.dumps(one) if isinstance(one, dict) else one for one in messages))

    def leases(self) -> list[bytes]:
        return list(self.broker.hvals(Keys().leases))

    def holds(self, request_id: str) -> bool:
        """Whether a worker has taken the request, and not acknowledged it."""
        return any(request_id.encode() in lease for lease in self.leases())

    def record(self, request_id: str, seconds: float = 10.0) -> dict[str, Any]:
        """What the result backend has for a request."""
        record: dict[str, Any] = json.loads(
            until(lambda: self.results.get(contract.RESULT_KEY_PREFIX + request_id), seconds)
        )
        return record

    def reply(self, request_id: str, seconds: float = 10.0) -> dict[str, Any]:
        """The reply document, or what Celery has of an exception."""
        reply: dict[str, Any] = self.record(request_id, seconds)["result"]
        return reply

    def code(self, request_id: str, seconds: float = 10.0) -> str:
        """The code of the reply, or OK."""
        reply = self.reply(request_id, seconds)
        return str(reply["error"]["code"]) if "error" in reply else str(reply.get("exc_type", "OK"))

    def events(self, request_id: str) -> list[Event]:
        """The reply events of a request in the common queue, the oldest first."""
        entries = [json.loads(entry) for entry in reversed(self.broker.lrange(contract.REPLY_QUEUE, 0, -1))]
        events = [Event(entry["headers"], json.loads(entry["body"])["data"]) for entry in entries]
        return [event for event in events if event.reply["request_id"] == request_id]

    def event(self, request_id: str) -> Event:
        """The one reply event of a request."""
        [event] = until(lambda: self.events(request_id))
        return event

    def is_at_rest(self) -> bool:
        """Whether nothing waits, and nothing is held."""
        return not self.broker.exists(*contract.QUEUES, Keys().leases, Keys().ends)

    # --- the database ---

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()

    def applied(self, request_ids: Iterable[str]) -> list[str]:
        """The requests among these that changed an image, once for each change."""
        rows = self.query("SELECT request_id FROM image_revisions WHERE request_id = ANY(%s)", list(request_ids))
        return [row[0] for row in rows]

    @contextmanager
    def locked(self, image: int) -> Iterator[None]:
        """Hold the row of an image, so that every batch that it is part of has to wait."""
        with psycopg.connect(self.database_url) as connection:
            connection.execute("SELECT FROM images WHERE id = %s FOR UPDATE", (image,))
            yield


def peak_memory(worker: Worker) -> int:
    """Most bytes of memory that the process has had so far."""
    status = Path(f"/proc/{worker.process.pid}/status")
    if not status.exists():
        return int(psutil.Process(worker.process.pid).memory_info().rss)
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@contextmanager
def site(postgres_url: str, folder: Path) -> Iterator[Site]:
    """A site with images and no worker; `postgres_url` is of a server that databases can be created on."""
    with database_on(postgres_url) as url, RedisServer(folder, persistent=False) as redis:
        upgrade(url)
        there = Site(redis, url, folder)
        load(there.database, *(an_image(number) for number in range(1, IMAGES + 1)))
        try:
            yield there
        finally:
            there.close()
