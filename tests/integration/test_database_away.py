"""The database is away, in every way that it can be, and comes back: what a worker holds meanwhile, and when it goes on."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import event

from models.migrations import upgrade
from tests.builders import a_request, an_image, decide, load, stored_revisions
from tests.servers import PostgresServer
from tests.service import Service, service_at
from tests.workers import running_worker, until
from worker.database import Database
from worker.embedded import ServerFailedError

#: Seconds after its return in which the first answer must be there.
RECOVERY = 3.0
LEASE = {"ARIES_LEASE_SECONDS": "2"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    try:
        with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
            run(server, "CREATE ROLE images LOGIN", "ALTER DATABASE postgres OWNER TO images")
            run(server, "GRANT ALL ON SCHEMA public TO images")
            upgrade(url_of(server))
            yield server
    except ServerFailedError as error:
        pytest.skip(str(error))


def url_of(server: PostgresServer) -> str:
    """As a user whom limits apply to."""
    return urlsplit(server.url)._replace(netloc=f"images@127.0.0.1:{server.port}").geturl()


def run(server: PostgresServer, *statements: str) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[call-overload]  # no literal, but no stranger's either


CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'images'"


@contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    server.stop()
    yield
    server.start()


@contextmanager
def crashed(server: PostgresServer) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextmanager
def full_of_connections(server: PostgresServer) -> Iterator[None]:
    run(server, "ALTER ROLE images CONNECTION LIMIT 0", CUT)
    yield
    run(server, "ALTER ROLE images CONNECTION LIMIT -1")


@contextmanager
def read_only(server: PostgresServer) -> Iterator[None]:
    run(server, "ALTER ROLE images SET default_transaction_read_only = on", CUT)
    yield
    run(server, "ALTER ROLE images RESET default_transaction_read_only", CUT)


@contextmanager
def out_of_disk(server: PostgresServer) -> Iterator[None]:
    run(
        server,
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$",
        "CREATE TRIGGER full_disk BEFORE INSERT ON requests FOR EACH ROW EXECUTE FUNCTION full_disk()",
    )
    yield
    run(server, "DROP TRIGGER full_disk ON requests", "DROP FUNCTION full_disk")


@contextmanager
def locked(server: PostgresServer) -> Iterator[None]:
    with psycopg.connect(server.url) as connection:
        connection.execute("LOCK TABLE images")
        yield


Fault = Callable[[PostgresServer], AbstractContextManager[None]]
faults = pytest.mark.parametrize("fault", [stopped, crashed, full_of_connections, read_only, out_of_disk, locked])


@pytest.fixture(scope="module", params=[None, "threads"], ids=["default", "threads"])
def service(request: pytest.FixtureRequest, module_redis: tuple[str, str], server: PostgresServer) -> Iterator[Service]:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("TRUNCATE images, image_revisions, requests")
    with (
        service_at(*module_redis, url_of(server)) as service,
        running_worker(service.environment | LEASE, pool=request.param, concurrency=4),
    ):
        for _ in range(4):
            service.image()
        service.database.close()
        yield service


@faults
def test_what_comes_meanwhile_is_applied_when_it_is_back(
    service: Service, server: PostgresServer, fault: Fault
) -> None:
    with fault(server):
        sent = [service.send({"id": number, "description": fault.__name__}) for number in (1, 2, 3)]
        time.sleep(float(LEASE["ARIES_LEASE_SECONDS"]) + 1)  # longer than a lease
        assert not any(result.ready() for result in sent)
    back = time.monotonic()
    assert [result.get(timeout=10)["status"] for result in sent] == [200, 200, 200]
    assert time.monotonic() - back < RECOVERY
    for result in sent:
        [told] = service.wait_for_events(str(result.id))
        assert (told["headers"]["attempt"], told["headers"]["replayed"]) == (1, False)
    made = [row["request_id"] for row in stored_revisions(service.database)]
    assert [made.count(str(result.id)) for result in sent] == [1, 1, 1]
    service.database.close()
    until(service.is_idle)


@pytest.mark.parametrize("service", [None], indirect=True)
def test_many_that_are_locked_are_given_up_in_time(service: Service, server: PostgresServer) -> None:
    began = datetime.now(UTC)
    with locked(server):
        deadline = began + timedelta(seconds=2)
        sent = [service.send({"id": 1 + number % 4}, expires=deadline) for number in range(60)]
        for result in sent:
            assert service.stored(str(result.id))["status"] == "FAILURE"
        assert (datetime.now(UTC) - began).total_seconds() < 6


@faults
def test_each_request_is_given_up_at_its_own_deadline(service: Service, server: PostgresServer, fault: Fault) -> None:
    began = datetime.now(UTC)
    with fault(server):
        soon = service.send({"id": 1, "description": f"soon {fault.__name__}"}, expires=began + timedelta(seconds=2))
        later = service.send({"id": 2, "description": f"later {fault.__name__}"}, expires=began + timedelta(seconds=30))
        record = service.stored(str(soon.id))
        assert (record["status"], record["result"]["exc_type"]) == ("FAILURE", "InternalError")
        assert (datetime.now(UTC) - began).total_seconds() < 4
        assert not later.ready()
    assert later.get(timeout=10)["status"] == 200


# --- SQLite ---


@pytest.fixture
def full(sqlite_url: str) -> Iterator[Database]:
    """A database file that cannot grow."""
    database = Database(sqlite_url)
    load(database, an_image(1))
    event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))
    database.engine.dispose()
    yield database
    database.close()


def test_a_full_disk_is_waited_for(full: Database) -> None:
    requests = [a_request(1, description="x" * 4000) for _ in range(5)]
    began = time.monotonic()
    replies = decide(requests, full, 2.0)
    assert "InternalError" in {reply.code for reply in replies}
    assert time.monotonic() - began > 0.4, "it was tried again"


def test_a_file_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'nowhere' / 'images.db'}")
    began = time.monotonic()
    [reply] = decide([a_request(1)], database, 2.0)
    assert (reply.code, time.monotonic() - began > 0.4) == ("InternalError", True)
