"""`prune`: take what is old out of the request ledger now."""

import click

from tasks.prune_ledger import prune_ledger
from worker.commands import migrated_database
from worker.settings import load_settings


@click.command()
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Default: ARIES_LEDGER_DAYS.")
def prune(*, days: float | None) -> None:
    """Take replies older than --days out of the request ledger; workers do so every hour by themselves.

    A request that changed an image stays on record with the image's revisions and is never applied again.
    """
    settings = load_settings()
    with migrated_database(settings.database_url) as database:
        click.echo(f"{prune_ledger(database, days or settings.ledger_days)} lines pruned")
