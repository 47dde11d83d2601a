"""The database: one engine per process, and the only commit in the code base."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError


class Cause(StrEnum):
    """What a transaction failed of; whatever else it can be is `other`."""

    #: The database could not be asked, is full, read-only or too slow.
    AWAY = "away"
    #: A row is held by others, or SQLite's one lock.
    LOCKED = "locked"
    SERIALISATION = "serialisation"
    DEADLOCK = "deadlock"
    #: A race for one name or one request id, which another transaction won.
    TAKEN = "taken"
    OTHER = "other"


_HELD = "55P03"
#: SQLSTATEs after which the same transaction may succeed: serialisation failure, deadlock, lock not available, and
#: the unique violation that a race for one name or one request id ends in.
_PASSING_STATES: dict[str | None, Cause] = {
    "40001": Cause.SERIALISATION,
    "40P01": Cause.DEADLOCK,
    _HELD: Cause.LOCKED,
    "23505": Cause.TAKEN,
}
#: The same for SQLite, by its extended code.
_PASSING_CODES = frozenset({sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY})
#: SQLSTATE classes of a server that is away, full, starting or stopping: connection exception, insufficient
#: resources, operator intervention, system error.
_AWAY_CLASSES = ("08", "53", "57", "58")
#: The same for SQLite, by the primary code in the low byte: it has one lock for all, and the file's disk can be full,
#: broken, read-only or not there.
_AWAY_CODES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
    }
)
_LOCKED_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
#: A server that takes no writes: a standby, in the middle of a fail-over.
_READ_ONLY = "25006"
#: No statement, lock or forgotten transaction holds anything for ever; what runs into one of these is tried again.
#: Other workers hold a row for milliseconds: whoever holds one for longer must not hold up the rest of a batch.
_TIMEOUTS = "-c lock_timeout=100ms -c statement_timeout=10s -c idle_in_transaction_session_timeout=30s"
_HURRY = "SET LOCAL lock_timeout = '20ms'"
#: Seconds after which a server that no longer answers on its connection is taken for gone.
_CONNECTION = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
#: The planner takes a batch for a hundred rows whatever is in it, and would read a table of ten thousand from end to
#: end for one of them. Everything here goes by an index, so one plan is right for every batch.
_PLANS = "-c enable_seqscan=off -c plan_cache_mode=force_generic_plan"
#: How the driver is told about a snapshot. SQLite has its own: see _begin.
_SNAPSHOT: dict[str, Any] = {"snapshot": True, "stream_results": True, "yield_per": 1000}
#: Seconds that SQLite waits for another writer before it says that it is busy.
_SQLITE_BUSY_SECONDS = 5.0


class HeldError(Exception):
    """A row is held by others."""


class Database:
    """Connections to the database at `url`, opened when first needed.

    `on_failure` is told of each transaction that came to nothing, and why; `watch` is put around each.
    """

    def __init__(
        self,
        url: str,
        on_failure: Callable[[Cause], None] | None = None,
        watch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.engine = _engine(url)
        self._on_failure = on_failure
        self._watch = watch

    @contextmanager
    def transaction(self, *, waits: bool = True) -> Iterator[Connection]:
        """A connection whose work is committed at the end, or rolled back if the block raises.

        With `waits=False` hardly any time is spent on waiting for rows that others have locked.
        """
        try:
            with self._watch(), self.engine.begin() as connection:
                if not waits and connection.dialect.name == "postgresql":
                    connection.exec_driver_sql(_HURRY)
                yield connection
        except Exception as error:
            if self._on_failure:
                self._on_failure(cause_of(error))
            raise

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that reads the database as it stands now, however long it takes, and is in nobody's way.

        It can't write. Rows come a thousand at a time, as they are asked for.
        """
        level = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self.engine.connect() as connection:
            connection.execution_options(**_SNAPSHOT, **({} if connection.dialect.name == "sqlite" else level))
            with connection.begin():
                yield connection

    def forget_connections(self) -> None:
        """In a forked child: drop the parent's connections without closing them, since they are still its own."""
        self.engine.dispose(close=False)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() == "sqlite":
        engine = create_engine(url, hide_parameters=True, connect_args={"timeout": _SQLITE_BUSY_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin)
        return engine
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        hide_parameters=True,  # they are what callers sent, and an error's text ends in the log
        pool_size=0,  # no limit but the number of threads that use one each, which is --concurrency
        pool_pre_ping=False,
        isolation_level="READ COMMITTED",
        connect_args={**_CONNECTION, "application_name": "aries-images", "options": f"{_TIMEOUTS} {_PLANS}"},
    )


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver's own transaction handling begins too late and ends too early; see _begin.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Connection) -> None:
    # In WAL mode a reader sees the database as it was at its first look, and no writer waits for it.
    if connection.get_execution_options().get("snapshot"):
        connection.exec_driver_sql("BEGIN DEFERRED")
        return
    # A transaction that reads first and writes later fails at once, without waiting, when another has written
    # between the two. IMMEDIATE takes the one write lock of SQLite at the beginning and waits for it.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def is_race(error: BaseException) -> bool:
    """Whether another transaction got in the way, so that the same work may succeed if it is done again."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, HeldError)
    return _state(error) in _PASSING_STATES or getattr(error.orig, "sqlite_errorcode", 0) in _PASSING_CODES


def is_held(error: BaseException) -> bool:
    """Whether others held on to a row, or to a name that is being written, for longer than is waited for."""
    return isinstance(error, DBAPIError) and _state(error) == _HELD


def is_away(error: BaseException) -> bool:
    """Whether the database could not be asked, or did not live to say how it went."""
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _AWAY_CODES
    if error.connection_invalidated:
        return True
    state = _state(error)
    if state is None:  # psycopg gives no SQLSTATE where no server answered
        return isinstance(error, OperationalError | InterfaceError)
    return state.startswith(_AWAY_CLASSES) or state == _READ_ONLY


def cause_of(error: BaseException) -> Cause:
    """Which of the causes it is."""
    if not isinstance(error, DBAPIError):
        return Cause.OTHER
    if is_race(error):
        return _PASSING_STATES.get(_state(error), Cause.TAKEN)
    if is_away(error):
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        return Cause.LOCKED if code in _LOCKED_CODES else Cause.AWAY
    return Cause.OTHER


def _state(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)
