"""The way to the broker for the client with `await`: whatever waits to be sent goes out in one command."""

import asyncio
import base64
import json
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

from redis.asyncio import ConnectionPool, Redis

from aries_images import _broker
from aries_images._aio_mailbox import POOLS
from aries_images._broker import NotSentError
from aries_images._request import Outgoing
from aries_images._result_store import pool_for

#: Calls whose messages go out in one command.
_AT_ONCE = 100
#: The brokers that are spoken to without kombu, and the transport options that are understood there.
_REDIS = ("redis://", "rediss://", "sentinel://")
_REDIS_OPTIONS = {"master_name", "sentinel_kwargs"}
#: Seconds between two tries to reach the broker: first, and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
#: Threads that send through kombu.
_SENDERS = 4


class Outbox(Protocol):
    """What sends requests."""

    async def send(self, requests: Sequence[Outgoing], deadline: float) -> None:
        """Put the requests on the queue, trying again until `deadline` (monotonic) if the broker is away.

        Raises:
            NotSentError: the broker did not confirm all of them before the deadline.
        """

    async def workers(self) -> int | None:
        """How many workers listen to this broker; None where it can't be asked at once.

        Raises:
            RedisError, OSError: the broker does not answer.
        """

    async def close(self) -> None:
        """Close the connections."""


def envelope(request: Outgoing) -> str:
    """The entry of a Redis list that kombu's `Producer.publish` makes of `request`."""
    sent = request.properties
    message = {
        "body": base64.b64encode(request.body.encode()).decode(),
        "content-encoding": sent["content_encoding"],
        "content-type": sent["content_type"],
        "headers": request.headers,
        "properties": {
            "correlation_id": sent["correlation_id"],
            "reply_to": sent["reply_to"],
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": request.queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(message)


#: A remote control command that is addressed to nobody, as kombu writes it: a worker reads it and lets it be.
_TO_NOBODY = json.dumps(
    {
        "body": json.dumps({"method": "ping", "arguments": {}, "destination": ["nobody"]}),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {},
        "properties": {
            "delivery_tag": "nobody",
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
        },
    }
)


class RedisOutbox:
    """Sends over one connection to Redis. Belongs to the event loop in which it is first used."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._redis = Redis(connection_pool=pool)
        self._pool = pool
        self._waiting: deque[tuple[list[tuple[str, str]], asyncio.Future[None]]] = deque()
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._trouble: Exception | None = None

    async def send(self, requests: Sequence[Outgoing], deadline: float) -> None:
        """See `Outbox`."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(([(request.queue, envelope(request)) for request in requests], sent))
        self._work.set()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await sent  # cancelled with whoever waits, and then not sent if it is not on its way yet
        except TimeoutError:
            raise NotSentError(str(self._trouble or "no answer")) from self._trouble

    async def workers(self) -> int | None:
        """See `Outbox`. Redis counts who hears a publication, and each worker listens for remote control."""
        database = self._pool.connection_kwargs.get("db") or 0
        heard: int = await self._redis.publish(f"/{database}.celery.pidbox", _TO_NOBODY)
        return heard

    async def close(self) -> None:
        """See `Outbox`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._pool.disconnect()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            await self._work.wait()
            self._waiting = deque(each for each in self._waiting if not each[1].done())
            some = list(islice(self._waiting, _AT_ONCE))
            if not some:
                self._work.clear()
                continue
            try:
                await self._push([entry for entries, _ in some for entry in entries])
            except Exception as error:  # noqa: BLE001 - whatever it was: without this task everybody waits in vain
                self._trouble = error
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                pause, self._trouble = _FIRST_PAUSE, None
                for _, sent in some:
                    self._waiting.popleft()
                    if not sent.done():
                        sent.set_result(None)

    async def _push(self, entries: list[tuple[str, str]]) -> None:
        for name in sorted({queue for queue, _ in entries}):
            await self._redis.lpush(name, *(entry for queue, entry in entries if queue == name))


class ThreadOutbox:
    """Sends through kombu, in threads: for brokers other than Redis."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._outbox = _broker.Outbox(url, options)
        self._threads = ThreadPoolExecutor(_SENDERS, thread_name_prefix="aries-images-outbox")

    async def send(self, requests: Sequence[Outgoing], deadline: float) -> None:
        """See `Outbox`."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                for request in requests:
                    await loop.run_in_executor(self._threads, self._outbox.send, request, deadline)
        except TimeoutError:
            raise NotSentError("all connections to the broker are busy") from None

    async def workers(self) -> int | None:
        """See `Outbox`."""
        return None

    async def close(self) -> None:
        """See `Outbox`."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._outbox.close()


def outbox_for(url: str, options: Mapping[str, Any]) -> Outbox:
    """What sends to the broker at `url`."""
    single = url.startswith("sentinel://") or ";" not in url
    if url.startswith(_REDIS) and single and options.keys() <= _REDIS_OPTIONS:
        return RedisOutbox(pool_for(url, options, POOLS))
    return ThreadOutbox(url, options)
