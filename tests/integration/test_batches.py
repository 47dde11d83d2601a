"""Many requests in one transaction: as if they had run one after the other, and never one for another's sake."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from aries_images import contract
from aries_images.contract import Reply
from models import image_revisions, images, requests
from models.migrations import upgrade
from tasks.apply_updates import Request
from tests.builders import (
    MADE_AT,
    a_request,
    again,
    all_rows,
    an_image,
    clear,
    decide,
    heal,
    ledger,
    load,
    nonsense,
    poison,
    stored_image,
    stored_images,
    stored_revisions,
)
from worker.database import Database

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def database(shared_database: Database) -> Database:
    load(shared_database, *(an_image(number, name) for number, name in enumerate(NAMES, 1)))
    return shared_database


@contextmanager
def one_transaction(database: Database) -> Iterator[None]:
    """All that happens is committed at once, at the first try."""
    ends: list[str] = []

    def committed(_: Any) -> None:
        ends.append("commit")

    def rolled_back(_: Any) -> None:
        ends.append("rollback")

    event.listen(database.engine, "commit", committed)
    event.listen(database.engine, "rollback", rolled_back)
    yield
    event.remove(database.engine, "commit", committed)
    event.remove(database.engine, "rollback", rolled_back)
    assert ends == ["commit"]


def answer_all(database: Database, *batch: Request) -> list[Reply]:
    with one_transaction(database):
        return decide(batch, database, 5.0)


def codes(replies: list[Reply]) -> list[str | None]:
    return [reply.code for reply in replies]


def names(database: Database) -> list[str]:
    return [row["name"] for row in stored_images(database)]


# --- what requests of one batch do to each other ---


def test_replies_come_in_the_order_of_the_requests(database: Database) -> None:
    batch = [a_request(number, description="x") for number in (3, 1, 9, 4, 2)]
    replies = answer_all(database, *batch)
    assert [reply.request_id for reply in replies] == [request.id for request in batch]
    assert codes(replies) == [None, None, "ImageNotFound", None, None]


def test_one_image_ten_times(database: Database) -> None:
    replies = answer_all(database, *(a_request(1, description=str(number)) for number in range(10)))
    assert [reply.document["revision"] for reply in replies] == list(range(2, 12))
    assert [reply.document["image"]["description"] for reply in replies] == [str(number) for number in range(10)]
    revisions = stored_revisions(database)
    assert [(row["revision"], row["after"]["description"]) for row in revisions] == [(n + 2, str(n)) for n in range(10)]
    assert [row["before"] for row in revisions[1:]] == [row["after"] for row in revisions[:-1]]
    assert stored_image(database, 1)["revision"] == 11


def test_two_names_are_swapped_through_a_third(database: Database) -> None:
    replies = answer_all(database, a_request(1, name="t"), a_request(2, name="a"), a_request(1, name="b"))
    assert codes(replies) == [None, None, None]
    assert names(database) == ["b", "a", "c", "d"]


def test_three_names_rotate(database: Database) -> None:
    batch = [a_request(1, name="t"), a_request(3, name="a"), a_request(2, name="c"), a_request(1, name="b")]
    assert codes(answer_all(database, *batch)) == [None] * 4
    assert names(database) == ["b", "c", "a", "d"]


def test_a_name_is_given_and_taken(database: Database) -> None:
    replies = answer_all(
        database,
        a_request(2, name="a"),
        a_request(1, name="free"),
        a_request(2, name="a"),
        a_request(3, name="a"),
        a_request(1, name="b"),
    )
    assert codes(replies) == ["ImageNameExists", None, None, "ImageNameExists", None]
    assert names(database) == ["b", "a", "c", "d"]


def test_a_name_goes_through_many_hands_and_back(database: Database) -> None:
    batch = [
        a_request(1, name="t"),
        *[a_request(number, name=name) for number in (2, 3, 4) for name in ("a", f"{number}")],
        a_request(1, name="a"),
    ]
    assert codes(answer_all(database, *batch)) == [None] * 8
    assert names(database) == ["a", "2", "3", "4"]
    assert [row["revision"] for row in stored_images(database)] == [3, 3, 3, 3]


def test_a_change_that_is_undone_leaves_two_revisions(database: Database) -> None:
    answer_all(database, a_request(1, name="t"), a_request(1, name="a"))
    assert [row["after"]["name"] for row in stored_revisions(database, 1)] == ["t", "a"]
    assert stored_image(database, 1)["revision"] == 3


def test_a_precondition_is_held_against_the_request_before(database: Database) -> None:
    replies = answer_all(
        database,
        replace(a_request(1, description="x"), if_revision=1),
        replace(a_request(1, description="y"), if_revision=1),
        replace(a_request(1, description="z"), if_revision=2),
    )
    assert codes(replies) == [None, "PreconditionFailed", None]


def test_one_request_id_twice_is_one_request(database: Database) -> None:
    request = a_request(1, name="x")
    first, reused, second = answer_all(database, request, again(request, name="y"), request)
    assert (second.text, second.replayed) == (first.text, True)
    assert reused.document["error"]["details"][0]["reason"] == "request_id_reused"
    assert not reused.stored
    assert len(stored_revisions(database)) == len(ledger(database)) == 1


def test_one_request_id_of_two_callers_is_the_firsts(database: Database) -> None:
    request = a_request(1, name="x", caller="orders")
    assert codes(answer_all(database, request, replace(request, caller="billing"))) == [None, "Forbidden"]


def test_refused_requests_do_not_hinder_the_others(database: Database) -> None:
    replies = answer_all(database, nonsense(), a_request(1, name=" x"), a_request(9), a_request(1, name="x"))
    assert codes(replies) == ["InvalidParameter", "InvalidParameter", "ImageNotFound", None]
    assert len(ledger(database)) == 4


def test_a_batch_of_refusals_alone_is_remembered(database: Database) -> None:
    answer_all(database, nonsense(), a_request(9))
    assert len(ledger(database)) == 2


def test_a_thousand_requests_are_one_batch(database: Database) -> None:
    replies = answer_all(database, *(a_request(1 + n % 4, description=str(n)) for n in range(1000)))
    assert codes(replies) == [None] * 1000
    assert [row["revision"] for row in stored_images(database)] == [251] * 4


# --- one that fails ---


def test_a_request_that_fails_costs_no_other_its_answer(database: Database) -> None:
    poison(database)
    bad = a_request(2, name="poison")
    batch = [a_request(1, description="x"), bad, a_request(2, description="y"), a_request(9), a_request(3, name="z")]
    replies = decide(batch, database, 5.0)
    assert codes(replies) == [None, "InternalError", None, "ImageNotFound", None]
    assert [reply.request_id for reply in replies] == [request.id for request in batch]
    assert names(database) == ["a", "b", "z", "d"]
    assert bad.id not in ledger(database)
    assert len(ledger(database)) == 4
    heal(database)
    assert codes(answer_all(database, *batch)) == [None, None, None, "ImageNotFound", None]
    assert names(database) == ["a", "poison", "z", "d"]
    assert [row["revision"] for row in stored_images(database)] == [2, 3, 2, 1]


# --- against an oracle ---


@st.composite
def a_drawn_request(draw: st.DrawFn) -> Request:
    """Few ids, few names, few values: so that requests meet."""
    if draw(st.integers(0, 19)) == 0:
        return nonsense(draw(st.sampled_from(["r0", "r1"])))
    fields = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["a", "b", "c", "d", "e", "\u00e9", "e\u0301", "A", " x"]),
                "description": st.sampled_from(["", "x"]),
                "os_type": st.sampled_from(["linux", "windows"]),
            },
        )
    )
    request = a_request(
        draw(st.integers(1, 5)),
        request_id=draw(st.sampled_from([f"r{number}" for number in range(12)])),
        caller=draw(st.sampled_from(["orders", "orders", "orders", "billing"])),
        **fields,
    )
    return replace(
        request,
        if_revision=draw(st.sampled_from([None, None, None, 1, 2, 3])),
        deadline=draw(
            st.sampled_from([None, None, None, datetime(2024, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)])
        ),
        revoked=draw(st.integers(0, 9)) == 0,
    )


BATCHES = st.lists(st.lists(a_drawn_request(), min_size=1, max_size=12), min_size=1, max_size=2)


def reset(database: Database) -> None:
    clear(database)
    load(database, *(an_image(number, name) for number, name in enumerate(NAMES, 1)))


def timeless(reply: str) -> str:
    """A reply with every time but that of the builders taken out."""
    now = contract.read_json(reply).get("image", {}).get("updated_at", "-")
    return reply if now == contract.rfc3339(MADE_AT) else reply.replace(now, "now")


def visible(reply: Reply) -> Reply:
    return replace(reply, text=timeless(reply.text))


def remains(database: Database) -> list[Any]:
    """Everything in the database; of moments, only whether they are those of the builders."""
    rows = [row for table in (images, image_revisions, requests) for row in all_rows(database, table)]
    for row in rows:
        row |= {key: value == MADE_AT for key, value in row.items() if isinstance(value, datetime)}
        if "reply" in row:
            row["reply"] = timeless(row["reply"])
    return rows


@pytest.fixture
def oracle(tmp_path: Path) -> Iterator[Database]:
    """Another database; SQLite whatever the first one is, so that the two kinds are held against each other too."""
    url = f"sqlite:///{tmp_path / 'oracle.db'}"
    upgrade(url)
    oracle = Database(url)
    yield oracle
    oracle.close()


def test_a_batch_does_what_its_requests_do_one_by_one(database: Database, oracle: Database) -> None:
    @settings(max_examples=60 if database.engine.dialect.name == "sqlite" else 25, deadline=None, database=None)
    @given(BATCHES)
    def compare(batches: list[list[Request]]) -> None:
        reset(database)
        reset(oracle)
        for batch in batches:
            together = answer_all(database, *batch)
            alone = [decide([request], oracle, 5.0)[0] for request in batch]
            assert [visible(reply) for reply in together] == [visible(reply) for reply in alone]
            assert remains(database) == remains(oracle)

    compare()
