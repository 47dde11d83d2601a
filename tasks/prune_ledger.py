"""Forgetting: the replies to requests that are older than anyone should still ask for."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.signals import worker_ready

from tasks import rows
from tasks.prune_revisions import prune_revisions
from worker.database import Database
from worker.task import jitter

logger = logging.getLogger(__name__)

#: Lines of the ledger in one transaction: few enough that no request waits for it.
_AT_ONCE = 1000
#: Seconds between two looks, at most.
_PERIOD = 3600.0


def prune_ledger(database: Database, days: float) -> int:
    """Take lines older than `days` out of the request ledger, in small transactions; how many there were.

    What a request changed stays on record with the image's revisions, and so it can't be applied a second time.
    """
    before = datetime.now(UTC) - timedelta(days=days)
    pruned = 0
    while True:
        with database.transaction() as connection:
            gone = rows.forget(connection, before, _AT_ONCE)
        pruned += gone
        if gone < _AT_ONCE:
            return pruned


@worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
def prune_by_and_by(sender: Any, **_: Any) -> None:
    """Have a worker look after ledger and revisions as long as it runs; several may, and share the work."""
    threading.Thread(target=_prune_for_ever, args=(sender.app,), name="prune-ledger", daemon=True).start()


def _prune_for_ever(app: Any) -> None:
    while True:
        _try("lines of the ledger", prune_ledger, app.database, app.settings.ledger_days)
        if app.settings.revision_days:
            _try("revisions", prune_revisions, app.database, app.settings.revision_days)
        time.sleep(_PERIOD * jitter())


def _try(what: str, prune: Callable[[Database, float], int], database: Database, days: float) -> None:
    try:
        pruned = prune(database, days)
    except Exception as error:  # noqa: BLE001  # whatever it is, there is a next time
        logger.warning("%s could not be pruned: %s", what, type(error).__name__)
    else:
        if pruned:
            logger.info("%d %s pruned", pruned, what)
