"""Tasks that answer many requests at once: what they are given, and what they give back."""

import logging
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import orjson
from celery import Task

from aries_images import contract
from aries_images.contract import Refusal, Reply
from aries_images.errors import InternalError

logger = logging.getLogger(__name__)

#: Headers that the worker sets on a message for the task to see; what a sender puts there is overwritten.
MALFORMED = "malformed"
REVOKED = "revoked"
RECEIVED_AT = "received_at"

#: Seconds: the first pause before another try, and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
#: Of what is wrong with a request so many fields are logged; and of names that a sender made up, so many characters.
_REASONS, _NAME = 10, 64


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as a task sees it, whichever pool and broker it came through."""

    request_id: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    headers: Mapping[str, Any]
    #: What is wrong with the message itself, in words fit for the caller.
    malformed: str | None = None
    #: Revoked by an operator: not to be applied.
    revoked: bool = False
    deadline: datetime | None = None
    reply_to: Any = None
    correlation_id: str | None = None
    #: 1 for the first delivery.
    attempt: int = 1
    #: Whether the caller wants a result, or only the reply event.
    wants_result: bool = True
    #: The one of our queues that it came over.
    queue: str = contract.QUEUE
    #: Name of the worker node.
    worker: str = ""
    #: When it came out of the queue: Unix time, seconds.
    received_at: float = 0.0
    #: How often this delivery was tried before, and is to be tried again.
    tries: int = 0

    @classmethod
    def of(cls, request: dict[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any], tries: int = 0) -> Self:
        """From Celery's request: message headers and what the worker added to them, in one mapping."""
        delivery_info = request.get("delivery_info") or {}
        headers = request | request["headers"] if request.get("headers") else request  # eager calls keep them apart
        return cls(
            request_id=request.get("id") or str(uuid.uuid4()),
            args=args,
            kwargs=kwargs,
            headers=headers,
            malformed=headers.get(MALFORMED),
            revoked=headers.get(REVOKED, False),
            deadline=read_deadline(request.get("expires")),
            reply_to=request.get("reply_to"),
            correlation_id=request.get("correlation_id"),
            attempt=headers.get("deliveries") or 1 + bool(delivery_info.get("redelivered")),
            wants_result=not request.get("ignore_result"),
            queue=contract.BULK_QUEUE if delivery_info.get("routing_key") == contract.BULK_QUEUE else contract.QUEUE,
            worker=request.get("hostname") or "",
            received_at=headers.get(RECEIVED_AT) or time.time(),
            tries=tries,
        )

    @property
    def lane(self) -> str:
        """Name of the queue that it came over."""
        delivery_info = self.headers.get("delivery_info")
        queue = delivery_info.get("routing_key") if isinstance(delivery_info, Mapping) else None
        return queue if isinstance(queue, str) else contract.QUEUE

    @property
    def traceparent(self) -> str | None:
        """The trace that the caller wants it to be part of, if he says so as W3C has it."""
        traceparent = self.headers.get(contract.TRACEPARENT)
        return traceparent if contract.is_traceparent(traceparent) else None

    @property
    def queued_since(self) -> float:
        """Unix time in seconds at which the caller sent it; when it was received, where he does not say."""
        sent_at = self.headers.get(contract.SENT_AT)
        if isinstance(sent_at, int | float) and 0 < sent_at < self.received_at:  # NaN is neither
            return float(sent_at)
        return self.received_at

    def try_until(self, patience: float) -> float:
        """Unix time in seconds until which it is tried: its deadline, at most `patience` seconds, at least one.

        A race is over in milliseconds, and what is past its deadline is to be entered in the ledger as that.
        """
        end = self.received_at + patience
        return end if self.deadline is None else min(end, max(self.deadline.timestamp(), self.received_at + 1))


def pause_after(tries: int) -> float:
    """Seconds to wait, at most, before a delivery that was tried `tries` times before is tried again."""
    return min(_FIRST_PAUSE * 2.0 ** min(tries, 10), _LONGEST_PAUSE)


def jitter() -> float:
    """What to multiply a pause with, so that those who got in each other's way part."""
    return random.uniform(0.5, 1.0)  # noqa: S311  # no secret


def read_deadline(expires: Any) -> datetime | None:
    """The moment that an `expires` header names; one without a time zone is in UTC, as Celery's are.

    Raises:
        ValueError: it is not an ISO 8601 moment.
    """
    if expires is None:
        return None
    if not isinstance(expires, str | datetime):
        raise ValueError("expires must be an ISO 8601 moment")  # noqa: TRY004  # the caller of this sends JSON
    moment = datetime.fromisoformat(expires) if isinstance(expires, str) else expires
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


class Caller(NamedTuple):
    """Who sent a request, and what he may do."""

    name: str
    may_update: bool = True
    #: The images that he may update; None for all.
    images: frozenset[int] | None = None


class Addressed(NamedTuple):
    """A reply and the queue that its event goes to."""

    reply: Reply
    queue: str
    #: Who asked, where that is proved.
    caller: str | None = None


class Transaction(NamedTuple):
    """When a transaction was under way, and what it failed with, if it did."""

    #: Unix times in seconds.
    begun_at: float
    ended_at: float
    failure: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that were run together."""

    #: How many.
    size: int
    #: Of its own, whatever other workers there are.
    id: str = field(default_factory=lambda: f"{random.getrandbits(48):012x}")
    #: Kept where spans are made of them.
    transactions: list[Transaction] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply on its way out: what is stored, where the event goes and what it says of the journey."""

    reply: Reply
    queue: str
    delivery: Delivery
    #: Unix times in seconds.
    begun_at: float
    committed_at: float
    #: Who asked, where that is proved.
    caller: str | None = None
    #: None where it was answered without being run.
    batch: Batch | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """What the log says of it: names of fields, and no values."""
        document = orjson.loads(self.reply.text)
        details = document["error"]["details"] if "error" in document else []
        return {
            "task": str(self.delivery.headers.get("task"))[:_NAME],
            "request_id": self.reply.request_id,
            "caller": self.caller,
            "code": self.reply.code or "OK",
            "reasons": [_reason(**detail) for detail in details[:_REASONS]],
            "image_id": self.reply.image_id,
            "revision": document.get("revision"),
            "replayed": self.reply.replayed,
            "attempt": self.delivery.attempt,
            "batch": self.batch and self.batch.id,
            "batch_size": self.batch and self.batch.size,
            "queue_ms": self.queue_ms,
            "commit_ms": self.commit_ms,
            "worker": self.delivery.worker,
        }

    def milliseconds_until(self, moment: float) -> int:
        """From sending the request to `moment`, a Unix time in seconds."""
        return round((moment - self.delivery.queued_since) * 1000)

    @property
    def outcome(self) -> str:
        """What monitors show of it: `image 1, revision 7` or `ImageNameExists: name taken`; no payload."""
        document = orjson.loads(self.reply.text)
        if error := document.get("error"):
            # Of fields that there are not, the names are the caller's words.
            reasons = [" ".join(filter(None, (detail["field"], detail["reason"]))) for detail in error["details"]]
            outcome = f"{error['code']}: {', '.join(reasons)}" if reasons else error["code"]
        else:
            outcome = f"image {document['image']['id']}, revision {document['revision']}"
        return f"{outcome} (replayed)" if self.reply.replayed else outcome

    @property
    def queue_ms(self) -> int:
        """Milliseconds from sending to the beginning of its batch."""
        return self.milliseconds_until(self.begun_at)

    @property
    def commit_ms(self) -> int:
        """Milliseconds that its batch took."""
        return round((self.committed_at - self.begun_at) * 1000)

    @property
    def failed(self) -> bool:
        """Whether it is a fault, which Celery is to show as FAILURE."""
        return self.reply.code == contract.INTERNAL_ERROR.name


def _reason(field: str | None, reason: str, **_: Any) -> str:
    return f"{field[:_NAME]}:{reason}" if field else reason


class BatchTask(Task):  # type: ignore[misc]  # Celery has no types
    """A task whose function takes a list of deliveries and returns a reply to each.

    Pools that know it hand it a whole batch through `answers`; any other pool, an eager call and a direct call
    hand it one request at a time. A refusal is a reply like another; a fault is raised as `InternalError`.
    """

    abstract = True
    acks_late = True
    typing = False
    Strategy = "worker.strategy:strategy"
    Request = "worker.request:Request"

    def run(self, deliveries: Sequence[Delivery]) -> Sequence[Addressed | None]:
        """Answer each of `deliveries`, in order, or say None of one that is to be tried again after a pause.

        The function that the task is made from takes this place.
        """
        raise NotImplementedError

    def __call__(self, /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Answer one request; the reply document.

        Raises:
            InternalError: the fault is ours; the log says more.
        """
        request = self.request
        delivery = Delivery.of(dict(vars(request)), args, kwargs)
        while (answer := self.answers([delivery])[0]) is None:
            time.sleep(pause_after(delivery.tries) * jitter())
            delivery = replace(delivery, tries=delivery.tries + 1)
        if not request.is_eager and not request.called_directly:
            request.answer = answer  # for the result backend, which stores and publishes it
        else:
            self.app.tell([answer], sent_from=time.time())
        if answer.failed:
            raise InternalError(contract.INTERNAL_ERROR.message, request_id=answer.reply.request_id)
        return answer.reply.document

    def answers(self, deliveries: Sequence[Delivery]) -> list[Answer | None]:
        """An answer to each of `deliveries`, whatever happens, but for those that are to be tried again."""
        begun_at, batch = time.time(), Batch(len(deliveries))
        addressed: Sequence[Addressed | None]
        try:
            with self.app.tracing.watch(batch):
                addressed = self.run(deliveries)
        except Exception:
            logger.exception("a batch of %s failed", self.name)
            addressed = [self.fault(delivery) for delivery in deliveries]
        committed_at = time.time()
        answers = [
            there and Answer(there.reply, there.queue, delivery, begun_at, committed_at, there.caller, batch)
            for there, delivery in zip(addressed, deliveries, strict=True)
        ]
        self.app.metrics.ran(answers)
        return answers

    def fault(self, delivery: Delivery) -> Addressed:
        """The answer where there is no other: ours is the fault."""
        reply = Reply.refused(delivery.request_id, None, Refusal(contract.INTERNAL_ERROR))
        return Addressed(reply, self.app.door.queue_for(delivery))
