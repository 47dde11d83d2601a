"""A worker is killed at each step of a request: another one finishes it, once, and with one answer."""

import pytest

from aries_images import contract
from tests.builders import a_message
from tests.faults.crash_cell import CRASHES, DATABASES, killed_at, replies
from tests.faults.crash_points import CRASH_AT, POISON, STEPS
from tests.faults.town import town, until
from worker.leases import Keys


@pytest.mark.parametrize("database", DATABASES)
@pytest.mark.parametrize("step", STEPS)
def test_killed_at(step: str, database: str) -> None:
    killed_at(step, None, database)


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
