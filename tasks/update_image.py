"""The Celery task `image.update`: deliveries in, replies out."""

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from celery import shared_task

from aries_images import contract
from aries_images.contract import Detail, MalformedMessageError, Refusal, Reply, UpdateRequest
from tasks.apply_updates import Request, apply_updates
from worker.task import Addressed, BatchTask, Caller, Delivery

FOREIGN_REPLY_QUEUE = Detail("reply_to", "reply_to_not_allowed", "reply_to names a queue that is not the caller's")


@shared_task(name=contract.TASK, base=BatchTask, bind=True)  # type: ignore[untyped-decorator]
def update_image(self: BatchTask, deliveries: Sequence[Delivery]) -> list[Addressed | None]:
    """Answer a batch of requests to update an image's metadata, in order."""
    return answer_all(self, deliveries, read_request)


def answer_all(
    task: BatchTask, deliveries: Sequence[Delivery], read: Callable[[Delivery, Any], Request | Reply]
) -> list[Addressed | None]:
    """An answer to each delivery, in order, or None for those that are to be tried again.

    Args:
        task: whose application knows the database, the door and the settings.
        deliveries: the batch.
        read: what a delivery asks for, or a reply to one that the ledger must not see, given the application.
    """
    outcomes = [read(delivery, task.app) for delivery in deliveries]
    requests = [outcome for outcome in outcomes if isinstance(outcome, Request)]
    replies = iter(apply_updates(requests, task.app.database) if requests else ())
    answers: list[Addressed | None] = []
    for outcome, delivery in zip(outcomes, deliveries, strict=True):
        reply, caller = (next(replies), outcome.caller) if isinstance(outcome, Request) else (outcome, None)
        answers.append(None if reply is None else Addressed(reply, task.app.door.queue_for(delivery), caller))
    return answers


def read_request(delivery: Delivery, app: Any) -> Request | Reply:
    """What a delivery asks for, or a reply to one that the ledger must not see.

    In the published order of precedence (contract 4): decode, authenticate, rate; then, with the ledger, the rest. What
    cannot be attributed to a caller is never entered there, so that nobody can use up the request ids of others.
    """
    digest, asks = _read(delivery)
    if not contract.is_request_id(delivery.request_id):
        return Reply.refused(delivery.request_id, digest, contract.malformed(contract.REQUEST_ID_RULE), stored=False)
    caller = app.door.admit(delivery)
    if isinstance(caller, Refusal):
        return Reply.refused(delivery.request_id, digest, asks if _is_malformed(asks) else caller, stored=False)
    return Request(
        id=delivery.request_id,
        digest=digest,
        caller=caller.name,
        asks=_authorise(asks, caller, delivery),
        images=caller.images,
        deadline=delivery.deadline,
        revoked=delivery.revoked,
        if_revision=delivery.headers.get(contract.IF_REVISION),
        traceparent=delivery.traceparent,
        tries=delivery.tries,
        try_until=delivery.try_until(app.settings.retry_seconds),
    )


def _read(delivery: Delivery) -> tuple[str | None, UpdateRequest | Refusal]:
    """The digest of the body, and what it asks for; no digest where it cannot be read."""
    try:
        if delivery.malformed is not None:
            raise MalformedMessageError(delivery.malformed)
        digest = contract.digest_of(delivery.kwargs)
    except MalformedMessageError as malformed:
        return None, contract.malformed(str(malformed))
    if delivery.args:
        return digest, contract.malformed("positional arguments are not accepted")
    return digest, contract.validate(delivery.kwargs)


def _authorise(asks: UpdateRequest | Refusal, caller: Caller, delivery: Delivery) -> UpdateRequest | Refusal:
    """What is asked for; or a refusal, of what this caller may not or of headers that are wrong."""
    if _is_malformed(asks):
        return asks
    if not caller.may_update:
        return Refusal(contract.FORBIDDEN)
    details = list(asks.details) if isinstance(asks, Refusal) else []
    if_revision = delivery.headers.get(contract.IF_REVISION)
    if if_revision is not None and type(if_revision) is not int:
        details.append(Detail(contract.IF_REVISION, "wrong_type", "if_revision must be a JSON integer"))
    if contract.reply_queue(delivery.reply_to, caller.name) is None:
        details.append(FOREIGN_REPLY_QUEUE)
    return Refusal(contract.INVALID_PARAMETER, tuple(details)) if details else asks


def _is_malformed(asks: UpdateRequest | Refusal) -> TypeGuard[Refusal]:
    return isinstance(asks, Refusal) and asks.details[0].reason == "malformed_message"
