"""The rows of a batch: read and locked in three statements, written in one (PostgreSQL) or a few (SQLite)."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import ARRAY, BigInteger, Connection, Select, Text, any_, bindparam, insert, select, text, update
from sqlalchemy.sql.schema import Column

from models import image_revisions, images, requests

Row = dict[str, Any]


@dataclass(slots=True)
class Writes:
    """What a batch leaves behind: images as they end up, every revision, every new line of the ledger."""

    images: dict[int, Row] = field(default_factory=dict)
    revisions: list[Row] = field(default_factory=list)
    answers: list[Row] = field(default_factory=list)
    #: Images whose old name another image of this batch ends up with.
    gave_name_away: set[int] = field(default_factory=set)


# One statement for any number of values: an array on PostgreSQL, a list that SQLAlchemy expands on SQLite.
def _among(query: Select[Any], column: Column[Any], kind: Any) -> dict[str, Select[Any]]:
    return {
        "postgresql": query.where(column == any_(bindparam("values", type_=ARRAY(kind)))),
        "sqlite": query.where(column.in_(bindparam("values", expanding=True))),
    }


_LOCK = _among(select(images).order_by(images.c.id).with_for_update(), images.c.id, BigInteger)
_HOLDERS = _among(select(images.c.name, images.c.id), images.c.name, Text)
_LEDGER = _among(
    select(requests.c.request_id, requests.c.digest, requests.c.caller, requests.c.reply, requests.c.code,
           requests.c.image_id),
    requests.c.request_id,
    Text,
)  # fmt: skip


def _read(connection: Connection, statements: dict[str, Select[Any]], values: Collection[Any]) -> list[Row]:
    if not values:
        return []
    rows = connection.execute(statements[connection.dialect.name], {"values": list(values)})
    return [dict(row) for row in rows.mappings()]


def lock_images(connection: Connection, ids: Collection[int]) -> dict[int, Row]:
    """The images by id, each locked until the end of the transaction, in the order of their ids.

    One order for everyone, so that two batches never wait for each other.
    """
    return {row["id"]: row for row in _read(connection, _LOCK, ids)}


def name_holders(connection: Connection, names: Collection[str]) -> dict[str, int]:
    """Which image holds each of `names`, of those that are held."""
    return {row["name"]: row["id"] for row in _read(connection, _HOLDERS, names)}


def ledger_lines(connection: Connection, request_ids: Collection[str]) -> dict[str, Row]:
    """The requests among `request_ids` that are answered already."""
    return {row["request_id"]: row for row in _read(connection, _LEDGER, request_ids)}


def write(connection: Connection, writes: Writes) -> None:
    """Write everything; the unique constraints have the last word."""
    if writes.gave_name_away:
        _park_names(connection, writes.gave_name_away)
    if connection.dialect.name == "postgresql":
        _write_postgresql(connection, writes)
    else:
        _write_sqlite(connection, writes)


_PARK = _among(
    update(images).values(name=text("'\x1f' || id")),  # type: ignore[arg-type]  # an Update takes .where() alike
    images.c.id,
    BigInteger,
)


def _park_names(connection: Connection, ids: set[int]) -> None:
    # The unique constraint is checked row by row, so two images that swap their names in one statement would
    # violate it half way. Those whose name goes to another image step aside first, to names that no request can
    # ask for (a control character); nobody sees them before they are overwritten in the same transaction.
    connection.execute(_PARK[connection.dialect.name], {"values": sorted(ids)})


# One value, one round trip, one plan: three times as fast as the driver's executemany for a hundred rows.
_WRITE_POSTGRESQL = text("""
WITH batch AS MATERIALIZED (SELECT CAST(:batch AS jsonb) AS it),
changed AS (
    UPDATE images SET name = r.name, os_type = r.os_type, os_name = r.os_name, description = r.description,
                      updated_at = r.updated_at, revision = r.revision
    FROM batch, jsonb_to_recordset(it -> 'images') AS r(id bigint, name text, os_type text, os_name text,
         description text, updated_at timestamptz, revision bigint)
    WHERE images.id = r.id
),
recorded AS (
    INSERT INTO image_revisions (image_id, revision, before, after, request_id, caller, at, traceparent)
    SELECT r.* FROM batch, jsonb_to_recordset(it -> 'revisions') AS r(image_id bigint, revision bigint, before jsonb,
         after jsonb, request_id text, caller text, at timestamptz, traceparent text)
)
INSERT INTO requests (request_id, digest, caller, reply, code, image_id, answered_at)
SELECT r.* FROM batch, jsonb_to_recordset(it -> 'answers') AS r(request_id text, digest text, caller text, reply text,
     code text, image_id bigint, answered_at timestamptz)
""")


def _write_postgresql(connection: Connection, writes: Writes) -> None:
    batch = {"images": list(writes.images.values()), "revisions": writes.revisions, "answers": writes.answers}
    connection.execute(_WRITE_POSTGRESQL, {"batch": orjson.dumps(batch).decode()})


_UPDATE_SQLITE = (
    update(images)
    .where(images.c.id == bindparam("its_id"))
    .values({name: bindparam(name) for name in ("name", "os_type", "os_name", "description", "updated_at", "revision")})
)


def _write_sqlite(connection: Connection, writes: Writes) -> None:
    if writes.images:
        connection.execute(_UPDATE_SQLITE, [{"its_id": id_, **row} for id_, row in writes.images.items()])
        connection.execute(insert(image_revisions), writes.revisions)
    if writes.answers:
        connection.execute(insert(requests), writes.answers)
