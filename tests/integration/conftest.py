"""Servers' databases that last for a module, for tests that share them and keep out of each other's way."""

import itertools
import os
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from redis import Redis

from models.migrations import upgrade
from tests.builders import clear
from tests.servers import first_redis_db
from worker.database import Database

NewDatabase = Callable[[str], str]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def new_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewDatabase]:
    """What makes a migrated database of a kind, `sqlite` or `postgresql`, and returns its URL."""
    made: list[sql.Identifier] = []

    def new_database(kind: str) -> str:
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'aries.db'}"
        else:
            server: str = request.getfixturevalue("postgres_url")
            name = f"aries_module_{os.getpid()}_{next(_numbers)}"
            made.append(sql.Identifier(name))
            run(sql.SQL("CREATE DATABASE {}").format(made[-1]))
            url = urlsplit(server)._replace(path=f"/{name}").geturl()
        upgrade(url)
        return url

    def run(statement: sql.Composed) -> None:
        with psycopg.connect(request.getfixturevalue("postgres_url"), autocommit=True) as connection:
            connection.execute(statement)

    yield new_database
    for name in made:
        run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def module_database(request: pytest.FixtureRequest, new_database: NewDatabase) -> Iterator[Database]:
    database = Database(new_database(request.param))
    yield database
    database.close()


@pytest.fixture
def shared_database(module_database: Database) -> Database:
    """An empty database, on SQLite and on PostgreSQL: quicker to have than a fresh one, if its tables are let alone."""
    clear(module_database)
    return module_database


@pytest.fixture(scope="module")
def module_redis(redis_url: str) -> tuple[str, str]:
    """Two empty Redis databases, for requests and for results."""
    # The same ones that single tests are given: of two modules in one process one is over when the other begins.
    first = first_redis_db()
    broker_url, result_url = (f"{redis_url}/{number}" for number in (first, first + 1))
    for url in (broker_url, result_url):
        with Redis.from_url(url) as client:
            client.flushdb()
    return broker_url, result_url
