"""ImageClient: sends a request, waits for its answer, and returns the image or raises."""

import os
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, Self

from aries_images import contract
from aries_images._answer import ReplyEvent
from aries_images._broker import NotSentError, Outbox, take_events
from aries_images._caller import Caller, body_of, headers_of
from aries_images._credentials import Signs
from aries_images._mailbox import Mailbox, Slot
from aries_images._pending import PendingUpdate
from aries_images._request import ABSENT, Absent, Outgoing, checked_request_id, checked_timeout
from aries_images._result_store import ResultStore
from aries_images._window import blocking_batches
from aries_images.bulk import WINDOW, BulkLine, ReplyFile
from aries_images.contract import Image
from aries_images.errors import OutcomeUnknown
from aries_images.tracing import sending


class _Lines:
    """The connections of one client in one process."""

    def __init__(self, broker_url: str, result_url: str, options: Mapping[str, Any]) -> None:
        self.pid = os.getpid()
        self.outbox = Outbox(broker_url, options)
        self.results = ResultStore(result_url, options)
        self.mailbox = Mailbox(self.results.pool)

    def close(self) -> None:
        if self.pid == os.getpid():
            self.mailbox.close()
            self.results.close()
            self.outbox.close()


class ImageClient:
    """Updates images through the queue. Safe to share between threads, and to use in a forked child.

    One client holds one pub/sub connection and at most four more to either server, opened when first needed.
    Close it, or use it in a `with` statement.

    Raises:
        ValueError: one of the URLs can't be understood.

    Args:
        broker_url: where requests go: any kombu URL. Default: ARIES_BROKER_URL, else the local Redis.
        result_url: where answers come from: Redis. Default: ARIES_RESULT_URL, else the local Redis.
        token: what proves who is calling: a JWT, or a function that returns the one to use now. Default: ARIES_TOKEN.
        key: a `SigningKey` that tokens are made with instead, each good for its one request alone.
        reply_to: queue for the reply events of this client's requests; default: the common one.
        transport_options: kombu's transport options, for both servers: `master_name` for Sentinel, for one.
    """

    def __init__(  # noqa: PLR0913 - each has a default
        self,
        broker_url: str | None = None,
        result_url: str | None = None,
        *,
        token: str | Callable[[], str] | None = None,
        key: Signs | None = None,
        reply_to: str | None = None,
        transport_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._caller = Caller(broker_url, result_url, token, key, reply_to, transport_options)
        self._lines_of: dict[int, _Lines] = {}
        self._closed = False
        self._lines()

    def update(  # noqa: PLR0913 - the fields of a request
        self,
        id: int,  # noqa: A002 - the seed's name of the field
        *,
        name: str | Absent = ABSENT,
        os_type: str | Absent = ABSENT,
        os_name: str | Absent = ABSENT,
        description: str | Absent = ABSENT,
        request_id: str | None = None,
        if_revision: int | None = None,
        traceparent: str | None = None,
        timeout: float = 30.0,
    ) -> Image:
        """Change what is given of an image and wait until that is committed.

        Args:
            id: of the image.
            name: new name; must be free.
            os_type: `linux` or `windows`.
            os_name: name of the operating system.
            description: free text; an empty one clears it.
            request_id: idempotency key; the same one on every resend. Default: a new one.
            if_revision: change the image only if it is still at this revision.
            traceparent: W3C trace context to pass on. Default: a span of this call, where OpenTelemetry is in use.
            timeout: seconds until this gives up, also the time after which the request is not applied any more.

        Returns:
            The image as the update left it.

        Raises:
            InvalidParameter, ImageNotFound, ImageNameExists, PreconditionFailed, DeadlineExceeded: refused.
            InternalError, TooManyRequests: try again later, with the same request id.
            OutcomeUnknown: no answer in time, or one of the servers can't be reached; resend or settle it.
            ValueError: the timeout is not over 0 and at most a day.
        """
        pending = self.submit(
            id,
            name=name,
            os_type=os_type,
            os_name=os_name,
            description=description,
            request_id=request_id,
            if_revision=if_revision,
            traceparent=traceparent,
            timeout=timeout,
        )
        return pending.result()

    def submit(  # noqa: PLR0913 - the fields of a request
        self,
        id: int,  # noqa: A002 - the seed's name of the field
        *,
        name: str | Absent = ABSENT,
        os_type: str | Absent = ABSENT,
        os_name: str | Absent = ABSENT,
        description: str | Absent = ABSENT,
        request_id: str | None = None,
        if_revision: int | None = None,
        traceparent: str | None = None,
        timeout: float = 30.0,
    ) -> PendingUpdate:
        """Send what `update` sends, and come back when the broker has it.

        Raises:
            InvalidParameter: what can't be written as a message is refused here; everything else by the worker.
            OutcomeUnknown: the broker did not confirm the message before the timeout. It is not a "not sent":
                when only the confirmation was lost, the request is on the queue all the same.
            ValueError: the timeout is not over 0 and at most a day.
        """
        kwargs = body_of(id, name=name, os_type=os_type, os_name=os_name, description=description)
        return self._start(request_id, kwargs, headers_of(if_revision, traceparent), timeout)

    def settle(self, request_id: str, *, timeout: float = 30.0) -> Image:
        """What became of a request, once and for all: for after `OutcomeUnknown`.

        If it was applied or refused, this ends as that did. If it was neither, it never will be: wherever the
        message still is, it is fenced off from now on, and this raises `DeadlineExceeded`.

        Args:
            request_id: of the request, which need not be this client's; the same caller must have sent it.
            timeout: seconds until this gives up.

        Returns:
            The image as that update left it.

        Raises:
            DeadlineExceeded: it was not applied and never will be. Ask anew, under a new id.
            InvalidParameter, ImageNotFound, ImageNameExists, PreconditionFailed: it was refused. Also
                InvalidParameter, where it was applied so long ago that its reply is no longer kept; it says so.
            InternalError, TooManyRequests: nothing is known or done; settle it again later.
            OutcomeUnknown: no answer in time; settle it again.
            ValueError: the timeout is not over 0 and at most a day.
        """
        settles = checked_request_id(request_id)
        return self._start(None, {"request_id": settles}, {}, timeout, settles=settles).result()

    def _start(
        self,
        request_id: str | None,
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any],
        timeout: float,
        settles: str | None = None,
    ) -> PendingUpdate:
        deadline = time.monotonic() + checked_timeout(timeout)
        lines = self._lines()
        slot = lines.mailbox.open(None if request_id is None else checked_request_id(request_id), deadline)
        try:
            request = self._caller.compose(
                slot.request_id, kwargs, own_id=slot.own_id, headers=headers, timeout=timeout, settles=settles
            )
            with sending(request, self._caller.broker_url):
                _send(lines, slot, request)
        except BaseException:
            lines.mailbox.leave(slot)
            raise
        return PendingUpdate(request, slot, lines.mailbox, lines.results, keep=self)

    def update_many(
        self,
        lines: Iterable[BulkLine],
        *,
        window: int = WINDOW,
        timeout: float = 30.0,
        replies: ReplyFile | None = None,
    ) -> Generator[dict[str, Any]]:
        """Send many requests, a window of them under way at any time; yields their replies as they come.

        Two lines for one image are applied in their order, lines for several images in any. What is refused as too
        many requests is sent again a second later, until it is not. A run that broke off, or raised, is gone on with
        by calling this again with the same lines and the same file of replies: only what has no reply there is sent,
        under the same request ids, so that nothing is applied twice.

        Args:
            lines: the seed's fields each, and `request_id` and `if_revision` if wanted; `bulk.read_lines` reads a file.
                Without a `request_id` a line gets a new one, or, with `replies`, one that the next run knows again.
            window: how many are under way at a time.
            timeout: seconds without any answer until this gives up.
            replies: where the replies are kept.

        Yields:
            The reply documents (contract 4): each line's, but for those that `replies` had before.

        Raises:
            OutcomeUnknown: no answer in time, or one of the servers can't be reached.
            ValueError: the timeout is not over 0 and at most a day.
        """
        if self._closed:
            raise RuntimeError("the client is closed")
        with closing(blocking_batches(lines, self._caller, window, checked_timeout(timeout), replies)) as batches:
            for batch in batches:
                yield from batch

    def replies(self, queue: str = contract.REPLY_QUEUE, *, timeout: float | None = None) -> Iterator[ReplyEvent]:
        """Reply events as they come, each taken off the queue for good when the next one is asked for.

        An event whose consumer dies before that comes again, five minutes later at most; so the same event can
        be seen twice. What is not a reply event is dropped, with a warning in the log. Lost connections are made
        anew.

        Args:
            queue: the common queue or one of the caller's own.
            timeout: end after so many seconds without an event; default: never.
        """
        with closing(take_events(self._caller.broker_url, self._caller.options, queue, timeout)) as events:
            yield from (event for event in events if event is not None)

    def close(self) -> None:
        """Close every connection; the client can't be used afterwards."""
        self._closed = True
        lines = self._lines_of.pop(os.getpid(), None)
        if lines is not None:
            lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lines(self) -> _Lines:
        """The connections of this process: sockets and threads of a parent are of no use in a forked child."""
        lines = self._lines_of.get(os.getpid())
        if lines is None:
            if self._closed:
                raise RuntimeError("the client is closed")
            new = _Lines(self._caller.broker_url, self._caller.result_url, self._caller.options)
            lines = self._lines_of.setdefault(new.pid, new)
            if lines is new:
                weakref.finalize(self, new.close)
        return lines


def _send(lines: _Lines, slot: Slot, request: Outgoing) -> None:
    if not slot.confirmed(slot.deadline - time.monotonic()):
        why = lines.mailbox.trouble or "no answer"
        raise OutcomeUnknown(f"the result store can't be reached: {why}", request_id=request.about)
    try:
        lines.outbox.send(request, slot.deadline)
    except NotSentError as error:
        raise OutcomeUnknown(f"the broker can't be reached: {error}", request_id=request.about) from error
