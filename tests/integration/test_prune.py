"""The request ledger forgets; what a request changed is not forgotten with it."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from aries_images import ImageNotFound, InvalidParameter
from models import requests
from tasks import prune_ledger as pruning
from tasks.apply_updates import FENCE, Request
from tasks.prune_ledger import prune_ledger
from tests.builders import a_request, again, an_image, decide, ledger, load, stored_image, stored_revisions
from tests.service import Service, service_at
from tests.workers import running_worker, until
from worker.__main__ import commands
from worker.database import Database


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    load(database, an_image(1))
    yield database
    database.close()


def age(database: Database, days: float, *ids: str) -> None:
    """Make what was answered look older."""
    past = datetime.now(UTC) - timedelta(days=days)
    with database.transaction() as connection:
        connection.execute(requests.update().where(requests.c.request_id.in_(ids)).values(answered_at=past))


def test_what_is_older_than_that_goes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "_AT_ONCE", 3)
    old, new = [a_request(404) for _ in range(10)], [a_request(404) for _ in range(3)]
    decide([*old, *new], database)
    age(database, 7.1, *(request.id for request in old))
    age(database, 6.9, *(request.id for request in new))
    assert prune_ledger(database, 7) == 10
    assert set(ledger(database)) == {request.id for request in new}
    assert prune_ledger(database, 7) == 0


@pytest.mark.parametrize("settles", [False, True])
@pytest.mark.parametrize("body", ["the same", "another"])
def test_what_made_a_revision_is_never_applied_again(database: Database, body: str, *, settles: bool) -> None:
    request = a_request(1, description="x")
    decide([request], database)
    age(database, 8, request.id)
    prune_ledger(database, 7)
    second = request if body == "the same" else again(request, description="y")
    if settles:
        second = Request(request.id, None, request.caller, FENCE)
    for _ in range(2):
        [reply] = decide([second], database)
        [detail] = reply.document["error"]["details"]
        assert (reply.code, reply.stored, detail["reason"]) == ("InvalidParameter", False, "request_id_reused")
        assert "revision 2 of image 1; its reply is no longer kept" in detail["message"]
    assert len(stored_revisions(database)) == 1
    assert ledger(database) == {}


def test_another_caller_is_told_nothing(database: Database) -> None:
    request = a_request(1, description="x")
    decide([request], database)
    age(database, 8, request.id)
    prune_ledger(database, 7)
    [reply] = decide([replace(request, caller="mallory")], database)
    assert (reply.code, reply.document["error"]["details"]) == ("Forbidden", [])


def test_what_changed_nothing_is_decided_anew(database: Database) -> None:
    refused = a_request(404)
    decide([refused], database)
    age(database, 8, refused.id)
    prune_ledger(database, 7)
    load(database, an_image(404))
    [reply] = decide([refused], database)
    assert (reply.code, reply.replayed) == (None, False)


def test_by_hand(database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARIES_DATABASE_URL", database_url)
    request = a_request(404)
    decide([request], database)
    age(database, 3, request.id)
    assert "0 lines pruned" in CliRunner().invoke(commands, ["prune"]).output
    assert "1 lines pruned" in CliRunner().invoke(commands, ["prune", "--days", "2"]).output
    assert CliRunner().invoke(commands, ["prune", "--days", "0"]).exit_code == 2


def told(service: Service, request_id: str) -> str:
    with pytest.raises(InvalidParameter) as refused:
        service.client.settle(request_id)
    return str(refused.value)


@pytest.mark.parametrize("pool", [None, "prefork"])
def test_a_worker_prunes_by_itself(broker_url: str, result_url: str, database_url: str, pool: str | None) -> None:
    with service_at(broker_url, result_url, database_url) as service:
        image = service.image()
        request = replace(a_request(image["id"], description="x"), id="long-ago")
        decide([request], service.database)
        age(service.database, 7.1, request.id)
        with running_worker(service.environment, pool=pool):
            until(lambda: not ledger(service.database))
            assert "its reply is no longer kept" in told(service, request.id)
            with pytest.raises(ImageNotFound):
                service.client.update(404)
        assert stored_image(service.database, image["id"])["revision"] == 2
