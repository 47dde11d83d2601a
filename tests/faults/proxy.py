"""A TCP proxy that does what networks do: cuts, swallows, refuses, and loses replies to what was carried out."""

import selectors
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit


@dataclass(eq=False)
class _Pair:
    """A client's connection and the one to the server that goes with it."""

    client: socket.socket
    server: socket.socket
    #: Nothing that is sent arrives any more, and nobody is told.
    swallows: bool = False
    #: The server has got what matters; its reply is lost and the connection with it.
    doomed: bool = False
    sides: dict[socket.socket, socket.socket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sides = {self.client: self.server, self.server: self.client}


class Proxy:
    """Forwards the connections to its port to the server at `url`, until it is told otherwise."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None, f"a port is needed in {address.scheme}://…"
        self._target = address.hostname, address.port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._lock = threading.RLock()
        self._pairs: set[_Pair] = set()
        self._refuses = self._swallows = self._closed = False
        self._marks: list[bytes] = []
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join()
        self.cut()
        self._listener.close()

    def through(self, url: str) -> str:
        """A URL of the same server, by way of this proxy."""
        address = urlsplit(url)
        user = address.netloc.rpartition("@")[0]
        return address._replace(netloc=f"{user}@127.0.0.1:{self.port}".removeprefix("@")).geturl()

    # --- faults ---

    def cut(self) -> None:
        """Close every connection."""
        with self._lock:
            for pair in list(self._pairs):
                self._close(pair)

    def refuse(self, *, until_told: bool) -> None:
        """Close every connection, and each new one at once, until told otherwise."""
        self._refuses = until_told
        self.cut()

    def swallow(self) -> None:
        """Let what is sent on today's connections vanish; new ones work."""
        with self._lock:
            for pair in self._pairs:
                pair.swallows = True

    def lose_reply(self, *marks: bytes) -> None:
        """Deliver the next request that has one of `marks` in it, and cut its connection instead of the reply."""
        with self._lock:
            self._marks += marks

    @property
    def lost(self) -> bool:
        """Whether all of that has happened."""
        return not self._marks

    # --- the thread ---

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(timeout=0.05):
                with self._lock, suppress(OSError):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data in self._pairs:
                        self._forward(key.data, key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._refuses:
            client.close()
            return
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        pair = _Pair(client, server)
        self._pairs.add(pair)
        for side in pair.sides:
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(side, selectors.EVENT_READ, pair)

    def _forward(self, pair: _Pair, side: socket.socket) -> None:
        try:
            data = side.recv(1 << 20)
        except OSError:
            data = b""
        if not data or (pair.doomed and side is pair.server):
            self._close(pair)
            return
        if pair.swallows:
            return
        if side is pair.client and (found := [mark for mark in self._marks if mark in data]):
            self._marks.remove(found[0])
            pair.doomed = True
        try:
            pair.sides[side].sendall(data)
        except OSError:
            self._close(pair)

    def _close(self, pair: _Pair) -> None:
        self._pairs.discard(pair)
        for side in pair.sides:
            with suppress(KeyError, ValueError):
                self._selector.unregister(side)
            side.close()
