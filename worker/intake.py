"""From Redis into Celery: kombu's Redis transport, with a lease on every message before it leaves its queue.

Kombu pops a message and then writes down that it did, in two steps; between them a kill or a cut loses it. Here a
worker waits without popping (`BLMOVE` of an entry onto itself), and a script moves as many entries as there is room
for from the queue to the leases, in one atomic step. A lease is extended while its worker lives, given back when the
worker leaves in order, and runs out when it does not; then the message returns to its queue with a count of its
deliveries. Producers, Flower and `celery inspect` see the lists that they know.
"""

import base64
import functools
import json
import logging
import re
import threading
import uuid
from collections.abc import Iterable, Iterator
from queue import Empty
from time import monotonic
from typing import Any

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from redis import Redis

logger = logging.getLogger(__name__)

#: Messages taken at once where no prefetch limit is set.
_UNLIMITED = 100
#: Seconds between two looks at the leases: extending one's own, returning those that ran out.
_TEND_SECONDS = 1.0
#: What a message has for a body where its own cannot be had; no task reads it as one.
_NO_BODY = "this body cannot be decoded"
#: How a returned entry begins: JSON as it came, with the number of its deliveries put in front.
_COUNTED = re.compile(rb'\{"deliveries":(\d{1,9}),')

# Each key of a lease begins with the list it came from, so that it returns to the same priority.
_TAKE = """
local lists, room, prefix = #KEYS - 2, tonumber(ARGV[1]), ARGV[3]
local now = redis.call('TIME')
local expires = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2]
local taken, leases, index = {}, {}, {}
for list = 1, lists do
  if room > 0 then
    for _, entry in ipairs(redis.call('RPOP', KEYS[list], room) or {}) do
      local tag = prefix .. #leases
      taken[#taken + 1] = list
      taken[#taken + 1] = tag
      taken[#taken + 1] = entry
      leases[#leases + 1] = tag
      leases[#leases + 1] = #KEYS[list] .. ':' .. KEYS[list] .. entry
      index[#index + 1] = expires
      index[#index + 1] = tag
      room = room - 1
    end
  end
end
if #leases > 0 then
  redis.call('HSET', KEYS[#KEYS - 1], unpack(leases))
  redis.call('ZADD', KEYS[#KEYS], unpack(index))
end
return taken
"""

_RETURN_ONE = """
local function give_back(tag, count)
  local lease = redis.call('HGET', KEYS[1], tag)
  redis.call('ZREM', KEYS[2], tag)
  if not lease then return 0 end
  redis.call('HDEL', KEYS[1], tag)
  local size, start = string.match(lease, '^(%d+)():')
  local list = string.sub(lease, start + 1, start + size)
  local entry = string.sub(lease, start + size + 1)
  if count and string.sub(entry, 1, 1) == '{' then
    local deliveries, rest = string.match(entry, '^{"deliveries":(%d+),()')
    entry = '{"deliveries":' .. string.format('%d', (deliveries or 1) + 1) .. ',' .. string.sub(entry, rest or 2)
  end
  redis.call('RPUSH', list, entry)
  return 1
end
"""

_GIVE_BACK = (
    _RETURN_ONE
    + """
local returned = 0
for _, tag in ipairs(ARGV) do returned = returned + give_back(tag, false) end
return returned
"""
)

# Redis' clock alone decides, so that a worker whose clock is wrong takes nobody's work away.
_TEND = (
    _RETURN_ONE
    + """
local now = redis.call('TIME')
local milliseconds = now[1] * 1000 + math.floor(now[2] / 1000)
for i = 2, #ARGV do redis.call('ZADD', KEYS[2], 'XX', milliseconds + ARGV[1], ARGV[i]) end
local returned = 0
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', milliseconds, 'LIMIT', 0, 1000)) do
  returned = returned + give_back(tag, true)
end
return returned
"""
)


class Leases:
    """The messages that this process holds. They are the process's, not a connection's: they outlive a reconnect."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._done: list[str] = []

    def hold(self, tag: str) -> None:
        """From now on the lease is extended."""
        with self._lock:
            self._held.add(tag)

    def release(self, tags: Iterable[str]) -> None:
        """These are answered: their leases end with the next flush."""
        with self._lock:
            self._done.extend(tags)
            self._held.difference_update(tags)

    def forget(self, tags: Iterable[str]) -> None:
        """These are no longer ours."""
        with self._lock:
            self._held.difference_update(tags)

    def held(self) -> list[str]:
        """The tags whose leases are to be extended."""
        with self._lock:
            return list(self._held)

    def flush(self, client: Redis, key: str, index: str) -> None:
        """End the leases of what is answered, in one round trip; on an error they are kept for the next flush."""
        if not self._done:
            return
        with self._lock:
            done, self._done = self._done, []
        try:
            with client.pipeline(transaction=True) as pipe:
                pipe.hdel(key, *done).zrem(index, *done).execute()
        except Exception:
            with self._lock:
                self._done += done
            raise


@functools.cache
def leases_of_this_process() -> Leases:
    """One for all connections, made when the first is."""
    return Leases()


class QoS(kombu_redis.QoS):  # type: ignore[misc]  # kombu has no types
    """Kombu's book of what is delivered and not acknowledged, kept with leases."""

    def append(self, message: virtual.Message, delivery_tag: str) -> None:
        """A message was delivered; its lease was taken before it came."""
        leases_of_this_process().hold(delivery_tag)
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """A message is answered."""
        leases_of_this_process().release([delivery_tag])
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  # kombu's signature
        """A message is given up on, or given back."""
        if requeue:
            self.channel.give_back([delivery_tag])
            virtual.QoS.ack(self, delivery_tag)
        else:
            self.ack(delivery_tag)

    def restore_unacked(self, client: Redis | None = None) -> None:
        """Give back all that is not answered, the oldest so that it is taken first again."""
        self._flush()
        tags = list(self._delivered)
        self.channel.flush_leases()
        self.channel.give_back(reversed(tags))
        self._delivered.clear()

    def restore_visible(self, *_args: Any, **_kwargs: Any) -> None:
        """Kombu's moment to look after what is not acknowledged."""
        self.channel.tend_leases()


class _Poller(kombu_redis.MultiChannelPoller):  # type: ignore[misc]
    def on_poll_start(self) -> None:
        """Once per turn of the loop, before it waits: what was answered in this turn is acknowledged together."""
        for channel in self._channels:
            channel.flush_leases()
        super().on_poll_start()


class _Leasing:
    """What a leasing channel does differently from kombu's."""

    QoS = QoS
    #: Keys of the leases (a hash), of their ends (a sorted set, milliseconds) and of the dead letters (a stream).
    leases_key = "image.update.leases"
    lease_ends_key = "image.update.leases.ends"
    dead_letters_key = "image.update.dead"
    dead_letters_max = 10_000
    lease_seconds = 30.0

    from_transport_options = (
        *kombu_redis.Channel.from_transport_options,
        "leases_key",
        "lease_ends_key",
        "dead_letters_key",
        "dead_letters_max",
        "lease_seconds",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._name = uuid.uuid4().hex
        self._takes = 0
        self._waits = False
        self._hungry = False  # the last look found something: look again before waiting
        self._tended_at = 0.0
        self._dead_queues: set[str] = set()

    # --- taking ---

    def _lists(self) -> list[str]:
        """Every list that feeds the queues consumed from, in kombu's order: by priority, then queue by queue."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        return [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for messages: at once if there were some just now, else as soon as there is one.

        Both commands go out together; the server runs the second as soon as the first comes free, so that an idle
        worker is one round trip away from a message. It waits at one list and looks at the others each time, at
        least once a second.
        """
        lists = self._lists()
        if not lists:
            return
        room = self.qos.can_consume_max_estimate() or _UNLIMITED
        self._takes += 1
        take = [*lists, self.leases_key, self.lease_ends_key, room, round(self.lease_seconds * 1000)]
        take.append(f"{self._name}:{self._takes}:")
        # EVAL, not EVALSHA: a server that was restarted or flushed knows no script, and this one is a kilobyte.
        commands: list[list[Any]] = [["EVAL", _TAKE, len(lists) + 2, *take]]
        self._waits = not self._hungry
        if self._waits:
            commands.insert(0, ["BLMOVE", lists[0], lists[0], "RIGHT", "RIGHT", timeout or self.brpop_timeout])
        connection = self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self._asked = lists
        connection.send_packed_command(connection.pack_commands(commands))

    def _brpop_read(self, **_options: Any) -> bool:
        """Read what was taken, and deliver it."""
        connection = self.client.connection
        try:
            if self._waits:
                self.client.parse_response(connection, "BLMOVE")
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
            self._deliver_entry(self._asked[list_number - 1], tag.decode(), entry)
        return True

    def _deliver_entry(self, key: str, tag: str, entry: bytes) -> None:
        queue = key.rsplit(self.sep, 1)[0]
        message = read_entry(entry, queue, tag)
        if message is None:
            self.bury(queue, tag, entry, "not_a_message")
            return
        try:
            self.connection._deliver(message, queue)  # noqa: SLF001  # where kombu's own channel hands over
        except (*self.connection_errors, OSError) as error:
            if isinstance(error, KeyError):  # kombu counts it as a connection error; here it is a broken message
                self._bury_undeliverable(queue, tag, entry)
            else:
                raise
        except Exception:  # noqa: BLE001  # one message must never stop the others
            self._bury_undeliverable(queue, tag, entry)

    def _bury_undeliverable(self, queue: str, tag: str, entry: bytes) -> None:
        logger.exception("a message cannot be delivered and is put with the dead letters")
        self.bury(queue, tag, entry, "not_deliverable")

    # --- leases ---

    def flush_leases(self) -> None:
        """End the leases of what is answered."""
        with self.conn_or_acquire() as client:
            leases_of_this_process().flush(client, self.leases_key, self.lease_ends_key)

    def tend_leases(self) -> None:
        """Extend the leases held here; return to their queues the messages whose leases ran out."""
        if monotonic() - self._tended_at < _TEND_SECONDS * 0.9:
            return
        self._tended_at = monotonic()
        returned = self._run(_TEND, [round(self.lease_seconds * 1000), *leases_of_this_process().held()])
        if returned:
            logger.warning("%d messages are back in their queues: their leases ran out", returned)

    def give_back(self, tags: Iterable[str]) -> None:
        """Return messages to their queues, where they are the next to be taken."""
        tags = list(tags)
        if tags:
            leases_of_this_process().forget(tags)
            self._run(_GIVE_BACK, tags)

    def _restore(self, message: virtual.Message, leftmost: bool = False) -> None:  # noqa: FBT001, FBT002
        self.give_back([message.delivery_tag])

    def _run(self, script: str, arguments: list[Any]) -> Any:
        with self.conn_or_acquire() as client:
            return client.eval(script, 2, self.leases_key, self.lease_ends_key, *arguments)

    # --- dead letters ---

    def bury(self, queue: str, tag: str, entry: bytes, reason: str) -> None:
        """Put an entry with the dead letters, to the byte, and end its lease: both or neither."""
        counted = _COUNTED.match(entry)
        letter = {"reason": reason, "queue": queue, "deliveries": counted[1] if counted else 1, "entry": entry}
        leases_of_this_process().forget([tag])
        with self.conn_or_acquire() as client, client.pipeline(transaction=True) as pipe:
            pipe.xadd(self.dead_letters_key, letter, maxlen=self.dead_letters_max, approximate=False)
            pipe.hdel(self.leases_key, tag).zrem(self.lease_ends_key, tag).execute()
        logger.error("a dead letter: an entry of %s is %s", queue, reason.replace("_", " "))

    # --- remote control ---

    def _receive_one(self, client: Any) -> bool | None:
        """A control command or an event. One that cannot be read is dropped; kombu would end the worker over it."""
        try:
            return super()._receive_one(client)  # type: ignore[misc, no-any-return]
        except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
            logger.warning("a broadcast that cannot be read is dropped", exc_info=True)
            raise Empty from None


class Channel(_Leasing, kombu_redis.Channel):  # type: ignore[misc]
    """For `redis://`, `rediss://` and `unix://`."""


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """Kombu's Redis transport with leases."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = _Poller()


class SentinelChannel(_Leasing, kombu_redis.SentinelChannel):  # type: ignore[misc]
    """For `sentinel://`."""

    from_transport_options = (
        *_Leasing.from_transport_options,
        *(option for option in kombu_redis.SentinelChannel.from_transport_options
          if option not in _Leasing.from_transport_options),
    )  # fmt: skip


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
    counted = _COUNTED.match(entry)
    deliveries = int(counted[1]) if counted else 1
    message["headers"]["deliveries"] = deliveries
    properties["delivery_tag"] = tag
    properties["delivery_info"] = {"exchange": "", "routing_key": queue, "redelivered": deliveries > 1}
    message["body"] = _decode(message.get("body"), properties.pop("body_encoding", None))
    return message


def _decode(body: Any, encoding: Any) -> str | bytes:
    if isinstance(body, str) and encoding == "base64":
        try:
            return base64.b64decode(body)
        except ValueError:
            return _NO_BODY
    return body if isinstance(body, str) else _NO_BODY


def _triples(flat: list[Any]) -> Iterator[tuple[int, bytes, bytes]]:
    values = iter(flat)
    return zip(values, values, values, strict=True)
