"""The documents and the table of mistakes in docs/callers.md, against what a real worker sends."""

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from redis import Redis

from aries_images import contract
from aries_images.signing import SigningKey
from tests.builders import heal, poison
from tests.callers_page import documents, table
from tests.integration.conftest import NewDatabase
from tests.running import until
from tests.service import Service, service_at
from tests.workers import running_worker
from worker.commands.token import PRIVATE, PUBLIC, make_keys
from worker.leases import Keys

[MESSAGE] = documents("The smallest message")
RECORD, REFUSAL, FAULT = documents("The record")
ENTRY, EVENT = documents("The reply event")
[SETTLEMENT] = documents("OutcomeUnknown, and settling it")


class Caller(NamedTuple):
    """A caller with a token."""

    service: Service
    token: str

    def message(self, document: dict[str, Any], **headers: Any) -> dict[str, Any]:
        """A message of the page, with the token in its place; a header that is None goes."""
        authorized = document["headers"] | {"authorization": f"Bearer {self.token}"} | headers
        return document | {"headers": {name: value for name, value in authorized.items() if value is not None}}

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The record of a message that is pushed to the queue."""
        self.service.push(json.dumps(message))
        return self.service.stored(str(message["headers"]["id"]))

    def goes_round(self) -> None:
        """A worker has looked at all its lists since: it takes one message after another, each with a look at all."""
        for _ in range(2):
            assert self.ask(self.message(named(str(uuid.uuid4()), id=1)))["result"]["status"] == 200


@pytest.fixture(scope="module")
def caller(
    module_redis: tuple[str, str], new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Caller]:
    keys = tmp_path_factory.mktemp("keys")
    make_keys(keys)
    token = SigningKey((keys / PRIVATE).read_bytes(), "orders").token(600)
    with service_at(*module_redis, new_database("sqlite")) as service:
        service.environment |= {"ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(keys / PUBLIC)}
        service.image(description="CentOS 7.9 64位基础镜像")
        service.image(name="x")
        with running_worker(service.environment):
            yield Caller(service, token)


# --- documents ---


def shape(document: Any) -> Any:
    """A document with the types of its values in place of them."""
    if isinstance(document, dict):
        return {name: shape(value) for name, value in document.items()}
    return [shape(value) for value in document] if isinstance(document, list) else type(document)


def named(request_id: str, **fields: Any) -> dict[str, Any]:
    """The page's message under another id, with another body."""
    headers = MESSAGE["headers"] | {"id": request_id}
    return MESSAGE | {"headers": headers, "body": json.dumps([[], fields, {}])}


def test_the_record_of_the_smallest_message_is_the_page_s(caller: Caller) -> None:
    record = caller.ask(caller.message(MESSAGE))
    assert shape(record) == shape(RECORD)
    assert list(record) == list(RECORD)
    for documented in (record, RECORD):
        documented["result"]["image"].pop("updated_at")
    assert record["result"] == RECORD["result"]


def test_the_reply_event_is_the_page_s(caller: Caller) -> None:
    caller.ask(caller.message(named("an-event", id=1, description="for its event")))
    [event] = caller.service.wait_for_events("an-event")
    assert shape(event.pop("body")) == shape(EVENT)
    assert shape(event) == shape({name: value for name, value in ENTRY.items() if name != "body"})
    assert EVENT["data"] == RECORD["result"] | {"image": EVENT["data"]["image"]}


def test_the_refusal_is_the_page_s(caller: Caller) -> None:
    assert caller.ask(caller.message(named(REFUSAL["request_id"], id=1, name="x")))["result"] == REFUSAL


def test_the_fault_is_the_page_s(caller: Caller) -> None:
    poison(caller.service.database)
    try:
        record = caller.ask(caller.message(named("a-fault", id=1, name="poison")))
    finally:
        heal(caller.service.database)
    assert (record["status"], record["result"]) == ("FAILURE", FAULT)


def test_the_settlement_says_what_became_of_the_request(caller: Caller) -> None:
    answered = caller.ask(caller.message(MESSAGE))["result"]
    assert caller.ask(caller.message(SETTLEMENT))["result"] == answered


# --- mistakes ---


def local_time(hours: int) -> str:
    """The moment in half a minute, as the clock on a wall says it so many hours east of Greenwich."""
    return (datetime.now(UTC) + timedelta(seconds=30, hours=hours)).isoformat(timespec="seconds")[:19]


def bodied(body: Any) -> Callable[[Caller], dict[str, Any]]:
    return lambda caller: caller.message(MESSAGE) | {"body": body}


def headed(**headers: Any) -> Callable[[Caller], dict[str, Any]]:
    return lambda caller: caller.message(MESSAGE, **headers)


def replying_to(queue: str) -> Callable[[Caller], dict[str, Any]]:
    return lambda caller: caller.message(MESSAGE) | {"properties": {"reply_to": queue}}


#: The page's table: what was sent, and what is heard of it.
MISTAKES = table("When it does not work")
#: The messages that a row stands for, all answered like that.
ANSWERED: dict[str, list[Callable[[Caller], dict[str, Any]]]] = {
    'in the body `"id": "1"` or `1.0`': [bodied('[[],{"id":"1"},{}]'), bodied('[[],{"id":1.0},{}]')],
    "in the body `null` for a field that is to stay": [bodied('[[],{"id":1,"name":null},{}]')],
    "`body` as JSON instead of as text": [bodied([[], {"id": 1}, {}]), bodied({"id": 1})],
    "the fields alone as `body`": [bodied('{"id":1}')],
    "no `content-type`": [lambda caller: {**caller.message(MESSAGE), "content-type": None}],
    "another `task`": [headed(task="update_image"), headed(task="image.update.bulk")],
    "`headers.id` as a number, or with a space": [headed(id=4711), headed(id="order 4711")],
    "no token, or one without `Bearer ` before it": [
        headed(authorization=None),
        lambda caller: caller.message(MESSAGE, authorization=caller.token),
    ],
    "`expires` as a number of seconds": [headed(expires=30)],
    "`expires` in local time without its zone, west of Greenwich": [headed(expires=local_time(-5))],
    "`if_revision` as text": [headed(if_revision="7")],
    "`reply_to` that is not the caller's": [replying_to("my.replies"), replying_to("image.replies.others")],
}
UNANSWERED: dict[str, Callable[[Caller], str]] = {
    "no `headers.id`": lambda caller: json.dumps(caller.message(MESSAGE, id=None)),
    "an entry that is not JSON": lambda _: "update image 1",
}
#: The lists that a row stands for.
ASTRAY: dict[str, list[Callable[[Service], tuple[Redis, str]]]] = {
    "pushed to another list, or to another database": [
        lambda service: (service.broker, "image_update"),
        lambda service: (service.results, contract.QUEUE),
    ],
    r"pushed to a list of a priority that is not 3, 6 or 9 (`image.update\x06\x165`)": [
        lambda service: (service.broker, "image.update\x06\x165"),
    ],
}
EAST = "`expires` in local time without its zone, east of Greenwich"
REUSED = "another body under an id that was answered"
PUSHED_IN = "pushed with `RPUSH`"
LATE = "pushed first, subscribed then"


def heard(reply: dict[str, Any]) -> str:
    """A reply as the table writes it."""
    if "error" not in reply:
        return str(reply["status"])
    said = [f"{reply['status']} `{reply['error']['code']}`"]
    for detail in reply["error"]["details"]:
        field = f"`{detail['field']}` " if detail["field"] else ""
        said.append(f"{field}`{detail['reason']}`: {detail['message']}")
    return ", ".join(said)


@pytest.mark.parametrize("row", ANSWERED)
def test_a_mistake_is_answered_as_the_table_says(caller: Caller, row: str) -> None:
    for number, make in enumerate(ANSWERED[row]):
        message = make(caller)
        if message["headers"]["id"] == MESSAGE["headers"]["id"]:
            message["headers"]["id"] = f"mistake-{list(ANSWERED).index(row)}-{number}"
        assert heard(caller.ask(message)["result"]) == MISTAKES[row]


@pytest.mark.parametrize("row", UNANSWERED)
def test_a_message_without_an_answer_is_a_dead_letter(caller: Caller, row: str) -> None:
    entry = UNANSWERED[row](caller)
    caller.service.push(entry)
    caller.goes_round()
    [(_, letter)] = caller.service.broker.xrevrange(Keys().dead, count=1)
    assert letter[b"entry"].decode() == entry
    assert MISTAKES[row] == f"no answer: a dead letter, `{letter[b'reason'].decode()}`"


@pytest.mark.parametrize("row", ASTRAY)
def test_what_no_worker_looks_at_stays_where_it_was_pushed(caller: Caller, row: str) -> None:
    assert MISTAKES[row] == "no answer: it stays there"
    for place in ASTRAY[row]:
        redis, name = place(caller.service)
        redis.lpush(name, json.dumps(caller.message(MESSAGE, id="astray")))
        caller.goes_round()
        assert redis.llen(name) == 1
        redis.delete(name)


def test_a_local_time_east_of_greenwich_is_a_deadline_hours_later(caller: Caller) -> None:
    an_hour_late = local_time(8 - 1)
    reply = caller.ask(caller.message(MESSAGE, id="an-hour-late", expires=an_hour_late))["result"]
    assert MISTAKES[EAST] == f"{heard(reply)}, hours after the deadline too"


def test_another_body_under_an_answered_id_is_refused_and_leaves_the_key_alone(caller: Caller) -> None:
    first = caller.ask(caller.message(named("used", id=1)))
    with caller.service.results.pubsub() as subscriber:
        subscriber.subscribe(contract.RESULT_KEY_PREFIX + "used")
        until(subscriber.get_message)
        caller.service.push(json.dumps(caller.message(named("used", id=2))))
        announced = until(subscriber.get_message)
    reply = json.loads(announced["data"])["result"]
    assert MISTAKES[REUSED] == f"{heard(reply)}; published, while the key keeps the first answer"
    assert caller.service.stored("used") == first


def test_what_is_pushed_with_rpush_is_taken_first(caller: Caller) -> None:
    with caller.service.broker.pipeline(transaction=True) as pipe:
        for push, request_id in ((pipe.lpush, "waits"), (pipe.rpush, "pushes-in")):
            push(contract.QUEUE, json.dumps(caller.message(named(request_id, id=1, description=request_id))))
        pipe.execute()
    waited, pushed_in = (caller.service.stored(request_id)["result"] for request_id in ("waits", "pushes-in"))
    assert pushed_in["revision"] < waited["revision"]
    assert MISTAKES[PUSHED_IN] == f"{heard(pushed_in)}, before all that wait"


def test_who_subscribes_late_hears_nothing_and_finds_the_key(caller: Caller) -> None:
    caller.ask(caller.message(named("heard-late", id=1)))
    with caller.service.results.pubsub(ignore_subscribe_messages=True) as subscriber:
        subscriber.subscribe(contract.RESULT_KEY_PREFIX + "heard-late")
        assert subscriber.get_message(timeout=0.2) is None
    assert MISTAKES[LATE] == "nothing on the channel: the key has it"


def test_every_row_of_the_table_is_tested_here() -> None:
    assert set(MISTAKES) == {*ANSWERED, *UNANSWERED, *ASTRAY, EAST, REUSED, PUSHED_IN, LATE}
