"""The OpenAPI document of the route, made from the contract: every status, each with an example."""

from typing import Any

from aries_images import contract
from aries_images.contract import Code, UpdateRequest
from gateway import response
from gateway.request import LONGEST_WAIT, SHORTEST_WAIT, WAIT

PATH = "/aries/api/v1/image"

#: The seed's own example.
REQUEST = {
    "id": 1,
    "name": "CentOS-7.9-x64-updated",
    "os_type": "linux",
    "os_name": "CentOS",
    "description": "CentOS 7.9 64位基础镜像 - 更新版",
}
IMAGE = REQUEST | {
    "source_path": "/path/to/image/file.iso",
    "created_at": "2024-03-20T10:30:00Z",
    "updated_at": "2024-03-20T11:30:00Z",
}
_REQUEST_ID = "order-4711"
_DETAILS = {
    contract.INVALID_PARAMETER.name: ("id", "missing", "id is required"),
    contract.IMAGE_NAME_EXISTS.name: ("name", "taken", "name 'x' is used by another image"),
    response.UNAVAILABLE.code: response.resend(_REQUEST_ID, "the queue can't be reached"),
    response.OUTCOME_UNKNOWN.code: response.resend(_REQUEST_ID, f"no answer in {WAIT} seconds"),
}
_OF_GATEWAY = (response.UNAVAILABLE, response.OUTCOME_UNKNOWN)


def _text(**others: Any) -> dict[str, Any]:
    return {"schema": {"type": "string", **others}}


_HEADERS = {
    "X-Request-Id": {"description": "The request id: yours, or one that was made.", **_text()},
}
_OF_STATUS = {
    200: {"ETag": {"description": "The image's revision, for If-Match.", **_text(examples=['"7"'])}},
    401: {"WWW-Authenticate": _text()},
    429: {"Retry-After": _text()},
    500: {"Retry-After": _text()},
    503: {"Retry-After": _text()},
}


def _parameter(name: str, description: str, schema: dict[str, Any], example: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": schema, "example": example}


_PARAMETERS = [
    _parameter(
        "Idempotency-Key",
        "The request id. The same one on every resend: a request is never applied twice.",
        {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,255}$"},
        _REQUEST_ID,
    ),
    _parameter("If-Match", "Change the image only if it is still at this revision.", {"type": "string"}, '"7"'),
    _parameter(
        "Prefer",
        f"wait=N: seconds to wait, {SHORTEST_WAIT} to {LONGEST_WAIT}; {WAIT} without it. Not applied later than that.",
        {"type": "string"},
        "wait=10",
    ),
    _parameter(
        "traceparent",
        "W3C trace context, kept with the revision.",
        {"type": "string"},
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
]


def image_schema() -> dict[str, Any]:
    """The eight fields of an image."""
    of_request = UpdateRequest.model_json_schema()["properties"]
    kept = {name: {"type": "string"} for name in ("source_path", "created_at", "updated_at")}
    kept["source_path"]["description"] = "镜像源文件路径"
    for name, description in (("created_at", "创建时间"), ("updated_at", "更新时间")):
        kept[name] |= {"format": "date-time", "description": description}
    fields = {name: {key: of_request[name][key] for key in ("type", "description")} for name in contract.FIELDS}
    return {
        "type": "object",
        "properties": fields | kept,
        "required": [*fields, *kept],
        "additionalProperties": False,
    }


def request_schema() -> dict[str, Any]:
    """The body, as JSON Schema can say it; the rules on characters are the worker's."""
    schema = UpdateRequest.model_json_schema()
    for field in schema["properties"].values():
        field.pop("title", None)
        field.pop("default", None)  # an absent field keeps what is stored
    return {key: schema[key] for key in ("type", "properties", "required", "additionalProperties")}


def error_schema() -> dict[str, Any]:
    """The body of every error."""
    detail = {
        "type": "object",
        "properties": {
            "field": {"type": ["string", "null"]},
            "reason": {"type": "string"},
            "message": {"type": "string"},
        },
        "required": ["field", "reason", "message"],
    }
    return {
        "type": "object",
        "properties": {
            "code": {"type": "string"},
            "message": {"type": "string"},
            "details": {"type": "array", "items": detail},
            "request_id": {"type": "string"},
        },
        "required": ["code", "message", "details", "request_id"],
        "additionalProperties": False,
    }


def _example(code: str, message: str) -> dict[str, Any]:
    details = [dict(zip(("field", "reason", "message"), _DETAILS[code], strict=True))] if code in _DETAILS else []
    return {"code": code, "message": message, "details": details, "request_id": _REQUEST_ID}


def _content(schema: str, **examples: Any) -> dict[str, Any]:
    named = {name: {"value": value} for name, value in examples.items()}
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "examples": named}}


def _responses() -> dict[str, Any]:
    found: dict[int, dict[str, str]] = {}
    errors: list[Code | response.HttpError] = [*contract.CODES.values(), *_OF_GATEWAY]
    for error in errors:
        name = error.name if isinstance(error, Code) else error.code
        found.setdefault(error.status, {})[name] = error.message
    described = {
        str(status): {
            "description": ", ".join(f"{code}: {message}" for code, message in codes.items()),
            "headers": _HEADERS | _OF_STATUS.get(status, {}),
            "content": _content("Error", **{code: _example(code, message) for code, message in codes.items()}),
        }
        for status, codes in sorted(found.items())
    }
    image = {"description": "The image as the update left it.", "headers": _HEADERS | _OF_STATUS[200]}
    return {"200": image | {"content": _content("Image", updated=IMAGE)}, **described}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    operation = {
        "operationId": "UpdateImage",
        "summary": "更新镜像",
        "description": "更新指定镜像的信息。A field that is absent keeps its value.",
        "security": [{"token": []}],
        "parameters": _PARAMETERS,
        "requestBody": {"required": True, "content": _content("UpdateImage", seed=REQUEST)},
        "responses": _responses(),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "aries-images", "version": "v1", "description": "Updates of image metadata."},
        "paths": {PATH: {"put": operation}},
        "components": {
            "schemas": {"UpdateImage": request_schema(), "Image": image_schema(), "Error": error_schema()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }
