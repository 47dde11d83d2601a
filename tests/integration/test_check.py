"""`python -m worker check`: what is wrong is found, said, and does not hide the rest."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import time_machine
from click.testing import CliRunner
from redis import Redis
from sqlalchemy import make_url

from aries_images import contract
from aries_images.signing import SigningKey
from tests.builders import run_ddl
from tests.integration.conftest import NewDatabase
from tests.service import Service, service_at
from tests.workers import running_worker, until
from worker.__main__ import commands
from worker.commands.doctor import Level, kept
from worker.commands.token import PRIVATE, PUBLIC, make_keys
from worker.embedded import RedisServer
from worker.leases import Keys

FINE, LOOK, BROKEN = "fine", "look", "broken"


class Town:
    """A Redis of its own, keys, and a worker."""

    def __init__(self, server: RedisServer, service: Service, keys: Path) -> None:
        self.server, self.service, self.keys = server, service, keys
        self.token = SigningKey((keys / PRIVATE).read_bytes(), "operator").token(600)

    @contextmanager
    def configured(self, **settings: str) -> Iterator[None]:
        """Redis with other settings meanwhile."""
        names = {name.replace("_", "-"): value for name, value in settings.items()}
        before = {name: self.service.broker.config_get(name)[name] for name in names}
        for name, value in names.items():
            self.service.broker.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                self.service.broker.config_set(name, value)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def whole_town(
    request: pytest.FixtureRequest, new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    make_keys(folder)
    with (
        RedisServer(folder) as server,
        service_at(server.url(0), server.url(1), new_database(request.param)) as service,
    ):
        service.environment |= {"ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(folder / PUBLIC)}
        with running_worker(service.environment):
            yield Town(server, service, folder)


@pytest.fixture
def town(whole_town: Town, monkeypatch: pytest.MonkeyPatch) -> Town:
    for name, value in {**whole_town.service.environment, "ARIES_TOKEN": whole_town.token}.items():
        monkeypatch.setenv(name, value)
    return whole_town


def check(code: int) -> dict[str, dict[str, Any]]:
    """The lines of a check that ends with this exit code."""
    result = CliRunner().invoke(commands, ["check", "--json"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return {line["check"]: line for line in map(json.loads, result.stdout.splitlines())}


def statuses(lines: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Those that are not fine; each of them says what to do."""
    assert all(line["do"] for line in lines.values() if line["status"] != FINE)
    return {name: line["status"] for name, line in lines.items() if line["status"] != FINE}


def test_where_all_is_well_every_line_says_so(town: Town) -> None:
    lines = check(0)
    assert statuses(lines) == {}
    assert lines["workers"]["says"].startswith("1: test-")
    assert lines["queue"]["says"] == "0 wait, 0 are held by workers"
    assert lines["token"]["says"] == "the one in ARIES_TOKEN is good; its caller is operator"
    assert lines["keys"]["says"].startswith("EdDSA ")
    assert len(lines) == 13
    del town


def test_people_get_a_line_each_with_a_mark(town: Town) -> None:
    with town.configured(maxmemory_policy="allkeys-lru"):
        output = CliRunner().invoke(commands, ["check"]).output
    assert len(output.splitlines()) == 13
    assert "✓ broker " in output
    assert "! eviction " in output
    assert output.count("→") == 1


@pytest.mark.parametrize(
    ("settings", "name", "status"),
    [
        ({"appendonly": "no"}, "persistence", LOOK),
        ({"maxmemory_policy": "allkeys-lru"}, "eviction", LOOK),
        ({"maxmemory_policy": "volatile-ttl"}, "eviction", LOOK),
    ],
)
def test_a_redis_that_loses_what_it_is_given(town: Town, settings: dict[str, str], name: str, status: str) -> None:
    with town.configured(**settings):
        assert statuses(check(1))[name] == status


@pytest.mark.parametrize(
    ("says", "level"),
    [
        ({}, Level.FINE),
        ({"aof_enabled": 0}, Level.LOOK),
        ({"aof_last_write_status": "err"}, Level.BROKEN),
        ({"rdb_last_bgsave_status": "err"}, Level.BROKEN),
        ({"aof_last_bgrewrite_status": "err"}, Level.LOOK),
    ],
)
def test_a_redis_whose_disk_is_full(says: dict[str, object], level: Level) -> None:
    assert kept({"aof_enabled": 1, "aof_last_write_status": "ok", "rdb_last_bgsave_status": "ok"} | says).level == level


@pytest.mark.parametrize(("share", "status"), [(0.8, LOOK), (1.5, BROKEN)])
def test_a_redis_that_is_full_or_nearly(town: Town, share: float, status: str) -> None:
    used = int(town.service.broker.info("memory")["used_memory"])
    with town.configured(maxmemory=str(int(used / share))):
        found = statuses(check(2 if status == BROKEN else 1))
    assert (found["broker"], found["results"]) == (status, status)


def test_a_replica_is_no_broker(town: Town) -> None:
    town.service.broker.replicaof("127.0.0.1", 1)
    try:
        found = statuses(check(2))
    finally:
        town.service.broker.replicaof("NO", "ONE")
    assert found["broker"] == BROKEN


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("CELERY_BROKER_URL", "broker"),
        ("CELERY_BROKER_READ_URL", "broker"),
        ("CELERY_BROKER_WRITE_URL", "broker"),
        ("CELERY_RESULT_BACKEND", "results"),
    ],
)
def test_workers_that_are_sent_elsewhere_by_a_variable_of_celerys(
    town: Town, monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    monkeypatch.setenv(variable, town.server.url(7))
    lines = check(2)
    assert statuses(lines)[name] == BROKEN
    assert lines[name]["do"] == f"unset {variable}"
    for same in (town.server.url(0 if name == "broker" else 1), ""):  # the one that ours names; as good as not set
        monkeypatch.setenv(variable, same)
        assert statuses(check(0)) == {}


def test_what_was_given_up_on(town: Town) -> None:
    town.service.push("no message")
    until(lambda: town.service.broker.exists(Keys().dead))
    lines = check(1)
    town.service.broker.delete(Keys().dead)
    assert statuses(lines) == {"dead letters": LOOK}
    assert "1, the oldest from 20" in lines["dead letters"]["says"]
    assert lines["dead letters"]["says"].endswith(": not_a_message")


def test_clocks_that_are_apart(town: Town) -> None:
    with time_machine.travel(time.time() + 20, tick=True):
        found = statuses(check(1))
    expected = {"clock of Redis"} | (
        {"clock of the database"} if "postgresql" in str(town.service.database.engine.url) else set()
    )
    assert {name for name in found if name.startswith("clock")} == expected


@pytest.mark.parametrize(
    ("setting", "finding"),
    [
        ("AUTH=off", ("keys", LOOK)),
        ("JWT_KEYS=", ("keys", BROKEN)),
        ("JWT_KEYS=/nowhere/jwks.json", ("keys", BROKEN)),
        ("JWT_KEYS=http://127.0.0.1:9/jwks.json", ("keys", BROKEN)),
        ("TOKEN=a.b.c", ("token", LOOK)),
    ],
)
def test_who_may_ask(town: Town, monkeypatch: pytest.MonkeyPatch, setting: str, finding: tuple[str, str]) -> None:
    name, _, value = setting.partition("=")
    monkeypatch.setenv(f"ARIES_{name}", value)
    assert finding in statuses(check(1 if finding[1] == LOOK else 2)).items()
    del town


def test_a_token_without_the_scope(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    key = SigningKey((town.keys / PRIVATE).read_bytes(), "operator")
    monkeypatch.setenv("ARIES_TOKEN", key.token(600, scope="image:read"))
    lines = check(1)
    assert "lacks the scope" in lines["token"]["says"]


def test_nobody_works_and_somebody_waits(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """In other databases of the same server, where there is no worker."""
    monkeypatch.setenv("ARIES_BROKER_URL", town.server.url(7))
    message = {"headers": {"id": "x", contract.SENT_AT: time.time() - 3600}}
    with Redis.from_url(town.server.url(7)) as client:
        client.lpush(contract.QUEUE, json.dumps(message), json.dumps({"headers": {}}))
    lines = check(2)
    assert statuses(lines) == {"workers": BROKEN, "queue": LOOK}
    assert lines["queue"]["says"].startswith("2 wait, 0 are held by workers; the oldest waits since 36")


def test_tables_that_are_old(town: Town, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    monkeypatch.setenv("ARIES_DATABASE_URL", f"sqlite:///{file}")
    assert statuses(check(2)) == {"database": BROKEN, "migration": BROKEN}
    assert not file.exists()
    file.touch()
    assert statuses(check(2)) == {"migration": BROKEN}
    del town


def test_a_database_that_takes_no_writes(town: Town) -> None:
    url = make_url(town.service.environment["ARIES_DATABASE_URL"])
    if url.get_backend_name() == "sqlite":
        pytest.skip("PostgreSQL has standbys")
    run_ddl(town.service.database, f"ALTER DATABASE {url.database} SET default_transaction_read_only = on")
    try:
        assert statuses(check(2)) == {"database": BROKEN}
    finally:
        run_ddl(town.service.database, f"ALTER DATABASE {url.database} RESET default_transaction_read_only")


@pytest.mark.parametrize("is_frozen", [False, True], ids=["dead", "frozen"])
def test_a_database_that_is_away_hides_nothing_else(
    town: Town, monkeypatch: pytest.MonkeyPatch, *, is_frozen: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if not is_frozen:
            silent.close()
        monkeypatch.setenv("ARIES_DATABASE_URL", f"postgresql://nobody@127.0.0.1:{port}/nowhere")
        began = time.monotonic()
        found = statuses(check(2))
    assert found == {"database": BROKEN, "migration": BROKEN, "clock of the database": BROKEN}
    assert time.monotonic() - began < 9
    del town


def test_a_redis_that_is_frozen_hides_nothing_else(town: Town) -> None:
    assert town.server.process is not None
    os.kill(town.server.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        found = statuses(check(2))
        took = time.monotonic() - began
    finally:
        os.kill(town.server.process.pid, signal.SIGCONT)
    assert set(found) == {
        "broker",
        "results",
        "persistence",
        "eviction",
        "clock of Redis",
        "workers",
        "queue",
        "dead letters",
    }
    assert took < 9
    until(lambda: not statuses(check(0)), 30)
