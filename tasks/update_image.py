"""The Celery task `image.update`: deliveries in, replies out."""

from collections.abc import Callable, Sequence

from celery import shared_task

from aries_images import contract
from aries_images.contract import Detail, MalformedMessageError, Refusal, Reply, UpdateRequest
from tasks.apply_updates import Request, apply_updates
from worker.task import Addressed, BatchTask, Delivery, queue_for

FOREIGN_REPLY_QUEUE = Detail("reply_to", "reply_to_not_allowed", "reply_to names a queue that is not the caller's")


@shared_task(name=contract.TASK, base=BatchTask, bind=True)  # type: ignore[untyped-decorator]
def update_image(self: BatchTask, deliveries: Sequence[Delivery]) -> list[Addressed | None]:
    """Answer a batch of requests to update an image's metadata, in order."""
    return answer_all(self, deliveries, read_request)


def answer_all(
    task: BatchTask, deliveries: Sequence[Delivery], read: Callable[[Delivery, float], Request | Reply]
) -> list[Addressed | None]:
    """An answer to each delivery, in order, or None for those that are to be tried again.

    Args:
        task: whose application knows the database and the settings.
        deliveries: the batch.
        read: what a delivery asks for, or a reply to one that the ledger must not see. Its second argument is how
            many seconds a request without a deadline is tried for.
    """
    outcomes = [read(delivery, task.app.settings.retry_seconds) for delivery in deliveries]
    requests = [outcome for outcome in outcomes if isinstance(outcome, Request)]
    replies = iter(apply_updates(requests, task.app.database) if requests else ())
    answers: list[Addressed | None] = []
    for outcome, delivery in zip(outcomes, deliveries, strict=True):
        reply = next(replies) if isinstance(outcome, Request) else outcome
        answers.append(None if reply is None else Addressed(reply, queue_for(delivery)))
    return answers


def read_request(delivery: Delivery, patience: float) -> Request | Reply:
    """What a delivery asks for, or a reply to one that the ledger must not see."""
    digest = None
    asks: UpdateRequest | Refusal
    try:
        if delivery.malformed is not None:
            raise MalformedMessageError(delivery.malformed)
        digest = contract.digest_of(delivery.kwargs)
        if delivery.args:
            raise MalformedMessageError("positional arguments are not accepted")
        asks = _validate(delivery)
    except MalformedMessageError as malformed:
        asks = contract.malformed(str(malformed))
    if not contract.is_request_id(delivery.request_id):
        return Reply.refused(delivery.request_id, digest, contract.malformed(contract.REQUEST_ID_RULE), stored=False)
    traceparent = delivery.headers.get(contract.TRACEPARENT)
    return Request(
        id=delivery.request_id,
        digest=digest,
        caller=contract.ANONYMOUS,
        asks=asks,
        deadline=delivery.deadline,
        revoked=delivery.revoked,
        if_revision=delivery.headers.get(contract.IF_REVISION),
        traceparent=traceparent if contract.is_traceparent(traceparent) else None,
        tries=delivery.tries,
        try_until=delivery.try_until(patience),
    )


def _validate(delivery: Delivery) -> UpdateRequest | Refusal:
    asks = contract.validate(delivery.kwargs)
    details = list(asks.details) if isinstance(asks, Refusal) else []
    if_revision = delivery.headers.get(contract.IF_REVISION)
    if if_revision is not None and type(if_revision) is not int:
        details.append(Detail(contract.IF_REVISION, "wrong_type", "if_revision must be a JSON integer"))
    if contract.reply_queue(delivery.reply_to, contract.ANONYMOUS) is None:
        details.append(FOREIGN_REPLY_QUEUE)
    return Refusal(contract.INVALID_PARAMETER, tuple(details)) if details else asks
