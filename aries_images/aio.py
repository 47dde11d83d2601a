"""AsyncImageClient: the client's calls with `await`, thousands of them under way over three connections."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Self

from redis.exceptions import RedisError

from aries_images import contract
from aries_images._aio_mailbox import Mailbox, Waiting, mailbox_for
from aries_images._aio_outbox import outbox_for
from aries_images._answer import ReplyEvent
from aries_images._broker import NotSentError, take_events
from aries_images._caller import Caller, body_of, headers_of
from aries_images._credentials import Credentials, Signs
from aries_images._request import (
    ABSENT,
    Absent,
    Outgoing,
    checked_request_id,
    checked_timeout,
    new_request_id,
)
from aries_images._window import Window, reply_batches, requests_of
from aries_images.bulk import WINDOW, BulkLine, ReplyFile
from aries_images.contract import Image
from aries_images.errors import AriesImagesError, OutcomeUnknown
from aries_images.tracing import current_traceparent, sending

#: Instead of the StopIteration that no future can hold.
_END = object()


class AsyncPendingUpdate:
    """An update on its way."""

    def __init__(self, request: Outgoing, waiting: Waiting, mailbox: Mailbox) -> None:
        self._request = request
        self._waiting = waiting
        self._mailbox = mailbox

    def __repr__(self) -> str:
        return f"<AsyncPendingUpdate {self.request_id}>"

    @property
    def request_id(self) -> str:
        """The id to find, resend or settle the request with."""
        return self._request.about

    async def result(self, timeout: float | None = None) -> Image:  # noqa: ASYNC109 - the blocking client's argument
        """Wait for the answer; may be called again, and by several tasks. To cancel it loses nothing.

        Args:
            timeout: seconds to wait; default: what is left of the timeout given when it was submitted.

        Returns:
            The image as the update left it.

        Raises:
            AriesImagesError: the class that goes with the reply's code.
            OutcomeUnknown: no answer in time.
        """
        deadline = self._waiting.deadline
        if timeout is not None:
            deadline = time.monotonic() + (checked_timeout(timeout) if timeout else 0)
        outcome = await self._mailbox.answer(self._waiting, deadline)
        if outcome is None:
            raise OutcomeUnknown(f"no answer to {self.request_id} in time", request_id=self.request_id)
        if isinstance(outcome, AriesImagesError):
            raise outcome.with_traceback(None)
        return outcome


class AsyncImageClient:
    """Updates images through the queue, in one event loop: the one in which it is first used.

    However many updates are under way, one client holds one pub/sub connection and one more to the results, and one
    to the broker. (A broker other than Redis is spoken to by kombu, in at most four threads.) Close it, or use it in
    an `async with` statement. Each call may be cancelled; a request whose call was cancelled may be on its way all
    the same: resend it under its id, or settle it.

    The arguments are those of `ImageClient`.
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
        self._mailbox = mailbox_for(self._caller.result_url, self._caller.options)
        self._outbox = outbox_for(self._caller.broker_url, self._caller.options)
        self._closed = False

    async def update(  # noqa: PLR0913 - the fields of a request
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
        timeout: float = 30.0,  # noqa: ASYNC109 - it is in the message, too
    ) -> Image:
        """Change what is given of an image and wait until that is committed; see `ImageClient.update`."""
        kwargs = body_of(id, name=name, os_type=os_type, os_name=os_name, description=description)
        return await self._ask(request_id, kwargs, headers_of(if_revision, traceparent), timeout)

    async def submit(  # noqa: PLR0913 - the fields of a request
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
        timeout: float = 30.0,  # noqa: ASYNC109 - it is in the message, too
    ) -> AsyncPendingUpdate:
        """Send what `update` sends, and come back when the broker has it; see `ImageClient.submit`."""
        kwargs = body_of(id, name=name, os_type=os_type, os_name=os_name, description=description)
        return await self._start(request_id, kwargs, headers_of(if_revision, traceparent), timeout)

    async def settle(self, request_id: str, *, timeout: float = 30.0) -> Image:  # noqa: ASYNC109 - as above
        """What became of a request, once and for all; see `ImageClient.settle`."""
        settles = checked_request_id(request_id)
        return await self._ask(None, {"request_id": settles}, {}, timeout, settles=settles)

    async def relay(  # noqa: PLR0913 - the parts of a request
        self,
        body: Mapping[str, Any],
        *,
        authorization: str | None,
        request_id: str | None = None,
        if_revision: int | None = None,
        traceparent: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - as above
    ) -> AsyncPendingUpdate:
        """Send another's request: the body as it came, with his proof of who he is, never with this client's.

        Args:
            body: the seed's body; the worker refuses what is wrong with it.
            authorization: the value of his header `Authorization`, or None if he sent none.
            request_id: idempotency key. Default: a new one.
            if_revision: change the image only if it is still at this revision.
            traceparent: his W3C trace context. Where this program makes spans, which continue it, one of those is sent.
            timeout: seconds until this gives up.

        Raises:
            AriesImagesError, ValueError: as `submit`.
        """
        headers = headers_of(if_revision, None if current_traceparent() else traceparent) | {
            contract.AUTHORIZATION: authorization
        }
        return await self._start(request_id, body, headers, timeout, credentials=Credentials(None, None))

    async def update_many(
        self,
        lines: Iterable[BulkLine],
        *,
        window: int = WINDOW,
        timeout: float = 30.0,  # noqa: ASYNC109 - of the silence between two answers
        replies: ReplyFile | None = None,
    ) -> AsyncGenerator[dict[str, Any]]:
        """Send many requests, a window of them under way at any time; see `ImageClient.update_many`."""
        self._check_open()
        requests = requests_of(lines, self._caller, replies)
        window_ = Window(self._mailbox, self._outbox, requests, window, checked_timeout(timeout))
        async with aclosing(reply_batches(window_, replies)) as batches:
            async for batch in batches:
                for document in batch:
                    yield document

    async def workers(self) -> int | None:
        """How many workers listen, once both servers have answered; None where the broker is not Redis.

        Raises:
            OutcomeUnknown: one of the servers does not answer.
        """
        try:
            await self._mailbox.ping()
            return await self._outbox.workers()
        except (RedisError, OSError) as error:
            raise OutcomeUnknown(f"a server does not answer: {error}") from error

    async def _ask(
        self,
        request_id: str | None,
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any],
        seconds: float,
        **others: Any,
    ) -> Image:
        pending = await self._start(request_id, kwargs, headers, seconds, **others)
        try:
            return await pending.result()
        finally:
            self._mailbox.leave(pending._waiting)  # noqa: SLF001 - nobody can ask for it again

    async def _start(
        self,
        request_id: str | None,
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any],
        seconds: float,
        **others: Any,
    ) -> AsyncPendingUpdate:
        self._check_open()
        deadline = time.monotonic() + checked_timeout(seconds)
        own_id = request_id is None
        id_ = new_request_id() if request_id is None else checked_request_id(request_id)
        request = self._caller.compose(id_, kwargs, own_id=own_id, headers=headers, timeout=seconds, **others)
        waiting = await self._mailbox.open(request, deadline)
        if waiting is None:
            why = self._mailbox.trouble or "no answer"
            raise OutcomeUnknown(f"the result store can't be reached: {why}", request_id=request.about)
        try:
            with sending(request, self._caller.broker_url):
                await self._outbox.send([request], deadline)
        except BaseException as error:
            self._mailbox.leave(waiting)
            if isinstance(error, NotSentError):
                raise OutcomeUnknown(f"the broker can't be reached: {error}", request_id=request.about) from error
            raise
        return AsyncPendingUpdate(request, waiting, self._mailbox)

    async def replies(
        self,
        queue: str = contract.REPLY_QUEUE,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - of the silence between two events
    ) -> AsyncGenerator[ReplyEvent]:
        """Reply events as they come; see `ImageClient.replies`, which does the work here, too, in a thread.

        Use it in `async with contextlib.aclosing(...)`, if you leave it early: that takes up to a second.
        """
        loop = asyncio.get_running_loop()
        events = take_events(self._caller.broker_url, self._caller.options, queue, timeout)
        with ThreadPoolExecutor(1, thread_name_prefix="aries-images-replies") as thread:
            try:
                while (event := await loop.run_in_executor(thread, next, events, _END)) is not _END:
                    if isinstance(event, ReplyEvent):
                        yield event
            finally:
                thread.submit(events.close)

    async def close(self) -> None:
        """Close every connection; the client can't be used afterwards."""
        self._closed = True
        await self._mailbox.close()
        await self._outbox.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
