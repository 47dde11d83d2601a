"""`/healthz`: whether a container should be ended and started anew."""

import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.service import Service, service_at
from tests.workers import CHECKOUT, running_worker, until
from worker.embedded import RedisServer, end_child, free_port, start_child
from worker.group_commit import Pool
from worker.health import Health


def asked(port: int) -> tuple[int, list[str]]:
    """The status, and what is wrong; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as response:
            return response.status, json.load(response)["troubles"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["troubles"]
    except OSError:
        return 0, []


def settings(port: int, **others: str) -> dict[str, str]:
    return {"ARIES_METRICS_PORT": str(port), "ARIES_HEALTH_SECONDS": "2", **others}


@pytest.fixture
def service(broker_url: str, result_url: str, sqlite_url: str) -> Iterator[Service]:
    with service_at(broker_url, result_url, sqlite_url) as service:
        yield service


@pytest.mark.parametrize("pool", [None, "prefork", "threads"])
def test_an_idle_worker_is_alive_for_longer_than_its_loop_may_stand_still(service: Service, pool: str | None) -> None:
    port = free_port()
    with running_worker(service.environment | settings(port), pool=pool):
        seen: set[int] = set()
        timer = threading.Event()
        for _ in range(30):
            seen.add(asked(port)[0])
            timer.wait(0.1)
        assert seen == {200}
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            assert b"aries_broker_up 1.0" in response.read()


def test_a_worker_whose_loop_hangs_is_not_and_is_again_when_it_goes_on(service: Service) -> None:
    """With the pool that runs requests in the loop, and a database that another holds: nothing else can turn."""
    port, image = free_port(), service.image()
    with running_worker(service.environment | settings(port), pool="solo"):
        assert asked(port) == (200, [])
        with service.database.transaction():
            asked_for = service.send({"id": image["id"], "description": "x"})
            until(lambda: asked(port)[0] == 503, 20)
            status, troubles = asked(port)
            assert status == 503
            assert "the loop has not turned" in troubles[0]
        assert asked_for.get(timeout=20)["status"] == 200
        until(lambda: asked(port)[0] == 200, 20)


@contextmanager
def unwatched_worker(environment: dict[str, str], log: Path) -> Iterator[int]:
    """A worker that nobody waits for; its process id."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ARIES_")}
    words = [sys.executable, "-m", "celery", "-A", "worker", "worker", "--loglevel=INFO", "--without-mingle"]
    with log.open("wb") as output:
        child = start_child(words, cwd=CHECKOUT, env=inherited | environment, stdout=output, stderr=output)
    try:
        yield child.pid
    finally:
        end_child(child, signal.SIGKILL)


def test_a_worker_that_waits_for_redis_is_alive_from_the_start(tmp_path: Path, sqlite_url: str) -> None:
    """Redis is away at the start, comes, freezes, goes: a new worker in its place would wait as well."""
    port, server = free_port(), RedisServer(tmp_path, free_port(), persistent=False)
    environment = {
        "ARIES_AUTH": "off",
        "ARIES_BROKER_URL": server.url(0),
        "ARIES_RESULT_URL": server.url(1),
        "ARIES_DATABASE_URL": sqlite_url,
    }
    timer = threading.Event()

    def stays_alive(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if asked(port)[0] != 200:
                return False
            timer.wait(0.1)
        return True

    log = tmp_path / "worker.log"
    with unwatched_worker(environment | settings(port, ARIES_HEALTH_SECONDS="4"), log):
        until(lambda: asked(port)[0] == 200, 20)
        until(lambda: "Cannot connect" in log.read_text(), 20)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            assert b"aries_broker_up 0.0" in response.read()
        assert stays_alive(5)
        with server:
            until(lambda: "ready" in log.read_text(), 40)
            assert server.process is not None
            os.kill(server.process.pid, signal.SIGSTOP)
            assert stays_alive(8)
            os.kill(server.process.pid, signal.SIGCONT)
        assert stays_alive(5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_batch_thread_that_died_is_named() -> None:
    app = SimpleNamespace(settings=SimpleNamespace(batch_max=1), tasks={})
    pool, health = Pool(limit=2, app=app), Health(60, list)
    pool.on_start()
    health.watch(pool)
    assert health.troubles() == []
    # What the pool itself can't survive: a job that isn't one.
    pool.on_apply(None, (None, None, {}), {}, None, None)
    until(health.troubles)
    assert "is dead" in health.troubles()[0]
    health.leave()
    assert health.troubles() == []
    pool.on_close()


def test_a_worker_ends_if_the_port_is_taken(service: Service, tmp_path: Path) -> None:
    port = free_port()
    with running_worker(service.environment | settings(port)):
        log = tmp_path / "second.log"
        with unwatched_worker(service.environment | settings(port), log):
            until(lambda: "Address already in use" in log.read_text(), 20)
