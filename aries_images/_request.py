"""A request as it goes out: what the caller gives, made into the message that a Celery client would send."""

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cache
from typing import Any, Final

from aries_images import contract
from aries_images._credentials import Credentials
from aries_images.contract import Detail
from aries_images.errors import InvalidParameter

#: Longest timeout, in seconds: results are not kept longer than that.
MAX_TIMEOUT = 86_400.0

_JSON = "application/json"
#: What Celery writes for a task that is no part of a canvas.
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Absent(Enum):
    """The type of `ABSENT`."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


#: The value of a field that is not sent: the image keeps what it has. (`None` would be sent, and refused.)
ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request, ready to be sent: what `kombu.Producer.publish` is called with, and what tells its answer."""

    request_id: str
    #: The request that its reply speaks of: itself, or the one to be settled.
    about: str
    #: Whether the id was made for this call, so that whatever is stored under it answers this call.
    own_id: bool
    #: Of the body that is to be answered; None where any will do, since it is not known: for a settlement.
    digest: str | None
    body: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    #: One of `contract.QUEUES`.
    queue: str = contract.QUEUE


def new_request_id() -> str:
    """An id that nobody else has used."""
    return str(uuid.uuid4())


def result_key(request_id: str) -> str:
    """Key and channel of the result of a request."""
    return contract.RESULT_KEY_PREFIX + request_id


def checked_timeout(timeout: float) -> float:
    """`timeout`, if it is one that can be kept.

    Raises:
        ValueError: it is not positive, not a number, or over a day.
    """
    if not 0 < timeout <= MAX_TIMEOUT:
        raise ValueError(f"timeout must be over 0 and at most {MAX_TIMEOUT:.0f} seconds, not {timeout!r}")
    return timeout


def checked_request_id(request_id: str) -> str:
    """`request_id`, if it may serve as one.

    Raises:
        InvalidParameter: it may not.
    """
    if not contract.is_request_id(request_id):
        raise _malformed(contract.REQUEST_ID_RULE, None)
    return request_id


def compose(  # noqa: PLR0913 - the parts of a message
    request_id: str,
    kwargs: Mapping[str, Any],
    *,
    own_id: bool,
    timeout: float,
    headers: Mapping[str, Any],
    reply_to: str | None,
    credentials: Credentials,
    settles: str | None = None,
    queue: str = contract.QUEUE,
) -> Outgoing:
    """The message that asks for `kwargs`, as a Celery client would write it (protocol 2, JSON).

    With `settles` it asks what became of the request of that id instead.

    Raises:
        InvalidParameter: `kwargs` or `headers` can't be written as JSON, or are larger than a worker accepts.
    """
    given = {name: value for name, value in headers.items() if value is not None}
    try:
        digest = contract.digest_of(kwargs)
        contract.digest_of(given)
    except contract.MalformedMessageError as error:
        raise _malformed(str(error), request_id) from None
    body = json.dumps([[], kwargs, _EMBED], ensure_ascii=False, separators=(",", ":"))
    if len(body.encode()) > contract.MAX_BODY_BYTES:
        raise _malformed(f"the body has more than {contract.MAX_BODY_BYTES} bytes", request_id)
    if proof := credentials.header(request_id, digest, timeout):
        given[contract.AUTHORIZATION] = proof
    task = contract.SETTLE_TASK if settles else contract.TASK
    return Outgoing(
        request_id=request_id,
        about=settles or request_id,
        own_id=own_id,
        digest=None if settles else digest,
        body=body,
        headers={**_task_headers(task, request_id, kwargs, timeout), **given},
        properties={
            "content_type": _JSON,
            "content_encoding": "utf-8",
            "correlation_id": request_id,
            "reply_to": reply_to or "",
        },
        queue=queue,
    )


def _task_headers(task: str, request_id: str, kwargs: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Celery's own headers: the worker needs `task`, `id` and `expires`, Flower and its like show the others."""
    now = time.time()
    expires = datetime.fromtimestamp(now, UTC) + timedelta(seconds=timeout)
    return {
        "lang": "py",
        "task": task,
        "id": request_id,
        "root_id": request_id,
        "parent_id": None,
        "group": None,
        "group_index": None,
        "shadow": None,
        "eta": None,
        "expires": expires.isoformat(),
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "()",
        # Monitors and logs show this text to people who may not see the values.
        "kwargsrepr": f"{{{', '.join(_shown(kwargs))}}}",
        "origin": f"{os.getpid()}@{_host()}",
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        contract.SENT_AT: now,
    }


@cache
def _host() -> str:
    return socket.gethostname()


def _shown(kwargs: Mapping[str, Any]) -> list[str]:
    image_id, request_id = kwargs.get("id"), kwargs.get("request_id")
    open_to_all: dict[str, Any] = {}
    if type(image_id) is int and 0 < image_id < 2**63:
        open_to_all["id"] = image_id
    if contract.is_request_id(request_id):
        open_to_all["request_id"] = request_id
    return [f"'{name}': {open_to_all[name]!r}" if name in open_to_all else f"'{name}': ..." for name in kwargs]


def _malformed(why: str, request_id: str | None) -> InvalidParameter:
    detail = Detail(None, "malformed_message", why)
    return InvalidParameter(f"InvalidParameter: {why}", request_id=request_id, details=(detail,))
