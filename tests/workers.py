"""Real worker processes: `celery -A worker worker` in the checkout, as an operator starts it."""

import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from celery import Celery
from redis.exceptions import RedisError

from worker.embedded import start_child

CHECKOUT = Path(__file__).parents[1]
#: Seconds that a worker may take to answer for the first time.
START_SECONDS = 30.0

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Worker:
    """A running worker process."""

    node: str
    process: psutil.Process
    log: Path

    def children(self) -> list[psutil.Process]:
        """The processes of its pool."""
        return self.process.children()

    def kill(self) -> None:
        """End it at once, with the processes of its pool."""
        os.killpg(self.process.pid, signal.SIGKILL)


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextmanager
def running_worker(
    environment: Mapping[str, str],
    *,
    pool: str | None = None,
    concurrency: int | None = None,
    asked_at: str | None = None,
    node: str | None = None,
) -> Iterator[Worker]:
    """A worker that answers, until the end of the block; what it logged is printed then.

    Args:
        environment: its settings, `ARIES_…`; none of this process's own are passed on.
        pool: `prefork`, `threads` or `solo`; default: the one that celeryconfig names.
        concurrency: of the pool; default: the one that celeryconfig names.
        asked_at: URL of its broker for whoever wants to know whether it answers; default: its own.
        node: its name; default: one that no other test uses.
    """
    node = node or f"test-{os.getpid()}-{next(_numbers)}@localhost"
    words = [sys.executable, "-m", "celery", "-A", "worker", "worker", "--loglevel=INFO", f"--hostname={node}"]
    words += ["--without-mingle"]  # which would wait a second for other workers to introduce themselves
    words += [f"--pool={pool}"] if pool else []
    words += [f"--concurrency={concurrency}"] if concurrency else []
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ARIES_")}
    with tempfile.NamedTemporaryFile(prefix="aries-worker-", suffix=".log") as log:
        child = start_child(
            words, death=signal.SIGKILL, cwd=CHECKOUT, env=inherited | dict(environment), stdout=log, stderr=log
        )
        worker = Worker(node, psutil.Process(child.pid), Path(log.name))
        try:
            _wait_for(worker, asked_at or environment["ARIES_BROKER_URL"], lambda: child.poll() is None)
            yield worker
        finally:
            if child.poll() is None:
                worker.kill()
            child.wait()
            print(f"--- log of {node}", worker.log.read_text(errors="replace"), sep="\n")  # noqa: T201  # pytest's to show


def _wait_for(worker: Worker, broker_url: str, lives: Callable[[], bool]) -> None:
    end = time.monotonic() + START_SECONDS
    with Celery(broker=broker_url, set_as_current=False) as app:
        while not _answers(app, worker.node):
            assert lives(), f"the worker ended:\n{worker.log.read_text(errors='replace')}"
            assert time.monotonic() < end, "the worker does not answer"


def _answers(app: Celery, node: str) -> bool:
    try:
        return bool(app.control.ping([node], timeout=0.5))
    except RedisError:
        # Kombu keeps connections for the whole process, and a test before this one may have had the server cut them.
        return False
