"""What a worker tells Prometheus."""

import math
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from kombu import Connection
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.exceptions import ResponseError
from sqlalchemy.exc import DBAPIError

from aries_images import contract
from aries_images.contract import Refusal, Reply
from tests.builders import a_message, an_image, load
from tests.integration.conftest import NewDatabase
from tests.servers import Promtool
from tests.service import Service, service_at
from tests.workers import running_worker, until
from worker.database import Cause, Database
from worker.embedded import RedisServer, free_port
from worker.leases import Keys
from worker.metrics import InRedis, Metrics
from worker.task import Answer, Delivery


@pytest.fixture(scope="module", params=[None, "threads"], ids=["default", "threads"])
def town(
    request: pytest.FixtureRequest, module_redis: tuple[str, str], new_database: NewDatabase
) -> Iterator[tuple[Service, int]]:
    port = free_port()
    with (
        service_at(*module_redis, new_database("sqlite")) as service,
        running_worker(service.environment | {"ARIES_METRICS_PORT": str(port)}, pool=request.param, concurrency=1),
    ):
        yield service, port


def page(port: int) -> str:
    """What Prometheus gets."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        return str(response.read().decode())


def figures(port: int) -> dict[str, float]:
    """Every figure, by its name and labels."""
    families = text_string_to_metric_families(page(port))
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_replies_are_counted_by_code(town: tuple[Service, int]) -> None:
    service, port = town
    image = service.image()
    before = figures(port)
    service.client.update(image["id"], description="x", request_id=f"counted-{port}")
    service.client.update(image["id"], description="x", request_id=f"counted-{port}")
    service.ask({"id": 10_000_000})
    # An answer is counted when it is sent, and the caller may be quicker.
    number = "aries_total_seconds_count{image.update}"
    until(lambda: figures(port)[number] == before[number] + 3)
    after = figures(port)
    grown = {name: after[name] - before[name] for name in after if name in before}
    assert grown["aries_replies_total{OK}"] == 2
    assert grown["aries_replies_total{ImageNotFound}"] == 1
    assert grown["aries_replies_total{InternalError}"] == 0
    assert grown["aries_replayed_total"] == 1
    assert grown["aries_queue_seconds_count{image.update}"] == grown["aries_total_seconds_count{image.update}"] == 3
    assert 0 < grown["aries_queue_seconds_sum{image.update}"] < grown["aries_total_seconds_sum{image.update}"] < 30
    assert grown["aries_queue_seconds_count{image.update.bulk}"] == 0
    assert grown["aries_batch_requests_sum"] == 3
    assert after["aries_alive"] == 1
    assert 0 <= after["aries_last_reply_age_seconds"] < 30


def test_what_waits_is_held_or_is_dead_is_looked_up(town: tuple[Service, int]) -> None:
    service, port = town
    service.broker.delete(Keys().dead)
    service.push("no message", "nor this")
    until(lambda: figures(port)["aries_dead_letters"] == 2)
    found = figures(port)
    assert (found["aries_broker_up"], found["aries_waiting{image.update}"], found["aries_leases"]) == (1, 0, 0)
    assert (found["aries_broker_writes"], found["aries_broker_memory_limit_bytes"]) == (1, 0)
    assert found["aries_broker_memory_bytes"] > 1e5


def test_what_waits_in_bulk_is_told_apart(town: tuple[Service, int]) -> None:
    service, port = town
    image, before = service.image(), figures(port)
    sent = service.celery.send_task(contract.TASK, kwargs={"id": image["id"]}, queue=contract.BULK_QUEUE)
    assert sent.get(timeout=10)["status"] == 200
    bulk = "aries_total_seconds_count{image.update.bulk}"
    until(lambda: figures(port)[bulk] == 1 + before[bulk])


def test_an_answer_to_what_was_given_up_on_is_a_reply_too(town: tuple[Service, int]) -> None:
    service, port = town
    before = figures(port)["aries_replies_total{InvalidParameter}"]
    request_id, entry = a_message({"id": 1}, headers={"task": "image.unknown"})
    service.push(entry)
    service.stored(request_id)
    until(lambda: figures(port)["aries_replies_total{InvalidParameter}"] == before + 1)


def test_prometheus_own_rules_for_names_are_kept(town: tuple[Service, int], promtool: Promtool) -> None:
    found = promtool("check", "metrics", said=page(town[1]))
    assert (found.stdout + found.stderr, found.returncode) == ("", 0)


def test_labels_have_a_bound_and_every_value_is_there_from_the_beginning(town: tuple[Service, int]) -> None:
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page(town[1])):
        for sample in family.samples:
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    labels.pop("le")
    assert labels == {
        "code": {"OK", *contract.CODES},
        "cause": {cause.value for cause in Cause},
        "queue": {*contract.QUEUES},
    }


def looked_up(redis: InRedis) -> dict[str, float]:
    samples = [sample for metric in redis.collect() for sample in metric.samples]
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value for sample in samples
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis where nobody works."""
    with RedisServer(tmp_path / "redis", persistent=False) as server:
        yield server


def test_what_waits_with_a_priority_waits_too_and_the_oldest_is_found(server: RedisServer) -> None:
    now = time.time()
    with Redis.from_url(server.url()) as client, Connection(server.url()) as connection:
        redis = InRedis(connection)
        assert looked_up(redis)["aries_oldest_waiting_seconds{image.update}"] == 0
        for seconds, step in ((50, ""), (200, ""), (100, "\x06\x163"), (900, "\x06\x169")):
            client.rpush(contract.QUEUE + step, a_message({}, headers={contract.SENT_AT: now - seconds})[1])
        found = looked_up(redis)
    assert (found["aries_waiting{image.update}"], found["aries_waiting{image.update.bulk}"]) == (4, 0)
    assert 900 <= found["aries_oldest_waiting_seconds{image.update}"] < 930


@pytest.mark.parametrize("sent_at", [None, "now", -1, 10**400, math.nan, math.inf, 2e10])
def test_of_what_does_not_say_when_it_was_sent_the_age_is_not_known(server: RedisServer, sent_at: object) -> None:
    with Redis.from_url(server.url()) as client, Connection(server.url()) as connection:
        client.lpush(contract.BULK_QUEUE, "no message", a_message({}, headers={contract.SENT_AT: sent_at})[1])
        client.rpoplpush(contract.BULK_QUEUE, contract.BULK_QUEUE)
        found = looked_up(InRedis(connection))
    assert found["aries_waiting{image.update.bulk}"] == 2
    assert "aries_oldest_waiting_seconds{image.update.bulk}" not in found


def test_a_redis_that_cannot_write_is_known_and_one_that_is_away_too(server: RedisServer) -> None:
    with Redis.from_url(server.url()) as client, Connection(server.url()) as connection:
        redis = InRedis(connection)
        client.config_set("maxmemory", 100_000_000)
        assert looked_up(redis)["aries_broker_writes"] == 1
        (server.folder / "dump.rdb" / "in the way").mkdir(parents=True)
        with suppress(ResponseError):
            client.bgsave()
        until(lambda: looked_up(redis)["aries_broker_writes"] == 0)
        assert looked_up(redis)["aries_broker_memory_limit_bytes"] == 100_000_000
        shutil.rmtree(server.folder / "dump.rdb")
        server.kill()
        assert looked_up(redis) == {"aries_broker_up": 0}
        server.start()
        assert looked_up(redis)["aries_broker_up"] == 1


def test_a_user_of_redis_who_may_not_ask_for_everything_gets_the_rest(server: RedisServer) -> None:
    with Redis.from_url(server.url()) as client:
        client.execute_command("ACL", "SETUSER", "narrow", "on", "nopass", "~*", "+@all", "-info")
    with Connection(f"redis://narrow:any@127.0.0.1:{server.port}/0") as connection:
        found = looked_up(InRedis(connection))
    assert found["aries_broker_up"] == 1
    assert "aries_dead_letters" in found
    assert "aries_broker_writes" not in found


def answers(number: int) -> list[Answer]:
    now = time.time()
    reply = Reply.refused("x", None, Refusal(contract.IMAGE_NOT_FOUND))
    return [
        Answer(reply, "", Delivery("x", (), {}, {contract.SENT_AT: now - each}, received_at=now), now, now)
        for each in range(number)
    ]


def test_counting_costs_microseconds_an_update() -> None:
    """Of processor time, the best of several runs, so that other work on the machine does not count."""
    metrics, batch = Metrics(), answers(100)

    def cost() -> float:
        began = time.thread_time()
        for _ in range(20):
            metrics.ran(batch)
            metrics.sent(batch)
        return (time.thread_time() - began) / 20 / len(batch)

    best = min(cost() for _ in range(10))
    assert best < 20e-6


def test_failed_transactions_are_counted_by_cause(postgresql_url: str) -> None:
    """Each in the way it comes about in a database, and a server that is not there."""
    causes: list[Cause] = []
    database = Database(postgresql_url, causes.append)
    load(database, an_image(1), an_image(2))
    assert causes == []

    def fails(statement: str, of: Database = database) -> None:
        with pytest.raises(DBAPIError), of.transaction(waits=False) as connection:
            connection.exec_driver_sql(statement)

    fails("UPDATE images SET name = 'image-2' WHERE id = 1")
    with database.transaction() as connection:
        connection.exec_driver_sql("SELECT 1 FROM images WHERE id = 1 FOR UPDATE")
        fails("UPDATE images SET name = 'x' WHERE id = 1")
    fails("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")
    fails("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$")
    fails("SELECT nonsense")
    fails("SELECT 1", of=Database("postgresql://nobody@127.0.0.1:1/none", causes.append))
    database.close()
    assert causes == [Cause.TAKEN, Cause.LOCKED, Cause.SERIALISATION, Cause.DEADLOCK, Cause.OTHER, Cause.AWAY]


def test_sqlites_one_lock_is_no_database_that_is_away(sqlite_url: str) -> None:
    causes: list[Cause] = []
    database = Database(sqlite_url, causes.append)
    load(database, an_image(1), an_image(2))
    with database.transaction() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 10")
    with pytest.raises(DBAPIError), database.transaction() as connection:
        connection.exec_driver_sql("UPDATE images SET name = 'image-2' WHERE id = 1")
    with Database(sqlite_url).transaction(), pytest.raises(DBAPIError), database.transaction():
        pass
    database.close()
    assert causes == [Cause.TAKEN, Cause.LOCKED]
