"""From Redis into Celery: kombu's Redis transport, with a lease on every message before it leaves its queue.

Kombu pops a message and then writes down that it did, in two steps; between them a kill or a cut loses it. Here a
worker waits without popping (`BLMOVE` of an entry onto itself), and a script moves as many entries as there is room
for from the queue to the leases, in one atomic step. A lease is extended while its worker lives, given back when the
worker leaves in order, and runs out when it does not; then the message returns to its queue with a count of its
deliveries. Producers, Flower and `celery inspect` see the lists that they know.
"""

import base64
import contextlib
import functools
import json
import logging
import uuid
from collections.abc import Iterator
from queue import Empty
from time import monotonic
from typing import Any

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from redis.exceptions import OutOfMemoryError, ResponseError

from aries_images import contract
from worker import leases
from worker.leases import Keys, Leases

logger = logging.getLogger(__name__)

#: Messages taken at once from a lane: where no prefetch limit is set, and at most (Lua's stack is small).
_UNLIMITED, _AT_ONCE = 100, 1000
#: Seconds until the next look while messages of the lane behind are held: there may be room again for more of them.
_SHORT_WAIT = 0.01
#: Seconds between two looks at the leases.
_TEND_SECONDS = 1.0
#: Seconds until the next look at a queue that cannot be waited at.
_IDLE_SECONDS = 0.5
#: What a message has for a body where its own cannot be had; no task reads it as one.
_NO_BODY = "this body cannot be decoded"


@functools.cache
def leases_of_this_process() -> Leases:
    """One for all connections, made when the first is."""
    return Leases()


class QoS(kombu_redis.QoS):  # type: ignore[misc]  # kombu has no types
    """Kombu's book of what is delivered and not acknowledged, kept with leases.

    Each lane has the prefetch limit to itself, so that what is held from behind takes no room from what is in front.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._behind: set[str] = set()

    def can_consume(self) -> bool:
        """Whether there is room for what the channel waits for; then the other lane is looked at too."""
        in_front, behind = self.rooms()
        return (in_front if self.channel.waits_in_front else behind) > 0

    def rooms(self) -> tuple[int, int]:
        """How many messages may be taken from the lane in front, and from the one behind."""
        if not self.prefetch_count:
            return _UNLIMITED, _UNLIMITED
        behind = len(self._behind)
        in_front = len(self._delivered) - len(self._dirty) - behind
        return max(self.prefetch_count - in_front, 0), max(self.prefetch_count - behind, 0)

    @property
    def holds_behind(self) -> bool:
        """Whether messages of the lane behind are held."""
        return bool(self._behind)

    def append(self, message: virtual.Message, delivery_tag: str) -> None:
        """A message was delivered; its lease was taken before it came."""
        leases_of_this_process().hold(delivery_tag)
        if message.delivery_info["routing_key"] in self.channel.queues_behind:
            self._behind.add(delivery_tag)
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """A message is answered."""
        leases_of_this_process().release(delivery_tag)
        self._done(delivery_tag)

    def _done(self, delivery_tag: str) -> None:
        self._behind.discard(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  # kombu's signature
        """A message is given back, or else kept for a human: nothing that was sent just vanishes."""
        if requeue:
            self.channel.give_back([delivery_tag], failed=True)
        else:
            self.channel.bury(delivery_tag, "rejected")
        self._done(delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:  # noqa: ARG002  # kombu's signature
        """Give back all that is not answered, so that the oldest is taken first again."""
        self._flush()
        self.channel.flush_leases()
        self.channel.give_back(reversed(self._delivered))
        self._delivered.clear()
        self._behind.clear()

    def restore_visible(self, *_args: Any, **_kwargs: Any) -> None:
        """Kombu's moment to look after what is not acknowledged."""
        self.channel.tend_leases()


class _Poller(kombu_redis.MultiChannelPoller):  # type: ignore[misc]  # kombu has no types
    def on_poll_start(self) -> None:
        """Once per turn of the loop, before it waits: what was answered in this turn is acknowledged together."""
        for channel in self._channels:
            channel.flush_leases()
        super().on_poll_start()


class Channel(kombu_redis.Channel):  # type: ignore[misc]  # kombu has no types
    """For `redis://` and `rediss://`."""

    QoS = QoS
    lease_seconds = 30.0
    dead_letters_max = 10_000
    dead_letters_warn = 100
    #: Where a stock caller's request lands who names no queue, the task it names, and the queue it is meant for.
    strays_list = "celery"
    strays_task = strays_queue = ""
    #: Queues of which messages are taken after those of the others, and held apart from them.
    queues_behind: tuple[str, ...] = ()

    from_transport_options = (
        *kombu_redis.Channel.from_transport_options,
        "lease_seconds",
        "dead_letters_max",
        "dead_letters_warn",
        "strays_list",
        "strays_task",
        "strays_queue",
        "queues_behind",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._plain_client: Any = None
        super().__init__(*args, **kwargs)
        self._keys = Keys()
        self._leases = leases_of_this_process()
        self._name = uuid.uuid4().hex
        self._takes = 0
        self._asked: list[str] = []
        self._no_ack_queues: set[str] = set()
        self._waits = False
        self._idle_until = 0.0
        self._hungry = False  # the last look found something: look again before waiting
        self._tended_at = 0.0

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002  # kombu's signature
        """Kombu's, but one for each pool of connections: it makes a new client for every command or two."""
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._plain_client is None or self._plain_client.connection_pool is not self.pool:
            self._plain_client = super()._create_client()
        return self._plain_client

    # --- taking ---

    @property
    def waits_in_front(self) -> bool:
        """Whether a queue of the lane in front is consumed from."""
        return any(queue not in self.queues_behind for queue in self.active_queues)

    def _lists(self) -> tuple[list[str], list[str]]:
        """The lists of the queues consumed from, in front and behind; each in kombu's order, by priority first."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        in_front = [queue for queue in queues if queue not in self.queues_behind]
        behind = [queue for queue in queues if queue in self.queues_behind]
        return self._by_priority(in_front), self._by_priority(behind)

    def _by_priority(self, queues: list[str]) -> list[str]:
        return [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for messages: at once if there were some just now, else as soon as there is one.

        Both commands go out together; the server runs the second as soon as the first comes free, so that an idle
        worker is one round trip away from a message. It waits at one list and looks at the others each time, at
        least four times a second.
        """
        in_front, behind = self._lists()
        lists = in_front + behind
        if not lists or monotonic() < self._idle_until:
            return
        # A key that is no list stands for no strays.
        self._asked = [*lists, self.strays_list if self.strays_queue in self.active_queues else self._keys.leases]
        room, room_behind = (min(room, _AT_ONCE) for room in self.qos.rooms())
        self._takes += 1
        keys = [*self._asked, *self._keys]
        tags = f"{self._name}:{self._takes}:"
        task = self.strays_task.replace(".", "%.")  # Lua's pattern for it
        # EVAL, not EVALSHA: a server that was restarted or flushed knows no script, and this one is a kilobyte.
        milliseconds = round(self.lease_seconds * 1000)
        limits = (leases.MESSAGE_BYTES_MAX, self.dead_letters_max, len(in_front), room_behind)
        commands = [("EVAL", leases.TAKE, len(keys), *keys, room, milliseconds, tags, task, *limits)]
        self._waits = not self._hungry
        if self._waits:
            seconds = _SHORT_WAIT if in_front and self.qos.holds_behind else timeout or self.brpop_timeout
            commands.insert(0, ("BLMOVE", lists[0], lists[0], "RIGHT", "RIGHT", seconds))
        connection = self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        connection.send_packed_command(connection.pack_commands(commands))

    def _brpop_read(self, **_options: Any) -> bool:
        """Read what was taken, and deliver it."""
        connection = self.client.connection
        try:
            if self._waits:
                self._wait_over(connection)
            taken = self.client.parse_response(connection, "EVAL")
        except self.connection_errors:
            connection.disconnect()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self._hungry = bool(taken)
        if not taken:
            raise Empty
        for list_number, tag, entry in _triples(taken):
            is_stray = list_number == len(self._asked)
            queue = self.strays_queue if is_stray else self._asked[list_number - 1].rsplit(self.sep, 1)[0]
            self._hand_over(queue, tag.decode(), entry)
        return True

    def _wait_over(self, connection: Any) -> None:
        try:
            self.client.parse_response(connection, "BLMOVE")
        except ResponseError as error:
            # A server that is full moves nothing, not even in place, and one whose key is no list cannot. Both say so
            # at once: no reason to reconnect, nor to ask again a thousand times a second.
            if not isinstance(error, OutOfMemoryError) and not str(error).startswith("WRONGTYPE"):
                raise
            logger.warning("the queue cannot be waited at: %s", error)
            self._idle_until = monotonic() + _IDLE_SECONDS

    def _hand_over(self, queue: str, tag: str, entry: bytes) -> None:
        message = read_entry(entry, queue, tag)
        if message is None:
            self.bury(tag, "not_a_message")
            return
        self.connection._deliver(message, queue)  # noqa: SLF001  # where kombu's channel hands over
        if queue in self._no_ack_queues:
            self._leases.release(tag)
            self.flush_leases()  # at once: who asks by remote control may never turn his loop again

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001
        """Kombu's, noting the queues whose messages nobody will acknowledge: replies to remote control."""
        if no_ack:
            self._no_ack_queues.add(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def close(self) -> None:
        """Kombu's; what is answered is acknowledged first, if the server can still be reached."""
        if not self.closed:
            with contextlib.suppress(*self.connection_errors):
                self.flush_leases()
        super().close()

    # --- leases ---

    def flush_leases(self) -> None:
        """End the leases of what is answered."""
        if not self._leases.to_flush:
            return
        with self.conn_or_acquire() as client:
            self._leases.flush(client, self._keys)

    def tend_leases(self) -> None:
        """Extend the leases held here; return to their queues the messages whose leases ran out."""
        if monotonic() - self._tended_at < _TEND_SECONDS * 0.9:
            return
        self._tended_at = monotonic()
        with self.conn_or_acquire() as client:
            returned = self._leases.tend(client, self._keys, round(self.lease_seconds * 1000))
        if returned:
            logger.warning("%d messages are back in their queues: their leases ran out", returned)

    def give_back(self, tags: Any, *, failed: bool = False) -> None:
        """Return messages to their queues, where they are the next to be taken; one that failed too often is buried."""
        with self.conn_or_acquire() as client:
            self._leases.give_back(client, self._keys, tags, failed=failed)

    def _restore(self, message: virtual.Message, leftmost: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        self.give_back([message.delivery_tag])

    def bury(self, tag: str, reason: str, request_id: str | None = None) -> None:
        """Put a message with the dead letters, to the byte, and end its lease: both or neither."""
        known = {"request_id": request_id, "reason": reason}
        logger.error("a message is put with the dead letters: %s", reason.replace("_", " "), extra=known)
        with self.conn_or_acquire() as client:
            there = self._leases.bury(client, self._keys, tag, reason, self.dead_letters_max)
        if there >= self.dead_letters_warn:
            room = self.dead_letters_max - there
            logger.warning("%d dead letters wait for somebody to look at them; the oldest go in %d more", there, room)

    # --- remote control ---

    def _receive_one(self, c: Any) -> bool:
        """A control command or an event. One that cannot be read is dropped; kombu would end the worker over it.

        Nor does it hold up the one behind it: that may be in the connection's buffer already, which nothing wakes.
        """
        try:
            return bool(super()._receive_one(c))
        except Empty:
            return False
        except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
            logger.warning("a broadcast that cannot be read is dropped", exc_info=True)
            return False


class Transport(kombu_redis.Transport):  # type: ignore[misc]  # kombu has no types
    """Kombu's Redis transport with leases."""

    Channel = Channel
    #: Seconds until a waiting worker looks at the lists that it does not wait at: priorities, other queues, strays.
    brpop_timeout = 0.25

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = _Poller()


class SentinelChannel(Channel, kombu_redis.SentinelChannel):  # type: ignore[misc]  # kombu has no types
    """For `sentinel://`."""

    from_transport_options = tuple(
        {*Channel.from_transport_options, *kombu_redis.SentinelChannel.from_transport_options}
    )


class SentinelTransport(Transport):
    """The same behind Redis Sentinel."""

    default_port = 26379
    Channel = SentinelChannel


#: Kombu's names of the transports that these take the place of; any other broker keeps kombu's own.
TRANSPORTS = {
    "redis": "worker.intake:Transport",
    "rediss": "worker.intake:Transport",
    "sentinel": "worker.intake:SentinelTransport",
}
LEASING_SCHEMES = tuple(f"{scheme}://" for scheme in TRANSPORTS)


def read_entry(entry: bytes, queue: str, tag: str) -> dict[str, Any] | None:
    """The message that a list entry holds, its envelope made whole; None where there is none in it.

    What is wrong inside the message is left for the consumer, which can answer it.
    """
    try:
        message = json.loads(entry)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(message.get("headers"), dict):
        return None
    properties = message.get("properties")
    message["properties"] = properties = properties if isinstance(properties, dict) else {}
    delivery = message["headers"]["deliveries"] = leases.deliveries(entry)
    properties["delivery_tag"] = tag
    properties["delivery_info"] = {"exchange": "", "routing_key": queue, "redelivered": delivery > 1}
    message["body"] = _decode(message.get("body"), properties.pop("body_encoding", None))
    if message["headers"].pop("compression", None) is not None:
        message["body"] = _NO_BODY  # half a megabyte can be two gigabytes: kombu would have a look
    return message


def _decode(body: Any, encoding: Any) -> str | bytes:
    if isinstance(body, str) and encoding == "base64":
        try:
            return base64.b64decode(body)
        except ValueError:
            return _NO_BODY
    return body if contract.is_text(body) else _NO_BODY  # what is no text, kombu would give up on


def _triples(flat: list[Any]) -> Iterator[tuple[int, bytes, bytes]]:
    values = iter(flat)
    return zip(values, values, values, strict=True)
