"""Messages that are no requests, pushed raw: each is answered if it can be, and none stops or holds up the worker."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from aries_images import contract
from tests.builders import SEED_BODY, a_message, refusal_in, stored_image
from tests.integration.conftest import NewDatabase
from tests.service import Service, service_at
from tests.workers import running_worker, until
from worker.leases import Keys

GOOD = '[[], {"id": 1}, {}]'
LINKED = {"task": contract.TASK, "args": [], "kwargs": {"id": 1}, "options": {}, "subtask_type": None}


@pytest.fixture(scope="module", params=["default", "prefork"])
def service(
    request: pytest.FixtureRequest, module_redis: tuple[str, str], new_database: NewDatabase
) -> Iterator[Service]:
    with service_at(*module_redis, new_database("sqlite")) as service:
        service.image()
        pool = None if request.param == "default" else request.param
        with running_worker(service.environment, pool=pool, concurrency=1):
            yield service


def is_alive(service: Service) -> bool:
    """Whether the worker still answers, and has nothing left over."""
    assert service.ask({"id": 1})["status"] == 200
    until(service.is_idle)
    return True


#: The body as it stands in the entry.
BODIES: dict[str, Any] = {
    "the seed's own body": json.dumps(SEED_BODY),
    "a key twice": '[[], {"id": 1, "id": 2}, {}]',
    "NaN": '[[], {"id": NaN}, {}]',
    "Infinity": '[[], {"id": 1, "x": -Infinity}, {}]',
    "a lone surrogate, escaped": '[[], {"id": 1, "name": "\\ud800"}, {}]',
    "a lone surrogate as a key": '[[], {"id": 1, "\\udfff": 1}, {}]',
    "nested too deep": '[[], {"id": ' + "[" * 40 + "]" * 40 + "}, {}]",
    "nested far too deep": "[" * 20_000,
    "over 64 KiB": '[[], {"id": 1, "description": "' + "x" * contract.MAX_BODY_BYTES + '"}, {}]',
    "a number of 5,000 digits": '[[], {"id": ' + "1" * 5000 + "}, {}]",
    "positional arguments": '[[1], {"id": 1}, {}]',
    "callbacks": json.dumps([[], {"id": 1}, {"callbacks": [LINKED]}]),
    "errbacks": json.dumps([[], {"id": 1}, {"errbacks": [LINKED]}]),
    "a chain": json.dumps([[], {"id": 1}, {"chain": [LINKED]}]),
    "a chord": json.dumps([[], {"id": 1}, {"chord": LINKED}]),
    "two parts": '[[], {"id": 1}]',
    "four parts": '[[], {"id": 1}, {}, {}]',
    "kwargs that are a list": '[[], [["id", 1]], {}]',
    "embed that is a list": '[[], {"id": 1}, []]',
    "a number": "5",
    "null": "null",
    "a string": '"' + GOOD.replace('"', '\\"') + '"',
    "an empty body": "",
    "not JSON": "{'id': 1}",
    "an object in its place": SEED_BODY,
    "null in its place": None,
    "a lone surrogate in the text itself": GOOD + "\ud800",
    "a number in its place": 5,
}
#: What else of the message is not as it should be.
MESSAGES: dict[str, dict[str, Any]] = {
    "invalid UTF-8": {
        "body": base64.b64encode(b'[[], {"name": "\xff"}, {}]').decode(),
        "properties": {"body_encoding": "base64"},
    },
    "bad base64": {"body": "%%%", "properties": {"body_encoding": "base64"}},
    "an unknown encoding": {"body": GOOD, "content-encoding": "utf-16"},
    "no content type": {"body": GOOD, "content-type": None},
    "pickle": {"body": GOOD, "content-type": "application/x-python-serialize"},
    "YAML": {"body": GOOD, "content-type": "application/x-yaml"},
    "compression": {"body": GOOD, "headers": {"compression": "application/x-gzip"}},
    "expires that is no moment": {"body": GOOD, "headers": {"expires": "tomorrow"}},
    "expires that is a number": {"body": GOOD, "headers": {"expires": 1}},
    "expires that is a list": {"body": GOOD, "headers": {"expires": []}},
    "an ETA that is no moment": {"body": GOOD, "headers": {"eta": "soon"}},
    "an ETA in a thousand years": {"body": GOOD, "headers": {"eta": "3024-01-01T00:00:00+00:00"}},
    "an id that is an integer": {"body": GOOD, "headers": {"id": 4711}},
    "an id with a space": {"body": GOOD, "headers": {"id": "a b"}},
    "an id with a line feed": {"body": GOOD, "headers": {"id": "a\nb"}},
    "an id in Chinese": {"body": GOOD, "headers": {"id": "镜像"}},
    "no task": {"body": GOOD, "headers": {"task": None}},
    "a task that is a list": {"body": GOOD, "headers": {"task": ["image.update"]}},
    "an unknown task": {"body": GOOD, "headers": {"task": "os.system"}},
}


@pytest.mark.parametrize(
    "parts",
    [
        *({"body": body} if body is not None else {"body": body, "kwargs": 1} for body in BODIES.values()),
        *MESSAGES.values(),
    ],
    ids=[*BODIES, *MESSAGES],
)
def test_what_is_no_request_is_answered_so(service: Service, parts: dict[str, Any]) -> None:
    parts = {key: dict(part) if isinstance(part, dict) and key != "body" else part for key, part in parts.items()}
    request_id, entry = a_message(**parts)
    service.broker.delete(contract.REPLY_QUEUE)  # some of the ids are the same for each pool
    service.results.delete(contract.RESULT_KEY_PREFIX + request_id)
    service.push(entry)
    record = service.stored(request_id)
    assert record["status"] == "SUCCESS"
    assert refusal_in(record["result"]) == ("InvalidParameter", [(None, "malformed_message")])
    assert record["result"]["request_id"] == request_id
    [event] = service.wait_for_events(request_id)
    assert event["body"]["data"] == record["result"]
    assert is_alive(service)


#: Odd, but no reason to refuse: header or property, and its value.
ODD_PARTS: list[tuple[str, str, Any]] = [
    ("headers", "sent_at", "NaN"),
    ("headers", "sent_at", "Infinity"),
    ("headers", "sent_at", "-Infinity"),
    ("headers", "sent_at", "-1e300"),
    ("headers", "sent_at", "true"),
    ("headers", "sent_at", '"now"'),
    ("headers", "traceparent", '"\\ud800"'),
    ("headers", "group", '"\\ud800"'),
    ("headers", "parent_id", '"\\ud800"'),
    ("headers", "root_id", "7"),
    ("headers", "retries", "-1"),
    ("headers", "retries", "1" + "0" * 40),
    ("headers", "deliveries", "99"),
    ("headers", "timelimit", '"xx"'),
    ("headers", "stamped_headers", "5"),
    ("headers", "stamped_headers", '["x"]'),
    ("headers", "stamped_headers", "[[]]"),
    ("headers", "stamps", "[]"),
    ("headers", "argsrepr", "[]"),
    ("headers", "malformed", '"spoofed"'),
    ("headers", "revoked", "true"),
    ("headers", "received_at", '"x"'),
    ("headers", "ignore_result", '"x"'),
    ("headers", "shadow", '"os.system"'),
    ("headers", "replaced_task_nesting", '"x"'),
    ("properties", "correlation_id", "7"),
    ("properties", "correlation_id", '"\\ud800"'),
    ("properties", "correlation_id", "1" + "0" * 40),
    ("properties", "correlation_id", "[]"),
    ("properties", "priority", '"x"'),
    ("properties", "delivery_info", "null"),
    ("properties", "delivery_tag", "null"),
]


@pytest.mark.parametrize(("part", "name", "value"), ODD_PARTS, ids=["-".join(odd)[:40] for odd in ODD_PARTS])
def test_a_request_with_an_odd_part_is_a_request_all_the_same(
    service: Service, part: str, name: str, value: str
) -> None:
    request_id, entry = a_message({"id": 1}, **{part: {name: "odd"}})
    service.push(entry.replace('"odd"', value))
    assert service.stored(request_id)["result"].get("status") == 200
    assert len(service.wait_for_events(request_id)) == 1
    assert is_alive(service)


@pytest.mark.parametrize("value", ['"\\ud800"', '"1"', "1.0", "true", "[]"])
def test_a_condition_that_is_no_revision_is_refused_and_not_left_out(service: Service, value: str) -> None:
    request_id, entry = a_message({"id": 1, "description": "unconditionally"}, headers={"if_revision": "odd"})
    service.push(entry.replace('"odd"', value))
    assert refusal_in(service.stored(request_id)["result"]) == ("InvalidParameter", [("if_revision", "wrong_type")])
    assert is_alive(service)


@pytest.mark.parametrize("value", ['"\\ud800"', "7", "[]", "true", '"image.update"'])
def test_a_reply_queue_that_is_no_name_is_refused(service: Service, value: str) -> None:
    request_id, entry = a_message({"id": 1}, properties={"reply_to": "odd"})
    service.push(entry.replace('"odd"', value))
    assert refusal_in(service.stored(request_id)["result"]) == (
        "InvalidParameter",
        [("reply_to", "reply_to_not_allowed")],
    )
    assert len(service.wait_for_events(request_id)) == 1
    assert is_alive(service)


def test_a_body_that_is_no_text_is_answered_and_not_kept_besides(service: Service) -> None:
    kept = service.broker.xlen(Keys().dead)
    request_id, entry = a_message(body=GOOD + "\ud800")
    service.push(entry)
    assert refusal_in(service.stored(request_id)["result"]) == ("InvalidParameter", [(None, "malformed_message")])
    assert is_alive(service)
    assert service.broker.xlen(Keys().dead) == kept


@pytest.mark.parametrize(
    "entry",
    [
        b"not json", b"", b"\xff\xfe", b"null", b"5", b"[]", b"{}", b'"x"', b"[" * 20_000, b'{"headers": []}',
        b'{"headers": {}}', b'{"headers": {"id": null}}', b'{"headers": {"id": ["x"], "task": "image.update"}}',
        b'{"body": "x", "headers": {"id": "", "task": "image.update"}}', b'{"headers": {"id": true}}',
        b'{"headers": {"id": {}}, "properties": 5}', b"1" * 5000,
    ],
    ids=lambda entry: repr(entry[:30]),
)  # fmt: skip
def test_what_nobody_can_be_answered_for_holds_nothing_up(service: Service, entry: bytes) -> None:
    _, good = a_message({"id": 1})
    service.push(entry, good)
    assert is_alive(service)


def test_the_smallest_message_is_a_request(service: Service) -> None:
    service.push(
        r'{"body":"[[],{\"id\":1},{}]","content-type":"application/json",'
        r'"headers":{"task":"image.update","id":"smallest"}}'
    )
    assert service.stored("smallest")["result"]["status"] == 200


def test_a_bad_message_costs_the_good_ones_beside_it_nothing(service: Service) -> None:
    image = service.image()
    entries = [a_message({"id": image["id"], "description": str(number)}) for number in range(10)]
    _, bad = a_message(body="5")
    service.push(*[text for _, entry in entries for text in (bad, entry)])
    for request_id, _ in entries:
        assert service.stored(request_id)["result"]["status"] == 200
    assert stored_image(service.database, image["id"])["revision"] == 11


def test_a_malformed_message_under_a_used_id_does_not_touch_its_result(service: Service) -> None:
    document = service.ask({"id": 1})
    request_id = document["request_id"]
    kept = service.stored(request_id)
    for parts in ({"body": "5"}, {"body": GOOD, "headers": {"task": "no.such.task"}}):
        number = len(service.events(request_id=request_id))
        _, entry = a_message(**parts | {"headers": {"id": request_id} | parts.get("headers", {})})
        service.push(entry)
        events = service.wait_for_events(request_id, number + 1)
        assert events[-1]["body"]["data"]["error"]["code"] == "InvalidParameter"
    assert service.stored(request_id) == kept
