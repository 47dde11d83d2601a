"""What is recorded of images, as an operator reads, restores, exports, checks and prunes it."""

import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from aries_images.signing import SigningKey
from models import image_revisions, images, requests
from tasks import prune_revisions as pruning
from tasks.prune_ledger import prune_ledger
from tasks.prune_revisions import prune_revisions
from tests.builders import a_request, an_image, decide, load, run_ddl, stored_image, stored_revisions
from tests.integration.conftest import NewDatabase
from tests.service import Service, service_at
from tests.workers import running_worker, until
from worker.__main__ import commands
from worker.commands.token import PRIVATE, PUBLIC, make_keys
from worker.database import Database

LONG_AGO = timedelta(days=400)


@pytest.fixture
def database(shared_database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Three images, the second with three changes, one of them from long ago."""
    url = shared_database.engine.url.set(drivername=shared_database.engine.dialect.name)
    monkeypatch.setenv("ARIES_DATABASE_URL", url.render_as_string(hide_password=False))
    load(shared_database, an_image(1), an_image(2, "two"), an_image(3))
    for fields in ({"name": "second"}, {"description": "a\nb"}, {"description": "a\nc", "os_name": "Debian"}):
        decide([a_request(2, request_id=f"r-{len(stored_revisions(shared_database))}", **fields)], shared_database)
    decide([a_request(3, description="new")], shared_database)
    make_older(shared_database, 2, LONG_AGO)
    return shared_database


def make_older(database: Database, revision: int, age: timedelta) -> None:
    with database.transaction() as connection:
        connection.execute(
            image_revisions.update()
            .where(image_revisions.c.image_id == 2, image_revisions.c.revision == revision)
            .values(at=datetime.now(UTC) - age)
        )


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(commands, list(words), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


# --- history ---


def test_history_says_what_changed_by_whom_and_by_which_request(database: Database) -> None:
    shown = run("history", "2").output
    for part in ("- two", "+ second", "- b", "+ c", "- CentOS", "+ Debian", "r-0", "r-2", "anonymous"):
        assert part in shown
    assert "- a" not in shown
    assert "image 2 is at revision 4, 3 changes shown" in shown
    assert "0 changes shown" in run("history", "1").output
    assert "there is no image 9" in run("history", "9", code=1).output
    del database


def test_history_in_json_has_everything(database: Database) -> None:
    stored = stored_revisions(database, 2)
    shown = lines(run("history", "2", "--json").output)
    assert [{**line, "at": datetime.fromisoformat(line["at"])} for line in shown] == stored
    assert [line["revision"] for line in lines(run("history", "2", "--json", "--last", "2").output)] == [3, 4]


def test_a_text_does_not_steer_the_terminal(database: Database) -> None:
    decide([a_request(1, name="[red]x", description="a\rb\tc")], database)
    shown = run("history", "1").output
    assert "a\\rb\\tc" in shown
    assert "[red]x" in shown
    assert "\r" not in shown


# --- export ---


def test_export_is_in_order_of_time_and_complete(database: Database, tmp_path: Path) -> None:
    exported = lines(run("export").output)
    assert [(line["image_id"], line["revision"]) for line in exported] == [(2, 2), (2, 3), (2, 4), (3, 2)]
    assert [(line["image_id"], line["revision"]) for line in lines(run("export", "--since", "1d").output)] == [
        (2, 3),
        (2, 4),
        (3, 2),
    ]
    since = exported[2]["at"]
    assert lines(run("export", "--since", since, "--output", str(tmp_path / "it.jsonl")).output) == []
    assert lines((tmp_path / "it.jsonl").read_text()) == exported[2:]
    assert run("export", "--since", "yesterday", code=2)
    del database


@pytest.mark.parametrize("command", ["export", "verify"])
def test_updates_do_not_wait_for_a_reader(database: Database, command: str) -> None:
    """Nor does the reader see them: what it reads is of one moment."""
    with database.snapshot() as reader:
        rows = reader.execute(text("SELECT image_id, revision FROM image_revisions ORDER BY 1, 2"))
        first = rows.fetchone()
        [reply] = decide([a_request(1, description="meanwhile")], database)
        assert reply.code is None
        assert run(command)
        assert [tuple(row) for row in (first, *rows) if row] == [(2, 2), (2, 3), (2, 4), (3, 2)]
        assert reader.execute(text("SELECT count(*) FROM image_revisions")).scalar() == 4


# --- verify ---

Break = Callable[[Database], None]


def statement(sql: str) -> Break:
    def run_it(database: Database) -> None:
        with database.transaction() as connection:
            connection.execute(text(sql))

    return run_it


def _orphans(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        with database.engine.connect() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
            connection.exec_driver_sql("DELETE FROM images WHERE id = 2")
            connection.exec_driver_sql("PRAGMA foreign_keys = ON")
            connection.exec_driver_sql("BEGIN")
        return
    key = "ALTER TABLE image_revisions {} CONSTRAINT fk_image_revisions_image_id"
    run_ddl(database, key.format("DROP"), "DELETE FROM images WHERE id = 2")
    add = key.format("ADD") + " FOREIGN KEY (image_id) REFERENCES images (id) NOT VALID"
    run_ddl(database, add)


BROKEN: dict[str, tuple[Break, str]] = {
    "a gap": (
        statement("DELETE FROM image_revisions WHERE image_id = 2 AND revision = 3"),
        "image 2: revision 3 is missing",
    ),
    "no beginning": (
        statement("DELETE FROM image_revisions WHERE image_id = 2 AND revision = 2"),
        "image 2: revision 2 is missing",
    ),
    "no end": (
        statement("DELETE FROM image_revisions WHERE image_id = 2 AND revision = 4"),
        "image 2: it is at revision 4, and the last that it has is 3",
    ),
    "none at all": (
        statement("DELETE FROM image_revisions WHERE image_id = 3"),
        "image 3: it is at revision 2, and has none",
    ),
    "a row changed aside": (
        statement("UPDATE images SET description = 'by hand' WHERE id = 3"),
        "image 3: description: not what revision 2 made of it",
    ),
    "a row set back": (
        statement("UPDATE images SET revision = 3 WHERE id = 2"),
        "image 2: it is at revision 3, and the last that it has is 4",
    ),
    "a broken chain": (
        lambda database: _forge(database, before={"name": "forged"}),
        "image 2: revision 3 does not begin where 2 ended",
    ),
    "an image gone": (_orphans, "image 2: has revisions, and is not there"),
}


def _forge(database: Database, **columns: dict[str, str]) -> None:
    third = (image_revisions.c.image_id == 2, image_revisions.c.revision == 3)
    with database.transaction() as connection:
        connection.execute(image_revisions.update().where(*third).values(**columns))


def test_what_is_right_is_verified(database: Database) -> None:
    assert run("verify").output == "3 images, 0 of them wrong\n"
    prune_revisions(database, 30)
    assert run("verify").output == "3 images, 0 of them wrong\n"


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_named(database: Database, case: str) -> None:
    break_it, says = BROKEN[case]
    break_it(database)
    assert says in run("verify", code=1).output.splitlines()


def test_an_image_may_have_begun_above_revision_1_if_it_was_adopted(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(images.update().where(images.c.id == 1).values(revision=7))
    decide([a_request(1, description="x")], database)
    assert "image 1: revision 2 is missing" in run("verify", code=1).output
    run("verify", "--adopted")


@pytest.mark.parametrize("command", ["verify", "export --output /dev/null"])
def test_memory_does_not_grow_with_what_is_read(database: Database, command: str) -> None:
    """Twenty thousand revisions of one image, some 40 MB if they were all held at once."""
    states = [
        {"name": "image-1", "os_type": "linux", "os_name": "CentOS", "description": f"{n}"} for n in range(20_001)
    ]
    changes = [{"before": before, "after": after} for before, after in itertools.pairwise(states)]
    rows = [
        {
            "image_id": 1,
            "revision": number,
            "request_id": f"x-{number}",
            "caller": "x",
            "at": datetime.now(UTC),
            **change,
        }
        for number, change in enumerate(changes, 2)
    ]
    with database.transaction() as connection:
        connection.execute(image_revisions.insert(), rows)
        connection.execute(images.update().where(images.c.id == 1).values(revision=20_001, description="20000"))
    tracemalloc.start()
    run(*command.split())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_postgresql_is_asked_for_rows_as_they_are_read(database: Database) -> None:
    """Not for all of them at once, which the driver would keep."""
    with database.snapshot() as reader:
        if reader.dialect.name == "sqlite":
            pytest.skip("SQLite has no other way")
        assert reader.execute(text("SELECT count(*) FROM pg_cursors")).scalar() == 1


# --- pruning ---


def test_pruning_takes_out_what_was_recorded_but_not_that_it_was(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_AT_ONCE", 2)
    for revision in (3, 4):
        make_older(database, revision, LONG_AGO - timedelta(days=revision))
    before = stored_revisions(database)
    assert prune_revisions(database, 30) == 2
    assert prune_revisions(database, 30) == 0
    after = stored_revisions(database)
    assert after == [
        {**row, "before": {}, "after": {}} if (row["image_id"], row["revision"]) in ((2, 2), (2, 3)) else row
        for row in before
    ]
    assert "pruned" in run("history", "2").output
    assert "is not kept" in run("restore", "2", "2", "--dry-run", code=1).output
    assert [line["revision"] for line in lines(run("export").output)] == [4, 2]


def test_a_request_whose_revision_is_pruned_is_not_applied_again(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(requests.update().values(answered_at=datetime.now(UTC) - LONG_AGO))
    assert prune_ledger(database, 7) == 4
    assert prune_revisions(database, 30) == 1
    [reply] = decide([a_request(2, request_id="r-0", name="second")], database)
    assert reply.document["error"]["details"][0]["reason"] == "request_id_reused"
    assert stored_image(database, 2)["revision"] == 4


def test_pruning_by_hand_and_by_setting(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "revisions" not in run("prune").output
    assert "0 revisions pruned" in run("prune", "--revision-days", "1000").output
    monkeypatch.setenv("ARIES_REVISION_DAYS", "30")
    assert "1 revisions pruned" in run("prune").output
    assert "0 revisions pruned" in run("prune").output
    del database


def test_a_worker_prunes_revisions_where_it_is_told_to(database: Database, broker_url: str, result_url: str) -> None:
    url = database.engine.url.set(drivername=database.engine.dialect.name).render_as_string(hide_password=False)
    with (
        service_at(broker_url, result_url, url) as service,
        running_worker(service.environment | {"ARIES_REVISION_DAYS": "30"}),
    ):
        until(lambda: not stored_revisions(database, 2)[0]["after"])
    assert stored_revisions(database, 2)[1]["after"]


# --- restore ---


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def town(
    request: pytest.FixtureRequest,
    module_redis: tuple[str, str],
    new_database: NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, SigningKey]]:
    """A worker that wants tokens."""
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder)
    with service_at(*module_redis, new_database(request.param)) as service:
        service.environment |= {"ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(folder / PUBLIC)}
        with running_worker(service.environment):
            yield service, SigningKey((folder / PRIVATE).read_bytes(), "operator")


@pytest.fixture
def service(town: tuple[Service, SigningKey], monkeypatch: pytest.MonkeyPatch) -> Service:
    service, key = town
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ARIES_TOKEN", key.token(600))
    return service


def changed(service: Service, *changes: dict[str, Any]) -> int:
    """A new image after these changes; its id."""
    image = service.image()
    for fields in changes:
        decide([a_request(image["id"], **fields)], service.database)
    return int(image["id"])


def test_an_image_is_restored_by_an_update_that_is_recorded(service: Service) -> None:
    image = changed(service, {"name": "new", "description": "new"}, {"os_name": "Debian"})
    shown = run("restore", str(image), "1").output
    assert "- new" in shown
    assert f"image {image} is at revision 4" in shown
    row = stored_image(service.database, image)
    assert (row["name"], row["description"], row["os_name"]) == (f"image-{image}", "", "CentOS")
    [*_, last] = stored_revisions(service.database, image)
    assert (last["revision"], last["caller"]) == (4, "operator")
    assert "as before" in run("restore", str(image), "4").output
    assert len(stored_revisions(service.database, image)) == 3


def test_one_field_alone_is_restored(service: Service) -> None:
    image = changed(service, {"name": f"renamed-{id(service)}", "description": "new"})
    run("restore", str(image), "1", "--field", "name")
    row = stored_image(service.database, image)
    assert (row["name"], row["description"]) == (f"image-{image}", "new")


def test_a_dry_run_sends_nothing(service: Service) -> None:
    image = changed(service, {"description": "new"})
    assert "- new" in run("restore", str(image), "1", "--dry-run").output
    assert stored_image(service.database, image)["revision"] == 2


def test_a_name_that_is_taken_meanwhile_is_refused_and_its_holder_named(service: Service) -> None:
    image = changed(service, {"name": f"away-{id(service)}"})
    other = changed(service, {"name": f"image-{image}"})
    refused = run("restore", str(image), "1", code=1).output
    assert "refused, and nothing was changed: ImageNameExists" in refused
    assert f"Image {other} has it." in refused
    assert stored_image(service.database, image)["revision"] == 2


@pytest.mark.parametrize(("token", "code"), [("", "Unauthorized"), ("scope", "Forbidden"), ("image", "ImageNotFound")])
def test_who_may_not_is_told_what_to_do(
    service: Service, town: tuple[Service, SigningKey], monkeypatch: pytest.MonkeyPatch, token: str, code: str
) -> None:
    tokens = {"scope": town[1].token(600, scope="image:read"), "image": town[1].token(600, images=[10**9])}
    monkeypatch.setenv("ARIES_TOKEN", tokens.get(token, token))
    image = changed(service, {"description": "new"})
    refused = run("restore", str(image), "1", code=1).output
    assert f"refused, and nothing was changed: {code}" in refused
    assert "token" in refused.rpartition(")")[2].lower()
    assert stored_image(service.database, image)["revision"] == 2


def test_without_an_answer_the_request_id_is_said_and_good_for_another_try(
    service: Service, monkeypatch: pytest.MonkeyPatch, broker_url: str, result_url: str
) -> None:
    image = changed(service, {"description": "new"})
    with monkeypatch.context() as nobody:
        # The same servers, and databases in which nobody listens.
        nobody.setenv("ARIES_BROKER_URL", broker_url.rpartition("/")[0] + "/15")
        nobody.setenv("ARIES_RESULT_URL", result_url.rpartition("/")[0] + "/15")
        said = run("restore", str(image), "1", "--timeout", "0.5", code=1).output
    assert "the outcome is not known" in said
    request_id = said.partition("--request-id ")[2].partition(":")[0]
    run("restore", str(image), "1", "--request-id", request_id)
    run("restore", str(image), "1", "--request-id", request_id)
    assert [row["request_id"] for row in stored_revisions(service.database, image)][1:] == [request_id]


def test_a_revision_that_is_not_there_is_refused(service: Service) -> None:
    image = changed(service, {"description": "new"})
    assert "has revisions 1 to 2" in run("restore", str(image), "3", code=1).output


def test_an_update_in_between_is_not_overwritten(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The revision that the operator saw is the one that is changed, or none."""
    image = changed(service, {"description": "new"})
    stale = stored_image(service.database, image)
    decide([a_request(image, description="newer")], service.database)
    monkeypatch.setattr("worker.commands.restore.image_row", lambda *_: stale)
    refused = run("restore", str(image), "1", code=1).output
    assert "PreconditionFailed" in refused
    assert stored_image(service.database, image)["description"] == "newer"
