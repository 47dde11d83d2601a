"""The Celery task `image.update`: deliveries in, replies out."""

from collections.abc import Sequence

from celery import shared_task

from aries_images import contract
from aries_images.contract import Detail, MalformedMessageError, Refusal, Reply, UpdateRequest
from tasks.apply_updates import Request, apply_updates
from worker.task import Addressed, BatchTask, Delivery, queue_for


@shared_task(name=contract.TASK, base=BatchTask, bind=True)  # type: ignore[untyped-decorator]
def update_image(self: BatchTask, deliveries: Sequence[Delivery]) -> list[Addressed]:
    """Answer a batch of requests to update an image's metadata, in order."""
    read = [read_request(delivery) for delivery in deliveries]
    requests = [request for request in read if isinstance(request, Request)]
    replies = iter(apply_updates(requests, self.app.database, patience=self.app.settings.retry_seconds))
    return [
        Addressed(next(replies) if isinstance(outcome, Request) else outcome, queue_for(delivery))
        for outcome, delivery in zip(read, deliveries, strict=True)
    ]


def read_request(delivery: Delivery) -> Request | Reply:
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
    )


def _validate(delivery: Delivery) -> UpdateRequest | Refusal:
    asks = contract.validate(delivery.kwargs)
    details = list(asks.details) if isinstance(asks, Refusal) else []
    if_revision = delivery.headers.get(contract.IF_REVISION)
    if if_revision is not None and type(if_revision) is not int:
        details.append(Detail(contract.IF_REVISION, "wrong_type", "if_revision must be a JSON integer"))
    if contract.reply_queue(delivery.reply_to, contract.ANONYMOUS) is None:
        details.append(Detail("reply_to", "reply_to_not_allowed", "reply_to names a queue that is not the caller's"))
    return Refusal(contract.INVALID_PARAMETER, tuple(details)) if details else asks
