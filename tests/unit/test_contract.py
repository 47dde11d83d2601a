"""Names, documents and limits of what crosses the queue, to the byte."""

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from aries_images import contract
from aries_images.contract import Detail, MalformedMessageError, Refusal, Reply
from tests.builders import SEED_BODY, an_image

MOMENT = datetime(2024, 3, 20, 11, 30, 0, 999_999, tzinfo=UTC)
IMAGE = an_image(1, "镜像", updated_at=MOMENT, revision=7)
DIGEST = "0" * 64

# --- reading a body ---


def nested(levels: int) -> str:
    """A body whose arrays and objects are `levels` deep."""
    return '[[], {"id": ' + "[" * (levels - 2) + "]" * (levels - 2) + "}, {}]"


def test_a_body_has_three_parts() -> None:
    assert contract.read_body('[[1], {"id": 1}, {"callbacks": null}]') == ([1], {"id": 1}, {"callbacks": None})
    assert contract.read_body(b'[[], {"name": "\xe9\x95\x9c"}, null]') == ([], {"name": "镜"}, {})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('[[], {"id": 1, "id": 2}, {}]', "same key twice"),
        ('[[], {"id": {"x": 1, "x": 1}}, {}]', "same key twice"),
        (r'[[], {"id": 1, "\u0069d": 1}, {}]', "same key twice"),
        ('[[], {"id": NaN}, {}]', "NaN, which is not JSON"),
        ('[[], {"id": Infinity}, {}]', "Infinity, which is not JSON"),
        ('[[], {"id": -Infinity}, {}]', "-Infinity, which is not JSON"),
        (b'[[], {"name": "\xff"}, {}]', "not UTF-8"),
        (b'[[], {"name": "\xed\xa0\x80"}, {}]', "not UTF-8"),
        (b"\xff\xfe[\x00]\x00", "not UTF-8"),
        ('[[], {"name": "\ud800"}, {}]', "not UTF-8"),
        ("", "can be read"),
        ("[[], {}, {}", "can be read"),
        ("[[], {}, {}] ]", "can be read"),
        ("[[], {'id': 1}, {}]", "can be read"),
        ('[[], {"id": 01}, {}]', "can be read"),
        ('[[], {"name": "\n"}, {}]', "can be read"),
        ('\ufeff[[], {"id": 1}, {}]', "can be read"),
        ('[[], {"id": ' + "9" * 5000 + "}, {}]", "can be read"),
        (nested(33), "deeper than 32 levels"),
        ("[" * 30_000, "can be read"),
        ("[" * 30_000 + "]" * 30_000, ""),
        ('{"id": 1}', "not [args, kwargs, embed]"),
        (json.dumps(SEED_BODY), "not [args, kwargs, embed]"),
        ("null", "not [args, kwargs, embed]"),
        ("5", "not [args, kwargs, embed]"),
        ('"[[], {}, {}]"', "not [args, kwargs, embed]"),
        ("[]", "not [args, kwargs, embed]"),
        ('[[], {"id": 1}]', "not [args, kwargs, embed]"),
        ('[[], {"id": 1}, {}, {}]', "not [args, kwargs, embed]"),
        ('[{"id": 1}, [], {}]', "not [args, kwargs, embed]"),
        ("[null, null, null]", "not [args, kwargs, embed]"),
        ('[[], {"id": 1}, []]', "not [args, kwargs, embed]"),
        ('[[], {"id": 1}, "x"]', "not [args, kwargs, embed]"),
    ],
)
def test_what_is_no_body_is_refused_with_a_reason(body: bytes | str, says: str) -> None:
    with pytest.raises(MalformedMessageError) as raised:
        contract.read_body(body)
    assert says in str(raised.value)


def test_a_body_may_be_as_deep_as_the_limit() -> None:
    assert contract.read_body(nested(32))[1]["id"] != []


def test_a_body_may_be_as_large_as_the_limit_in_bytes() -> None:
    frame = len('[[], {"name": ""}, {}]')
    full = (contract.MAX_BODY_BYTES - frame) // 3
    rest = (contract.MAX_BODY_BYTES - frame) % 3
    body = '[[], {"name": "' + "镜" * full + "x" * rest + '"}, {}]'
    assert len(contract.read_body(body)[1]["name"]) == full + rest
    with pytest.raises(MalformedMessageError, match="more than 65536 bytes"):
        contract.read_body(body.replace("镜", "镜x", 1))


def test_objects_are_read_as_they_stand() -> None:
    revived = {"__type__": "datetime", "__value__": "2024-03-20T10:30:00"}
    assert contract.read_body(json.dumps([[], {"name": revived}, {}]))[1] == {"name": revived}


# --- digest ---


def test_the_digest_is_of_the_canonical_json() -> None:
    canonical = '{"id":1,"name":"镜像","other":[1.5,null,true,{"a":"\\"","b":""}]}'
    expected = hashlib.sha256(canonical.encode()).hexdigest()
    assert contract.digest_of({"other": [1.5, None, True, {"b": "", "a": '"'}], "name": "镜像", "id": 1}) == expected


def test_the_digest_is_of_the_body_as_received() -> None:
    bodies: list[dict[str, Any]] = [
        {"id": 1},
        {"id": 1.0},
        {"id": True},
        {"id": "1"},
        {"id": 1, "name": None},
        {"id": 1, "name": "\u00e9"},
        {"id": 1, "name": "e\u0301"},
    ]
    assert len({contract.digest_of(body) for body in bodies}) == len(bodies)


@pytest.mark.parametrize("value", ["\ud800", float("nan"), float("inf"), object(), b"x", {1, 2}])
def test_what_is_no_json_has_no_digest(value: object) -> None:
    with pytest.raises(MalformedMessageError):
        contract.digest_of({"name": value})


# --- names on the wire ---


@pytest.mark.parametrize("value", ["a", "A-Z_a.z:0", "x" * 255, "0f5f1a5e-32bb-4a3f-8a0d-000000000000"])
def test_a_request_id_may_be(value: str) -> None:
    assert contract.is_request_id(value)


@pytest.mark.parametrize(
    "value", ["", "x" * 256, "a b", "a/b", "ä", "a\n", "１", "a\0", "*", None, 1, True, ["a"], b"a"]
)
def test_a_request_id_may_not_be(value: object) -> None:
    assert not contract.is_request_id(value)


@pytest.mark.parametrize(
    "none_named", [None, "", "7c9e6679-7425-40de-944b-e07fc1f90ae7", "7C9E6679-7425-40DE-944B-E07FC1F90AE7"]
)
def test_who_names_no_reply_queue_is_answered_on_the_common_one(none_named: object) -> None:
    assert contract.reply_queue(none_named, "orders") == "image.replies"


@pytest.mark.parametrize(
    "own", ["image.replies", "image.replies.orders", "image.replies.orders.", "image.replies.orders.eu-1:x"]
)
def test_a_caller_may_name_his_own_reply_queues(own: str) -> None:
    assert contract.reply_queue(own, "orders") == own


@pytest.mark.parametrize(
    "other",
    ["image.update", "celery", "image.replies.billing", "image.replies.orders2", "image.replies.ordersx.y", "image.replies.",
     "image.replies.orders.\n", "image.replies.orders. ", "image.replies.orders.*", "image.replies.orders." + "x" * 200,
     "IMAGE.REPLIES.orders", " image.replies.orders", 1, True, [], ["image.replies.orders"], {}, 0, False],
)  # fmt: skip
def test_a_caller_may_name_no_other_queue(other: object) -> None:
    assert contract.reply_queue(other, "orders") is None


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", False),
        ("", False),
        (None, False),
        (1, False),
    ],
)
def test_a_trace_context_is_passed_on_only_if_it_is_one(value: object, good: bool) -> None:  # noqa: FBT001
    assert contract.is_traceparent(value) == good


# --- codes ---

#: The table of contract.md, 4.
CODES = """
InvalidParameter    400 参数无效       True  no
ImageNotFound       404 镜像不存在     True  no
ImageNameExists     400 镜像名称已存在 True  no
InternalError       500 内部错误       False backoff
Unauthorized        401 未认证         False no
Forbidden           403 无权限         False no
PreconditionFailed  412 前置条件不满足 True  no
TooManyRequests     429 请求过于频繁   False backoff
DeadlineExceeded    504 请求已过期     True  new_request
"""


def test_the_codes_are_those_of_the_contract() -> None:
    said = [(c.name, str(c.status), c.message, str(c.stored), c.retry) for c in contract.CODES.values()]
    assert said == [tuple(line.split()) for line in CODES.strip().splitlines()]
    assert list(contract.CODES) == [code.name for code in contract.CODES.values()]


# --- replies ---


def test_a_success_is_the_documented_document() -> None:
    reply = Reply.success("order-1", DIGEST, IMAGE, 7)
    assert reply.text == (
        '{"request_id":"order-1","digest":"' + DIGEST + '","status":200,'
        '"image":{"id":1,"name":"镜像","os_type":"linux","os_name":"CentOS","description":"",'
        '"source_path":"/path/to/image/file.iso","created_at":"2024-03-20T10:30:00Z",'
        '"updated_at":"2024-03-20T11:30:00Z"},"revision":7}'
    )
    assert (reply.code, reply.stored, reply.image_id, reply.replayed) == (None, True, 1, False)
    assert reply.document == json.loads(reply.text)


def test_a_refusal_is_the_documented_document() -> None:
    detail = Detail("name", "taken", "name 'x' is used by another image")
    reply = Reply.refused("order-1", DIGEST, Refusal(contract.IMAGE_NAME_EXISTS, (detail,)), 1)
    assert reply.text == (
        '{"request_id":"order-1","digest":"' + DIGEST + '","status":400,'
        '"error":{"code":"ImageNameExists","message":"镜像名称已存在","retry":"no",'
        '"details":[{"field":"name","reason":"taken","message":"name \'x\' is used by another image"}]}}'
    )
    assert (reply.code, reply.stored, reply.image_id) == ("ImageNameExists", True, 1)


def test_a_body_that_could_not_be_read_has_no_digest() -> None:
    document = Reply.refused("order-1", None, contract.malformed("why")).document
    assert document["digest"] is None
    assert document["error"]["details"] == [{"field": None, "reason": "malformed_message", "message": "why"}]


@pytest.mark.parametrize("code", contract.CODES.values(), ids=contract.CODES)
def test_the_ledger_keeps_what_the_table_says_unless_told_otherwise(code: contract.Code) -> None:
    assert Reply.refused("order-1", DIGEST, Refusal(code)).stored == code.stored
    assert not Reply.refused("order-1", DIGEST, Refusal(code), stored=False).stored


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (datetime(2024, 3, 20, 10, 30, tzinfo=UTC), "2024-03-20T10:30:00Z"),
        (datetime(2024, 3, 20, 10, 30, 0, 999_999, tzinfo=UTC), "2024-03-20T10:30:00Z"),
        (datetime(2024, 3, 20, 18, 30, tzinfo=timezone(timedelta(hours=8))), "2024-03-20T10:30:00Z"),
        (datetime(2024, 3, 20, 10, 30, tzinfo=timezone(-timedelta(hours=14))), "2024-03-21T00:30:00Z"),
    ],
)
def test_times_are_whole_seconds_in_utc(moment: datetime, written: str) -> None:
    assert contract.rfc3339(moment) == written


# --- the reply event ---


@pytest.mark.parametrize(
    ("reply", "kind", "subject"),
    [
        (Reply.success("order-1", DIGEST, IMAGE, 7), "aries.image.updated", "image/1"),
        (
            Reply.refused("order-1", DIGEST, Refusal(contract.IMAGE_NOT_FOUND), 9),
            "aries.image.update_refused",
            "image/9",
        ),
        (Reply.refused("order-1", DIGEST, Refusal(contract.INTERNAL_ERROR), 1), "aries.image.update_failed", "image/1"),
        (Reply.refused("order-1", None, contract.malformed("why")), "aries.image.update_refused", None),
    ],
)
def test_an_event_is_a_cloud_event_round_the_reply(reply: Reply, kind: str, subject: str | None) -> None:
    text = contract.reply_event(reply, MOMENT)
    expected = {
        "specversion": "1.0",
        "id": "order-1",
        "source": "/aries/images",
        "type": kind,
        "time": "2024-03-20T11:30:00Z",
        "datacontenttype": "application/json",
        "data": reply.document,
    }
    assert json.loads(text) == expected | ({"subject": subject} if subject else {})
    assert reply.text in text
