"""Batches of requests to a live worker, sound, broken and hostile; then all of them once more."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aries_images import contract
from tests.contract.budget import budget
from tests.contract.exchange import Exchange
from tests.contract.messages import Draft, drafts
from tests.contract.wallet import Wallet
from tests.service import Service
from tests.workers import running_worker

#: Messages that are on their way together.
AT_ONCE = 50
#: The two lanes, the lists of priorities, and where a stock caller's request lands who names no queue.
QUEUES = [contract.QUEUE] * 4 + [
    contract.BULK_QUEUE,
    *(f"{contract.QUEUE}\x06\x16{step}" for step in (3, 6, 9)),
    "celery",
]

#: A message; with a number it goes under the id of one before it, as it was or as another.
drawn = st.tuples(drafts, st.none() | st.none() | st.integers(0, AT_ONCE), st.booleans())


@pytest.fixture(scope="module")
def exchange(service: Service, purse: Wallet) -> Iterator[Exchange]:
    with running_worker(service.environment) as worker:
        exchange = Exchange(service, purse.proofs)
        exchange.node = worker.node
        yield exchange
        assert "Traceback" not in worker.log.read_text(errors="replace")
    print(f"{exchange.messages} messages")  # noqa: T201  # pytest's to show


def entries_of(batch: list[tuple[Draft, int | None, bool]], purse: Wallet) -> list[bytes]:
    entries: list[bytes] = []
    for number, (draft, before, is_same) in enumerate(batch):
        if before is None or not entries:
            entries.append(draft.entry(f"r{number}", purse))
        elif is_same:
            entries.append(entries[before % number])
        else:
            entries.append(draft.entry(f"r{before % number}", purse))
    return entries


@given(batch=st.lists(drawn, min_size=AT_ONCE, max_size=AT_ONCE), queue=st.sampled_from(QUEUES))
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@budget(12, 1000)
def test_whatever_is_sent_is_answered_as_the_contract_says(
    exchange: Exchange, purse: Wallet, batch: list[tuple[Draft, int | None, bool]], queue: str
) -> None:
    entries = entries_of(batch, purse)
    if queue == "celery":  # of which a worker takes only what is its own
        entries = [entry for entry in entries if b'"task": "image.update"' in entry] or [Draft().entry("r0", purse)]
    exchange.begin()
    exchange.send(entries, queue)
    exchange.send(entries, queue)
