"""What goes back to an HTTP caller: the image, or an error in the one form that all errors have."""

from typing import Any, Literal, NamedTuple

import orjson
from starlette.responses import Response

from aries_images import AriesImagesError, Detail, Image, contract

#: Seconds after which asking again may help.
RETRY_AFTER = "1"


#: What can be wrong on this side of the queue: tokens beside the contract's.
Reason = Literal["no_answer", "unknown_route"]


class OwnDetail(NamedTuple):
    """A detail that the queue does not know, in the form of those that it does."""

    field: None
    reason: Reason
    message: str


class HttpError(NamedTuple):
    """An error that the queue does not know: its code in the body, its status and its message."""

    code: str
    status: int
    message: str


NOT_FOUND = HttpError("NotFound", 404, "路径不存在")
METHOD_NOT_ALLOWED = HttpError("MethodNotAllowed", 405, "方法不允许")
UNAVAILABLE = HttpError("ServiceUnavailable", 503, "服务暂不可用")
OUTCOME_UNKNOWN = HttpError("OutcomeUnknown", 504, "结果未知")
INTERNAL = HttpError(*(getattr(contract.INTERNAL_ERROR, part) for part in ("name", "status", "message")))


def of_image(image: Image, request_id: str) -> Response:
    """200: the seed's eight fields, and the revision as entity tag."""
    document = contract.image_document(image.model_dump())
    return _json(document, 200, request_id, {"ETag": f'"{image.revision}"'})


def of_error(
    error: HttpError, request_id: str, *details: Detail | OwnDetail, headers: dict[str, str] | None = None
) -> Response:
    """An error of the gateway's own."""
    document = {
        "code": error.code,
        "message": error.message,
        "details": [detail._asdict() for detail in details],
        "request_id": request_id,
    }
    return _json(document, error.status, request_id, headers or {})


def of_refusal(error: AriesImagesError, request_id: str, *, had_proof: bool) -> Response:
    """The worker's no, in the status of its code."""
    code = contract.CODES[error.code or contract.INTERNAL_ERROR.name]
    headers = {}
    if code is contract.UNAUTHORIZED:
        # RFC 6750: without credentials there is nothing to be said against them.
        headers["WWW-Authenticate"] = 'Bearer realm="aries-images"' + (', error="invalid_token"' if had_proof else "")
    if code.retry == "backoff":
        headers["Retry-After"] = RETRY_AFTER
    return of_error(HttpError(code.name, code.status, code.message), request_id, *error.details, headers=headers)


def resend(request_id: str, why: str) -> OwnDetail:
    """The advice to whoever does not know what became of his request."""
    advice = f"send the same request again with Idempotency-Key: {request_id}; it is never applied twice"
    return OwnDetail(None, "no_answer", f"{why}; {advice}")


def _json(document: dict[str, Any], status: int, request_id: str, headers: dict[str, str]) -> Response:
    return Response(
        orjson.dumps(document), status, {"X-Request-Id": request_id, **headers}, media_type="application/json"
    )
