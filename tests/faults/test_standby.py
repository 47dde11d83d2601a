"""PostgreSQL with a standby: the primary is killed under load, the standby promoted; no answer turns out untrue."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.faults.town import town, until
from tests.servers import PostgresServer, StandbyServer
from worker.database import Database
from worker.embedded import ServerFailedError


def either(*servers: PostgresServer) -> str:
    """The URL of whichever of them takes writes."""
    hosts = "&".join(f"host=127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://postgres@/postgres?{hosts}&target_session_attrs=read-write"


@contextmanager
def following(primary: PostgresServer, folder: Path) -> Iterator[StandbyServer]:
    """A standby that the primary waits for at each commit."""
    standby = StandbyServer(folder, primary)
    try:
        standby.start()
    except ServerFailedError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    with psycopg.connect(primary.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("SELECT pg_reload_conf()")
        state = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        until(lambda: connection.execute(state).fetchone() == (1,))
    try:
        yield standby
    finally:
        standby.stop()


def stop_sending(primary: PostgresServer) -> None:
    """From now on nothing that is committed reaches the standby."""
    with psycopg.connect(primary.url) as connection:
        [(pid,)] = connection.execute("SELECT pid FROM pg_stat_replication").fetchall()
    psutil.Process(pid).suspend()


def test_the_primary_is_killed_and_the_standby_promoted(size: Callable[[int, int], int], tmp_path: Path) -> None:
    with town(own=True, workers=0) as there, following(there.postgres, tmp_path / "standby") as standby:
        url = either(there.postgres, standby)
        there.ready(there.worker(ARIES_DATABASE_URL=url), there.worker(ARIES_DATABASE_URL=url))
        book = there.book(timeouts=(3, 10))
        with book.callers(16, size(3000, 20_000)):
            time.sleep(1.5)
            stop_sending(there.postgres)  # so that there is something to lose
            time.sleep(0.5)
            there.postgres.kill()
            standby.promote()
            back = time.monotonic()
            book.keep_going(1000)
        until(there.is_at_rest, 60)
        database = Database(standby.url)
        print(dict(book.check(database, there.broker, there.results)))
        print(f"first answer {book.first_answer_after(back):.1f} s after the standby was promoted")
        database.close()
        assert all(worker.poll() is None for worker in there.workers)
