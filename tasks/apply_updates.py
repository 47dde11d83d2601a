"""The transaction: a list of requests in, a list of replies out, applied as if one by one, committed together."""

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aries_images import contract
from aries_images.contract import Detail, Refusal, Reply, UpdateRequest
from tasks import rows
from worker.database import Database, is_away, is_race

logger = logging.getLogger(__name__)

#: Seconds: the first pause before another attempt, and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request that passed the door: to be applied, or to be refused with `asks` and remembered so."""

    id: str
    digest: str | None
    caller: str
    asks: UpdateRequest | Refusal
    deadline: datetime | None = None
    #: An operator took it back before it was applied.
    revoked: bool = False
    if_revision: int | None = None
    traceparent: str | None = None


def apply_updates(requests: Sequence[Request], database: Database, patience: float) -> list[Reply]:
    """Apply `requests` in order, in one transaction; the replies are in the same order and committed.

    A race with another transaction, or a database that is away, is tried again until the earliest deadline, or for
    `patience` seconds. If the shared transaction fails in another way the requests are applied one by one, so that
    one never costs another its answer; the one at fault is answered `InternalError`, and why is in the log alone.
    """
    give_up = time.monotonic() + patience
    pause = _FIRST_PAUSE
    while True:
        try:
            return _attempt(requests, database)
        except Exception as error:  # noqa: BLE001  # whatever it is, each of them gets an answer
            failure = error
        if len(requests) > 1 and not is_away(failure):
            return [reply for request in requests for reply in apply_updates([request], database, patience)]
        passing = is_race(failure) or is_away(failure)
        if not passing or time.monotonic() + pause > min(give_up, _earliest_deadline(requests)):
            logger.error("cannot apply %s", ", ".join(request.id for request in requests), exc_info=failure)
            return [_fault(request) for request in requests]
        logger.warning("trying again: %s", type(getattr(failure, "orig", failure)).__name__)
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, so that racers part
        pause = min(pause * 2, _LONGEST_PAUSE)


def _earliest_deadline(requests: Sequence[Request]) -> float:
    """By the monotonic clock."""
    deadlines = [request.deadline for request in requests if request.deadline is not None]
    if not deadlines:
        return float("inf")
    return time.monotonic() + (min(deadlines) - datetime.now(UTC)).total_seconds()


def _fault(request: Request) -> Reply:
    image_id = request.asks.id if isinstance(request.asks, UpdateRequest) else None
    return Reply.refused(request.id, request.digest, Refusal(contract.INTERNAL_ERROR), image_id)


def _attempt(requests: Sequence[Request], database: Database) -> list[Reply]:
    updates = [request.asks for request in requests if isinstance(request.asks, UpdateRequest)]
    with database.transaction() as connection:
        names = {update.name for update in updates if "name" in update.model_fields_set}
        batch = _Batch(rows.read(connection, {update.id for update in updates}, {each.id for each in requests}, names))
        replies = [batch.answer(request) for request in requests]
        rows.write(connection, batch.writes)
    return replies


class _Batch:
    """The locked rows, in memory, while the requests are applied to them one after the other."""

    def __init__(self, read: rows.Rows) -> None:
        self._images = images = dict(read.images)
        self._ledger = dict(read.ledger)
        # A locked row is known better than what a look-up by name says of it.
        self._holders = {name: id_ for name, id_ in read.holders.items() if id_ not in images}
        self._holders.update((image["name"], id_) for id_, image in images.items())
        self._held_at_first = dict(self._holders)
        self._now = datetime.now(UTC)
        self.writes = rows.Writes()

    def answer(self, request: Request) -> Reply:
        """The reply to `request`, from the ledger if it is there, else decided now and entered there."""
        line = self._ledger.get(request.id)
        if line is not None:
            return _replay(request, line)
        reply = self._decide(request)
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
        if request.revoked or (request.deadline is not None and self._now > request.deadline):
            return Refusal(contract.DEADLINE_EXCEEDED)
        image = self._images.get(asks.id)
        if image is None:
            return Refusal(contract.IMAGE_NOT_FOUND)
        if request.if_revision not in (None, image["revision"]):
            return Refusal(contract.PRECONDITION_FAILED)
        if "name" in asks.model_fields_set and self._holders.get(asks.name, asks.id) != asks.id:
            said = f"name '{asks.name}' is used by another image"
            return Refusal(contract.IMAGE_NAME_EXISTS, (Detail("name", "taken", said),))
        return None

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
    if line["digest"] != request.digest:
        said = "this request id was used before, with another body"
        reused = Refusal(contract.INVALID_PARAMETER, (Detail(None, "request_id_reused", said),))
        return Reply.refused(request.id, request.digest, reused, stored=False)
    return Reply(request.id, line["reply"], line["code"], stored=True, image_id=line["image_id"], replayed=True)
