"""What an HTTP request asks for: its body and headers, read into what goes through the queue."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from aries_images import Detail, InvalidParameter, contract
from aries_images.contract import MalformedMessageError

#: Seconds that a caller waits who does not say how long, and at least and at most.
WAIT, SHORTEST_WAIT, LONGEST_WAIT = 30, 1, 60

#: Characters of a header that is passed on. A token that a worker accepts is shorter; what is much longer would make of
#: the request a message that no worker reads, and that is kept with the dead letters.
_HEADER_MAX = 16 * 1024
#: Seconds that a body may take to come.
_BODY_SECONDS = 10.0

_WAIT = re.compile(r'\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(;.*)?', re.IGNORECASE | re.ASCII)
_ENTITY_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"', re.ASCII)
_REVISION = re.compile(r"[0-9]{1,18}", re.ASCII)
#: No image is ever at it: stands for an entity tag that is not one of ours, so that the worker says no in its turn.
_NO_REVISION = -1


@dataclass(frozen=True, slots=True)
class Asked:
    """The headers of a request, as far as they mean something here."""

    authorization: str | None
    if_revision: int | None
    traceparent: str | None
    #: Seconds to wait for the answer.
    wait: int


def request_id_of(request: Request) -> str | None:
    """The idempotency key, with or without quotation marks; None if there is none.

    Raises:
        InvalidParameter: it can't be a request id.
    """
    key = _only(request, "idempotency-key")
    if key is None:
        return None
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not contract.is_request_id(key):
        raise _malformed(f"Idempotency-Key: {contract.REQUEST_ID_RULE}")
    return key


def asked(request: Request) -> Asked:
    """The other headers.

    Raises:
        InvalidParameter: one that must be understood can't be.
    """
    traceparent = request.headers.get("traceparent")
    return Asked(
        authorization=_only(request, "authorization"),
        if_revision=_revision(_only(request, "if-match")),
        # W3C: a trace context that can't be read is as good as none.
        traceparent=traceparent if contract.is_traceparent(traceparent) else None,
        wait=_wait(",".join(request.headers.getlist("prefer"))),
    )


async def body_of(request: Request) -> Mapping[str, Any]:
    """The body: one JSON object of at most `contract.MAX_BODY_BYTES`; no more than that is ever kept.

    Raises:
        InvalidParameter: it is anything else.
        ClientDisconnect: the caller hung up before the end.
    """
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > contract.MAX_BODY_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            body = await _read(request)
    except TimeoutError:
        raise _malformed(f"the body did not come within {_BODY_SECONDS:.0f} seconds") from None
    try:
        document = contract.read_json(body)
    except MalformedMessageError as error:
        raise _malformed(str(error)) from None
    if not isinstance(document, dict):
        raise _malformed("the body is not a JSON object")
    return document


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > contract.MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _only(request: Request, name: str) -> str | None:
    """The value of a header that may be there once."""
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise _malformed(f"the header {name} is there more than once")
    if values and len(values[0]) > _HEADER_MAX:
        raise _malformed(f"the header {name} has more than {_HEADER_MAX} characters")
    return values[0] if values else None


def _revision(if_match: str | None) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None  # any: there is no update of an image that is not there, whatever it says here
    tag = _ENTITY_TAG.fullmatch(if_match.strip())
    if tag is None:
        raise _malformed('If-Match must be one entity tag, such as "7", or *')
    weak, revision = tag.groups()
    return int(revision) if not weak and _REVISION.fullmatch(revision) else _NO_REVISION


def _wait(prefer: str) -> int:
    # RFC 7240: a preference that can't be read is as good as none.
    found = [match for part in prefer.split(",") if (match := _WAIT.fullmatch(part))]
    return min(max(int(found[0][1]), SHORTEST_WAIT), LONGEST_WAIT) if found else WAIT


def _too_large() -> InvalidParameter:
    return _malformed(f"the body has more than {contract.MAX_BODY_BYTES} bytes")


def _malformed(why: str) -> InvalidParameter:
    return InvalidParameter(f"InvalidParameter: {why}", details=(Detail(None, "malformed_message", why),))
