"""The documents that are made from the contract: up to date, sound in themselves, and as strict as the contract."""

import json
import unicodedata
from collections.abc import Iterator
from copy import deepcopy
from html.parser import HTMLParser
from typing import Any

import openapi_spec_validator
import pytest
import yaml
from jsonschema import Draft202012Validator

from aries_images import contract, examples
from aries_images.contract import Refusal, validate
from documents.files import DOCS, all_documents
from documents.schema_files import FILES

ASYNCAPI = yaml.safe_load((DOCS / "asyncapi.yaml").read_text())
OPENAPI = yaml.safe_load((DOCS / "openapi.yaml").read_text())
PAGE = (DOCS / "asyncapi.html").read_text()


def schema_of(file: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((DOCS / "schemas" / f"{file}.schema.json").read_text())
    return schema


def accepts(file: str, document: Any) -> bool:
    return bool(Draft202012Validator(schema_of(file)).is_valid(document))


# --- made from the contract ---


def test_every_document_is_up_to_date() -> None:
    stale = [str(file) for file, text in all_documents().items() if not file.exists() or file.read_text() != text]
    assert stale == [], "make documents"


def test_there_is_no_schema_that_nobody_makes() -> None:
    assert {file.name.removesuffix(".schema.json") for file in (DOCS / "schemas").iterdir()} == set(FILES)


# --- sound in themselves ---


@pytest.mark.parametrize("file", FILES)
def test_a_schema_file_is_a_schema_and_needs_no_other(file: str) -> None:
    schema = schema_of(file)
    Draft202012Validator.check_schema(schema)
    references = [line.split('"')[-2] for line in json.dumps(schema, indent=1).splitlines() if '"$ref": ' in line]
    assert {reference.removeprefix("#/$defs/") for reference in references} == {*schema.get("$defs", ())}


def asyncapi_examples() -> Iterator[Any]:
    """Name of a schema in the AsyncAPI document, and an example of what it describes."""
    for name, message in ASYNCAPI["components"]["messages"].items():
        schema = message["payload"]["$ref"].rsplit("/", 1)[-1]
        for example in message["examples"]:
            yield pytest.param(schema, example["payload"], id=f"{name}-{example['name']}")
    for name, schema in ASYNCAPI["components"]["schemas"].items():
        for example in schema.get("examples", ()):
            yield pytest.param(name, example, id=name)


def test_every_message_and_every_reply_has_an_example() -> None:
    named = {parameters.id for parameters in asyncapi_examples()}
    assert {"Success", *contract.CODES} <= named
    assert {name.split("-")[0] for name in named} >= {*ASYNCAPI["components"]["messages"]}


@pytest.mark.parametrize(("name", "example"), [*asyncapi_examples()])
def test_each_example_is_what_its_schema_says_and_so_is_the_json_in_it(name: str, example: Any) -> None:
    def check(schema: dict[str, Any], document: Any) -> None:
        # References lead into the document, so the schema is put where they start.
        Draft202012Validator(schema | {"components": ASYNCAPI["components"]}).validate(document)

    check({"$ref": f"#/components/schemas/{name}"}, example)
    if "body" in example:
        body = ASYNCAPI["components"]["schemas"][name]["properties"]["body"]
        check(body["contentSchema"], json.loads(example["body"]))


def test_the_openapi_document_is_one() -> None:
    openapi_spec_validator.validate(OPENAPI)
    parameters = OPENAPI["paths"]["/aries/api/v1/image"]["put"]["parameters"]
    assert parameters
    for parameter in parameters:
        Draft202012Validator(parameter["schema"]).validate(parameter["example"])


class Links(HTMLParser):
    """Finds what a page refers to, and what in it can be referred to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            elif name not in {"lang", "charset", "name", "content", "scope", "class", "tabindex", "aria-label", "open"}:
                self.targets.append(value or "")


def test_the_page_refers_to_nothing_outside_itself() -> None:
    page = Links(PAGE)
    assert page.targets
    assert [target for target in page.targets if not target.startswith("#")] == []
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "base", "object", "embed", "source"})
    style = PAGE.partition("<style>")[2].partition("</style>")[0]
    assert style
    assert [word for word in ("url(", "@import", "src:", "image-set(") if word in style] == []


def test_every_link_in_the_page_leads_somewhere() -> None:
    page = Links(PAGE)
    assert len(page.ids) == len(set(page.ids))
    assert {target.removeprefix("#") for target in page.targets} <= set(page.ids)


# --- as strict as the contract ---


def reply_with(*path: str, value: Any) -> dict[str, Any]:
    """The example of a name that is taken, with something else at one place."""
    document = examples.refused(contract.IMAGE_NAME_EXISTS).document
    part = document
    for step in path[:-1]:
        part = part[int(step)] if isinstance(part, list) else part[step]
    part[path[-1]] = value
    return document


@pytest.mark.parametrize(
    "document",
    [
        reply_with("status", value=404),
        reply_with("status", value=200),
        reply_with("digest", value=None),
        reply_with("digest", value="0" * 63),
        reply_with("request_id", value="a b"),
        reply_with("further", value=1),
        reply_with("error", "code", value="ImageNotFound"),
        reply_with("error", "code", value="NameExists"),
        reply_with("error", "message", value="no"),
        reply_with("error", "retry", value="backoff"),
        reply_with("error", "details", value=[]),
        reply_with("error", "details", "0", "reason", value="too_long"),
        reply_with("error", "details", "0", "reason", value="used"),
        reply_with("error", "details", "0", "field", value="os_name"),
        reply_with("error", "details", "0", "further", value=1),
        examples.success().document | {"status": 201},
        examples.success().document | {"revision": 0},
        examples.success().document | {"error": {}},
        examples.success().document | {"image": {**examples.IMAGE, "description": None}},
        examples.success().document | {"image": {**examples.IMAGE, "size": 1}},
        examples.success().document | {"image": {**examples.IMAGE, "updated_at": "2024-03-20T11:30:00.5Z"}},
        *(
            examples.success().document
            | {"image": {name: value for name, value in examples.IMAGE.items() if name != key}}
            for key in examples.IMAGE
        ),
    ],
)
def test_what_no_worker_would_answer_is_no_reply(document: dict[str, Any]) -> None:
    assert accepts("reply", examples.refused(contract.IMAGE_NAME_EXISTS).document)
    assert not accepts("reply", document)


@pytest.mark.parametrize("code", [None, *contract.CODES.values()], ids=lambda code: code.name if code else "Success")
def test_an_event_has_the_type_of_its_reply(code: contract.Code | None) -> None:
    reply = examples.refused(code) if code else examples.success()
    event = json.loads(contract.reply_event(reply, examples.MOMENT))
    assert accepts("reply-event", event)
    types = {contract.event_type(other) for other in (None, *contract.CODES)} | {"aries.image.deleted"}
    for other in types - {event["type"]}:
        assert not accepts("reply-event", event | {"type": other})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"id": 0},
        {"id": 2**63},
        {"id": "1"},
        {"id": True},
        {"id": 1, "name": ""},
        {"id": 1, "name": None},
        {"id": 1, "name": " x"},
        {"id": 1, "name": "x\u3000"},
        {"id": 1, "os_name": "a\u2028b"},
        {"id": 1, "name": "x" * 256},
        {"id": 1, "os_type": "Linux"},
        {"id": 1, "description": "x" * 4097},
        {"id": 1, "description": "\0"},
        {"id": 1, "revision": 1},
        {"id": 1, "size": 1},
    ],
)
def test_fields_that_are_refused_are_no_update_request(fields: dict[str, Any]) -> None:
    assert isinstance(validate(fields), Refusal)
    assert not accepts("update-request", fields)


@pytest.mark.parametrize(("field", "refused"), [("name", {"Cc", "Zl", "Zp"}), ("description", {"Cc"})])
def test_the_schema_knows_which_characters_are_allowed(field: str, refused: set[str]) -> None:
    """All of one category, as the contract; of others it refuses none that the contract allows."""
    validator = Draft202012Validator(schema_of("update-request"))
    for number in (*range(0x2100), 0x3000, 0x955C, 0xE000, 0xFEFF, 0x1F600, 0x10FFFD):
        for text in (f"{chr(number)}b", f"a{chr(number)}b"):
            fields = {"id": 1, field: text}
            if not isinstance(validate(fields), Refusal):
                assert validator.is_valid(fields), hex(number)
            elif unicodedata.category(chr(number)) in refused:
                assert not validator.is_valid(fields), hex(number)


@pytest.mark.parametrize(
    ("queue", "right"),
    [
        ("image.replies", True),
        ("image.replies.orders", True),
        ("image.replies.orders.a:b.c", True),
        ("image.repliesx", False),
        ("image-replies", False),
        ("image.replies.or ders", False),
        ("image.replies." + "x" * 65, False),
        ("image.replies.x." + "x" * 200, False),
        ("image.update", False),
    ],
)
def test_a_reply_queue_has_the_name_that_the_contract_gives_it(queue: str, right: bool) -> None:  # noqa: FBT001  # a table
    caller = queue.removeprefix("image.replies.").split(".")[0]
    taken = contract.CALLER_FORM.fullmatch(caller) is not None and contract.reply_queue(queue, caller) == queue
    assert taken is right
    message = deepcopy(ASYNCAPI["components"]["messages"]["update"]["examples"][1]["payload"])
    message["properties"]["reply_to"] = queue
    assert accepts("update-message", message) is right
