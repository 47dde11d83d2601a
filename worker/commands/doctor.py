"""What `check` looks at: each check finds one thing, alone, and says what to do about it."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from celery import Celery
from redis import Redis
from redis.connection import ConnectionPool
from redis.sentinel import Sentinel, SentinelConnectionPool
from sqlalchemy import make_url, text

from aries_images import contract
from aries_images._result_store import pool_for
from aries_images.contract import Refusal
from models.migrations import is_of_a_newer_version, level
from worker import backlog
from worker.auth import LEEWAY, Door
from worker.database import Database
from worker.dead_letters import DeadLetters, Filter
from worker.intake import LEASING_SCHEMES
from worker.keys import Keys
from worker.settings import Settings
from worker.task import Delivery

#: Redis must have BLMOVE.
_REDIS_VERSION = (6, 2)
#: How full Redis may be, of 1.
_FULL = 0.7
#: Seconds that two clocks may be apart, and that a request may wait.
_APART, _WAITED = 1.0, 60.0
#: Seconds in which workers answer.
_ROLL_CALL = 1.5
_START = "start one: celery -A worker worker"
#: Celery's own variables: workers go by them and not by ours, which the gateway and every command go by.
_CELERYS_OF_BROKER = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL")
_CELERYS_OF_RESULTS = ("CELERY_RESULT_BACKEND",)


class Level(IntEnum):
    """How bad it is."""

    FINE = 0
    #: Requests are answered; somebody should look at it.
    LOOK = 1
    #: Requests are not answered, or may be lost.
    BROKEN = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    level: Level
    says: str
    #: What to do; empty where nothing is wrong.
    do: str = ""


def fine(says: str) -> Finding:
    """Nothing is to be done."""
    return Finding(Level.FINE, says)


def look(says: str, do: str) -> Finding:
    """Something is, by and by."""
    return Finding(Level.LOOK, says, do)


def broken(says: str, do: str) -> Finding:
    """Something is, now."""
    return Finding(Level.BROKEN, says, do)


def _options(settings: Settings) -> dict[str, Any]:
    return {"master_name": settings.sentinel_master} if settings.sentinel_master else {}


@contextmanager
def _redis(url: str, settings: Settings) -> Iterator[Redis]:
    """The Redis at `url`, which must answer within a second."""
    pool = pool_for(url, _options(settings), (ConnectionPool, Sentinel, SentinelConnectionPool))
    try:
        yield Redis(connection_pool=pool)
    finally:
        pool.disconnect()


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    try:
        yield database
    finally:
        database.close()


# --- Redis ---


def broker(settings: Settings) -> Finding:
    """Whether the broker answers, takes writes, and is new enough; and is the one that workers look at."""
    if elsewhere := _elsewhere(settings.broker_url, _CELERYS_OF_BROKER):
        return elsewhere
    if not settings.broker_url.startswith(LEASING_SCHEMES):
        with Celery(broker=settings.broker_url, set_as_current=False) as app, app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
        return fine("answers; it is not Redis, so what is in it can't be looked at from here")
    with _redis(settings.broker_url, settings) as client:
        return _server(client.info())


def results(settings: Settings) -> Finding:
    """The same for the server that results are kept in."""
    if elsewhere := _elsewhere(settings.result_url, _CELERYS_OF_RESULTS):
        return elsewhere
    with _redis(settings.result_url, settings) as client:
        return _server(client.info())


def _elsewhere(url: str, variables: Iterable[str]) -> Finding | None:
    for name in variables:
        if (os.environ.get(name) or url) != url:
            return broken(f"{name} names another: workers obey it, gateway and commands do not", f"unset {name}")
    return None


def _server(info: Mapping[str, Any]) -> Finding:
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < _REDIS_VERSION:
        return broken(f"version {version}", "6.2 or newer is needed, or Valkey")
    if info.get("role") != "master":
        return broken("a replica, which takes no writes", "name the master, or Sentinel with ARIES_SENTINEL_MASTER")
    used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
    share = used / most if most else 0.0
    says = f"answers; version {version}, {used / 2**20:.0f} MiB used" + (f" of {most / 2**20:.0f}" if most else "")
    if share >= 1:
        return broken(says, "it is full and takes nothing new: raise maxmemory, or find out why nothing is taken")
    return (
        look(says, "it is nearly full: raise maxmemory, or find out why nothing is taken")
        if share > _FULL
        else fine(says)
    )


def persistence(settings: Settings) -> Finding:
    """Whether the broker keeps what waits in it when its machine goes down."""
    with _redis(settings.broker_url, settings) as client:
        info: Any = client.info("persistence")
    return kept(info)


def kept(info: Mapping[str, Any]) -> Finding:
    """What Redis says of its files."""
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        return broken("the last snapshot failed: Redis may refuse requests", "its disk is full, or broken")
    if not info["aof_enabled"]:
        return look("appendonly is off: a restart of Redis loses what waits", "set appendonly yes")
    if info.get("aof_last_write_status", "ok") != "ok":
        return broken("appendonly is on, and writing it fails: Redis refuses requests", "its disk is full, or broken")
    if info.get("aof_last_bgrewrite_status", "ok") != "ok":
        return look("appendonly is on, and rewriting it failed", "its disk may be nearly full")
    return fine("appendonly is on, and written")


def eviction(settings: Settings) -> Finding:
    """Whether a full Redis refuses new requests, and does not throw away old ones."""
    wrong = {}
    for name, url in (("broker", settings.broker_url), ("results", settings.result_url)):
        if url.startswith(LEASING_SCHEMES) or name == "results":
            with _redis(url, settings) as client:
                policy = str(client.info("memory")["maxmemory_policy"])
            if policy != "noeviction":
                wrong[name] = policy
    if wrong:
        says = ", ".join(f"{name}: {policy}" for name, policy in wrong.items())
        return look(f"{says}: a full Redis throws away what it should keep", "set maxmemory-policy noeviction")
    return fine("noeviction")


def redis_clock(settings: Settings) -> Finding:
    """How far the broker's clock is from ours."""
    with _redis(settings.broker_url, settings) as client:
        client.ping()
        before = time.time()
        seconds, microseconds = client.time()
        return _clock(before, seconds + microseconds / 1e6, time.time())


def _clock(before: float, theirs: float, after: float) -> Finding:
    apart = theirs - (before + after) / 2
    says = f"{apart:+.3f} s from this machine's"
    if abs(apart) - (after - before) / 2 <= _APART:
        return fine(says)
    why = "deadlines pass early or late" + (", and good tokens are refused" if abs(apart) > LEEWAY else "")
    return look(says, f"set the clocks by NTP: {why}")


# --- the database ---


def database(settings: Settings) -> Finding:
    """Whether the database answers, and takes writes."""
    missing = _missing_file(settings)
    if missing:
        return missing
    with _database(settings) as there, there.transaction() as connection:
        if connection.dialect.name == "sqlite":
            return fine("answers; SQLite, for one machine")
        version, read_only = connection.execute(
            text("SELECT current_setting('server_version'), current_setting('transaction_read_only')")
        ).one()
    if read_only == "on":
        return broken(f"PostgreSQL {version} takes no writes", "name the primary in ARIES_DATABASE_URL, not a standby")
    return fine(f"answers; PostgreSQL {version}")


def _missing_file(settings: Settings) -> Finding | None:
    url = make_url(settings.database_url)
    # Opening it would create it.
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        return broken(f"there is no file {url.database}", "python -m worker migrate")
    return None


def migration(settings: Settings) -> Finding:
    """Whether the tables are those of this version."""
    missing = _missing_file(settings)
    if missing:
        return missing
    with _database(settings) as there:
        stands_at, newest = level(there.engine)
    if stands_at == newest:
        return fine(f"at {newest}, the newest")
    if is_of_a_newer_version(stands_at):
        return look(
            f"at {stands_at}, which a newer version made", "go on to that version when it does no harm any more"
        )
    return broken(f"at {stands_at or 'nothing'}, the newest is {newest}", "python -m worker migrate")


def database_clock(settings: Settings) -> Finding:
    """How far the database's clock is from ours."""
    if settings.database_url.startswith("sqlite"):
        return fine("this machine's")
    with _database(settings) as there, there.transaction() as connection:
        before = time.time()
        theirs = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
        return _clock(before, float(theirs), time.time())


# --- who may ask ---


def keys(settings: Settings) -> Finding:
    """Whether workers, with these settings, have keys to check tokens with."""
    if settings.auth == "off":
        return look("ARIES_AUTH=off: whoever can reach the queue can update every image", "set ARIES_AUTH=on")
    try:
        Door(settings).check()
        found = Keys(settings.jwt_keys, "").read_now() if settings.jwt_keys else []
    except (OSError, ValueError) as error:
        return broken(f"ARIES_JWT_KEYS: {error}", "a worker does not start so, or refuses everyone: docs/security.md")
    shared = ["HS256 by a shared secret"] if settings.jwt_secret.get_secret_value() else []
    if not found and not shared:
        return broken(
            "ARIES_JWT_KEYS has no key that tokens can be checked with", "docs/security.md says what it takes"
        )
    return fine(", ".join([*(f"{key.algorithm} {key.id or 'without kid'}" for key in found), *shared]))


def token(settings: Settings, sent: str | None) -> Finding:
    """Whether the token in ARIES_TOKEN would be let in."""
    if settings.auth == "off" or not sent:
        return fine("none is needed" if settings.auth == "off" else "ARIES_TOKEN is not set, so there is none to check")
    delivery = Delivery(
        request_id="check",
        args=(),
        kwargs={},
        headers={contract.AUTHORIZATION: f"Bearer {sent}"},
        reply_to=None,
        correlation_id=None,
        attempt=1,
        worker="check",
        received_at=time.time(),
    )
    caller = Door(settings).admit(delivery)
    do = "see the line above; `python -m worker token` makes one on a desk"
    if isinstance(caller, Refusal):
        return look("the one in ARIES_TOKEN is refused", do)
    if not caller.may_update:
        return look(f"the one in ARIES_TOKEN, of {caller.name}, lacks the scope image:update", do)
    return fine(f"the one in ARIES_TOKEN is good; its caller is {caller.name}")


# --- the work ---


def workers(settings: Settings) -> Finding:
    """Which workers answer that take from our queue."""
    with Celery(broker=settings.broker_url, set_as_current=False) as app:
        app.conf.broker_transport_options = {
            "socket_timeout": 2,
            "socket_connect_timeout": 2,
            "max_retries": 1,
            "interval_start": 0,
            **_options(settings),
        }
        nodes = app.control.inspect(timeout=_ROLL_CALL).active_queues() or {}
    ours = sorted(node for node, queues in nodes.items() if any(queue["name"] == contract.QUEUE for queue in queues))
    if not ours:
        return broken("none answers", _START)
    return fine(f"{len(ours)}: {', '.join(ours[:5])}{' …' if len(ours) > 5 else ''}")  # noqa: PLR2004  # names shown


def queue(settings: Settings) -> Finding:
    """How much waits, and for how long the oldest has."""
    if not settings.broker_url.startswith(LEASING_SCHEMES):
        return fine("not looked at: the broker is not Redis")
    with _redis(settings.broker_url, settings) as client:
        there = backlog.look(client)
    lane = there.lanes[contract.QUEUE]
    says = f"{lane.waiting} wait, {there.leases} are held by workers"
    if lane.oldest_sent_at is None:
        return fine(says)
    age = max(0.0, time.time() - lane.oldest_sent_at)
    says += f"; the oldest waits since {age:.0f} s"
    return (
        fine(says) if age <= _WAITED else look(says, f"workers are too few, away or held up: {_START}, or read its log")
    )


def dead_letters(settings: Settings) -> Finding:
    """What was given up on."""
    if not settings.broker_url.startswith(LEASING_SCHEMES):
        return fine("not looked at: the broker is not Redis")
    with _redis(settings.broker_url, settings) as client:
        letters = DeadLetters(client)
        number, first = len(letters), next(letters.find(Filter()), None)
    if first is None:
        return fine("none")
    says = f"{number}, the oldest from {contract.rfc3339(first.at)}: {first.reason}"
    return look(says, "python -m worker dead list; then `dead show`, `dead replay` or `dead drop`")


#: Every check, in the order in which it is shown.
Check = Callable[[Settings], Finding]
CHECKS: dict[str, Check] = {
    "broker": broker,
    "results": results,
    "persistence": persistence,
    "eviction": eviction,
    "clock of Redis": redis_clock,
    "database": database,
    "migration": migration,
    "clock of the database": database_clock,
    "keys": keys,
    "workers": workers,
    "queue": queue,
    "dead letters": dead_letters,
}
#: Those that a broker other than Redis has no use for.
OF_REDIS = frozenset({"persistence", "clock of Redis"})
