"""What a test wants the next requests to come to, brought about in the worker from outside; and what was asked so far.

Nothing in the application knows of this: three of its functions are wrapped. A request with a scripted outcome goes the
way of all others, through batch, transaction, ledger and result backend, so that its caller is told of it in the same
documents.
"""

import functools
import json
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from redis import Redis

from aries_images import contract
from aries_images.contract import Detail, Refusal, Reply
from tasks import apply_updates
from tasks.apply_updates import Request
from tasks.update_image import answer_all, read_request
from worker.task import Addressed, Answer, Delivery

#: Codes that are decided before the ledger is looked at, and codes of replies that name no image.
_BEFORE_THE_LEDGER = (contract.UNAUTHORIZED, contract.TOO_MANY_REQUESTS)
_WITHOUT_IMAGE = (contract.INVALID_PARAMETER, contract.FORBIDDEN)
#: Seconds that the worker may take for what a test has left behind.
_PATIENCE = 20.0


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
        # Held while a batch runs, and while its answers are sent.
        self._turn = threading.Condition()
        self._next: deque[Outcome] = deque()
        self._taken: list[dict[str, Any]] = []
        self._unheard: set[tuple[str, float]] = set()
        self._is_between_tests = False
        #: Ids of messages that are waited for between two tests.
        self._last: set[str] = set()
        self._wrap(app.tasks[contract.TASK], app.backend)

    @contextmanager
    def between_tests(self, broker: Redis) -> Iterator[None]:
        """A block in which nobody else is at work, and after which nothing is left of the test before.

        That test may have left requests anywhere: in the queue, on the way to the worker, in its waiting list. Those
        in the queue are deleted; behind the others a last one is sent in each lane. When these have been through, all
        before them have been too, and what is left of them can be deleted.
        """
        with self._turn:
            self._is_between_tests = True
            broker.flushdb()
            self._last = {str(uuid.uuid4()) for _ in contract.QUEUES}
            # The lane in front last: there the worker waits, and then looks into both.
            for queue, request_id in zip(reversed(contract.QUEUES), self._last, strict=True):
                broker.lpush(queue, _smallest_message(request_id))
            try:
                if not self._turn.wait_for(lambda: not self._last, _PATIENCE):
                    raise TimeoutError("the worker is not done with what the test before has left behind")
                self._next.clear()
                self._taken.clear()
                self._unheard.clear()
                yield
            finally:
                self._is_between_tests = False

    def add(self, outcome: Outcome, times: int) -> None:
        """Have the next requests, behind those that are spoken for, come to `outcome`."""
        with self._turn:
            self._next.extend([outcome] * times)

    @property
    def taken(self) -> list[dict[str, Any]]:
        """The requests that have come, as a test is told of them."""
        with self._turn:
            return [*self._taken]

    def _wrap(self, task: Any, backend: Any) -> None:
        """Wrap what reads a batch, what decides a request, and what sends the answers."""
        decide = apply_updates._Batch._decide  # noqa: SLF001

        def run(deliveries: Sequence[Delivery]) -> list[Addressed | None]:
            with self._turn:
                return answer_all(task, deliveries, self._read)

        def decide_as_scripted(batch: Any, request: Request) -> Reply:
            return _reply(request) if isinstance(request, _Scripted) else decide(batch, request)

        task.run, backend.send_answers = run, functools.partial(self._send, backend.send_answers)
        apply_updates._Batch._decide = decide_as_scripted  # type: ignore[method-assign, assignment]  # noqa: SLF001

    def _read(self, delivery: Delivery, app: Any) -> Request | Reply:
        if self._is_between_tests:
            return _unread(delivery)
        self._taken.append(_as_taken(delivery))
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

    def _send(self, send_answers: Callable[[list[Answer]], None], answers: Sequence[Answer]) -> None:
        with self._turn:
            if self._is_between_tests:
                self._last.difference_update(answer.delivery.request_id for answer in answers)
                self._turn.notify()
            elif heard := [answer for answer in answers if _key(answer.delivery) not in self._unheard]:
                send_answers(heard)


def _smallest_message(request_id: str) -> str:
    """One that is sent for its place in the queue alone."""
    headers = {"task": contract.TASK, "id": request_id}
    return json.dumps({"body": "[[],{},{}]", "content-type": "application/json", "headers": headers})


def _key(delivery: Delivery) -> tuple[str, float]:
    """One of the deliveries of a request: it may be sent again, under the same id."""
    return delivery.request_id, delivery.received_at


def _unread(delivery: Delivery) -> Reply:
    """What takes the place of a reply that is not sent."""
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
