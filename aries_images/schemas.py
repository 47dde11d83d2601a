"""The contract as JSON Schemas (2020-12): the requests, and the replies and events that answer them.

They say what a worker accepts and what it sends, as far as JSON Schema can. Beyond it: 1.0 is no integer, text is in
Unicode NFC when its characters are counted, and a name has no character that can't be seen.
"""

import re
from typing import Any, get_args

from aries_images import contract, examples
from aries_images.contract import Code

Schema = dict[str, Any]

#: What is not in a name: control characters and line separators.
_NOT_IN_NAMES = r"\u0000-\u001f\u007f-\u009f\u2028\u2029"
_NAME = rf"^[^\s{_NOT_IN_NAMES}]([^{_NOT_IN_NAMES}]*[^\s{_NOT_IN_NAMES}])?$"
#: A description may have tab, LF and CR.
_DESCRIPTION = r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]*$"
_FORMS = {"name": _NAME, "os_name": _NAME, "description": _DESCRIPTION}

_ANY_TEXT: Schema = {"type": "string", "minLength": 1}
_MOMENT: Schema = {"type": "string", "format": "date-time", "pattern": r"^[0-9-]{10}T[0-9:]{8}Z$"}
_DIGEST: Schema = {
    "type": "string",
    "pattern": "^[0-9a-f]{64}$",
    "description": "SHA-256 of the fields that are answered, as canonical JSON: keys sorted, no white space, UTF-8.",
}
#: Decided on the image, so the fields were read. Of other refusals the digest may be null.
_ON_THE_IMAGE = (contract.IMAGE_NOT_FOUND, contract.IMAGE_NAME_EXISTS, contract.PRECONDITION_FAILED)
#: What can be said of a message whose id may not serve as one.
_OF_ANY_ID = (contract.INVALID_PARAMETER, contract.INTERNAL_ERROR)


def whole(form: re.Pattern[str]) -> str:
    """The regular expression for a whole text in a form of the contract's."""
    return f"^{form.pattern}$"


def described(description: str, schema: Schema) -> Schema:
    """`schema` with its description in front."""
    return {"description": description} | schema


def closed(**properties: Schema) -> Schema:
    """An object of exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def ref(name: str) -> Schema:
    """A reference to one of `definitions`."""
    return {"$ref": f"#/$defs/{name}"}


def definitions() -> dict[str, Schema]:
    """All of them by name; each refers to others as `#/$defs/<name>`."""
    replies = {"Success": _success(), **{code.name: _refusal(code) for code in contract.CODES.values()}}
    events = _events()
    return {
        "UpdateRequest": update_request(),
        "SettleRequest": settle_request(),
        "Reply": described("The reply document.", {"oneOf": [ref(name) for name in replies]}),
        **replies,
        **{name: _detail(reasons, field) for name, (reasons, field) in _DETAILS.items()},
        "Image": image(),
        "ReplyEvent": described("A reply as a CloudEvents 1.0 document.", {"oneOf": [ref(name) for name in events]}),
        **events,
    }


# --- requests ---


#: What else is to be said of the fields of an update.
_RULES = {
    "id": "the image to change",
    "name": "no other image may have it; nothing in it that can't be seen, no white space at either end",
    "os_type": "as it is written here",
    "os_name": "the same characters as in `name`",
    "description": "tab and line breaks are allowed; empty, it is cleared",
}


def request_id(description: str = "The id of the request that is answered.") -> Schema:
    """A request id."""
    return described(description, {"type": "string", "pattern": whole(contract.REQUEST_ID_FORM)})


def update_request() -> Schema:
    """The fields of an update: the seed's body."""
    schema = contract.UpdateRequest.model_json_schema()
    for name, field in schema["properties"].items():
        for of_pydantic in ("title", "default"):  # an absent field keeps what is stored
            field.pop(of_pydantic, None)
        field["description"] += f": {_RULES[name]}"
        if name in _FORMS:
            field["pattern"] = _FORMS[name]
    kept = {key: schema[key] for key in ("type", "properties", "required", "additionalProperties")}
    kept["examples"] = [examples.REQUEST]
    return described("The fields of an update. One that is absent keeps its value.", kept)


def settle_request() -> Schema:
    """The one field of a settlement."""
    return described("The field of a settlement.", closed(request_id=request_id("The request to be settled.")))


# --- replies ---


def image() -> Schema:
    """The seed's eight keys."""
    fields = contract.Image.model_json_schema()["properties"]
    del fields["revision"]
    for name, field in fields.items():
        del field["title"]
        if field.get("format") == _MOMENT["format"]:
            fields[name] = field | _MOMENT
    of_request = update_request()["properties"]["id"]
    fields["id"] |= {limit: of_request[limit] for limit in ("minimum", "maximum")}
    return described("The image as it is now.", closed(**fields) | {"examples": [examples.IMAGE]})


#: What a detail can be: its reasons, and what stands for the field that they are about.
_DETAILS: dict[str, tuple[tuple[str, ...], Schema]] = {
    "FieldDetail": (get_args(contract.FieldReason), {"type": "string"}),
    "RequestDetail": (get_args(contract.RequestReason), {"type": "null"}),
    "NameDetail": (("taken",), {"const": "name"}),
}


def _detail(reasons: tuple[str, ...], field: Schema) -> Schema:
    detail = closed(field=field, reason={"enum": [*reasons]}, message=_ANY_TEXT)
    return described("What is wrong: a stable token, and a sentence in English.", detail)


def _details(code: Code) -> Schema:
    kinds = [ref(name) for name, (reasons, _) in _DETAILS.items() if {*reasons} <= {*code.reasons}]
    if not kinds:
        return {"type": "array", "maxItems": 0}
    return {"type": "array", "minItems": 1, "items": {"oneOf": kinds} if len(kinds) > 1 else kinds[0]}


def _success() -> Schema:
    revision = described("Grows by one with every change; for `if_revision`.", {"type": "integer", "minimum": 1})
    fields = closed(
        request_id=request_id(), digest=_DIGEST, status={"const": 200}, image=ref("Image"), revision=revision
    )
    fields["examples"] = [examples.success().document]
    return described("200: the change is committed, or there was nothing to change", fields)


def _refusal(code: Code) -> Schema:
    error = closed(
        code={"const": code.name}, message={"const": code.message}, retry={"const": code.retry}, details=_details(code)
    )
    fields = closed(
        request_id=described(request_id()["description"], _ANY_TEXT) if code in _OF_ANY_ID else request_id(),
        digest=_DIGEST if code in _ON_THE_IMAGE else _DIGEST | {"type": ["string", "null"]},
        status={"const": code.status},
        error=error,
    )
    fields["examples"] = [examples.refused(code).document]
    return described(f"{code.status} {code.message}", fields)


# --- reply events ---


def _events() -> dict[str, Schema]:
    """A schema for each type of event: the type tells which replies it can carry."""
    replies = {contract.event_type(None): ["Success"]}
    for name in contract.CODES:
        replies.setdefault(contract.event_type(name), []).append(name)
    return {_name_of(kind): _event(kind, names) for kind, names in replies.items()}


def _name_of(kind: str) -> str:
    return "".join(word.title() for word in kind.rpartition(".")[2].split("_")) + "Event"


def _event(kind: str, replies: list[str]) -> Schema:
    schema = closed(
        specversion={"const": "1.0"},
        id=described("The request id.", _ANY_TEXT),
        source={"const": contract.EVENT_SOURCE},
        type={"const": kind},
        subject={"type": "string", "pattern": "^image/[1-9][0-9]*$"},
        time=described("When it was decided.", _MOMENT),
        datacontenttype={"const": "application/json"},
        data={"oneOf": [ref(name) for name in replies]} if len(replies) > 1 else ref(replies[0]),
    )
    if replies != ["Success"]:
        schema["required"].remove("subject")
    return described(f"A reply event of type {kind}.", schema)
