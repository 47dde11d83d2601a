"""The transaction: a list of requests in, a list of replies out, applied as if one by one, committed together."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aries_images import contract
from aries_images.contract import Detail, Refusal, Reply, UpdateRequest
from tasks import rows
from worker.database import Database, HeldError, is_away, is_held, is_race
from worker.task import pause_after

logger = logging.getLogger(__name__)

#: What a request that is settled comes to, unless the ledger knows it: from then on it can never be applied.
FENCE = Refusal(contract.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class Request:
    """One request that passed the door: to be applied, or to be refused with `asks` and remembered so."""

    id: str
    #: None where the body could not be read, and where there is none: a request that is settled.
    digest: str | None
    caller: str
    asks: UpdateRequest | Refusal
    #: The images that the caller may update; None for all. Of others he is told that they are not there.
    images: frozenset[int] | None = None
    deadline: datetime | None = None
    #: An operator took it back before it was applied.
    revoked: bool = False
    if_revision: int | None = None
    traceparent: str | None = None
    #: How often it was tried before, and the Unix time in seconds after which it is not tried again.
    tries: int = 0
    try_until: float = 0.0

    @property
    def image_id(self) -> int | None:
        """The image that it is about, where that can be read."""
        return self.asks.id if isinstance(self.asks, UpdateRequest) else None


def apply_updates(requests: Sequence[Request], database: Database) -> list[Reply | None]:
    """Apply `requests` in order, in one transaction; the replies are in the same order and committed.

    None in place of a reply means: not now, try again. Another transaction got in the way, or the database is away.
    A request whose time is up is answered `InternalError` instead. Others may hold a row for a moment; if it is
    longer, the transaction does without what they hold. If it fails in another way the requests are applied one by
    one, so that one never costs another its answer; the one at fault is answered `InternalError`, and why is in the
    log alone.
    """
    first = not any(request.tries for request in requests)
    for waits in (True, False) if first else (False,):
        try:
            return _attempt(requests, database, waits=waits)
        except Exception as error:  # noqa: BLE001  # whatever it is, each of them gets an answer
            failure = error
        if not is_held(failure):
            break
    if len(requests) > 1 and not is_away(failure):
        return _one_by_one(requests, database)
    return [_undecided(request, failure) for request in requests]


def _one_by_one(requests: Sequence[Request], database: Database) -> list[Reply | None]:
    """One transaction each; no second try meanwhile at a database that is away, or at an image that others hold."""
    replies: list[Reply | None] = []
    away: Exception | None = None
    held: dict[int | None, Exception] = {}
    for request in requests:
        failure = away or held.get(request.image_id)
        if failure is None:
            try:
                replies += _attempt([request], database, waits=False)
            except Exception as error:  # noqa: BLE001  # as above
                failure = error
            else:
                if replies[-1] is None:
                    held[request.image_id] = HeldError()
                continue
            if is_away(failure):
                away = failure
            elif is_race(failure) and request.image_id is not None:
                held[request.image_id] = failure
        replies.append(_undecided(request, failure))
    return replies


def _undecided(request: Request, failure: Exception) -> Reply | None:
    """What becomes of a request that could not be decided: it is tried again, if that can help and there is time."""
    passing = is_race(failure) or is_away(failure)
    known = {name: getattr(request, name) for name in ("caller", "image_id", "tries")} | {"request_id": request.id}
    if passing and time.time() + pause_after(request.tries) < request.try_until:
        why = type(getattr(failure, "orig", failure)).__name__
        logger.warning("%s is tried again: %s", request.id, why, extra=known)
        return None
    logger.error("cannot apply %s", request.id, exc_info=failure, extra=known)
    return Reply.refused(request.id, request.digest, Refusal(contract.INTERNAL_ERROR), request.image_id)


def _attempt(requests: Sequence[Request], database: Database, *, waits: bool) -> list[Reply | None]:
    updates = [request.asks for request in requests if isinstance(request.asks, UpdateRequest)]
    image_ids, request_ids = {update.id for update in updates}, {request.id for request in requests}
    names = {update.name for update in updates if "name" in update.model_fields_set}
    with database.transaction(waits=waits) as connection:
        batch = _Batch(rows.read(connection, image_ids, request_ids, names, waits=waits))
        replies = [batch.answer(request) for request in requests]
        rows.write(connection, batch.writes)
    return [reply or _undecided(request, HeldError()) for request, reply in zip(requests, replies, strict=True)]


class _Batch:
    """The locked rows, in memory, while the requests are applied to them one after the other."""

    def __init__(self, read: rows.Rows) -> None:
        self._images = images = dict(read.images)
        self._held = read.held
        self._ledger = dict(read.ledger)
        self._forgotten = read.applied
        # A locked row is known better than what a look-up by name says of it.
        self._holders = {name: id_ for name, id_ in read.holders.items() if id_ not in images}
        self._holders.update((image["name"], id_) for id_, image in images.items())
        self._held_at_first = dict(self._holders)
        self._now = datetime.now(UTC)
        self.writes = rows.Writes()

    def answer(self, request: Request) -> Reply | None:
        """The reply to `request`, from the ledger if it is there, else decided now and entered there.

        None where that takes an image that others hold.
        """
        line = self._ledger.get(request.id)
        if line is not None:
            return _replay(request, line)
        if request.id in self._forgotten:
            return _forgotten(request, self._forgotten[request.id])
        if request.image_id in self._held and not self._is_late(request):
            return None
        reply = self._decide(request)
        if not reply.stored:
            return reply
        line = {
            "request_id": request.id,
            "digest": request.digest,
            "caller": request.caller,
            "reply": reply.text,
            "code": reply.code,
            "image_id": reply.image_id,
            "answered_at": self._now,
        }
        self._ledger[request.id] = line
        self.writes.answers.append(line)
        return reply

    def _decide(self, request: Request) -> Reply:
        asks = request.asks
        if isinstance(asks, Refusal):
            return Reply.refused(request.id, request.digest, asks)
        if refusal := self._objection(request, asks):
            return Reply.refused(request.id, request.digest, refusal, asks.id)
        image = self._images[asks.id]
        changes = {field: value for field, value in asks.changes.items() if image[field] != value}
        if changes:
            image = self._change(request, image, changes)
        return Reply.success(request.id, request.digest or "", image, image["revision"])

    def _objection(self, request: Request, asks: UpdateRequest) -> Refusal | None:
        """The first that applies, in the published order of precedence (contract 4)."""
        if self._is_late(request):
            return Refusal(contract.DEADLINE_EXCEEDED)
        image = self._images.get(asks.id)
        if image is None or (request.images is not None and asks.id not in request.images):
            return Refusal(contract.IMAGE_NOT_FOUND)
        if request.if_revision not in (None, image["revision"]):
            return Refusal(contract.PRECONDITION_FAILED)
        if "name" in asks.model_fields_set and self._holders.get(asks.name, asks.id) != asks.id:
            said = f"name '{asks.name}' is used by another image"
            return Refusal(contract.IMAGE_NAME_EXISTS, (Detail("name", "taken", said),))
        return None

    def _is_late(self, request: Request) -> bool:
        return request.revoked or (request.deadline is not None and self._now > request.deadline)

    def _change(self, request: Request, image: rows.Row, changes: dict[str, Any]) -> rows.Row:
        after = image | changes
        after["revision"] = image["revision"] + 1
        after["updated_at"] = max(self._now, image["updated_at"])
        if "name" in changes:
            del self._holders[image["name"]]
            self._holders[after["name"]] = image["id"]
            first = self._held_at_first.get(after["name"])
            if first is not None and first != image["id"]:
                self.writes.gave_name_away.add(first)
        self._images[image["id"]] = self.writes.images[image["id"]] = after
        self.writes.revisions.append(
            {
                "image_id": image["id"],
                "revision": after["revision"],
                "before": {field: image[field] for field in contract.UPDATABLE},
                "after": {field: after[field] for field in contract.UPDATABLE},
                "request_id": request.id,
                "caller": request.caller,
                "at": self._now,
                "traceparent": request.traceparent,
            }
        )
        return after


def _replay(request: Request, line: rows.Row) -> Reply:
    """The stored reply, to the byte; but never to another caller, and never to another body."""
    if line["caller"] != request.caller:
        return Reply.refused(request.id, request.digest, Refusal(contract.FORBIDDEN))
    is_fence = line["digest"] is None and line["code"] == FENCE.code.name
    if request.asks is not FENCE and not is_fence and line["digest"] != request.digest:
        return _used(request, "this request id was used before, with another body")
    return Reply(request.id, line["reply"], line["code"], stored=True, image_id=line["image_id"], replayed=True)


def _forgotten(request: Request, change: rows.Row) -> Reply:
    """The ledger was pruned of it, but what it changed is on record: it is not applied a second time."""
    if change["caller"] != request.caller:
        return Reply.refused(request.id, request.digest, Refusal(contract.FORBIDDEN))
    made = f"revision {change['revision']} of image {change['image_id']}"
    return _used(request, f"this request id was used before and made {made}; its reply is no longer kept")


def _used(request: Request, said: str) -> Reply:
    reused = Refusal(contract.INVALID_PARAMETER, (Detail(None, "request_id_reused", said),))
    return Reply.refused(request.id, request.digest, reused, stored=False)
