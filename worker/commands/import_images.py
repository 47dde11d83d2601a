"""`import`: images from a file of JSON lines, all of them or none."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich import progress
from rich.console import Console
from sqlalchemy import Connection

from aries_images import contract
from aries_images.contract import MalformedMessageError, Refusal
from models import images
from worker.commands import migrated_database
from worker.settings import load_settings

_REQUIRED = ("name", "os_type", "os_name", "description", "source_path")
_TIMES = ("created_at", "updated_at")
_ROWS_AT_ONCE = 500

#: An image ready to be inserted, by the number of its line.
Rows = dict[int, dict[str, Any]]
#: What is wrong, with the number of the line.
Problems = list[tuple[int, str]]


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def import_images(file: Path) -> None:
    """Add the images in FILE: JSON lines, one image each, with the keys of a reply.

    `id`, `created_at` and `updated_at` may be absent. If one line is wrong nothing is imported.
    """
    url = load_settings().database_url
    console = Console(stderr=True)
    with progress.open(file, "rb", description="reading", console=console) as lines:
        rows, problems = read_images(lines)
    with migrated_database(url) as database, database.transaction() as connection:
        problems += conflicts(connection, rows)
        if not problems:
            insert_images(connection, rows, console)
    for number, problem in sorted(problems):
        click.echo(f"line {number}: {problem}", err=True)
    if problems:
        raise click.ClickException(f"{len({number for number, _ in problems})} bad lines; nothing was imported")
    click.echo(f"{len(rows)} images imported.")


def read_images(lines: Iterable[bytes]) -> tuple[Rows, Problems]:
    """The images that `lines` describe, and what is wrong with the others; empty lines are passed over."""
    now = datetime.now(UTC)
    rows: Rows = {}
    problems: Problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = contract.read_json(line)
        except MalformedMessageError as malformed:
            problems.append((number, str(malformed).replace("the body", "the line")))
            continue
        row, wrong = _read_record(record, now) if isinstance(record, dict) else ({}, ["the line is not a JSON object"])
        rows[number] = row
        problems += [(number, sentence) for sentence in wrong]
    return rows, problems


def _read_record(record: dict[str, Any], now: datetime) -> tuple[dict[str, Any], list[str]]:
    wrong = [f"{name} is required" for name in _REQUIRED if name not in record]
    # A request and an image share the rules for five fields; an id that is absent is given by the database.
    asks = contract.validate({"id": 1} | {k: v for k, v in record.items() if k not in ("source_path", *_TIMES)})
    if isinstance(asks, Refusal):
        wrong += [detail.message for detail in asks.details]
    path = record.get("source_path", "-")
    if not (isinstance(path, str) and path and path.isprintable()):
        wrong.append("source_path must be a string of one or more printable characters")
    times: dict[str, datetime | None] = {}
    for name in _TIMES:
        moment = times[name] = _moment(record[name]) if name in record else times.get("created_at", now)
        if moment is None:
            wrong.append(f"{name} must be a time such as 2024-03-20T10:30:00Z")
    if wrong or isinstance(asks, Refusal):
        return {}, wrong
    given_id = {"id": asks.id} if "id" in record else {}
    return {**given_id, **asks.changes, "source_path": path, **times}, []


def _moment(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None


def conflicts(connection: Connection, rows: Rows) -> Problems:
    """Ids and names that are used twice, in the file or by an image that is there already."""
    holders = dict.fromkeys(
        (value for row in connection.execute(images.select().with_only_columns(images.c.id, images.c.name))
         for value in row),
        "by an image in the database",
    )  # fmt: skip
    problems = []
    for number, row in rows.items():
        for key in ("id", "name"):
            holder = holders.setdefault(row.get(key), f"in line {number}")
            if key in row and holder != f"in line {number}":
                problems.append((number, f"{key} {row[key]!r} is used {holder}"))
    return problems


def insert_images(connection: Connection, rows: Rows, console: Console) -> None:
    """Insert `rows`; those that name their ids first, so that ids given by the database come after them."""
    named = [row for row in rows.values() if "id" in row]
    unnamed = [row for row in rows.values() if "id" not in row]
    with progress.Progress(console=console) as shown:
        writing = shown.add_task("writing", total=len(rows))
        for group in (named, unnamed):
            for start in range(0, len(group), _ROWS_AT_ONCE):
                some = group[start : start + _ROWS_AT_ONCE]
                connection.execute(images.insert(), some)
                shown.advance(writing, len(some))
            if group and group is named and connection.dialect.name == "postgresql":
                connection.exec_driver_sql(_COUNT_ON)


#: PostgreSQL counts ids by itself, without a look at those that were given.
_COUNT_ON = """
SELECT setval(sequence, greatest(nextval(sequence), (SELECT max(id) FROM images)))
FROM pg_get_serial_sequence('images', 'id') AS sequence WHERE sequence IS NOT NULL
"""
