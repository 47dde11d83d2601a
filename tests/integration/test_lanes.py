"""Two lanes: a caller who waits never waits behind a file, and a file never waits for ever."""

import asyncio
import json
import time
from collections.abc import Iterable, Iterator

import pytest
from redis import Redis
from redis.asyncio import ConnectionPool

from aries_images import _broker, _caller, contract
from aries_images._aio_outbox import RedisOutbox
from tests.running import Site, Worker, id_of, request, site, until
from worker.dead_letters import DeadLetters, Filter

AT_ONCE = ("--without-mingle", "--without-gossip")
LEASE = {"ARIES_LEASE_SECONDS": "2"}
BATCH = 100


@pytest.fixture(scope="module")
def town(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(postgres_url, tmp_path_factory.mktemp("site")) as town:
        yield town


@pytest.fixture(scope="module")
def _shared(town: Site) -> Iterator[Worker]:
    with town.worker(*AT_ONCE) as worker:
        yield worker


@pytest.fixture
def worker(_shared: Worker) -> Worker:
    assert _shared.is_up, _shared.log.read_text()
    return _shared


@pytest.fixture
def village(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site for one test, without a worker."""
    with site(postgres_url, tmp_path_factory.mktemp("village")) as village:
        yield village


def requests(images: Iterable[int], description: str) -> list[dict[str, object]]:
    return [request(image, description=f"{description} {number}") for number, image in enumerate(images)]


def transactions(town: Site, messages: Iterable[dict[str, object]]) -> list[int]:
    """The transactions in which these were applied, in the order in which they began to write; once each."""
    asked = "SELECT DISTINCT xmin::text::bigint FROM image_revisions WHERE request_id = ANY(%s) ORDER BY 1"
    return [row[0] for row in town.query(asked, [id_of(message) for message in messages])]


def wait_for(town: Site, messages: list[dict[str, object]], seconds: float = 20) -> None:
    until(lambda: len(town.applied(map(id_of, messages))) == len(messages), seconds)


@pytest.mark.usefixtures("worker")
def test_a_caller_passes_what_is_leased_of_a_file_and_not_yet_begun(town: Site) -> None:
    file, callers = requests(range(1, 501), "file"), requests(range(501, 511), "callers")
    with town.locked(1):
        town.push(*file, queue=contract.BULK_QUEUE)
        until(lambda: len(town.leases()) == 2 * BATCH)  # the bulk lane's window is full
        town.push(*callers)
        until(lambda: all(town.holds(id_of(message)) for message in callers), seconds=1)
    wait_for(town, file + callers)
    [first, *_] = transactions(town, callers)
    in_front = [number for number in transactions(town, file) if number < first]
    assert len(in_front) <= 1  # the batch that was under way


@pytest.mark.usefixtures("worker")
def test_callers_beside_a_file_that_flows_are_answered_meanwhile(town: Site) -> None:
    file = requests([*range(1, 801)] * 4, "a file that flows")
    town.push(*file, queue=contract.BULK_QUEUE)
    waits = []
    for image in range(801, 821):
        begun = time.monotonic()
        [message] = requests([image], "beside it")
        town.push(message)
        town.reply(id_of(message))
        waits.append(time.monotonic() - begun)
    assert town.broker.llen(contract.BULK_QUEUE) > 0, "the file was over before the callers were"
    wait_for(town, file, seconds=60)
    assert sorted(waits)[len(waits) // 2] < 0.25


def test_a_file_gets_its_share_while_callers_fill_every_batch(town: Site, worker: Worker) -> None:
    callers, file = requests([*range(1, 901)] * 3, "very many callers"), requests(range(901, 951), "a small file")
    with town.paused(worker):
        town.push(*callers)
        town.push(*file, queue=contract.BULK_QUEUE)
    wait_for(town, callers + file, seconds=60)
    there = transactions(town, callers)
    behind = len([number for number in there if number > transactions(town, file)[-1]])
    assert behind > len(there) / 3


def test_a_lane_alone_is_served_by_a_worker_that_is_told_so(village: Site) -> None:
    message, file = request(1, description="x"), request(2, description="x")
    village.push(message)
    village.push(file, queue=contract.BULK_QUEUE)
    with village.worker("-Q", contract.BULK_QUEUE, *AT_ONCE):
        assert village.code(id_of(file)) == "OK"
        flood = requests([*range(3, 803)], "through one lane")
        village.push(*flood, queue=contract.BULK_QUEUE)
        wait_for(village, flood)
        assert village.broker.llen(contract.QUEUE) == 1
    village.push(request(4, description="y"), queue=contract.BULK_QUEUE)
    with village.worker("-Q", contract.QUEUE, *AT_ONCE):
        assert village.code(id_of(message)) == "OK"
        assert village.broker.llen(contract.BULK_QUEUE) == 1


@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
def test_other_pools_serve_both_lanes(village: Site, pool: str) -> None:
    with village.worker("-P", pool, "-c", "2", *AT_ONCE):
        file, callers = requests(range(1, 51), "file"), requests(range(51, 61), "callers")
        village.push(*file, queue=contract.BULK_QUEUE)
        village.push(*callers)
        assert [village.code(id_of(message)) for message in callers + file] == ["OK"] * 60


def test_what_a_killed_worker_held_returns_to_its_own_lane(village: Site) -> None:
    file = requests(range(1, 301), "killed in the middle")
    with village.worker(*AT_ONCE, **LEASE) as worker, village.locked(1):
        village.push(*file, queue=contract.BULK_QUEUE)
        until(lambda: len(village.leases()) == 2 * BATCH)
        worker.kill()
    with village.worker("-Q", contract.QUEUE, *AT_ONCE, name="front", **LEASE):
        until(lambda: not village.leases(), 20)
        assert village.broker.llen(contract.BULK_QUEUE) == 300 - len(village.applied(map(id_of, file)))
        assert not village.broker.exists(contract.QUEUE)
    with village.worker(*AT_ONCE, name="both", **LEASE):
        wait_for(village, file)
        until(village.is_at_rest, 20)
    assert sorted(village.applied(map(id_of, file))) == sorted(map(id_of, file))


def test_a_dead_letter_is_replayed_into_the_lane_it_came_from(village: Site) -> None:
    unknown = request(1)
    unknown["headers"]["task"] = "of another application"
    village.push(unknown, queue=contract.BULK_QUEUE)
    letters = DeadLetters(village.broker)
    with village.worker(*AT_ONCE):
        [letter] = until(lambda: [*letters.find(Filter())])
    assert letter.list == contract.BULK_QUEUE
    letters.replay([letter.id])
    assert village.broker.lrange(contract.BULK_QUEUE, 0, -1) == [json.dumps(unknown).encode()]


def test_a_client_sends_to_the_lane_of_its_choice(broker_url: str) -> None:
    caller = _caller.Caller(broker_url, None, None, None, None, None)
    sent = [
        caller.compose(f"{way}-{queue}", {"id": 1}, own_id=True, headers={}, timeout=5, queue=queue)
        for way in ("kombu", "asyncio")
        for queue in contract.QUEUES
    ]
    outbox = _broker.Outbox(broker_url, {})
    for outgoing in sent[:2]:
        outbox.send(outgoing, time.monotonic() + 5)
    outbox.close()

    async def send() -> None:
        there = RedisOutbox(ConnectionPool.from_url(broker_url))
        await asyncio.gather(*(there.send([outgoing], time.monotonic() + 5) for outgoing in sent[2:]))
        await there.close()

    asyncio.run(send())
    with Redis.from_url(broker_url) as broker:
        for queue in contract.QUEUES:
            entries = [json.loads(entry) for entry in broker.lrange(queue, 0, -1)]
            assert {entry["headers"]["id"] for entry in entries} == {f"kombu-{queue}", f"asyncio-{queue}"}
            assert {entry["properties"]["delivery_info"]["routing_key"] for entry in entries} == {queue}
