"""What a worker tells Prometheus."""

import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import NewDatabase
from tests.service import Service, service_at
from tests.workers import running_worker, until
from worker.embedded import free_port
from worker.leases import Keys


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


def figures(port: int) -> dict[str, float]:
    """Every figure, by its name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        families = text_string_to_metric_families(response.read().decode())
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
    after = figures(port)
    grown = {name: after[name] - before[name] for name in after if name in before}
    assert grown["aries_replies_total{OK}"] == 2
    assert grown["aries_replies_total{ImageNotFound}"] == 1
    assert grown["aries_replies_total{InternalError}"] == 0
    assert grown["aries_replayed_total"] == 1
    assert grown["aries_queue_seconds_count"] == 3
    assert grown["aries_batch_requests_sum"] == 3
    assert 0 <= after["aries_last_reply_age_seconds"] < 30


def test_what_waits_is_held_or_is_dead_is_looked_up(town: tuple[Service, int]) -> None:
    service, port = town
    service.broker.delete(Keys().dead)
    service.push("no message", "nor this")
    until(lambda: figures(port)["aries_dead_letters"] == 2)
    found = figures(port)
    assert (found["aries_broker_up"], found["aries_waiting{image.update}"], found["aries_leases"]) == (1, 0, 0)


def test_labels_have_a_bound(town: tuple[Service, int]) -> None:
    names = [name for name in figures(town[1]) if name.startswith("aries_replies_total{")]
    assert len(names) == 10
