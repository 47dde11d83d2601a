"""The broker's side of the client: sending requests to it, and taking reply events from it, through kombu."""

import logging
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from queue import Empty, LifoQueue
from typing import Any

from amqp.exceptions import NotFound
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.message import Message
from kombu.messaging import Consumer, Producer

from aries_images import contract
from aries_images._answer import ReplyEvent, read_event
from aries_images._request import Outgoing
from aries_images._result_store import SOCKET_TIMEOUT

#: Connections that send, per client: sending takes well under a millisecond, so few serve many threads.
_SENDERS = 4
#: Seconds between two tries to reach the broker: first, and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0

_log = logging.getLogger(__name__)


class NotSentError(Exception):
    """The broker did not confirm in time that it has the message. It may have it nevertheless."""


def _connect(url: str, options: Mapping[str, Any], *, socket_timeout: float, deadline: float) -> Connection:
    # Each transport takes its own of these and passes over the others: Redis the first three, AMQP the rest.
    settings = {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": SOCKET_TIMEOUT,
        "socket_keepalive": True,
        "read_timeout": socket_timeout,
        "write_timeout": socket_timeout,
        "confirm_publish": True,
    }
    connection = Connection(url, connect_timeout=SOCKET_TIMEOUT, transport_options=settings | dict(options))
    # Left to itself kombu sleeps two seconds between two hosts; one try for each host of the URL is enough.
    connection.ensure_connection(
        max_retries=max(len(connection.alt) - 1, 0),
        interval_start=0,
        interval_step=0,
        timeout=max(deadline - time.monotonic(), 0.001),
    )
    return connection


class Outbox:
    """A few connections to the broker, each used by one thread at a time (AMQP channels can't be shared)."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        try:
            Connection(url)
        except KeyError:
            raise ValueError("the broker URL has a scheme that kombu has no transport for") from None
        self._url = url
        self._options = options
        self._idle: LifoQueue[Producer | None] = LifoQueue()
        for _ in range(_SENDERS):
            self._idle.put(None)

    def send(self, request: Outgoing, deadline: float) -> None:
        """Put the request on the queue, trying again until `deadline` (monotonic) if the broker is away.

        A message may get there twice, if a confirmation is lost. That does no harm: the worker applies a
        request id once.

        Raises:
            NotSentError: the broker did not confirm it before the deadline.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._try(request, deadline)
            except Exception as error:  # each transport has exceptions of its own
                if time.monotonic() + pause >= deadline:
                    raise NotSentError(str(error) or type(error).__name__) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _try(self, request: Outgoing, deadline: float) -> None:
        try:
            producer = self._idle.get(timeout=max(deadline - time.monotonic(), 0))
        except Empty:
            raise NotSentError("all connections to the broker are busy") from None
        try:
            producer = producer or self._producer(deadline)
            producer.publish(
                request.body,
                routing_key=request.queue,
                headers=request.headers,
                delivery_mode="persistent",
                confirm_timeout=SOCKET_TIMEOUT,
                **request.properties,
            )
        except BaseException:
            _close(producer)
            producer = None
            raise
        finally:
            self._idle.put(producer)

    def _producer(self, deadline: float) -> Producer:
        connection = _connect(self._url, self._options, socket_timeout=SOCKET_TIMEOUT, deadline=deadline)
        channel: Any = connection.channel()
        if connection.transport.driver_type == "redis":
            # Else it builds a new client object for each message, which takes a tenth of the whole call.
            channel._create_client = lambda: channel.client  # noqa: SLF001
        if connection.transport.driver_type == "amqp":
            # A queue that is not there yet takes no message, and that is confirmed all the same.
            for name in contract.QUEUES:
                Queue(name, channel=channel, queue_arguments=contract.AMQP_ARGUMENTS).declare()
        return Producer(channel)

    def close(self) -> None:
        """Close the connections that are not in use."""
        for _ in range(_SENDERS):
            with suppress(Empty):
                _close(self._idle.get_nowait())


def _close(producer: Producer | None) -> None:
    if producer is not None and producer.connection is not None:
        with suppress(Exception):  # it may be broken already, and nothing more is asked of it
            producer.connection.close()


# --- reply events ----------------------------------------------------------------------------------------------------


def _consumer_options(queue: str) -> dict[str, Any]:
    """Kombu keeps what it has handed out in Redis keys, and puts back what is not acknowledged in time.

    With keys of its own a consumer of replies never puts back the requests that a worker holds, nor sees what others
    have taken from other queues.
    """
    return {
        "unacked_key": f"{queue}:unacked",
        "unacked_index_key": f"{queue}:unacked_index",
        "unacked_mutex_key": f"{queue}:unacked_mutex",
        "visibility_timeout": 300,
    }


_CONSUMER_SOCKET_TIMEOUT = 5.0
#: Seconds between two looks for a queue that is not there.
_NO_QUEUE_PAUSE = 0.5


def take_events(
    url: str, options: Mapping[str, Any], queue: str, timeout: float | None
) -> Generator[ReplyEvent | None]:
    """Reply events of a queue, each acknowledged when the next is asked for; reconnects by itself.

    None comes in between, each second at least, so that whoever waits in a thread can be stopped. Ends when no
    message has come for `timeout` seconds; never, if that is None.
    """
    quiet_since = time.monotonic()
    while timeout is None or time.monotonic() - quiet_since < timeout:
        try:
            with _connect(
                url,
                _consumer_options(queue) | dict(options),
                socket_timeout=_CONSUMER_SOCKET_TIMEOUT,
                deadline=time.monotonic() + _CONSUMER_SOCKET_TIMEOUT,
            ) as connection:
                for message in _consume(connection, queue, _LONGEST_PAUSE if timeout is None else timeout / 10):
                    yield _event_in(message, queue)
                    if message is not None:
                        message.ack()
                        quiet_since = time.monotonic()
                    elif timeout is not None and time.monotonic() - quiet_since >= timeout:
                        return
        except NotFound:  # AMQP: the worker has yet to make it, or it vanished for want of replies
            yield None
            time.sleep(_NO_QUEUE_PAUSE)
        except Exception as error:  # noqa: BLE001 - each transport has exceptions of its own
            _log.warning("reply events of %s: connection lost, trying again: %s", queue, error)
        time.sleep(_FIRST_PAUSE)


def _event_in(message: Message | None, queue: str) -> ReplyEvent | None:
    if message is None:
        return None
    event = read_event(message.body, message.headers)
    if event is None:
        _log.warning("a message on %s was no reply event and has been dropped", queue)
    return event


def _consume(connection: Connection, queue: str, tick: float) -> Iterator[Message | None]:
    """One message after the other; None each time that none has come for `tick` seconds."""
    arrived: list[Message] = []
    # On AMQP the worker alone declares it: with arguments that it knows, and all have to agree on.
    declared = Queue(queue, no_declare=connection.transport.driver_type == "amqp")
    with Consumer(connection.channel(), [declared], on_message=arrived.append, prefetch_count=1):
        while True:
            with suppress(TimeoutError):
                connection.drain_events(timeout=min(tick, _LONGEST_PAUSE))
            yield arrived.pop() if arrived else None
