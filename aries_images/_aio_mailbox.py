"""Where answers arrive for the client with `await`: one pub/sub connection for all requests of a client."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import Connection
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from aries_images._answer import answer_to
from aries_images._request import Outgoing, result_key
from aries_images._result_store import SOCKET_TIMEOUT, pool_for
from aries_images.contract import Image
from aries_images.errors import AriesImagesError

#: Seconds between two looks at the result keys of whoever waits: a pub/sub connection can be dead without either end
#: knowing.
_LOOK_EVERY = 1.0
#: Result keys in one exchange.
_KEYS_AT_ONCE = 200
#: Seconds between two tries to connect.
_PAUSE = 0.25

#: The classes of redis-py that its pools are made of.
POOLS = (ConnectionPool, Sentinel, SentinelConnectionPool)

_log = logging.getLogger(__name__)


class Waiting:
    """One request that waits for its answer."""

    __slots__ = ("deadline", "key", "outcome", "request", "since", "subscribed")

    def __init__(self, request: Outgoing, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        self.request = request
        self.key = result_key(request.request_id).encode()
        #: On the monotonic clock; the mailbox forgets the request some time after `deadline`.
        self.since, self.deadline = time.monotonic(), deadline
        self.subscribed: asyncio.Future[None] = loop.create_future()
        self.outcome: asyncio.Future[Image | AriesImagesError] = loop.create_future()

    def hear(self, record: object, *, published: bool) -> None:
        """Take what was published or found, if it is the answer."""
        if isinstance(record, bytes) and not self.outcome.done():
            outcome = answer_to(self.request, record, published=published)
            if outcome is not None:
                self.outcome.set_result(outcome)


class Mailbox:
    """Subscriptions of any number of requests on one connection, and looks at their keys over a second one.

    Belongs to the event loop in which it is first used.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._redis = Redis(connection_pool=pool)
        self._waiting: dict[bytes, list[Waiting]] = {}
        self._subscribed: set[bytes] = set()
        self._commands: deque[tuple[str, bytes]] = deque()
        self._work = asyncio.Event()
        self._unconfirmed = 0
        self._confirmed = asyncio.Event()
        self._to_look: set[Waiting] = set()
        self._looking = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        #: Why there is no connection at the moment.
        self.trouble: Exception | None = None

    # --- for callers ---

    async def open(self, request: Outgoing, deadline: float) -> Waiting | None:
        """A place for the answer to `request`, subscribed: send it now. None if that took until the deadline."""
        opened = await self.open_all([request], deadline)
        return opened[0] if opened else None

    async def open_all(
        self, requests: Sequence[Outgoing], deadline: float, *, kept_until: float | None = None
    ) -> list[Waiting] | None:
        """Places for the answers to all of `requests`, or None for none of them; forgotten after `kept_until`."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._look_now_and_then())]
        opened = [self._add(Waiting(request, kept_until or deadline)) for request in requests]
        awaited = [waiting.subscribed for waiting in opened if waiting.key not in self._subscribed]
        if not awaited:
            return opened
        self._work.set()
        try:
            _, missing = await asyncio.wait(awaited, timeout=deadline - time.monotonic())
        except BaseException:
            self._leave_all(opened)
            raise
        if missing:
            self._leave_all(opened)
            return None
        return opened

    def _add(self, waiting: Waiting) -> Waiting:
        others = self._waiting.setdefault(waiting.key, [])
        others.append(waiting)
        if len(others) == 1:
            self._commands.append(("SUBSCRIBE", waiting.key))
        return waiting

    def _leave_all(self, opened: Iterable[Waiting]) -> None:
        for waiting in opened:
            self.leave(waiting)

    async def answer(self, waiting: Waiting, deadline: float) -> Image | AriesImagesError | None:
        """The answer; None if there is none at the deadline."""
        await asyncio.wait([waiting.outcome], timeout=max(deadline - time.monotonic(), 0))
        if not waiting.outcome.done():
            await self._look(waiting)
        if not waiting.outcome.done():
            return None
        self.leave(waiting)
        return waiting.outcome.result()

    def leave(self, waiting: Waiting) -> None:
        """Give the place up; harmless if that was done before."""
        others = self._waiting.get(waiting.key, [])
        if waiting in others:
            others.remove(waiting)
            if not others:
                del self._waiting[waiting.key]
                self._subscribed.discard(waiting.key)
                # Sent with the next subscription, or by the clock: nobody waits for this one.
                self._commands.append(("UNSUBSCRIBE", waiting.key))

    async def ping(self) -> None:
        """Ask the server whether it is there.

        Raises:
            RedisError, OSError: it does not answer.
        """
        async with self._looking:
            await self._redis.ping()

    async def close(self) -> None:
        """End the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.disconnect()

    # --- the subscriptions ---

    async def _run(self) -> None:
        while True:
            try:
                connection = await self._pool.get_connection()
                try:
                    await self._serve(connection)
                finally:
                    await connection.disconnect(nowait=True)
                    await self._pool.release(connection)
            except Exception as error:  # noqa: BLE001 - whatever it was, the next connection may do better
                self.trouble = error
                _log.debug("connection to the results was lost: %s", error)
                await asyncio.sleep(_PAUSE)

    async def _serve(self, connection: Connection) -> None:
        self._subscribed.clear()
        self._commands = deque(("SUBSCRIBE", key) for key in self._waiting)
        self._work.set()
        self.trouble = None
        tasks = [asyncio.create_task(self._write(connection)), asyncio.create_task(self._read(connection))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, connection: Connection) -> None:
        """Send what there is in one go, and go on when all of it is confirmed."""
        while True:
            await self._work.wait()
            self._work.clear()
            commands, self._commands = self._commands, deque()
            self._unconfirmed = len(commands)
            self._confirmed.clear()
            if commands:
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                await self._wait_for_confirmations()

    async def _wait_for_confirmations(self) -> None:
        """As long as they come: a thousand of them can take this process longer than one exchange may."""
        while (left := self._unconfirmed) > 0:
            try:
                async with asyncio.timeout(SOCKET_TIMEOUT):
                    await self._confirmed.wait()
            except TimeoutError:
                if self._unconfirmed == left:
                    raise

    async def _read(self, connection: Connection) -> None:
        while True:
            match await connection.read_response(timeout=inf):
                case [b"message", bytes(key), record]:
                    for waiting in self._waiting.get(key, ()):
                        waiting.hear(record, published=True)
                case [b"subscribe", bytes(key), _]:
                    self._confirm()
                    self._is_subscribed(key)
                case [b"unsubscribe", _, _]:
                    self._confirm()

    def _confirm(self) -> None:
        self._unconfirmed -= 1
        if self._unconfirmed == 0:
            self._confirmed.set()

    def _is_subscribed(self, key: bytes) -> None:
        places = self._waiting.get(key, ())
        if places:
            self._subscribed.add(key)
        for waiting in places:
            if not waiting.subscribed.done():
                waiting.subscribed.set_result(None)

    # --- the keys ---

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            now = time.monotonic()
            everyone = [waiting for places in self._waiting.values() for waiting in places]
            for waiting in everyone:
                if waiting.deadline + _LOOK_EVERY < now:
                    self.leave(waiting)  # a pending update that nobody has asked for
            await self.look_for(waiting for waiting in everyone if waiting.since + _LOOK_EVERY < now)
            if self._commands:
                self._work.set()

    async def _look(self, waiting: Waiting) -> None:
        """One look at the key. Whoever asks while another looks is looked for with all others in the next exchange."""
        self._to_look.add(waiting)
        async with self._looking:
            if waiting in self._to_look:
                everyone, self._to_look = self._to_look, set()
                try:
                    await self._look_at(everyone)
                except BaseException:
                    self._to_look |= everyone  # cancelled: the next one looks for the others
                    raise

    async def look_for(self, everyone: Iterable[Waiting]) -> None:
        """One look at the key of each."""
        async with self._looking:
            await self._look_at(everyone)

    async def _look_at(self, everyone: Iterable[Waiting]) -> None:
        left = list(everyone)
        while left:
            some, left = left[:_KEYS_AT_ONCE], left[_KEYS_AT_ONCE:]
            with suppress(Exception):  # the next look may do better; whoever looks now and then must go on
                async with self._redis.pipeline(transaction=False) as pipe:
                    for waiting in some:
                        pipe.get(waiting.key)
                    records = await pipe.execute(raise_on_error=False)
                for waiting, record in zip(some, records, strict=True):
                    waiting.hear(record, published=False)


def mailbox_for(url: str, options: Mapping[str, Any]) -> Mailbox:
    """The mailbox for results that are kept at `url`."""
    return Mailbox(pool_for(url, options, POOLS))
