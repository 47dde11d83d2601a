"""Back-pressure: what waits in the queue costs a worker no memory, and is shared among workers."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from aries_images import contract
from tests.running import IMAGES, Site, peak_memory, request, site, until
from worker.leases import Keys

#: Requests that wait; `ARIES_TEST_WAITING=1000000` is the full form of the test, and takes some minutes.
WAITING = int(os.environ.get("ARIES_TEST_WAITING", "100000"))
#: Words for workers that need not look for others first, which takes a second.
AT_ONCE = ("--without-mingle", "--without-gossip")
#: Bytes.
MEMORY_MAX = 150 * 2**20


@pytest.fixture
def village(postgres_url: str, tmp_path: Path) -> Iterator[Site]:
    """A site for one test, without a worker."""
    with site(postgres_url, tmp_path) as village:
        yield village


def push_backlog(village: Site, size: int) -> None:
    """Requests over all images; each changes something."""
    for first in range(0, size, 5000):
        numbers = range(first, min(first + 5000, size))
        village.push(*(request(number % IMAGES + 1, description=f"number {number}") for number in numbers))


@pytest.mark.timeout(600)
def test_the_memory_of_a_worker_is_flat_whatever_waits(village: Site) -> None:
    push_backlog(village, WAITING)
    held = 0
    with village.worker() as worker:

        def enough() -> bool:
            nonlocal held
            held = max(held, village.broker.hlen(Keys().leases))
            return int(village.results.dbsize()) >= 3000

        until(enough, seconds=60)
        peak = peak_memory(worker)
        print(f"{WAITING} waiting: {peak >> 20} MB at most, {held} messages held at most")  # noqa: T201  # to be reported
        assert peak < MEMORY_MAX
        # Two batches in hand and one under way, with the one that is answered and not yet acknowledged.
        assert 0 < held <= 400
        assert village.broker.llen(contract.QUEUE) > WAITING - 20_000


def test_two_workers_share_a_backlog(village: Site) -> None:
    messages = 4000
    with village.worker(*AT_ONCE, name="first") as first, village.worker(*AT_ONCE, name="second") as second:
        with village.paused(first), village.paused(second):
            push_backlog(village, messages)
        until(lambda: village.results.dbsize() >= messages, seconds=60)
    events = village.broker.lrange(contract.REPLY_QUEUE, 0, -1)
    shares = Counter(
        worker.name for event in events for worker in (first, second) if f'"worker":"{worker.name}"'.encode() in event
    )
    assert shares.total() >= messages
    assert min(shares[first.name], shares[second.name]) >= messages / 4, shares
