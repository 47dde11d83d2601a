"""`migrate`: bring the database to the newest tables."""

import click
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from models.migrations import is_of_a_newer_version, level, upgrade
from worker.commands import OF_A_NEWER_VERSION
from worker.database import Database
from worker.settings import load_settings


@click.command()
def migrate() -> None:
    """Create the tables, or bring them up to date; nothing happens where they are."""
    url = load_settings().database_url
    database = Database(url)
    before, newest = level(database.engine)
    database.close()
    if before == newest:
        click.echo(f"The database is up to date ({newest}).")
        return
    if is_of_a_newer_version(before):
        raise click.ClickException(OF_A_NEWER_VERSION.format(before))
    with Console().status("migrating the database …"):
        try:
            upgrade(url)
        except (RuntimeError, SQLAlchemyError) as error:
            raise click.ClickException(f"not migrated: {getattr(error, 'orig', error)}") from None
    click.echo(f"The database is up to date ({newest}; it was {before or 'empty'}).")
