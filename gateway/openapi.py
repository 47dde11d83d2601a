"""The OpenAPI document of the route, made from the contract: every status, each with an example."""

from typing import Any, get_args

from aries_images import contract, examples, schemas
from aries_images.contract import Code, Detail
from gateway import response
from gateway.request import LONGEST_WAIT, SHORTEST_WAIT, WAIT

PATH = "/aries/api/v1/image"

_ADVICE = {
    response.UNAVAILABLE: response.resend(examples.REQUEST_ID, "the queue can't be reached"),
    response.OUTCOME_UNKNOWN: response.resend(examples.REQUEST_ID, f"no answer in {WAIT} seconds"),
}


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
        {"type": "string", "pattern": schemas.whole(contract.REQUEST_ID_FORM)},
        examples.REQUEST_ID,
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
        examples.TRACEPARENT,
    ),
]


def error_schema() -> dict[str, Any]:
    """The body of every error."""
    own = (response.NOT_FOUND, response.METHOD_NOT_ALLOWED, *_ADVICE)
    reasons = dict.fromkeys([*get_args(contract.Reason), *get_args(response.Reason)])
    detail = schemas.closed(field={"type": ["string", "null"]}, reason={"enum": [*reasons]}, message={"type": "string"})
    return schemas.closed(
        code={"enum": [*contract.CODES, *(error.code for error in own)]},
        message={"type": "string"},
        details={"type": "array", "items": detail},
        request_id={"type": "string"},
    )


def _example(error: Code | response.HttpError) -> dict[str, Any]:
    """The body that it has for the examples' request."""
    details: tuple[Detail | response.OwnDetail, ...]
    if isinstance(error, Code):
        code, details = error.name, examples.details(error)
    else:
        code, details = error.code, (_ADVICE[error],)
    return {
        "code": code,
        "message": error.message,
        "details": [detail._asdict() for detail in details],
        "request_id": examples.REQUEST_ID,
    }


def _content(schema: str, **examples: Any) -> dict[str, Any]:
    named = {name: {"value": value} for name, value in examples.items()}
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "examples": named}}


def _responses() -> dict[str, Any]:
    found: dict[int, list[dict[str, Any]]] = {}
    errors: list[Code | response.HttpError] = [*contract.CODES.values(), *_ADVICE]
    for error in errors:
        found.setdefault(error.status, []).append(_example(error))
    described = {
        str(status): {
            "description": ", ".join(f"{body['code']}: {body['message']}" for body in bodies),
            "headers": _HEADERS | _OF_STATUS.get(status, {}),
            "content": _content("Error", **{body["code"]: body for body in bodies}),
        }
        for status, bodies in sorted(found.items())
    }
    image = {"description": "The image as the update left it.", "headers": _HEADERS | _OF_STATUS[200]}
    return {"200": image | {"content": _content("Image", updated=examples.IMAGE)}, **described}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    operation = {
        "operationId": "UpdateImage",
        "summary": "更新镜像",
        "description": "更新指定镜像的信息。A field that is absent keeps its value.",
        "security": [{"token": []}],
        "parameters": _PARAMETERS,
        "requestBody": {"required": True, "content": _content("UpdateImage", seed=examples.REQUEST)},
        "responses": _responses(),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "aries-images", "version": contract.VERSION, "description": "Updates of image metadata."},
        "paths": {PATH: {"put": operation}},
        "components": {
            "schemas": {
                "UpdateImage": schemas.update_request(),
                "Image": schemas.image(),
                "Error": error_schema(),
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }
