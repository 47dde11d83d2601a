"""The Celery task `image.settle`: what became of a request, once and for all."""

from collections.abc import Sequence
from typing import Any

from celery import shared_task

from aries_images import contract
from aries_images.contract import Refusal, Reply
from tasks.apply_updates import FENCE, Request
from tasks.update_image import FOREIGN_REPLY_QUEUE, answer_all
from worker.task import Addressed, BatchTask, Delivery


@shared_task(name=contract.SETTLE_TASK, base=BatchTask, bind=True)  # type: ignore[untyped-decorator]
def settle_request(self: BatchTask, deliveries: Sequence[Delivery]) -> list[Addressed | None]:
    """Answer each with the reply that the ledger has for the request it names, or fence that request off.

    What is fenced off is in the ledger as `DeadlineExceeded`, so that it can never be applied, wherever it may still
    be. The deadline of the asking message itself is of no account: to fence late is as safe as to fence in time.
    """
    return answer_all(self, deliveries, read_settlement)


def read_settlement(delivery: Delivery, app: Any) -> Request | Reply:
    """The request to be settled, or a refusal of a message that does not name one, or may not."""
    request_id = _read_id(delivery)
    caller = app.door.admit(delivery)
    if request_id is None:
        why = delivery.malformed or f"a settlement has one argument, request_id; {contract.REQUEST_ID_RULE}"
        return _refused(delivery, contract.malformed(why))
    if isinstance(caller, Refusal):
        return _refused(delivery, caller)
    if not caller.may_update:
        return _refused(delivery, Refusal(contract.FORBIDDEN))
    if contract.reply_queue(delivery.reply_to, caller.name) is None:
        return _refused(delivery, Refusal(contract.INVALID_PARAMETER, (FOREIGN_REPLY_QUEUE,)))
    return Request(
        id=request_id,
        digest=None,
        caller=caller.name,
        asks=FENCE,
        tries=delivery.tries,
        try_until=delivery.received_at + app.settings.retry_seconds,
    )


def _read_id(delivery: Delivery) -> str | None:
    if delivery.malformed is not None or delivery.args:
        return None
    match delivery.kwargs:
        case {"request_id": str(request_id), **others} if not others and contract.is_request_id(request_id):
            return request_id
    return None


def _refused(delivery: Delivery, refusal: Refusal) -> Reply:
    """Says of the request that it was not settled; of the message itself, where it names none."""
    return Reply.refused(_read_id(delivery) or delivery.request_id, None, refusal, stored=False)
