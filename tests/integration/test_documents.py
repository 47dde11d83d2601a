"""The checked-in documents against what is real: AsyncAPI's own parser, and what workers answer to every kind of request."""

import json
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from aries_images import contract
from aries_images.signing import SigningKey
from tests.builders import a_message, poison
from tests.integration.conftest import NewDatabase
from tests.nodejs import Node
from tests.service import Service, service_at
from tests.workers import CHECKOUT, running_worker
from worker.commands.token import PRIVATE, PUBLIC, make_keys

DOCS = CHECKOUT / "docs"
PARSE = """
const { Parser } = require("@asyncapi/parser");
const documents = JSON.parse(require("fs").readFileSync(0, "utf8"));
const parser = new Parser();
Promise.all(documents.map((text) => parser.validate(text))).then((found) => console.log(JSON.stringify(found)));
"""
#: What the parser says only for information.
INFORMATION = 2


def test_the_parser_of_asyncapi_finds_nothing_wrong(node: Node) -> None:
    document = (DOCS / "asyncapi.yaml").read_text()
    broken = document.replace("'#/channels/results'", "'#/channels/result'")
    done = node.run("-e", PARSE, input=json.dumps([document, broken]))
    assert done.returncode == 0, done.stderr
    found = [[one["message"] for one in of_one if one["severity"] < INFORMATION] for of_one in json.loads(done.stdout)]
    assert found[0] == []
    assert found[1] != [], "a reference that leads nowhere"


# --- what workers answer ---


def is_valid(file: str, document: Any) -> bool:
    """Whether the document is what a schema file says; if not, the failure says what is wrong."""
    _validator(file).validate(document)
    return True


@cache
def _validator(file: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((DOCS / "schemas" / f"{file}.schema.json").read_text()))


class Caller:
    """Who sends messages with a token of his, and checks everything that holds an answer."""

    def __init__(self, service: Service, key: SigningKey) -> None:
        self.service, self.key = service, key
        self.proof = {"authorization": f"Bearer {key.token(600)}"}

    def message(self, kwargs: Any = None, headers: Any = (), **parts: Any) -> tuple[str, str]:
        return a_message(kwargs, headers=self.proof | dict(headers), **parts)

    def send(self, entry: str, request_id: str, queue: str = contract.REPLY_QUEUE) -> dict[str, Any]:
        """The reply to a message, from its event."""
        self.service.push(entry)
        self.service.wait_for_events(request_id, queue=queue)
        [event] = [
            json.loads(message["body"])
            for message in map(json.loads, self.service.broker.lrange(queue, 0, -1))
            if is_valid("reply-message", message) and json.loads(message["body"])["id"] == request_id
        ]
        assert is_valid("reply-event", event)
        reply: dict[str, Any] = event["data"]
        assert is_valid("reply", reply)
        return reply

    def result(self, task_id: str, reply: dict[str, Any]) -> None:
        """Check what the result backend has, against the reply."""
        record = self.service.stored(task_id)
        assert is_valid("result", record)
        assert record["task_id"] == task_id
        assert record["result"] == reply or record["status"] == "FAILURE"

    def ask(self, kwargs: Any = None, headers: Any = (), **parts: Any) -> str:
        """Send a message; the code of its reply, or OK."""
        request_id, entry = self.message(kwargs, headers, **parts)
        reply = self.send(entry, request_id)
        self.result(request_id, reply)
        if reply["status"] == 200:
            assert is_valid("update-request", kwargs)
            assert is_valid("update-message", json.loads(entry))
        return str(reply.get("error", {}).get("code", "OK"))


@pytest.fixture(scope="module")
def caller(
    module_redis: tuple[str, str], new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Caller]:
    keys = tmp_path_factory.mktemp("keys")
    make_keys(keys)
    settings = {"ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(keys / PUBLIC), "ARIES_RATE_PER_CALLER": "50"}
    with service_at(*module_redis, new_database("sqlite")) as service:
        poison(service.database)
        with running_worker(service.environment | settings):
            yield Caller(service, SigningKey((keys / PRIVATE).read_bytes(), "orders"))


def test_what_is_applied_is_answered_as_the_schemas_say(caller: Caller) -> None:
    id_ = caller.service.image()["id"]
    for fields in (
        {},
        {"description": "第一行\n第二行"},
        {"description": ""},
        {"os_type": "windows", "name": "e\u0301"},
    ):
        assert caller.ask({"id": id_, **fields}) == "OK"
    headers = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "if_revision": 4,
        "expires": "2999-01-01T00:00:00Z",
        "group": "one",
        "parent_id": "other",
    }
    assert caller.ask({"id": id_, "name": "镜像"}, headers) == "OK"


def test_each_refusal_and_the_fault_are_answered_as_the_schemas_say(caller: Caller) -> None:
    id_, taken = caller.service.image()["id"], caller.service.image()["name"]
    wrong = {"id": id_, "name": " x", "os_type": None, "os_name": 1, "description": "\0", "revision": 1, "size": 1}
    read_only = {"authorization": f"Bearer {caller.key.token(60, scope='image:read')}"}
    asked = [
        caller.ask(wrong),
        caller.ask({}),
        caller.ask({"id": 0, "name": "", "os_type": "bsd", "os_name": "x" * 256}),
        caller.ask({"id": id_}, {"if_revision": "1"}),
        caller.ask({"id": id_}, properties={"reply_to": "image.update"}),
        caller.ask(body="[[1], {}, {}]"),
        caller.ask(body="nonsense"),
        caller.ask({"id": id_}, {"id": "an id with spaces"}),
        caller.ask({"id": 10**9}),
        caller.ask({"id": id_, "name": taken}),
        caller.ask({"id": id_, "name": f"poison-{id_}"}),
        caller.ask({"id": id_}, {"authorization": "Bearer x"}),
        caller.ask({"id": id_}, read_only),
        caller.ask({"id": id_}, {"if_revision": 9}),
        caller.ask({"id": id_, "description": "late"}, {"expires": "2024-03-20T10:30:00Z"}),
    ]
    others = [code for code in contract.CODES if code not in {"InvalidParameter", "TooManyRequests"}]
    assert asked == [*["InvalidParameter"] * 8, *others]


def test_who_asks_too_often_is_answered_as_the_schemas_say(caller: Caller) -> None:
    id_, hasty = caller.service.image()["id"], Caller(caller.service, caller.key)
    hasty.proof = {"authorization": f"Bearer {caller.key.token(600, sub='hasty')}"}
    messages = dict(hasty.message({"id": id_}) for _ in range(200))
    caller.service.push(*messages.values())
    records = [caller.service.stored(request_id) for request_id in messages]
    assert all(is_valid("result", record) for record in records)
    assert "TooManyRequests" in {record["result"].get("error", {}).get("code") for record in records}
    assert all(
        is_valid("reply-message", json.loads(entry))
        for entry in caller.service.broker.lrange(contract.REPLY_QUEUE, 0, -1)
    )


def test_a_request_id_that_is_used_again_is_answered_as_the_schemas_say(caller: Caller) -> None:
    id_, queue = caller.service.image()["id"], f"image.replies.orders.{uuid.uuid4()}"
    request_id, entry = caller.message({"id": id_})
    caller.send(entry, request_id)
    _, other = caller.message({"id": id_, "name": "x"}, {"id": request_id}, properties={"reply_to": queue})
    reply = caller.send(other, request_id, queue)
    assert [detail["reason"] for detail in reply["error"]["details"]] == ["request_id_reused"]


def test_a_settlement_is_answered_as_the_schemas_say(caller: Caller) -> None:
    fields = {"request_id": str(uuid.uuid4())}
    task_id, entry = caller.message(fields, {"task": contract.SETTLE_TASK})
    assert is_valid("settle-request", fields)
    assert is_valid("settle-message", json.loads(entry))
    reply = caller.send(entry, fields["request_id"])
    caller.result(task_id, reply)
    assert (reply["error"]["code"], reply["digest"]) == ("DeadlineExceeded", None)
