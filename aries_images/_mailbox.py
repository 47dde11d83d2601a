"""Where answers arrive: one pub/sub connection for all requests of a client."""

import logging
import selectors
import socket
import threading
import time
from collections import deque
from math import inf
from queue import Empty, SimpleQueue
from typing import Any

from redis.connection import Connection, ConnectionPool
from redis.exceptions import ConnectionError as LostConnectionError

from aries_images._request import new_request_id, result_key
from aries_images._result_store import SOCKET_TIMEOUT

#: Slots kept subscribed ahead, so that a call need not wait for its subscription.
_SPARES = 8
#: Seconds between two tries to connect.
_PAUSE = 0.25

_log = logging.getLogger(__name__)


class Slot:
    """The place of one request in the mailbox."""

    __slots__ = ("_arrived", "channel", "deadline", "own_id", "request_id")

    def __init__(self, request_id: str, *, own_id: bool) -> None:
        self.request_id = request_id
        self.own_id = own_id
        self.channel = result_key(request_id).encode()
        #: On the monotonic clock; the mailbox forgets the slot some time after it.
        self.deadline = inf
        self._arrived: SimpleQueue[bytes | None] = SimpleQueue()

    def put(self, record: bytes | None) -> None:
        """Wake whoever waits: with a published record, or None for "subscribed (again) just now"."""
        self._arrived.put(record)

    def confirmed(self, timeout: float) -> bool:
        """Wait for the subscription."""
        try:
            self._arrived.get(timeout=max(timeout, 0))
        except Empty:
            return False
        return True

    def take(self, timeout: float) -> bytes | None:
        """The next published record; None if none came or some may have been missed: look at the key then."""
        try:
            return self._arrived.get(timeout=max(timeout, 0))
        except Empty:
            return None


class Mailbox:
    """Subscriptions of any number of requests on one connection.

    A daemon thread does all reading and writing on it (a TLS socket can't be used by two threads at once) and,
    when it is lost, connects again, subscribes again, and tells every slot to look at its key.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._slots: dict[bytes, list[Slot]] = {}
        self._subscribed: set[bytes] = set()
        self._spares: deque[Slot] = deque()
        self._commands: deque[tuple[str, bytes]] = deque()
        self._thread: threading.Thread | None = None
        self._alarm, self._bell = socket.socketpair()
        self._alarm.settimeout(0)
        self._bell.settimeout(0)
        self._closed = False
        self._next_sweep = 0.0
        #: Why there is no connection at the moment.
        self.trouble: Exception | None = None

    # --- for callers ---

    def open(self, request_id: str | None, deadline: float) -> Slot:
        """A slot for `request_id`, or for a new one. Wait for `confirmed` before sending."""
        with self._lock:
            if request_id is None and self._spares:
                slot = self._spares.popleft()
            else:
                slot = self._add(Slot(request_id or new_request_id(), own_id=request_id is None))
            slot.deadline = deadline
            ready = slot.channel in self._subscribed
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="aries-images-mailbox", daemon=True)
                self._thread.start()
        if not ready:
            self._ring()
        return slot

    def leave(self, slot: Slot) -> None:
        """Give the slot up; harmless if that was done before."""
        with self._lock:
            self._remove(slot)
            while slot.own_id and len(self._spares) < _SPARES:
                self._spares.append(self._add(Slot(new_request_id(), own_id=True)))
        # No ring: the thread sends this when it wakes next, for the answer of another call or by the clock.

    def close(self) -> None:
        """End the thread and its connection."""
        self._closed = True
        self._ring()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(2 * SOCKET_TIMEOUT)
        self._alarm.close()
        self._bell.close()

    # --- under the lock ---

    def _add(self, slot: Slot) -> Slot:
        others = self._slots.setdefault(slot.channel, [])
        others.append(slot)
        if len(others) == 1:
            self._commands.append(("SUBSCRIBE", slot.channel))
        elif slot.channel in self._subscribed:
            slot.put(None)
        return slot

    def _remove(self, slot: Slot) -> None:
        slots = self._slots.get(slot.channel, [])
        if slot in slots:
            slots.remove(slot)
            if not slots:
                del self._slots[slot.channel]
                self._subscribed.discard(slot.channel)
                self._commands.append(("UNSUBSCRIBE", slot.channel))

    # --- the thread ---

    def _ring(self) -> None:
        try:
            self._bell.send(b"!")
        except OSError:
            # The thread is behind with its alarms, or has ended: either way it needs no other one.
            return

    def _run(self) -> None:
        while not self._closed:
            try:
                connection: Connection = self._pool.get_connection()
                try:
                    self._serve(connection)
                finally:
                    connection.disconnect()
                    self._pool.release(connection)
            except Exception as error:  # noqa: BLE001 - whatever it was, the next connection may do better
                self.trouble = error
                _log.debug("connection to the results was lost: %s", error)
                time.sleep(_PAUSE)

    def _serve(self, connection: Connection) -> None:
        with self._lock:
            self._subscribed.clear()
            self._commands = deque(("SUBSCRIBE", channel) for channel in self._slots)
        self.trouble = None
        unconfirmed, heard = 0, time.monotonic()
        # redis-py has no public way to wait for its socket and for something else at once.
        line: Any = connection._get_socket()  # noqa: SLF001
        with selectors.DefaultSelector() as readable:
            readable.register(line, selectors.EVENT_READ)
            readable.register(self._alarm, selectors.EVENT_READ)
            while not self._closed:
                sent = self._send(connection)
                heard = time.monotonic() if unconfirmed == 0 else heard
                unconfirmed += sent
                for key, _ in readable.select(timeout=SOCKET_TIMEOUT):
                    if key.fileobj is self._alarm:
                        self._alarm.recv(4096)
                    else:
                        unconfirmed -= self._receive(connection)
                        heard = time.monotonic()
                if unconfirmed and time.monotonic() - heard > SOCKET_TIMEOUT:
                    raise LostConnectionError("the server does not answer")

    def _send(self, connection: Connection) -> int:
        with self._lock:
            self._forget_expired()
            commands, self._commands = self._commands, deque()
        if commands:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        return len(commands)

    def _forget_expired(self) -> None:
        """Drop the slots of calls that nobody waits for any more: a pending update that was never asked for."""
        now = time.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + 1
        for slot in [slot for slots in self._slots.values() for slot in slots if slot.deadline + 1 < now]:
            self._remove(slot)

    def _receive(self, connection: Connection) -> int:
        """Deliver what has arrived; returns how many commands were confirmed."""
        confirmed = 0
        while connection.can_read(0):
            match connection.read_response():
                case [b"message", bytes(channel), bytes(record)]:
                    with self._lock:
                        slots = list(self._slots.get(channel, ()))
                    for slot in slots:
                        slot.put(record)
                case [b"subscribe", bytes(channel), _]:
                    confirmed += 1
                    self._confirm(channel)
                case [b"unsubscribe", _, _]:
                    confirmed += 1
        return confirmed

    def _confirm(self, channel: bytes) -> None:
        with self._lock:
            slots = self._slots.get(channel, [])
            if slots:
                self._subscribed.add(channel)
            for slot in slots:
                slot.put(None)
