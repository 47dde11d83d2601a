"""`export`: the recorded changes of all images as lines of JSON."""

from datetime import datetime
from typing import IO

import click
from sqlalchemy import select

from models import image_revisions
from tasks.rows import not_pruned
from worker.commands import migrated_database
from worker.commands.moment import Moment
from worker.commands.revisions import line
from worker.settings import load_settings

_COLUMNS = (image_revisions.c.at, image_revisions.c.image_id, image_revisions.c.revision)


@click.command()
@click.option("--since", type=Moment(), help="Made at this time or later: 2026-11-24T10:30:00Z, or an age: 7d.")
@click.option(
    "--output",
    type=click.File("w", encoding="utf-8", atomic=True),
    default="-",
    help="A file, which is there when all of it is. Default: what you see.",
)
def export(*, since: datetime | None, output: IO[str]) -> None:
    """Write what changed, of all images, one JSON object a line in order of time.

    Read in one go as of now, and a line at a time: updates do not wait for it, and it needs no memory to speak of. What
    was pruned is left out.
    """
    with migrated_database(load_settings().database_url) as database, database.snapshot() as connection:
        query = select(image_revisions).where(not_pruned(connection.dialect.name)).order_by(*_COLUMNS)
        if since is not None:
            query = query.where(image_revisions.c.at >= since)
        for row in connection.execute(query).mappings():
            output.write(line(dict(row)) + "\n")
