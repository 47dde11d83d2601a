"""Embedded servers: they start, answer, come back with what they had, and never outlive whoever started them."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
from redis import Redis

from tests.servers import PostgresServer
from worker.embedded import RedisServer, Server, ServerFailedError


def test_redis_keeps_what_it_was_given_over_a_crash(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, Redis.from_url(server.url(3)) as client:
        client.set("stopped", "value")
        server.stop()
        server.start()
        client.set("killed", "value")
        server.kill()
        server.start()
        assert client.mget("stopped", "killed") == [b"value", b"value"]
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_postgresql_keeps_what_was_committed_over_a_crash(tmp_path: Path) -> None:
    with PostgresServer(tmp_path) as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS it")
        server.stop("immediate")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.url)
        server.start()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT it FROM kept").fetchone() == (42,)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        RedisServer(tmp_path / "first") as first,
        pytest.raises(ServerFailedError, match="Address already in use"),
        RedisServer(tmp_path / "second", first.port),
    ):
        pass


@pytest.mark.parametrize("kind", [RedisServer, PostgresServer])
def test_a_server_dies_with_a_parent_that_is_killed(kind: type[Server], tmp_path: Path) -> None:
    program = f"""
import pathlib, time
from {kind.__module__} import {kind.__name__}
with {kind.__name__}(pathlib.Path({str(tmp_path)!r})) as server:
    print(server.process.pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        family = [server, *server.children(recursive=True)]
        parent.send_signal(signal.SIGKILL)
    _wait_until(lambda: not any(process.is_running() for process in family))


def _wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)
