"""Forgetting what images once were; but never which request made which revision."""

from datetime import UTC, datetime, timedelta

from tasks import rows
from worker.database import Database

#: Revisions looked at in one transaction: few enough that no request waits for it.
_AT_ONCE = 500


def prune_revisions(database: Database, days: float) -> int:
    """Take out what revisions older than `days` recorded, in small transactions; how many there were.

    The line stays, with its request id: the ledger forgets after days, a message may lie with the dead letters for
    years, and replayed it must not be applied a second time. So does the newest revision of each image, whole.
    """
    before = datetime.now(UTC) - timedelta(days=days)
    pruned, place = 0, None
    while True:
        with database.transaction() as connection:
            emptied, place = rows.empty(connection, before, place, _AT_ONCE)
        pruned += emptied
        if place is None:
            return pruned
