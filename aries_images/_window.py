"""A window of requests under way: sent many at a time, answered as the answers come, in order for each image."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from itertools import islice
from math import inf
from typing import Any, NamedTuple, TypeVar

from aries_images import contract
from aries_images._aio_mailbox import Mailbox, Waiting, mailbox_for
from aries_images._aio_outbox import Outbox, outbox_for
from aries_images._broker import NotSentError
from aries_images._caller import Caller, headers_of
from aries_images._request import MAX_TIMEOUT, Outgoing
from aries_images.bulk import BulkLine, BulkRequest, ReplyFile, new_run, reply_document, request_in
from aries_images.contract import Image
from aries_images.errors import AriesImagesError, InvalidParameter, OutcomeUnknown, TooManyRequests

T = TypeVar("T")

#: Seconds after which what was refused as too many requests is sent again.
_BACK_OFF = 1.0


class Line(NamedTuple):
    """One line: a request to be sent, or why none can be made of it."""

    request_id: str
    #: What it is for, whatever that is: of two lines for one image the second waits for the first.
    image: str
    request: Outgoing | InvalidParameter


Answer = tuple[Line, Image | AriesImagesError]


class _Queue:
    """What is to be sent: at most `window` lines at a time are out of the source and not answered."""

    def __init__(self, lines: Iterable[Line], window: int) -> None:
        self._source: Iterator[Line] = iter(lines)
        self._room = window
        self._ready: deque[Line] = deque()
        self._refused: list[Answer] = []
        #: Image -> lines that wait for another one of that image.
        self._behind: dict[str, deque[Line]] = {}

    def take(self) -> list[Line]:
        """What can be sent now."""
        for line in islice(self._source, self._room):
            if isinstance(line.request, InvalidParameter):
                self._refused.append((line, line.request))
                continue
            self._room -= 1
            if line.image in self._behind:
                self._behind[line.image].append(line)
            else:
                self._behind[line.image] = deque()
                self._ready.append(line)
        ready, self._ready = list(self._ready), deque()
        return ready

    def take_refused(self) -> list[Answer]:
        """What can't be sent at all."""
        refused, self._refused = self._refused, []
        return refused

    def again(self, line: Line) -> None:
        """It is to be sent once more."""
        self._ready.append(line)

    def done(self, line: Line) -> None:
        """It is answered."""
        self._room += 1
        behind = self._behind[line.image]
        if behind:
            self._ready.append(behind.popleft())
        else:
            del self._behind[line.image]


class Window:
    """Requests under way over the connections of one client.

    Args:
        lines: what to send, taken from there as there is room for it.
        window: how many of them may be out of there without an answer.
        timeout: seconds without anything sent or answered after which this gives up.
    """

    def __init__(self, mailbox: Mailbox, outbox: Outbox, lines: Iterable[Line], window: int, timeout: float) -> None:
        self._mailbox, self._outbox = mailbox, outbox
        self._queue = _Queue(lines, window)
        self._timeout = timeout
        self._under_way: dict[Waiting, Line] = {}
        self._arrived: deque[Waiting] = deque()
        self._wake = asyncio.Event()
        self._backing_off = 0

    async def answers(self) -> AsyncGenerator[list[Answer]]:
        """The answers as they come, those together that are there together.

        Raises:
            OutcomeUnknown: the servers can't be reached, or no answer came.
        """
        try:
            while True:
                await self._send(self._queue.take())
                refused = self._queue.take_refused()
                if refused:
                    yield refused
                elif not self._under_way and not self._backing_off:
                    return
                elif done := await self._next():
                    yield done
        finally:
            for waiting in self._under_way:
                self._mailbox.leave(waiting)

    async def _send(self, lines: list[Line]) -> None:
        if not lines:
            return
        deadline = time.monotonic() + self._timeout
        requests = [line.request for line in lines if isinstance(line.request, Outgoing)]
        opened = await self._mailbox.open_all(requests, deadline, kept_until=inf)
        if opened is None:
            why = self._mailbox.trouble or "no answer"
            raise OutcomeUnknown(f"the result store can't be reached: {why}", request_id=requests[0].request_id)
        self._under_way.update(zip(opened, lines, strict=True))
        for waiting in opened:
            waiting.outcome.add_done_callback(partial(self._hear, waiting))
        try:
            await self._outbox.send(requests, deadline)
        except NotSentError as error:
            at = requests[0].request_id
            raise OutcomeUnknown(f"the broker can't be reached: {error}", request_id=at) from error

    def _hear(self, waiting: Waiting, _: object) -> None:
        self._arrived.append(waiting)
        self._wake.set()

    async def _next(self) -> list[Answer]:
        """What has been answered; nothing if there is something to be sent again instead."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._wake.wait()
        except TimeoutError:
            await self._mailbox.look_for(self._under_way)
            await asyncio.sleep(0)  # what was found is told by callbacks
            if self._under_way and not self._arrived:
                first = next(iter(self._under_way)).request.request_id
                waiting = len(self._under_way)
                why = f"no answer to {waiting} requests for {self._timeout:g} seconds"
                raise OutcomeUnknown(why, request_id=first) from None
        self._wake.clear()
        arrived, self._arrived = self._arrived, deque()
        return [answer for waiting in arrived if (answer := self._answer(waiting))]

    def _answer(self, waiting: Waiting) -> Answer | None:
        line = self._under_way.pop(waiting)
        self._mailbox.leave(waiting)
        outcome = waiting.outcome.result()
        if isinstance(outcome, TooManyRequests):
            self._backing_off += 1
            asyncio.get_running_loop().call_later(_BACK_OFF, self._again, line)
            return None
        self._queue.done(line)
        return line, outcome

    def _again(self, line: Line) -> None:
        self._backing_off -= 1
        self._queue.again(line)
        self._wake.set()


def requests_of(lines: Iterable[BulkLine], caller: Caller, replies: ReplyFile | None) -> Iterator[Line]:
    """What is to be sent: that which has no reply yet."""
    run = replies.run if replies else new_run()
    for place, line in enumerate(lines, 1):
        asked = request_in(line, place, run)
        if not (replies and replies.recall(asked.request_id)):
            yield Line(asked.request_id, str(asked.body.get("id")), _outgoing(asked, caller))


def _outgoing(asked: BulkRequest, caller: Caller) -> Outgoing | InvalidParameter:
    if asked.refusal:
        return asked.refusal
    headers = headers_of(asked.if_revision, None)
    try:
        # The deadline is a day away: a run that was stopped can be gone on with, and finds what became of each.
        return caller.compose(
            asked.request_id,
            asked.body,
            own_id=False,
            headers=headers,
            timeout=MAX_TIMEOUT,
            queue=contract.BULK_QUEUE,
        )
    except InvalidParameter as error:
        return error


async def reply_batches(window: Window, replies: ReplyFile | None) -> AsyncGenerator[list[dict[str, Any]]]:
    """The reply documents of a window as they come, those together that are there together, and in `replies` first."""
    async with aclosing(window.answers()) as answers:
        async for some in answers:
            documents = [_reply_to(line, outcome) for line, outcome in some]
            if replies:
                replies.add(documents)
            yield documents


def _reply_to(line: Line, outcome: Image | AriesImagesError) -> dict[str, Any]:
    digest = line.request.digest if isinstance(line.request, Outgoing) else None
    return reply_document(line.request_id, digest, outcome)


# --- for callers that block ------------------------------------------------------------------------------------------


def blocking_batches(
    lines: Iterable[BulkLine], caller: Caller, window: int, timeout: float, replies: ReplyFile | None
) -> Generator[list[dict[str, Any]]]:
    """`reply_batches` over connections of its own, served by an event loop in a thread while this waits or does not."""
    with _loop() as loop:
        mailbox, outbox = loop.run(_connections(caller))
        batches = reply_batches(Window(mailbox, outbox, requests_of(lines, caller, replies), window, timeout), replies)
        try:
            while (batch := loop.run(_next(batches))) is not None:
                yield batch
        finally:
            loop.run(_close(batches, mailbox, outbox))


async def _connections(caller: Caller) -> tuple[Mailbox, Outbox]:
    return mailbox_for(caller.result_url, caller.options), outbox_for(caller.broker_url, caller.options)


async def _next(batches: AsyncGenerator[list[dict[str, Any]]]) -> list[dict[str, Any]] | None:
    return await anext(batches, None)


async def _close(batches: AsyncGenerator[Any], mailbox: Mailbox, outbox: Outbox) -> None:
    # Whoever waited may have been interrupted: then the next batch is still being waited for.
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await batches.aclose()
    await mailbox.close()
    await outbox.close()


class _Loop:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


@contextmanager
def _loop() -> Iterator[_Loop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="aries-images-bulk", daemon=True)
    thread.start()
    try:
        yield _Loop(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
