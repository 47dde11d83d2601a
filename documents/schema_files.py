"""The JSON Schemas one by one, each in a file that needs no other."""

from collections.abc import Iterator
from typing import Any

from aries_images.schemas import Schema
from documents import messages

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MADE_BY = "Made by `make documents` from aries_images/contract.py; not to be edited."

#: What is worth a file of its own, by the file's name.
FILES = {
    "update-request": "UpdateRequest",
    "update-message": "UpdateMessage",
    "settle-request": "SettleRequest",
    "settle-message": "SettleMessage",
    "reply": "Reply",
    "reply-event": "ReplyEvent",
    "reply-message": "ReplyMessage",
    "result": "Result",
}
_IN_FILES = "#/$defs/"


def standing_alone(name: str) -> Schema:
    """The schema of that name, with all that it refers to in `$defs`."""
    known = messages.definitions()
    needed: dict[str, Schema] = {}
    wanted = [*_references(known[name])]
    while wanted:
        other = wanted.pop(0)
        if other not in needed:
            needed[other] = known[other]
            wanted += _references(known[other])
    schema = {"$schema": DIALECT, "$comment": MADE_BY, "title": name, **known[name]}
    return schema | {"$defs": needed} if needed else schema


def moved(node: Any, to: str) -> Any:
    """`node` with all its references leading to `to` instead of `#/$defs/`."""
    if isinstance(node, dict):
        return {
            key: to + value.removeprefix(_IN_FILES) if key == "$ref" else moved(value, to)
            for key, value in node.items()
        }
    return [moved(child, to) for child in node] if isinstance(node, list) else node


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].removeprefix(_IN_FILES)
        node = [*node.values()]
    if isinstance(node, list):
        for child in node:
            yield from _references(child)
