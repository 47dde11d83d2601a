"""A message as it came, read strictly: what its task may see of it, and what is wrong with it."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from kombu import Message

from aries_images import contract
from aries_images.contract import MalformedMessageError
from worker.task import MALFORMED, RECEIVED_AT, read_deadline

#: The decoded parts of a message: positional arguments, keyword arguments, what is left of Celery's canvas.
Body = tuple[list[Any], dict[str, Any], dict[str, Any]]

_JSON = "application/json"
_ENCODINGS = ("utf-8", "utf8", "binary")
_ETA_MAX = timedelta(hours=1)
#: What `embed` may hold only if it is empty: each has the worker send further messages, with the worker's rights.
_CANVAS = ("callbacks", "errbacks", "chain", "chord")
#: Headers that are passed on, with the type they must have to be; Celery stops over some of the others.
_HEADERS: dict[str, type | tuple[type, ...]] = {
    "lang": str,
    "task": str,
    "root_id": str,
    "parent_id": str,
    "group": str,
    "origin": str,
    "argsrepr": str,
    "kwargsrepr": str,
    "ignore_result": bool,
    "retries": int,
    "deliveries": int,
    "eta": str,
    "expires": str,
    "stamps": dict,
    "stamped_headers": list,
    contract.AUTHORIZATION: str,
    contract.IF_REVISION: object,
    contract.TRACEPARENT: str,
    contract.SENT_AT: (int, float),
}
_NO_TYPE: tuple[type, ...] = ()


def is_attributable(request_id: object) -> bool:
    """Whether an answer can be addressed by that id, well-formed or not."""
    if isinstance(request_id, str):
        return 0 < len(request_id) <= 255 and contract.is_text(request_id)  # noqa: PLR2004  # as a good one may be
    return type(request_id) is int


def read_message(message: Message) -> tuple[dict[str, Any], Body]:
    """The headers and the decoded body, as they came where they are right; else no body, and a header that says why.

    The message must have an attributable id. Celery stops the worker, or drops the message without an answer, over
    each of the things that are checked here.
    """
    headers = {name: value for name, value in message.headers.items() if _is_passed_on(name, value)}
    headers["id"] = str(message.headers["id"])
    headers[RECEIVED_AT] = time.time()
    if not isinstance(message.properties, Mapping):
        message.properties = {}
    try:
        _check_headers(message)
        args, kwargs, embed = contract.read_body(message.body)
        if any(embed.get(name) for name in _CANVAS):
            raise MalformedMessageError("callbacks, chains and chords are not accepted")
    except MalformedMessageError as malformed:
        headers[MALFORMED] = str(malformed)
        for name in ("eta", "expires"):
            headers.pop(name, None)
        return headers, ([], {}, {})
    return headers, (args, kwargs, {})


def _is_passed_on(name: str, value: object) -> bool:
    if not isinstance(value, _HEADERS.get(name, _NO_TYPE)):
        return False
    if name == contract.IF_REVISION:
        return True  # left out it would be no condition: its task says what is wrong with it
    return all(map(contract.is_text, value)) if isinstance(value, list) else _is_no_bad_text(value)


def _is_no_bad_text(value: object) -> bool:
    return not isinstance(value, str) or contract.is_text(value)


def _check_headers(message: Message) -> None:
    headers = message.headers
    if not contract.is_request_id(headers["id"]):
        raise MalformedMessageError(contract.REQUEST_ID_RULE)
    if headers.get("compression") is not None:
        raise MalformedMessageError("compressed messages are not accepted")
    if message.content_type != _JSON or str(message.content_encoding or "utf-8").lower() not in _ENCODINGS:
        raise MalformedMessageError("the body must be application/json in UTF-8")
    for name in ("expires", "eta"):
        if headers.get(name) is not None:
            try:
                moment = read_deadline(headers[name])
            except (ValueError, OverflowError):
                raise MalformedMessageError(f"{name} must be an ISO 8601 moment") from None
            if name == "eta" and moment is not None and moment > datetime.now(UTC) + _ETA_MAX:
                raise MalformedMessageError("eta must be within an hour: a worker holds the request until then")
