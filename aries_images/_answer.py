"""An answer as it comes back: Celery's record of a result, or a reply event; data that anybody may have written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aries_images import contract
from aries_images._request import Outgoing
from aries_images.contract import Detail, Image
from aries_images.errors import AriesImagesError, InvalidParameter, OutcomeUnknown, error_from


def outcome_of(document: Mapping[str, Any]) -> Image | AriesImagesError:
    """The image or the error in a reply document.

    Raises:
        ValueError, TypeError, KeyError: it is no reply document.
    """
    if document["status"] == 200:  # noqa: PLR2004 - the contract's number for success
        return Image.model_validate({**document["image"], "revision": document["revision"]})
    return error_from(document["request_id"], document["error"])


def answer_to(request: Outgoing, stored: bytes | str, *, published: bool) -> Image | AriesImagesError | None:
    """What Celery's record of a result says about `request`; None where it does not answer it.

    The record is data from a server that others write to as well: whatever is in it, nothing is built from it
    but an image or one of our errors, and what can't be read counts as not there.

    Args:
        request: the request that waits.
        stored: the record, as published or as found under its key.
        published: whether it was published while the request waited. A record found under its key may be
            older than this try, unless the id was made for this call; then only what the ledger would say
            again is an answer.
    """
    try:
        record = json.loads(stored)
        return _answer(request, record, fresh=published or request.own_id)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _answer(request: Outgoing, record: dict[str, Any], *, fresh: bool) -> Image | AriesImagesError | None:
    state = record["status"]
    if state == "SUCCESS":
        return _reply(request, record["result"], fresh=fresh)
    if state == "FAILURE" and fresh:
        fault = contract.INTERNAL_ERROR
        return error_from(request.about, {"code": fault.name, "message": fault.message, "details": ()})
    if state == "REVOKED" and fresh:
        # Whoever revoked it can't know whether another delivery of it was applied.
        return OutcomeUnknown("the request was revoked, applied or not", request_id=request.about)
    return None


def _reply(request: Outgoing, document: dict[str, Any], *, fresh: bool) -> Image | AriesImagesError | None:
    if document["request_id"] != request.about:
        return None
    outcome = outcome_of(document)
    if request.digest is not None and document["digest"] not in (None, request.digest):
        # The ledger keeps the other body's reply, so this one is or will be refused. What the ledger does not
        # keep says nothing about this body: its own reply is still to come.
        return _reused(request.request_id) if _is_kept(outcome) else None
    kept = document["digest"] is not None and _is_kept(outcome)
    return outcome if fresh or kept else None


def _is_kept(outcome: Image | AriesImagesError) -> bool:
    """Whether the request ledger holds this reply and would give it again (contract 4, column "stored")."""
    if isinstance(outcome, Image) or outcome.code is None:
        return True
    reused = any(detail.reason == "request_id_reused" for detail in outcome.details)
    return contract.CODES[outcome.code].stored and not reused


def _reused(request_id: str) -> InvalidParameter:
    why = "this request id was used before, with another body"
    detail = Detail(None, "request_id_reused", why)
    return InvalidParameter(f"InvalidParameter: {why}", request_id=request_id, details=(detail,))


# --- the reply event -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplyEvent:
    """A reply as it was published on a reply queue (contract 5)."""

    #: The request id.
    id: str
    #: `aries.image.updated`, `aries.image.update_refused` or `aries.image.update_failed`.
    type: str
    #: The reply document, as received.
    reply: dict[str, Any]
    #: The image after the update, or None.
    image: Image | None
    #: What `update` would have raised, or None. It is not raised here.
    error: AriesImagesError | None
    #: `replayed`, `attempt`, `queue_ms`, `commit_ms`, `worker`, `traceparent`, where the worker gave them.
    headers: dict[str, Any]
    #: When the reply was made.
    time: datetime


def read_event(body: bytes | str, headers: Mapping[str, Any]) -> ReplyEvent | None:
    """The reply event in a message; None where it holds anything else."""
    try:
        event = json.loads(body)
        outcome = outcome_of(event["data"])
        if not (isinstance(event["id"], str) and isinstance(event["type"], str)):
            return None
        return ReplyEvent(
            id=event["id"],
            type=event["type"],
            reply=event["data"],
            image=outcome if isinstance(outcome, Image) else None,
            error=outcome if isinstance(outcome, AriesImagesError) else None,
            headers=dict(headers),
            time=datetime.fromisoformat(event["time"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
