"""The transaction, one request at a time: contract.md, 3 row by row, and each code that it can answer."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aries_images import contract
from aries_images.contract import Reply
from tasks.apply_updates import Request
from tests.builders import (
    MADE_AT,
    SEED_BODY,
    a_request,
    again,
    an_image,
    decide,
    ledger,
    load,
    nonsense,
    refusal_in,
    stored_image,
    stored_images,
    stored_revisions,
)
from worker.database import Database

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PAST = datetime(2024, 3, 20, tzinfo=UTC)


@pytest.fixture
def database(shared_database: Database) -> Database:
    load(shared_database, an_image(1, "one"), an_image(2, "two", os_type="windows", revision=5))
    return shared_database


def answer(database: Database, request: Request) -> Reply:
    [reply] = decide([request], database)
    return reply


def state(database: Database) -> tuple[Any, ...]:
    return stored_images(database), stored_revisions(database), ledger(database)


# --- a change ---


def test_the_seeds_example_gives_the_seeds_reply(database: Database) -> None:
    request = a_request(SEED_BODY["id"], **{field: SEED_BODY[field] for field in contract.UPDATABLE})
    reply = answer(database, request)
    row = stored_image(database, 1)
    assert reply.document == {
        "request_id": request.id,
        "digest": contract.digest_of(SEED_BODY),
        "status": 200,
        "image": SEED_BODY
        | {
            "source_path": "/path/to/image/file.iso",
            "created_at": "2024-03-20T10:30:00Z",
            "updated_at": contract.rfc3339(row["updated_at"]),
        },
        "revision": 2,
    }
    assert (reply.code, reply.stored, reply.replayed, reply.image_id) == (None, True, False, 1)


def test_a_change_is_written_to_the_image_its_revisions_and_the_ledger(database: Database) -> None:
    started = datetime.now(UTC)
    request = replace(a_request(2, description="neu\n", name="zwei"), traceparent=TRACE)
    reply = answer(database, request)
    row = stored_image(database, 2)
    assert started <= row["updated_at"] <= datetime.now(UTC)
    changed = {"name": "zwei", "description": "neu\n", "revision": 6, "updated_at": row["updated_at"]}
    assert row == an_image(2, os_type="windows") | changed
    assert stored_revisions(database) == [
        {
            "image_id": 2,
            "revision": 6,
            "before": {"name": "two", "os_type": "windows", "os_name": "CentOS", "description": ""},
            "after": {"name": "zwei", "os_type": "windows", "os_name": "CentOS", "description": "neu\n"},
            "request_id": request.id,
            "caller": "anonymous",
            "at": row["updated_at"],
            "traceparent": TRACE,
        }
    ]
    assert ledger(database) == {
        request.id: {
            "request_id": request.id,
            "digest": request.digest,
            "caller": "anonymous",
            "reply": reply.text,
            "code": None,
            "image_id": 2,
            "answered_at": row["updated_at"],
        }
    }
    assert stored_image(database, 1) == an_image(1, "one")


@pytest.mark.parametrize(
    "fields",
    [{"name": "new"}, {"os_type": "windows"}, {"os_name": "Debian"}, {"description": "new"}],
    ids=contract.UPDATABLE,
)
def test_a_field_that_is_absent_keeps_its_value(database: Database, fields: dict[str, str]) -> None:
    reply = answer(database, a_request(1, **fields))
    row = stored_image(database, 1)
    assert row == an_image(1, "one") | fields | {"revision": 2, "updated_at": row["updated_at"]}
    assert reply.document["image"] == contract.image_document(row)


def test_an_empty_description_clears_it(database: Database) -> None:
    answer(database, a_request(1, description="text"))
    answer(database, a_request(1, description=""))
    assert stored_image(database, 1)["description"] == ""


def test_disjoint_fields_both_survive(database: Database) -> None:
    answer(database, a_request(1, description="from one"))
    answer(database, a_request(1, os_name="from the other"))
    row = stored_image(database, 1)
    assert (row["description"], row["os_name"], row["revision"]) == ("from one", "from the other", 3)


def test_updated_at_never_goes_back(database: Database) -> None:
    future = datetime(2100, 1, 1, 12, 0, 0, 123_456, tzinfo=UTC)
    load(database, an_image(3, updated_at=future))
    reply = answer(database, a_request(3, description="new"))
    assert stored_image(database, 3)["updated_at"] == future
    assert reply.document["image"]["updated_at"] == "2100-01-01T12:00:00Z"


def test_text_is_stored_and_compared_in_nfc(database: Database) -> None:
    reply = answer(database, a_request(1, name="Cafe\u0301"))
    assert reply.document["image"]["name"] == stored_image(database, 1)["name"] == "Caf\u00e9"
    taken = answer(database, a_request(2, name="Caf\u00e9"))
    assert taken.code == "ImageNameExists"


@pytest.mark.parametrize("name", ["ONE", "One", "ｏｎｅ", "one1", "о\u043de"])
def test_names_are_compared_exactly(database: Database, name: str) -> None:
    assert answer(database, a_request(2, name=name)).code is None


@pytest.mark.parametrize(
    "text", ["'\"\\; -- %s $1 :name {x}", "𠮷🐧 e\u0301", "\\u0000 \\x00", "\u2028\ue000", "x" * 4096]
)
def test_any_text_is_stored_as_it_was_sent(database: Database, text: str) -> None:
    reply = answer(database, a_request(1, description=text))
    [revision] = stored_revisions(database)
    kept = contract.UpdateRequest(id=1, description=text).description
    assert stored_image(database, 1)["description"] == revision["after"]["description"] == kept
    assert reply.document["image"]["description"] == kept


def test_an_image_may_have_the_largest_id(database: Database) -> None:
    load(database, an_image(2**63 - 1, "last"))
    assert answer(database, a_request(2**63 - 1, description="x")).document["image"]["id"] == 2**63 - 1


# --- no change ---


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": "one"},
        {"description": ""},
        {"name": "one", "os_type": "linux", "os_name": "CentOS", "description": ""},
    ],
    ids=["only the id", "its own name", "the same description", "the same everything"],
)
def test_what_changes_nothing_writes_nothing(database: Database, fields: dict[str, str]) -> None:
    request = a_request(1, **fields)
    reply = answer(database, request)
    assert reply.document["image"] == contract.image_document(an_image(1, "one"))
    assert (reply.document["status"], reply.document["revision"]) == (200, 1)
    assert stored_image(database, 1) == an_image(1, "one")
    assert stored_revisions(database) == []
    assert list(ledger(database)) == [request.id]


# --- each code ---


def refusals() -> dict[str, tuple[Request, str, list[tuple[str, str]]]]:
    """A request, the code that it is answered with, and the details."""
    return {
        "bad field": (a_request(1, name=" x"), "InvalidParameter", [("name", "white_space")]),
        "no image": (a_request(9, name="x"), "ImageNotFound", []),
        "no such id": (a_request(2**63 - 1), "ImageNotFound", []),
        "taken": (a_request(1, name="two"), "ImageNameExists", [("name", "taken")]),
        "taken, among others": (a_request(1, name="two", description="x"), "ImageNameExists", [("name", "taken")]),
        "old revision": (replace(a_request(2, name="x"), if_revision=4), "PreconditionFailed", []),
        "huge revision": (replace(a_request(2), if_revision=10**30), "PreconditionFailed", []),
        "late": (replace(a_request(1, name="x"), deadline=PAST), "DeadlineExceeded", []),
        "late, no change": (replace(a_request(1), deadline=PAST), "DeadlineExceeded", []),
        "taken back": (replace(a_request(1, name="x"), revoked=True), "DeadlineExceeded", []),
    }  # fmt: skip


@pytest.mark.parametrize("name", refusals())
def test_a_refusal_is_stored_and_nothing_else_is(database: Database, name: str) -> None:
    request, code, details = refusals()[name]
    before = stored_images(database)
    reply = answer(database, request)
    assert refusal_in(reply.document) == (code, details)
    known = contract.CODES[code]
    assert (reply.document["status"], reply.document["error"]["message"]) == (known.status, known.message)
    assert reply.document["digest"] == request.digest
    assert (reply.code, reply.stored, reply.replayed) == (code, True, False)
    assert stored_images(database) == before
    assert stored_revisions(database) == []
    [line] = ledger(database).values()
    assert (line["reply"], line["code"], line["digest"]) == (reply.text, code, request.digest)


def test_what_cannot_be_read_is_remembered_without_a_digest(database: Database) -> None:
    request = nonsense()
    reply = answer(database, request)
    assert refusal_in(reply.document) == ("InvalidParameter", [(None, "malformed_message")])
    assert ledger(database)[request.id]["digest"] is None
    assert answer(database, request).text == reply.text


def test_the_revision_asked_for_is_good_enough(database: Database) -> None:
    assert answer(database, replace(a_request(2, name="x"), if_revision=5)).document["revision"] == 6


def test_a_deadline_to_come_is_no_hindrance(database: Database) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert answer(database, replace(a_request(1, name="x"), deadline=soon)).code is None


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (replace(a_request(9, name=" x"), deadline=PAST, if_revision=4), "InvalidParameter"),
        (replace(a_request(9, name="two"), deadline=PAST, if_revision=4), "DeadlineExceeded"),
        (replace(a_request(9, name="two"), if_revision=4), "ImageNotFound"),
        (replace(a_request(1, name="two"), if_revision=4), "PreconditionFailed"),
        (a_request(1, name="two"), "ImageNameExists"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_of_several_codes_the_first_in_order_is_answered(database: Database, request_: Request, code: str) -> None:
    assert answer(database, request_).code == code


# --- the same request again ---


@pytest.mark.parametrize("name", refusals())
def test_a_refusal_is_replayed_to_the_byte_though_it_could_succeed_now(database: Database, name: str) -> None:
    request, _, _ = refusals()[name]
    first = answer(database, request)
    load(database, an_image(9), an_image(2**63 - 1))
    answer(database, a_request(2, name="free"))
    before = state(database)
    second = answer(database, replace(request, deadline=None, revoked=False))
    assert (second.text, second.code, second.stored, second.replayed) == (first.text, first.code, True, True)
    assert second.image_id == first.image_id
    assert state(database) == before


def test_a_success_is_replayed_to_the_byte_and_not_applied_again(database: Database) -> None:
    request = a_request(1, name="first")
    first = answer(database, request)
    answer(database, a_request(1, name="second"))
    before = state(database)
    second = answer(database, replace(request, deadline=PAST, if_revision=77, revoked=True))
    assert (second.text, second.code, second.replayed) == (first.text, None, True)
    assert state(database) == before


@pytest.mark.parametrize(
    "first", [a_request(1, name="x"), a_request(9, name="x"), nonsense()], ids=["good", "bad", "nonsense"]
)
def test_an_id_with_another_body_is_refused_and_the_stored_reply_stays(database: Database, first: Request) -> None:
    stored = answer(database, first)
    before = state(database)
    for other in (replace(a_request(1, name="y"), id=first.id), nonsense(first.id)):
        if other.digest == first.digest:
            continue
        reply = answer(database, other)
        assert refusal_in(reply.document) == ("InvalidParameter", [(None, "request_id_reused")])
        assert reply.document["digest"] == other.digest
        assert (reply.stored, reply.replayed) == (False, False)
    assert state(database) == before
    assert answer(database, first).text == stored.text


def test_a_body_that_is_equal_in_effect_is_another_body_all_the_same(database: Database) -> None:
    request = a_request(1, name="Caf\u00e9")
    answer(database, request)
    assert refusal_in(answer(database, again(request, name="Cafe\u0301")).document)[1] == [(None, "request_id_reused")]


@pytest.mark.parametrize("same_body", [True, False])
def test_another_caller_never_sees_a_stored_reply(database: Database, same_body: bool) -> None:  # noqa: FBT001
    request = a_request(1, name="x", caller="orders")
    answer(database, request)
    before = state(database)
    other = replace(request if same_body else again(request, name="y"), caller="billing")
    reply = answer(database, other)
    assert reply.document == {
        "request_id": request.id,
        "digest": other.digest,
        "status": 403,
        "error": {"code": "Forbidden", "message": "无权限", "retry": "no", "details": []},
    }
    assert not reply.stored
    assert state(database) == before


def test_the_caller_is_kept_with_the_revision_and_the_ledger(database: Database) -> None:
    request = a_request(1, name="x", caller="orders")
    answer(database, request)
    assert stored_revisions(database)[0]["caller"] == ledger(database)[request.id]["caller"] == "orders"


@pytest.mark.parametrize("name", ["\0", "x" * 60_000, "'; --", "\\u0000", "镜\u2028"])
def test_a_refusal_that_names_anything_can_be_stored(database: Database, name: str) -> None:
    reply = answer(database, a_request(1, **{name: 1}))
    assert json.loads(ledger(database)[reply.request_id]["reply"])["error"]["details"][0]["field"] == name


def test_nothing_asked_is_nothing_answered(database: Database) -> None:
    assert decide([], database, 1.0) == []
    assert stored_image(database, 1)["updated_at"] == MADE_AT
