"""A worker is killed at each step of a request: another one finishes it, once, and with one answer."""

import json
from typing import Any

import pytest

from aries_images import contract
from tests.builders import a_message, ledger, stored_revisions
from tests.faults.crash_points import CRASH_AT, POISON, STEPS
from tests.faults.town import Town, town, until
from worker.leases import Keys

POOLS = {"group commit": None, "threads": "threads", "prefork": "prefork", "solo": "solo"}
CRASHES = ["-I", "tests.faults.crash_points"]


def replies(there: Town, request_id: str) -> list[dict[str, Any]]:
    """Every reply to a request that was published, and then the one that is stored."""
    entries = [json.loads(json.loads(entry)["body"]) for entry in there.broker.lrange(contract.REPLY_QUEUE, 0, -1)]
    published = [entry["data"] for entry in entries if entry["id"] == request_id]
    stored = there.results.get(contract.RESULT_KEY_PREFIX + request_id)
    return [*published, json.loads(stored)["result"]] if stored else published


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("pool", POOLS)
def test_killed_at(pool: str, step: str, database: str) -> None:
    processes = {"pool": POOLS[pool], "concurrency": 2 if POOLS[pool] in ("threads", "prefork") else None}
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


def test_a_request_that_kills_every_worker_is_given_up_after_five() -> None:
    with town(workers=0) as there:
        request_id, entry = a_message({"id": 1, "description": POISON})
        behind_id, behind = a_message({"id": 2, "description": "behind"})
        there.broker.lpush(contract.QUEUE, entry)
        for _ in range(5):
            dies = there.worker(*CRASHES, **{CRASH_AT: POISON})
            until(lambda dies=dies: dies.poll() is not None)
            there.workers.remove(dies)
        lives = there.worker(*CRASHES, **{CRASH_AT: POISON})
        there.broker.lpush(contract.QUEUE, behind)
        until(lambda: replies(there, behind_id) and there.broker.xlen(Keys().dead))
        assert lives.poll() is None
        [(_, letter)] = there.broker.xrange(Keys().dead)
        assert letter[b"reason"] == b"delivered_too_often"
        [published, stored] = replies(there, request_id)
        assert published["error"]["code"] == stored["exc_type"] == "InternalError"
        until(there.is_at_rest)
