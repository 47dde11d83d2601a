"""The operator's commands, one file each, and the database as they open it."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from models.migrations import level
from worker.database import Database


@contextmanager
def migrated_database(url: str) -> Iterator[Database]:
    """The database at `url`, if its tables are those of this version.

    Raises:
        ClickException: they are not.
    """
    database = Database(url)
    try:
        stands_at, newest = level(database.engine)
        if stands_at != newest:
            raise click.ClickException("the database is not up to date: run `python -m worker migrate` first")
        yield database
    finally:
        database.close()
