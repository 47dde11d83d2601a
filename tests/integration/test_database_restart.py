"""The database crashes and comes back in the middle of a stream of updates: each is answered, and applied once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from aries_images import Image, InternalError, OutcomeUnknown
from models.migrations import upgrade
from tests.builders import ledger, stored_images, stored_revisions
from tests.servers import PostgresServer
from tests.service import Service, service_at
from tests.workers import running_worker, until
from worker.embedded import ServerFailedError

CALLERS = 8


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PostgresServer]:
    try:
        with PostgresServer(tmp_path / "postgres") as server:
            upgrade(server.url)
            yield server
    except ServerFailedError as error:
        pytest.skip(str(error))


@pytest.fixture
def service(broker_url: str, result_url: str, server: PostgresServer) -> Iterator[Service]:
    with (
        service_at(broker_url, result_url, server.url) as service,
        running_worker(service.environment),
        running_worker(service.environment, pool="prefork", concurrency=2),
    ):
        for _ in range(CALLERS):
            service.image()
        yield service


def update_until(service: Service, image_id: int, done: Event) -> list[tuple[str, Image]]:
    """One change after the other, each asked for under its id until there is an answer."""
    answers: list[tuple[str, Image]] = []
    while not done.is_set():
        request_id = f"{image_id}-{len(answers)}"
        for _ in range(20):
            try:
                image = service.client.update(image_id, description=request_id, request_id=request_id, timeout=10)
            except (InternalError, OutcomeUnknown):
                time.sleep(0.1)
            else:
                answers.append((request_id, image))
                break
        else:
            pytest.fail(f"{request_id} is not answered")
    return answers


def test_a_crash_of_the_database_costs_no_answer_and_doubles_no_change(
    service: Service, server: PostgresServer
) -> None:
    done = Event()
    with ThreadPoolExecutor(CALLERS) as threads:
        callers = [threads.submit(update_until, service, number, done) for number in range(1, CALLERS + 1)]
        try:
            for _ in range(2):
                answered = service.broker.llen("image.replies")
                until(lambda answered=answered: service.broker.llen("image.replies") > answered + 50, 30)  # type: ignore[misc]
                server.kill()
                time.sleep(0.5)  # the callers go on meanwhile
                server.start()
            answered = service.broker.llen("image.replies")
            until(lambda: service.broker.llen("image.replies") > answered + 50, 30)
        finally:
            done.set()
        answers = [caller.result() for caller in callers]

    service.database.close()  # its connections led to a server that is gone
    images, revisions, lines = (
        stored_images(service.database),
        stored_revisions(service.database),
        ledger(service.database),
    )
    for image, own in zip(images, answers, strict=True):
        # Every request made one change, in order: the n-th led to revision n + 2.
        assert [answer.revision for _, answer in own] == list(range(2, 2 + len(own)))
        assert [row["request_id"] for row in revisions if row["image_id"] == image["id"]] == [id_ for id_, _ in own]
        assert image["revision"] == 1 + len(own)
        assert [answer.description for _, answer in own] == [id_ for id_, _ in own]
    assert set(lines) == {id_ for own in answers for id_, _ in own}
    until(service.is_idle, 30)
