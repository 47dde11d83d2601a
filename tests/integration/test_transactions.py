"""Transactions that get in each other's way, and databases that fail: one winner, one answer each, nothing half done."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import event

from aries_images.contract import Reply
from tasks.apply_updates import Request
from tests.builders import (
    SECRET,
    a_request,
    an_image,
    decide,
    heal,
    ledger,
    load,
    poison,
    run_ddl,
    stored_image,
    stored_images,
    stored_revisions,
)
from tests.workers import until
from worker.database import Database

THREADS = 8


def opened(url: str) -> Database:
    database = Database(url)
    load(database, *(an_image(number) for number in range(1, THREADS + 1)))
    return database


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = opened(database_url)
    yield database
    database.close()


@pytest.fixture
def on_postgresql(postgresql_url: str) -> Iterator[Database]:
    database = opened(postgresql_url)
    yield database
    database.close()


def answer(database: Database, request: Request, patience: float = 10.0) -> Reply:
    [reply] = decide([request], database, patience)
    return reply


def all_at_once(database: Database, batches: Sequence[Sequence[Request]]) -> list[Reply]:
    """Each batch in a thread of its own, all let go at the same moment."""
    gate = threading.Barrier(len(batches))

    def run(batch: Sequence[Request]) -> list[Reply]:
        gate.wait()
        return decide(batch, database, 20.0)

    with ThreadPoolExecutor(len(batches)) as threads:
        return [reply for replies in threads.map(run, batches) for reply in replies]


def codes(replies: list[Reply]) -> list[str]:
    return sorted(reply.code or "OK" for reply in replies)


# --- races ---


def test_of_many_who_want_one_name_one_gets_it(database: Database) -> None:
    for name in ("first", "second", "third"):
        replies = all_at_once(database, [[a_request(number, name=name)] for number in range(1, THREADS + 1)])
        assert codes(replies) == ["ImageNameExists"] * (THREADS - 1) + ["OK"]
        [winner] = [reply.image_id for reply in replies if reply.code is None]
        assert [row["id"] for row in stored_images(database) if row["name"] == name] == [winner]
    assert len(stored_revisions(database)) == 3
    assert len(ledger(database)) == 3 * THREADS


def test_of_batches_that_want_one_name_each_request_is_answered(database: Database) -> None:
    batches = [
        [
            a_request(number, name=f"other-{number}"),
            a_request(number, name="wanted"),
            a_request(number, description="x"),
        ]
        for number in range(1, THREADS + 1)
    ]
    assert codes(all_at_once(database, batches)) == ["ImageNameExists"] * (THREADS - 1) + ["OK"] * (2 * THREADS + 1)
    assert sum(row["name"] == "wanted" for row in stored_images(database)) == 1
    assert all(row["description"] == "x" for row in stored_images(database))


def test_updates_of_one_image_are_made_one_after_the_other(database: Database) -> None:
    all_at_once(
        database, [[a_request(1, description=str(n)) for n in range(t * 10, t * 10 + 5)] for t in range(THREADS)]
    )
    revisions = stored_revisions(database, 1)
    assert [row["revision"] for row in revisions] == list(range(2, 2 + 5 * THREADS))
    assert [row["before"] for row in revisions[1:]] == [row["after"] for row in revisions[:-1]]
    assert stored_image(database, 1)["revision"] == 1 + 5 * THREADS


def test_disjoint_fields_of_racing_requests_both_survive(database: Database) -> None:
    all_at_once(database, [[a_request(1, description="x")], [a_request(1, os_name="y")], [a_request(1, name="z")]])
    row = stored_image(database, 1)
    assert (row["description"], row["os_name"], row["name"], row["revision"]) == ("x", "y", "z", 4)


def test_one_request_many_times_at_once_is_applied_once(database: Database) -> None:
    request = a_request(1, description="x")
    replies = all_at_once(database, [[request]] * THREADS)
    assert len({reply.text for reply in replies}) == 1
    assert sorted(reply.replayed for reply in replies) == [False] + [True] * (THREADS - 1)
    assert len(stored_revisions(database)) == len(ledger(database)) == 1


def test_one_request_id_for_two_images_at_once_is_applied_once(database: Database) -> None:
    bodies = [replace(a_request(number, description="x"), id="the-same") for number in range(1, THREADS + 1)]
    assert codes(all_at_once(database, [[body] for body in bodies])) == ["InvalidParameter"] * (THREADS - 1) + ["OK"]
    assert len(stored_revisions(database)) == len(ledger(database)) == 1


def test_batches_that_cross_each_other_all_end_well(database: Database) -> None:
    forth = [a_request(number, description="forth") for number in range(1, 5)]
    back = [a_request(number, description="back") for number in range(4, 0, -1)]
    assert codes(all_at_once(database, [forth, back])) == ["OK"] * 8
    assert [row["revision"] for row in stored_images(database)[:4]] == [3] * 4


# --- what passes by itself ---


@contextmanager
def another(database: Database) -> Iterator[psycopg.Connection]:
    """A transaction of somebody else's, who never gives way in a deadlock."""
    url = database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        connection.execute("SET deadlock_timeout = '10min'")
        yield connection


def waits(database: Database) -> bool:
    """Whether a transaction waits for another's lock."""
    with database.transaction() as connection:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return connection.exec_driver_sql(asked).scalar() == 1


@pytest.mark.parametrize("size", [1, 2])
def test_after_a_deadlock_it_is_done_again(on_postgresql: Database, size: int) -> None:
    batch = [a_request(1, name="wanted"), a_request(2, description="x")][:size]
    with another(on_postgresql) as other, ThreadPoolExecutor(1) as thread:
        other.execute("UPDATE images SET name = 'wanted' WHERE id = 2")
        replies = thread.submit(decide, batch, on_postgresql, 10.0)
        until(lambda: waits(on_postgresql))
        other.execute("UPDATE images SET description = 'other' WHERE id = 1")  # until the deadlock is found
        other.commit()
    assert codes(replies.result()) == ["ImageNameExists", "OK"][:size]
    assert stored_image(on_postgresql, 1)["description"] == "other"
    assert stored_image(on_postgresql, 2)["name"] == "wanted"


def fail_with(database: Database, state: str, times: int) -> None:
    """The next `times` updates of image 1 end with that SQLSTATE; a sequence counts, which no roll-back undoes."""
    run_ddl(
        database,
        "CREATE SEQUENCE tries",
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('tries') <= {times} THEN RAISE EXCEPTION '{SECRET}' USING ERRCODE = '{state}'; END IF; "
        "RETURN NEW; END $$",
        "CREATE TRIGGER fail BEFORE UPDATE ON images FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION fail()",
    )


def tries(database: Database) -> int:
    with database.transaction() as connection:
        return int(connection.exec_driver_sql("SELECT last_value FROM tries").scalar() or 0)


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03", "57P01", "53300", "08006", "25006"])
def test_what_passes_is_tried_again(on_postgresql: Database, state: str) -> None:
    fail_with(on_postgresql, state, times=3)
    assert answer(on_postgresql, a_request(1, description="x")).document["revision"] == 2
    assert tries(on_postgresql) == 4
    assert len(stored_revisions(on_postgresql)) == 1


@pytest.mark.parametrize("state", ["22000", "23502", "42P01", "P0001", "XX000"])
def test_what_does_not_pass_is_not_tried_again(on_postgresql: Database, state: str) -> None:
    fail_with(on_postgresql, state, times=3)
    reply = answer(on_postgresql, a_request(1, description="x"))
    assert (reply.code, reply.stored) == ("InternalError", False)
    assert tries(on_postgresql) == 1


@pytest.mark.parametrize("size", [1, 3])
def test_patience_ends(on_postgresql: Database, size: int) -> None:
    fail_with(on_postgresql, "40001", times=1_000_000)
    batch = [a_request(number, description="x") for number in range(1, size + 1)]
    started = time.monotonic()
    replies = decide(batch, on_postgresql, 0.3)
    assert 0.1 < time.monotonic() - started < 2
    assert [reply.code for reply in replies] == ["InternalError", None, None][:size]


def test_patience_ends_with_the_deadline(on_postgresql: Database) -> None:
    fail_with(on_postgresql, "40001", times=1_000_000)
    request = replace(a_request(1, description="x"), deadline=datetime.now(UTC) + timedelta(seconds=0.3))
    started = time.monotonic()
    assert answer(on_postgresql, request, 30).code in {"InternalError", "DeadlineExceeded"}
    assert time.monotonic() - started < 2


def test_a_deadline_that_passes_before_the_lock_is_had_is_missed(on_postgresql: Database) -> None:
    request = replace(a_request(1, description="x"), deadline=datetime.now(UTC) + timedelta(seconds=0.5))
    with another(on_postgresql) as other, ThreadPoolExecutor(1) as thread:
        other.execute("SELECT FROM images WHERE id = 1 FOR UPDATE")
        reply = thread.submit(answer, on_postgresql, request)
        until(lambda: waits(on_postgresql))
        until(lambda: request.deadline is not None and datetime.now(UTC) > request.deadline)
        other.commit()
    assert reply.result().code == "DeadlineExceeded"
    assert stored_image(on_postgresql, 1) == an_image(1)


def test_a_busy_sqlite_is_waited_for(sqlite_url: str) -> None:
    database, other = opened(sqlite_url), Database(sqlite_url)
    event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 20"))
    database.engine.dispose()
    with ThreadPoolExecutor(1) as thread:
        with other.transaction():
            reply = thread.submit(answer, database, a_request(1, description="x"))
            time.sleep(0.3)  # longer than the driver waits by itself
            assert not reply.done()
        assert reply.result().code is None
    database.close()
    other.close()


# --- faults ---


def test_a_fault_is_answered_and_not_stored(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    request = a_request(1, name="new")
    before = stored_images(database)
    run_ddl(database, "ALTER TABLE image_revisions RENAME TO gone")
    reply = answer(database, request)
    assert reply.document == {
        "request_id": request.id,
        "digest": request.digest,
        "status": 500,
        "error": {"code": "InternalError", "message": "内部错误", "retry": "backoff", "details": []},
    }
    assert (reply.stored, reply.image_id) == (False, 1)
    assert "image_revisions" in caplog.text, "the log says why"
    assert stored_images(database) == before
    assert ledger(database) == {}
    run_ddl(database, "ALTER TABLE gone RENAME TO image_revisions")
    assert answer(database, request).document["revision"] == 2


def test_without_a_table_every_request_of_a_batch_is_answered(database: Database) -> None:
    run_ddl(database, "ALTER TABLE requests RENAME TO gone")
    replies = decide([a_request(1), a_request(9), a_request(2, name=" x")], database, 5.0)
    assert codes(replies) == ["InternalError"] * 3


def test_a_fault_says_nothing_of_its_cause(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    poison(database)
    request = a_request(1, name="poison")
    assert SECRET not in answer(database, request).text
    assert SECRET in caplog.text
    heal(database)
    assert answer(database, request).code is None


def test_a_database_that_is_not_there_is_a_fault() -> None:
    database = Database("postgresql://postgres@127.0.0.1:1/none")
    assert answer(database, a_request(1), 0.2).code == "InternalError"
    database.close()
