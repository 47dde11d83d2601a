"""The operator's commands, one file each, and the database as they open it."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from models.migrations import is_of_a_newer_version, level
from worker.database import Database

#: Where this version was gone back to.
OF_A_NEWER_VERSION = (
    "the database is at {}, which a newer version made; this one's workers go on, but take its commands"
)


@contextmanager
def migrated_database(url: str) -> Iterator[Database]:
    """The database at `url`, if its tables are those of this version.

    Raises:
        ClickException: they are not.
    """
    database = Database(url)
    try:
        stands_at, newest = level(database.engine)
        if is_of_a_newer_version(stands_at):
            raise click.ClickException(OF_A_NEWER_VERSION.format(stands_at))
        if stands_at != newest:
            raise click.ClickException("the database is not up to date: run `python -m worker migrate` first")
        yield database
    finally:
        database.close()
