"""Valid images, requests and messages to start from, and what a database says after they went through."""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from typing import Any

from sqlalchemy import DDL, Table, delete, insert, select

from aries_images import contract, examples
from aries_images.contract import Refusal, Reply, UpdateRequest, digest_of, validate
from models import image_revisions, images, requests
from tasks.apply_updates import Request, apply_updates
from worker.database import Database
from worker.task import jitter, pause_after

#: When every image of a test was made.
MADE_AT = datetime(2024, 3, 20, 10, 30, tzinfo=UTC)
#: The seed's example request.
SEED_BODY = examples.REQUEST
#: Said by the database when it is asked to keep the name `poison`; no caller may ever read it.
SECRET = "hidden-in-the-log-alone"

Row = dict[str, Any]


# --- images and what becomes of them ---


def an_image(id_: int, name: str | None = None, **fields: Any) -> Row:
    """The row of an image."""
    row = {
        "id": id_,
        "name": name or f"image-{id_}",
        "os_type": "linux",
        "os_name": "CentOS",
        "description": "",
        "source_path": examples.IMAGE["source_path"],
        "created_at": MADE_AT,
        "updated_at": MADE_AT,
        "revision": 1,
    }
    return row | fields


def load(database: Database, *rows: Row) -> None:
    """Put images into the database."""
    with database.transaction() as connection:
        connection.execute(insert(images), list(rows))


def clear(database: Database) -> None:
    """Take everything out of the database."""
    with database.transaction() as connection:
        for table in (image_revisions, requests, images):
            connection.execute(delete(table))


def all_rows(database: Database, table: Table) -> list[Row]:
    """The rows of a table in the order of its primary key."""
    with database.transaction() as connection:
        return [dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()]


def stored_images(database: Database) -> list[Row]:
    return all_rows(database, images)


def stored_image(database: Database, id_: int) -> Row:
    [row] = [row for row in stored_images(database) if row["id"] == id_]
    return row


def stored_revisions(database: Database, id_: int | None = None) -> list[Row]:
    return [row for row in all_rows(database, image_revisions) if id_ in (None, row["image_id"])]


def ledger(database: Database) -> dict[str, Row]:
    """The lines of the request ledger by request id."""
    return {row["request_id"]: row for row in all_rows(database, requests)}


# --- requests ---


def a_request(id_: int = 1, /, *, request_id: str = "", caller: str = contract.ANONYMOUS, **fields: Any) -> Request:
    """A request to change `fields` of an image as `apply_updates` takes it; use `dataclasses.replace` for the rest."""
    kwargs = {"id": id_, **fields}
    return Request(request_id or str(uuid.uuid4()), digest_of(kwargs), caller, validate(kwargs))


def again(request: Request, **fields: Any) -> Request:
    """Another request under the id of `request`."""
    assert isinstance(request.asks, UpdateRequest)
    other = a_request(request.asks.id, **fields)
    return replace(other, id=request.id, caller=request.caller)


def nonsense(request_id: str = "") -> Request:
    """A request that could not be read."""
    return Request(request_id or str(uuid.uuid4()), None, contract.ANONYMOUS, contract.malformed("it is nonsense"))


def decide(requests: Sequence[Request], database: Database, patience: float = 5.0) -> list[Reply]:
    """Replies to all of `requests`, as a pool gets them: what could not be decided is tried again after a pause."""
    now = time.time()
    open_ = [
        replace(each, try_until=min(now + patience, max(each.deadline.timestamp() if each.deadline else inf, now + 1)))
        for each in requests
    ]
    replies: dict[int, Reply] = {}
    numbers = list(range(len(open_)))
    while True:
        outcomes = apply_updates([open_[number] for number in numbers], database)
        replies |= {number: reply for number, reply in zip(numbers, outcomes, strict=True) if reply}
        numbers = [number for number in numbers if number not in replies]
        if not numbers:
            return [replies[number] for number in range(len(open_))]
        time.sleep(pause_after(open_[numbers[0]].tries) * jitter())
        for number in numbers:
            open_[number] = replace(open_[number], tries=open_[number].tries + 1)


# --- replies ---


def refusal_in(document: Mapping[str, Any]) -> tuple[str, list[tuple[str | None, str]]]:
    """The code of a reply that says no, with field and reason of each detail."""
    error = document["error"]
    return error["code"], [(detail["field"], detail["reason"]) for detail in error["details"]]


def tokens(outcome: UpdateRequest | Refusal) -> list[tuple[str | None, str]]:
    """Field and reason of everything that is wrong; nothing for a good request."""
    return [(detail.field, detail.reason) for detail in outcome.details] if isinstance(outcome, Refusal) else []


# --- messages ---


def a_message(kwargs: Any = None, *, body: Any = None, **changes: Any) -> tuple[str, str]:
    """The request id and the list entry of a message in Celery's protocol 2.

    Args:
        kwargs: the request.
        body: text that takes the place of the body.
        changes: `headers` and `properties` are merged into those of a good message; others take their place.
    """
    request_id = str(uuid.uuid4())
    message = {
        "body": json.dumps([[], kwargs, {}]) if body is None else body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": contract.TASK, "id": request_id} | changes.pop("headers", {}),
        "properties": {
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": contract.QUEUE},
            "correlation_id": request_id,
        }
        | changes.pop("properties", {}),
    }
    return str(message["headers"]["id"]), json.dumps(message | changes)


# --- faults ---

_POISON = {
    "sqlite": [
        f"CREATE TRIGGER poison BEFORE UPDATE ON images WHEN NEW.name LIKE 'poison%%' BEGIN SELECT RAISE(ABORT, '{SECRET}'); END",
    ],
    "postgresql": [
        f"CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{SECRET}'; END $$",
        "CREATE TRIGGER poison BEFORE UPDATE ON images FOR EACH ROW WHEN (NEW.name LIKE 'poison%%') EXECUTE FUNCTION poison()",
    ],
}


def poison(database: Database) -> None:
    """From now on the database fails where an image is given a name that begins with `poison`."""
    run_ddl(database, *_POISON[database.engine.dialect.name])


def heal(database: Database) -> None:
    """The end of `poison`."""
    of_table = " ON images" if database.engine.dialect.name == "postgresql" else ""
    run_ddl(database, f"DROP TRIGGER poison{of_table}")


def run_ddl(database: Database, *statements: str) -> None:
    with database.transaction() as connection:
        for statement in statements:
            connection.execute(DDL(statement))
