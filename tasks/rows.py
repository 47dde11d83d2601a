"""The rows of a batch: read in one statement and written in one on PostgreSQL, in a few each on SQLite."""

from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    BindParameter,
    Connection,
    Select,
    TextualSelect,
    bindparam,
    delete,
    insert,
    literal_column,
    select,
    text,
    tuple_,
    update,
)

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


@dataclass(frozen=True, slots=True)
class Rows:
    """What a batch needs to know."""

    #: Its images, locked.
    images: dict[int, Row]
    #: The lines of its requests in the ledger.
    ledger: dict[str, Row]
    #: What its requests have changed already: caller, image and revision. The ledger forgets, this does not.
    applied: dict[str, Row]
    #: Who holds the names that it asks for.
    holders: dict[str, int]
    #: Its images that are there and could not be locked, because somebody else holds them and they were not waited for.
    held: frozenset[int] = frozenset()


def read(
    connection: Connection, image_ids: set[int], request_ids: set[str], names: set[str], *, waits: bool = True
) -> Rows:
    """Read everything, the images locked until the end of the transaction.

    They are locked in the order of their ids: one order for everyone, so that two batches never wait for each other.
    What the ledger and the names say may be as old as the beginning of the wait for those locks; if it matters, the
    unique constraints find out when the batch is written. With `waits=False` images that others hold are left out.
    (SQLite has one lock for everything, and it is had by now.)
    """
    if connection.dialect.name == "postgresql":
        asked: dict[str, list[Any]] = {
            "image_ids": list(image_ids),
            "request_ids": list(request_ids),
            "names": list(names),
        }
        return _read_postgresql(connection, _READ_WAITING if waits else _READ_AT_ONCE, asked)
    return Rows(
        images={row["id"]: row for row in _read_sqlite(connection, _IMAGES, image_ids)},
        ledger={row["request_id"]: row for row in _read_sqlite(connection, _LEDGER, request_ids)},
        applied={row["request_id"]: row for row in _read_sqlite(connection, _APPLIED, request_ids)},
        holders={row["name"]: row["id"] for row in _read_sqlite(connection, _HOLDERS, names)},
    )


# One round trip; three would be a third of what a request on an idle system takes.
_READ_POSTGRESQL = """
WITH locked AS MATERIALIZED (
    SELECT id, name, os_type, os_name, description, source_path, created_at, updated_at, revision
    FROM images WHERE id = ANY(:image_ids) ORDER BY id FOR UPDATE {skip}
)
SELECT (SELECT json_agg(locked) FROM locked) AS images,
       (SELECT json_agg(line) FROM (SELECT request_id, digest, caller, reply, code, image_id
                                    FROM requests WHERE request_id = ANY(:request_ids)) AS line) AS ledger,
       (SELECT json_agg(line) FROM (SELECT request_id, caller, image_id, revision
                                    FROM image_revisions WHERE request_id = ANY(:request_ids)) AS line) AS applied,
       (SELECT json_object_agg(name, id) FROM images WHERE name = ANY(:names)) AS holders,
       {held} AS held
"""
_HELD = "(SELECT json_agg(id) FROM images WHERE id = ANY(:image_ids) AND id NOT IN (SELECT id FROM locked))"
_COLUMNS: dict[str, Any] = dict.fromkeys(("images", "ledger", "applied", "holders", "held"), JSON)
_READ_WAITING = text(_READ_POSTGRESQL.format(skip="", held="NULL::json")).columns(**_COLUMNS)
_READ_AT_ONCE = text(_READ_POSTGRESQL.format(skip="SKIP LOCKED", held=_HELD)).columns(**_COLUMNS)


def _read_postgresql(connection: Connection, statement: TextualSelect, asked: dict[str, list[Any]]) -> Rows:
    images, ledger, applied, holders, held = connection.execute(statement, asked).one()
    for image in images or ():
        for moment in ("created_at", "updated_at"):
            image[moment] = datetime.fromisoformat(image[moment])
    return Rows(
        images={image["id"]: image for image in images or ()},
        ledger={line["request_id"]: line for line in ledger or ()},
        applied={line["request_id"]: line for line in applied or ()},
        holders=holders or {},
        held=frozenset(held or ()),
    )


_ASKED: BindParameter[Any] = bindparam("asked", expanding=True)
_IMAGES = select(images).where(images.c.id.in_(_ASKED))
_LEDGER = select(requests).where(requests.c.request_id.in_(_ASKED))
_APPLIED = select(
    image_revisions.c.request_id, image_revisions.c.caller, image_revisions.c.image_id, image_revisions.c.revision
).where(image_revisions.c.request_id.in_(_ASKED))
_HOLDERS = select(images.c.name, images.c.id).where(images.c.name.in_(_ASKED))


def _read_sqlite(connection: Connection, query: Select[Any], asked: set[Any]) -> list[Row]:
    return [dict(row) for row in connection.execute(query, {"asked": list(asked)}).mappings()] if asked else []


def write(connection: Connection, writes: Writes) -> None:
    """Write everything; the unique constraints have the last word.

    Lines of the ledger are entered in the order of their ids: two batches with the same requests in them wait for each
    other, where in different orders they might do so for ever.
    """
    writes.answers.sort(key=itemgetter("request_id"))
    if writes.gave_name_away:
        _park_names(connection, writes.gave_name_away)
    if connection.dialect.name == "postgresql":
        _write_postgresql(connection, writes)
    else:
        _write_sqlite(connection, writes)


_PARK = update(images).values(name=text("'\x1f' || id")).where(images.c.id.in_(_ASKED))


def _park_names(connection: Connection, ids: set[int]) -> None:
    # The unique constraint is checked row by row, so two images that swap their names in one statement would
    # violate it half way. Those whose name goes to another image step aside first, to names that no request can
    # ask for (a control character); nobody sees them before they are overwritten in the same transaction.
    connection.execute(_PARK, {"asked": sorted(ids)})


# One value, one round trip, one plan: three times as fast as the driver's executemany for a hundred rows.
#: Also the limit that the benchmarks measure against.
WRITE_POSTGRESQL = """
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
"""
_WRITE = text(WRITE_POSTGRESQL)


def _write_postgresql(connection: Connection, writes: Writes) -> None:
    batch = {"images": list(writes.images.values()), "revisions": writes.revisions, "answers": writes.answers}
    connection.execute(_WRITE, {"batch": orjson.dumps(batch).decode()})


_CHANGEABLE = ("name", "os_type", "os_name", "description", "updated_at", "revision")
_UPDATE_SQLITE = (
    update(images).where(images.c.id == bindparam("its_id")).values({name: bindparam(name) for name in _CHANGEABLE})
)


def _write_sqlite(connection: Connection, writes: Writes) -> None:
    if writes.images:
        connection.execute(
            _UPDATE_SQLITE,
            [{"its_id": id_, **{name: row[name] for name in _CHANGEABLE}} for id_, row in writes.images.items()],
        )
        connection.execute(insert(image_revisions), writes.revisions)
    if writes.answers:
        connection.execute(insert(requests), writes.answers)


_OLD = (
    select(requests.c.request_id)
    .where(requests.c.answered_at < bindparam("before"))
    .order_by(requests.c.answered_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_FORGET = delete(requests).where(requests.c.request_id.in_(_OLD))


def forget(connection: Connection, before: datetime, most: int) -> int:
    """Take the oldest lines out of the ledger that were answered before a moment, `most` at once; how many."""
    return connection.execute(_FORGET, {"before": before, "most": most}).rowcount


#: Where a look at the revisions by time goes on: the moment, the image and the revision of the last one seen.
Place = tuple[datetime, int, int]
_PLACE = tuple_(image_revisions.c.at, image_revisions.c.image_id, image_revisions.c.revision)


def not_pruned(dialect: str) -> Any:
    """The condition of the index by time, word for word: without it the index is not used."""
    return literal_column("after <> '{}'::jsonb" if dialect == "postgresql" else "after <> '{}'")


def empty(connection: Connection, before: datetime, place: Place | None, most: int) -> tuple[int, Place | None]:
    """Take out what revisions recorded that were made before a moment; the newest of each image is kept.

    Args:
        connection: the transaction.
        before: the moment.
        place: after which to go on; None: from the oldest on.
        most: revisions to look at.

    Returns:
        How many were emptied, and where to go on; None at the end.
    """
    columns = (image_revisions.c.at, image_revisions.c.image_id, image_revisions.c.revision)
    look = (
        select(*columns, (image_revisions.c.revision < images.c.revision).label("is_past"))
        .join(images, images.c.id == image_revisions.c.image_id)
        .where(not_pruned(connection.dialect.name), image_revisions.c.at < before)
        .order_by(*columns)
        .limit(most)
        # What another worker is at is left to it.
        .with_for_update(of=image_revisions, skip_locked=True)
    )
    if place is not None:
        look = look.where(image_revisions.c.at >= place[0], _PLACE.op(">")(place))
    found = connection.execute(look).all()
    past = [{"its_image": row.image_id, "its_revision": row.revision} for row in found if row.is_past]
    if past:
        connection.execute(_EMPTY, past)
    return len(past), (found[-1].at, found[-1].image_id, found[-1].revision) if len(found) == most else None


_EMPTY = (
    update(image_revisions)
    .where(
        image_revisions.c.image_id == bindparam("its_image"), image_revisions.c.revision == bindparam("its_revision")
    )
    .values(before={}, after={})
)
