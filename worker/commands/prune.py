"""`prune`: take what is old out of the request ledger and out of the revisions now."""

import click

from tasks.prune_ledger import prune_ledger
from tasks.prune_revisions import prune_revisions
from worker.commands import migrated_database
from worker.settings import load_settings

_DAYS = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option("--days", type=_DAYS, help="Of the ledger. Default: ARIES_LEDGER_DAYS.")
@click.option("--revision-days", type=_DAYS, help="Of the revisions. Default: ARIES_REVISION_DAYS; 0: none is pruned.")
def prune(*, days: float | None, revision_days: float | None) -> None:
    """Take out replies older than --days, and what revisions older than --revision-days recorded.

    Workers do so every hour by themselves. A request that changed an image is never applied again: of a pruned
    revision its line stays, with the request id. The newest revision of each image stays as it is.
    """
    settings = load_settings()
    with migrated_database(settings.database_url) as database:
        click.echo(f"{prune_ledger(database, days or settings.ledger_days)} lines pruned")
        if of_revisions := revision_days or settings.revision_days:
            click.echo(f"{prune_revisions(database, of_revisions)} revisions pruned")
