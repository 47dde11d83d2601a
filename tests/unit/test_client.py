"""The client's messages and its reading of answers, without a server."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aries_images import (
    ABSENT,
    AriesImagesError,
    DeadlineExceeded,
    Forbidden,
    Image,
    ImageClient,
    ImageNameExists,
    ImageNotFound,
    InternalError,
    InvalidParameter,
    OutcomeUnknown,
    PreconditionFailed,
    TooManyRequests,
    Unauthorized,
    contract,
)
from aries_images._answer import answer_to, read_event
from aries_images._credentials import Credentials
from aries_images._request import Outgoing, compose
from aries_images.contract import Detail, Refusal, Reply, digest_of
from tests.stand_in import IMAGE, MOMENT, failure_of, record_of

ID = "order-4711"
KWARGS = {"id": 1, "name": "Debian 12"}
CLASSES = {
    "InvalidParameter": InvalidParameter,
    "ImageNotFound": ImageNotFound,
    "ImageNameExists": ImageNameExists,
    "InternalError": InternalError,
    "Unauthorized": Unauthorized,
    "Forbidden": Forbidden,
    "PreconditionFailed": PreconditionFailed,
    "TooManyRequests": TooManyRequests,
    "DeadlineExceeded": DeadlineExceeded,
}


def request(kwargs: dict[str, Any] = KWARGS, *, own_id: bool = True, **headers: Any) -> Outgoing:
    return compose(
        ID, kwargs, own_id=own_id, timeout=30, headers=headers, reply_to=None, credentials=Credentials(None, None)
    )


def success(digest: str | None = None) -> Reply:
    return Reply.success(ID, digest or digest_of(KWARGS), IMAGE | KWARGS, 7)


def refusal(code: str, reason: str = "", *, digest: str | None = digest_of(KWARGS)) -> Reply:
    details = (Detail("name", reason, f"name is {reason}"),) if reason else ()
    return Reply.refused(ID, digest, Refusal(contract.CODES[code], details), 1)


# --- the message ---


def test_the_message_has_the_headers_that_a_stock_celery_client_writes() -> None:
    from celery import Celery  # noqa: PLC0415 - for comparison only

    theirs = Celery(set_as_current=False).amqp.as_task_v2(ID, contract.TASK, (), dict(KWARGS), expires=30).headers
    ours = request().headers
    assert set(ours) - set(theirs) == {"sent_at"}
    assert set(theirs) <= set(ours)
    differing = {name for name in theirs if theirs[name] != ours[name]}
    assert differing <= {"expires", "kwargsrepr", "origin"}


def test_the_body_is_read_by_the_worker_as_what_was_given() -> None:
    kwargs = {"id": 1, "name": "镜像 é", "description": ""}
    message = request(kwargs)
    assert contract.read_body(message.body) == ([], kwargs, json.loads(message.body)[2])
    assert message.digest == digest_of(kwargs)
    assert message.properties["correlation_id"] == ID
    assert message.properties["reply_to"] == ""


def test_the_deadline_is_absolute_and_in_utc() -> None:
    before = datetime.now(UTC)
    message = request()
    expires = datetime.fromisoformat(message.headers["expires"])
    assert expires.utcoffset() == timedelta(0)
    assert timedelta(seconds=29) < expires - before < timedelta(seconds=31)
    assert abs(message.headers["sent_at"] - before.timestamp()) < 1


def test_optional_headers_are_sent_only_when_given() -> None:
    assert not {"if_revision", "traceparent"} & set(request(if_revision=None).headers)
    assert request(if_revision=0).headers["if_revision"] == 0


def test_monitors_are_shown_no_values() -> None:
    message = request({"id": 5, "name": "secret-a", "description": "secret-b"})
    assert message.headers["kwargsrepr"] == "{'id': 5, 'name': ..., 'description': ...}"
    assert "secret" not in json.dumps(message.headers)


@pytest.mark.parametrize("image_id", ["secret", {"a": "secret"}, 10**400, True, None])
def test_monitors_are_shown_no_id_that_is_not_one(image_id: object) -> None:
    assert request({"id": image_id}).headers["kwargsrepr"] == "{'id': ...}"


@pytest.mark.parametrize("value", [object(), float("nan"), "\ud800", b"x", [10**5000], "x" * 70_000])
def test_what_cannot_be_a_message_is_refused_before_it_is_sent(value: object) -> None:
    with pytest.raises(InvalidParameter) as raised:
        request({"id": 1, "name": value})
    assert [detail.reason for detail in raised.value.details] == ["malformed_message"]
    assert raised.value.request_id == ID


def test_a_header_that_is_not_json_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidParameter):
        request(if_revision=object())


def test_absent_shows_its_name() -> None:
    assert repr(ABSENT) == "ABSENT"


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), 86_401])
def test_a_timeout_that_cannot_be_kept_is_refused(timeout: float) -> None:
    with ImageClient() as client, pytest.raises(ValueError, match="timeout"):
        client.update(1, timeout=timeout)


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 256, "é", "a\n", 5])
def test_a_request_id_that_cannot_be_one_is_refused(request_id: Any) -> None:
    with ImageClient() as client, pytest.raises(InvalidParameter, match="1 to 255"):
        client.update(1, request_id=request_id)


@pytest.mark.parametrize("urls", [("nothing://host", None), (None, "nothing://host")])
def test_a_url_that_cannot_be_understood_is_refused_at_once(urls: tuple[str | None, str | None]) -> None:
    with pytest.raises(ValueError, match="scheme"):
        ImageClient(*urls)


def test_the_urls_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARIES_BROKER_URL", "nothing://host")
    with pytest.raises(ValueError, match="scheme"):
        ImageClient()


def test_a_closed_client_says_so() -> None:
    client = ImageClient()
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.update(1)


# --- the answer ---


def test_a_success_is_the_image_with_its_revision() -> None:
    image = answer_to(request(), record_of(success()), published=True)
    assert isinstance(image, Image)
    assert image.model_dump() == IMAGE | KWARGS | {"revision": 7, "created_at": MOMENT, "updated_at": MOMENT}


@pytest.mark.parametrize("code", contract.CODES)
def test_each_code_has_its_class(code: str) -> None:
    error = answer_to(request(), record_of(refusal(code, "taken")), published=True)
    assert type(error) is CLASSES[code]
    assert error.request_id == ID
    assert error.status == contract.CODES[code].status
    assert error.retry == contract.CODES[code].retry
    assert error.details == (Detail("name", "taken", "name is taken"),)


def test_a_failure_is_an_internal_error() -> None:
    error = answer_to(request(), failure_of(ID), published=True)
    assert type(error) is InternalError
    assert error.retry == "backoff"


def test_no_exception_is_built_from_what_a_failure_names() -> None:
    record = {"status": "FAILURE", "result": {"exc_type": "SystemExit", "exc_module": "builtins", "exc_message": [1]}}
    assert type(answer_to(request(), json.dumps(record), published=True)) is InternalError


def test_after_a_revocation_the_outcome_is_unknown() -> None:
    record = json.dumps({"status": "REVOKED", "result": {"exc_type": "TaskRevokedError"}})
    assert type(answer_to(request(), record, published=True)) is OutcomeUnknown
    assert answer_to(request(own_id=False), record, published=False) is None


@pytest.mark.parametrize("state", ["PENDING", "RECEIVED", "STARTED", "RETRY", "no state", None, []])
def test_other_states_are_no_answer(state: object) -> None:
    assert answer_to(request(), json.dumps({"status": state, "result": success().document}), published=True) is None


KEPT = ["InvalidParameter", "ImageNotFound", "ImageNameExists", "PreconditionFailed", "DeadlineExceeded"]


@pytest.mark.parametrize("code", contract.CODES)
def test_under_a_chosen_id_the_key_answers_only_with_what_the_ledger_keeps(code: str) -> None:
    chosen, record = request(own_id=False), record_of(refusal(code, "taken"))
    assert (answer_to(chosen, record, published=False) is not None) == (code in KEPT)
    assert answer_to(chosen, record, published=True) is not None
    assert answer_to(request(), record, published=False) is not None


def test_under_a_chosen_id_the_key_answers_with_a_success() -> None:
    assert isinstance(answer_to(request(own_id=False), record_of(success()), published=False), Image)


def test_under_a_chosen_id_the_key_does_not_answer_with_a_failure() -> None:
    assert answer_to(request(own_id=False), failure_of(ID), published=False) is None


def test_under_a_chosen_id_the_key_does_not_answer_with_a_refused_reuse() -> None:
    record = record_of(refusal("InvalidParameter", "request_id_reused"))
    assert answer_to(request(own_id=False), record, published=False) is None
    assert type(answer_to(request(own_id=False), record, published=True)) is InvalidParameter


def test_under_a_chosen_id_the_key_does_not_answer_for_an_unreadable_body() -> None:
    record = record_of(refusal("InvalidParameter", "malformed_message", digest=None))
    assert answer_to(request(own_id=False), record, published=False) is None
    assert type(answer_to(request(own_id=False), record, published=True)) is InvalidParameter


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("reply", [success("0" * 64), refusal("ImageNotFound", digest="0" * 64)])
def test_the_kept_reply_to_another_body_means_that_the_id_was_reused(reply: Reply, published: bool) -> None:  # noqa: FBT001
    error = answer_to(request(own_id=False), record_of(reply), published=published)
    assert type(error) is InvalidParameter
    assert [detail.reason for detail in error.details] == ["request_id_reused"]


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize(("code", "reason"), [("InternalError", ""), ("InvalidParameter", "request_id_reused")])
def test_a_passing_reply_to_another_body_says_nothing_about_this_one(code: str, reason: str, published: bool) -> None:  # noqa: FBT001
    record = record_of(refusal(code, reason, digest="0" * 64))
    assert answer_to(request(own_id=False), record, published=published) is None


GARBAGE: list[Any] = [
    None,
    1,
    "x",
    [],
    {},
    {"status": 200},
    success().document | {"request_id": "another"},
    success().document | {"status": 400},
    success().document | {"image": None},
    success().document | {"image": {"id": "one"}},
    success().document | {"revision": "x"},
    refusal("ImageNotFound").document | {"error": {"code": "NoSuchCode", "message": "", "details": []}},
    refusal("ImageNotFound").document | {"error": {"code": ["ImageNotFound"], "message": "", "details": []}},
    refusal("ImageNotFound").document | {"error": {"code": "ImageNotFound", "message": "", "details": [1]}},
    refusal("ImageNotFound").document | {"error": None},
    {key: value for key, value in success().document.items() if key != "digest"},
]


@pytest.mark.parametrize("result", GARBAGE)
def test_a_result_of_another_shape_is_no_answer(result: object) -> None:
    assert answer_to(request(), json.dumps({"status": "SUCCESS", "result": result}), published=True) is None


@pytest.mark.parametrize("record", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"1e999", b"[" * 100_000, b"9" * 5000])
def test_a_record_that_cannot_be_read_is_no_answer(record: bytes) -> None:
    assert answer_to(request(), record, published=True) is None


# --- the reply event ---


def test_an_event_carries_the_image() -> None:
    event = read_event(contract.reply_event(success(), MOMENT), {"attempt": 1})
    assert event is not None
    assert (event.id, event.type, event.time) == (ID, "aries.image.updated", MOMENT)
    assert event.reply == success().document
    assert event.headers == {"attempt": 1}
    assert isinstance(event.image, Image)
    assert event.error is None


def test_an_event_carries_the_error() -> None:
    event = read_event(contract.reply_event(refusal("ImageNotFound"), MOMENT), {})
    assert event is not None
    assert event.image is None
    assert isinstance(event.error, ImageNotFound)
    assert isinstance(event.error, AriesImagesError)


@pytest.mark.parametrize("body", [b"", b"\xff", "[]", "{}", '{"id": 1, "data": {}}', "[" * 100_000])
def test_what_is_no_event_is_none(body: bytes | str) -> None:
    assert read_event(body, {}) is None
