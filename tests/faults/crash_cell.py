"""One cell of the crash matrix: a worker of a pool is killed at a step, and another one finishes what it had begun."""

import json
from typing import Any

from aries_images import contract
from tests.builders import a_message, ledger, stored_revisions
from tests.faults.crash_points import CRASH_AT
from tests.faults.town import Town, town, until
from worker.leases import Keys

#: Words for a worker that can crash.
CRASHES = ["-I", "tests.faults.crash_points"]
DATABASES = ["sqlite", "postgresql"]


def replies(there: Town, request_id: str) -> list[dict[str, Any]]:
    """Every reply to a request that was published, and then the one that is stored."""
    entries = [json.loads(json.loads(entry)["body"]) for entry in there.broker.lrange(contract.REPLY_QUEUE, 0, -1)]
    published = [entry["data"] for entry in entries if entry["id"] == request_id]
    stored = there.results.get(contract.RESULT_KEY_PREFIX + request_id)
    return [*published, json.loads(stored)["result"]] if stored else published


def killed_at(step: str, pool: str | None, database: str) -> None:
    """Two requests, one good and one refused, through a worker that dies at `step`, and one that does not."""
    processes: dict[str, Any] = {"pool": pool, "concurrency": 2 if pool in ("threads", "prefork") else None}
    with town(on_sqlite=database == "sqlite", workers=0) as there:
        crashes = there.worker(*CRASHES, **processes, **{CRASH_AT: step})
        there.ready(crashes)
        sent = [a_message({"id": 1, "description": "x"}), a_message({"id": 2, "name": "image-3"})]
        there.broker.lpush(contract.QUEUE, *(entry for _, entry in sent))
        until(lambda: crashes.poll() is not None)
        there.workers.remove(crashes)
        there.worker(**processes)
        until(lambda: all(replies(there, request_id) for request_id, _ in sent))
        until(there.is_at_rest)
        there.database.close()
        lines = ledger(there.database)
        for (request_id, _), status in zip(sent, (200, 400), strict=True):
            kept = json.loads(lines[request_id]["reply"])
            assert kept["status"] == status
            assert all(reply == kept for reply in replies(there, request_id)), "one value"
        made = [row["request_id"] for row in stored_revisions(there.database)]
        assert made == [sent[0][0]]
        assert not there.broker.exists(Keys().dead)
