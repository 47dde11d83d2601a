"""What a test wants the next requests to come to, brought about in the worker from outside; and what was asked so far.

Nothing in the application knows of this: three of its functions are wrapped. A request with a scripted outcome goes the
way of all others, through batch, transaction, ledger and result backend, so that its caller is told of it in the same
documents.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from aries_images import contract
from aries_images.contract import Detail, Refusal, Reply
from tasks import apply_updates
from tasks.apply_updates import Request
from tasks.update_image import answer_all, read_request
from worker.task import Addressed, Answer, Delivery

#: Codes that are decided before the ledger is looked at, and codes of replies that name no image.
_BEFORE_THE_LEDGER = (contract.UNAUTHORIZED, contract.TOO_MANY_REQUESTS)
_WITHOUT_IMAGE = (contract.INVALID_PARAMETER, contract.FORBIDDEN)


class WantedFaultError(Exception):
    """The fault that a test wanted."""


class Silence(Enum):
    """No answer, and whether it was applied."""

    APPLIED = True
    NOT_APPLIED = False


Outcome = Refusal | Silence


@dataclass(frozen=True, slots=True)
class _Scripted(Request):
    """A request that passed the door, and what it is to come to."""

    outcome: Refusal = field(kw_only=True)


class Script:
    """What is to become of the requests that come next, in order, and those that have come."""

    def __init__(self, app: Any) -> None:
        #: Held while a batch runs, and while its answers are sent.
        self.lock = threading.RLock()
        self._next: deque[Outcome] = deque()
        self._unheard: set[tuple[str, float]] = set()
        self._began_at = 0.0
        #: The requests that have come, as a test is told of them.
        self.taken: list[dict[str, Any]] = []
        self._wrap(app.tasks[contract.TASK], app.backend)

    def begin(self) -> None:
        """Forget everything: what came before is of a test that is over, and is neither applied nor answered."""
        self._next.clear()
        self._unheard.clear()
        self.taken.clear()
        self._began_at = time.time()

    def add(self, outcome: Outcome, times: int) -> None:
        """Have the next requests, behind those that are spoken for, come to `outcome`."""
        with self.lock:
            self._next.extend([outcome] * times)

    def _wrap(self, task: Any, backend: Any) -> None:
        """Wrap what reads a batch, what decides a request, and what sends the answers."""
        decide, send_answers = apply_updates._Batch._decide, backend.send_answers  # noqa: SLF001

        def run(deliveries: Sequence[Delivery]) -> list[Addressed | None]:
            with self.lock:
                return answer_all(task, deliveries, self._read)

        def decide_as_scripted(batch: Any, request: Request) -> Reply:
            return _reply(request) if isinstance(request, _Scripted) else decide(batch, request)

        def send_what_is_heard(answers: Sequence[Answer]) -> None:
            with self.lock:
                if heard := [answer for answer in answers if not self._is_unheard(answer.delivery)]:
                    send_answers(heard)

        task.run, backend.send_answers = run, send_what_is_heard
        apply_updates._Batch._decide = decide_as_scripted  # type: ignore[method-assign, assignment]  # noqa: SLF001

    def _read(self, delivery: Delivery, app: Any) -> Request | Reply:
        if delivery.received_at < self._began_at:
            return _unread(delivery)
        self.taken.append(_as_taken(delivery))
        outcome = self._next.popleft() if self._next else None
        if isinstance(outcome, Silence):
            self._unheard.add(_key(delivery))
            if outcome is Silence.NOT_APPLIED:
                return _unread(delivery)
        request = read_request(delivery, app)
        if isinstance(request, Reply) or not isinstance(outcome, Refusal):
            return request
        if outcome.code in _BEFORE_THE_LEDGER:
            return Reply.refused(request.id, request.digest, outcome, stored=False)
        return _Scripted(**{one.name: getattr(request, one.name) for one in fields(request)}, outcome=outcome)

    def _is_unheard(self, delivery: Delivery) -> bool:
        return delivery.received_at < self._began_at or _key(delivery) in self._unheard


def _key(delivery: Delivery) -> tuple[str, float]:
    """One of the deliveries of a request: it may be sent again, under the same id."""
    return delivery.request_id, delivery.received_at


def _unread(delivery: Delivery) -> Reply:
    """What takes the place of a reply that nobody gets."""
    return Reply.refused(delivery.request_id, None, Refusal(contract.INTERNAL_ERROR))


def _reply(request: _Scripted) -> Reply:
    code = request.outcome.code
    if code is contract.INTERNAL_ERROR:
        raise WantedFaultError
    refusal = Refusal(code, request.outcome.details or _fitting(request))
    return Reply.refused(request.id, request.digest, refusal, None if code in _WITHOUT_IMAGE else request.image_id)


def _fitting(request: _Scripted) -> tuple[Detail, ...]:
    """The details of a refusal of which a test has not said any."""
    if request.outcome.code is contract.INVALID_PARAMETER:
        return contract.malformed("a test wants it refused").details
    if request.outcome.code is contract.IMAGE_NAME_EXISTS:
        name = getattr(request.asks, "name", "")
        return (Detail("name", "taken", f"name '{name}' is used by another image"),)
    return ()


def _as_taken(delivery: Delivery) -> dict[str, Any]:
    return {
        "request_id": delivery.request_id,
        "body": delivery.kwargs,
        "if_revision": delivery.headers.get(contract.IF_REVISION),
        "reply_to": delivery.reply_to,
        "traceparent": delivery.headers.get(contract.TRACEPARENT),
    }
