"""Servers for a whole run, and for each test a Redis and a database as fresh as if nobody had used them before."""

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from redis import Redis

from models.migrations import upgrade
from tests import nodejs, servers
from worker.embedded import ServerFailedError

Given = TypeVar("Given")
NeedProgram = Callable[[str], None]
#: Numbers for databases; the process id keeps test processes on one server apart.
_numbers = itertools.count()


def pytest_configure() -> None:
    """Ctrl-C reaches what tests start, even where the run itself was started to ignore it, as by `make test &`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _missing(what: Exception) -> NoReturn:
    """What is missing is a reason to skip on a desk, and a failure in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(str(what))


@pytest.fixture(scope="session")
def need_program() -> NeedProgram:
    """What a test calls that starts a program: it goes no further where there is none of that name."""

    def need_program(name: str) -> None:
        if shutil.which(name) is None:
            _missing(FileNotFoundError(f"there is no {name} on the PATH"))

    return need_program


def _running(server: AbstractContextManager[Given]) -> Iterator[Given]:
    """A server for the whole run."""
    try:
        given = server.__enter__()
    except ServerFailedError as error:
        _missing(error)
    yield given
    server.__exit__(None, None, None)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis: its URL without a database number."""
    yield from _running(servers.redis())


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL: the URL of a database to create others from."""
    yield from _running(servers.postgres())


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[servers.RabbitServer]:
    """A real RabbitMQ, which a test may stop and start again."""
    with TemporaryDirectory(prefix="aries-") as folder:
        server = servers.RabbitServer(Path(folder))
        for _ in _running(server):
            yield server


@pytest.fixture(scope="session")
def node() -> nodejs.Node:
    """Node.js with the packages that tests/node/package.json asks for."""
    try:
        return nodejs.installed()
    except nodejs.NodeMissingError as error:
        _missing(error)


@pytest.fixture(scope="session")
def promtool() -> servers.Promtool:
    """Prometheus' own checker; who has it has the server too."""
    if not servers.has_prometheus():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the package prometheus is not installed")
    return servers.promtool


def _empty(url: str) -> str:
    with Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def broker_url(redis_url: str) -> str:
    """An empty Redis database for requests and reply events."""
    return _empty(f"{redis_url}/{servers.first_redis_db()}")


@pytest.fixture
def result_url(redis_url: str) -> str:
    """An empty Redis database for results."""
    return _empty(f"{redis_url}/{servers.first_redis_db() + 1}")


@pytest.fixture(scope="session")
def _migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    upgrade(f"sqlite:///{file}")
    return file


def _create(server: str, template: str) -> str:
    """A new database on `server`, the copy of `template`; returns its URL."""
    name = f"aries_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    return urlsplit(server)._replace(path=f"/{name}").geturl()


def _drop(server: str, url: str) -> None:
    name = sql.Identifier(urlsplit(url).path.removeprefix("/"))
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture(scope="session")
def _migrated_database(postgres_url: str) -> Iterator[str]:
    url = _create(postgres_url, "template0")
    upgrade(url)
    yield urlsplit(url).path.removeprefix("/")
    _drop(postgres_url, url)


@pytest.fixture
def sqlite_url(_migrated_file: Path, tmp_path: Path) -> str:
    """A fresh SQLite database, migrated."""
    return f"sqlite:///{shutil.copy(_migrated_file, tmp_path / 'aries.db')}"


@pytest.fixture
def postgresql_url(postgres_url: str, _migrated_database: str) -> Iterator[str]:
    """A fresh PostgreSQL database, migrated."""
    url = _create(postgres_url, _migrated_database)
    yield url
    _drop(postgres_url, url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database; every test that asks for one runs on SQLite and on PostgreSQL."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
