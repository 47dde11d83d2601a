"""The schema is brought to its newest state while two workers run under load: nobody waits, and nothing is lost."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import psycopg
import pytest

from models.migrations import level, upgrade
from tests.builders import an_image, load, stored_images, stored_revisions
from tests.servers import database_on
from tests.service import Service, service_at
from tests.workers import running_worker, until

#: Seconds that an update may take meanwhile, on a machine that has other work too.
LONGEST = 3.0
CALLERS = 4
OLD = "0001"
BUSY_IMAGE = 99
OPEN_TRANSACTION = (
    "INSERT INTO image_revisions (image_id, revision, before, after, request_id, caller, at)"
    " VALUES (99, 2, '{}', '{}', 'somebody-slow', 'somebody', now())"
)
WAITS = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query ~ 'INDEX'"
)
INDEX_IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_image_revisions_at'::regclass"


@pytest.fixture
def old(postgres_url: str) -> Iterator[str]:
    """The URL of a database as it was before the newest index."""
    with database_on(postgres_url) as url:
        upgrade(url, OLD)
        yield url


class Load:
    """Callers who each ask for one update after the other, of an image of their own."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ends = threading.Event()
        self.seconds: list[float] = []
        self.asked: Counter[int] = Counter()

    def call(self, image: int) -> None:
        for number in itertools.count():
            if self._ends.is_set():
                return
            began = time.monotonic()
            self._service.client.update(image, description=f"{number}")
            self.seconds.append(time.monotonic() - began)
            self.asked[image] += 1

    def wait_for_more(self, number: int) -> None:
        there = len(self.seconds)
        until(lambda: len(self.seconds) >= there + number, 20)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Until the end of the block; a caller who was refused raises it there."""
        with ThreadPoolExecutor(CALLERS) as callers:
            calls = [callers.submit(self.call, image) for image in range(1, CALLERS + 1)]
            try:
                yield
            finally:
                self._ends.set()
        for call in calls:
            call.result()


def test_the_schema_is_upgraded_under_load_behind_a_transaction_that_does_not_end(
    broker_url: str, result_url: str, old: str
) -> None:
    with (
        service_at(broker_url, result_url, old) as service,
        running_worker(service.environment),
        running_worker(service.environment),
    ):
        load(service.database, *(an_image(number) for number in (*range(1, CALLERS + 1), BUSY_IMAGE)))
        callers = Load(service)
        with callers.running():
            callers.wait_for_more(50)
            with ThreadPoolExecutor(1) as operator, psycopg.connect(old) as slow, psycopg.connect(old) as look:
                look.autocommit = True
                slow.execute(OPEN_TRANSACTION)
                migration = operator.submit(upgrade, old)
                until(lambda: look.execute(WAITS).fetchall() or migration.done())
                assert not migration.done()
                callers.wait_for_more(100)
                slow.rollback()
                migration.result()
            callers.wait_for_more(50)
        assert {row["id"]: row["revision"] - 1 for row in stored_images(service.database)} == {
            **callers.asked,
            BUSY_IMAGE: 0,
        }
        assert len(stored_revisions(service.database)) == callers.asked.total()
        assert max(callers.seconds) < LONGEST
        current, newest = level(service.database.engine)
        assert current == newest
        assert len({event["headers"]["worker"] for event in service.events()}) == 2
        assert {event["headers"]["attempt"] for event in service.events()} == {1}
        until(service.is_idle)


def test_an_index_whose_building_was_broken_off_is_built_anew(old: str) -> None:
    with psycopg.connect(old, autocommit=True) as slow, psycopg.connect(old, autocommit=True) as look:
        slow.execute("BEGIN; LOCK TABLE image_revisions IN ROW EXCLUSIVE MODE")
        with ThreadPoolExecutor(1) as operator:
            migration = operator.submit(upgrade, old)
            until(lambda: look.execute(WAITS).fetchall())
            look.execute(WAITS.replace("SELECT 1", "SELECT pg_terminate_backend(pid)"))
            with suppress(Exception):
                migration.result()
        slow.execute("ROLLBACK")
        assert look.execute(INDEX_IS_VALID).fetchall() == [(False,)]
        upgrade(old)
        assert look.execute(INDEX_IS_VALID).fetchall() == [(True,)]
