"""A pool process that is killed while its request runs: the request is done again, and once."""

import signal
import uuid
from collections.abc import Iterator

import psutil
import psycopg
import pytest

from tests.builders import ledger, stored_image, stored_revisions
from tests.service import Service, service_at
from tests.workers import Worker, running_worker, until


@pytest.fixture
def service(broker_url: str, result_url: str, postgresql_url: str) -> Iterator[Service]:
    with service_at(broker_url, result_url, postgresql_url) as service:
        yield service


@pytest.fixture
def worker(service: Service) -> Iterator[Worker]:
    with running_worker(service.environment, pool="prefork", concurrency=1) as worker:
        yield worker


def kill_children(worker: Worker) -> list[psutil.Process]:
    children = worker.children()
    assert children
    for child in children:
        child.send_signal(signal.SIGKILL)
    return children


def test_a_killed_pool_process_costs_neither_the_answer_nor_a_second_change(service: Service, worker: Worker) -> None:
    image, request_id = service.image(), str(uuid.uuid4())
    url = service.database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    waits = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(url) as lock, psycopg.connect(url, autocommit=True) as look:
        lock.execute("SELECT FROM images WHERE id = %s FOR UPDATE", [image["id"]])
        service.send({"id": image["id"], "description": "x"}, task_id=request_id)
        until(lambda: look.execute(waits).fetchone() is not None)
        killed = kill_children(worker)
        until(lambda: worker.children() and not set(worker.children()) & set(killed))
        lock.rollback()
    assert service.stored(request_id)["result"]["revision"] == 2
    assert [event["body"]["data"]["status"] for event in service.wait_for_events(request_id)] == [200]
    assert len(stored_revisions(service.database)) == len(ledger(service.database)) == 1
    assert stored_image(service.database, image["id"])["revision"] == 2
    until(service.is_idle)
    assert len(service.events()) == 1
