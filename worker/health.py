"""Whether this worker lives: `/healthz`, for whoever may end it and start another, beside its figures."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from celery import bootsteps
from prometheus_client import CollectorRegistry, make_wsgi_app

from worker import metrics

#: Seconds that the broker may take to answer.
_PROBE_SECONDS = 1.5


class Health:
    """What can be wrong with a worker so that another in its place would do better.

    Not that a server is away: a worker that waits for Redis or for the database is well, and one that is started in
    its place would wait as well.

    Args:
        patience: seconds that the loop may stand still, of which the broker answers at least half.
        reach: asks the broker for any answer, and raises if there is none.
    """

    def __init__(self, patience: float, reach: Callable[[], object]) -> None:
        self._patience = patience
        self._reach = reach
        self._probe: threading.Thread | None = None
        self._reached = False
        self._broker_since: float | None = None
        self._beat_at: float | None = None
        self._is_paused = False
        self._pool: Any = None

    def beat(self) -> None:
        """The loop has turned."""
        self._beat_at = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nobody expects the loop to turn: it waits for the broker, in steps that each end by themselves."""
        self._is_paused = True
        try:
            yield
        finally:
            if self._beat_at is not None:
                self.beat()
            self._is_paused = False

    def watch(self, pool: Any) -> None:
        """Look at the threads of this pool too, if it says which of them are dead."""
        self._pool = pool

    def leave(self) -> None:
        """The worker ends in order; from now on nothing is wrong with it."""
        self._beat_at = self._pool = None

    def troubles(self) -> list[str]:
        """What is wrong; nothing if it lives."""
        troubles = [f"the thread {name} is dead" for name in getattr(self._pool, "dead_threads", ())]
        beat_at = self._beat_at
        if beat_at is not None and not self._is_paused and self._has_no_excuse(beat_at):
            still = time.monotonic() - beat_at
            troubles.append(f"the loop has not turned for {still:.0f} s, and the broker answers")
        return troubles

    def _has_no_excuse(self, beat_at: float) -> bool:
        # A server that is frozen, or behind a cut in the network, makes the loop wait in the middle of an exchange,
        # for as long as that lasts. So the broker must have answered for a while, and the loop not have gone on.
        half = self._patience / 2
        if time.monotonic() - beat_at < half:
            return False
        if not self._broker_answers():
            self._broker_since = None
            return False
        self._broker_since = self._broker_since or time.monotonic()
        return time.monotonic() - max(self._broker_since, beat_at + half) >= half

    def _broker_answers(self) -> bool:
        """Whether it does within a second or two; a question that hangs is waited for and not asked twice."""
        if self._probe is None or not self._probe.is_alive():
            self._reached = False
            self._probe = threading.Thread(target=self._ask_broker, name="probe", daemon=True)
            self._probe.start()
        self._probe.join(_PROBE_SECONDS)
        return self._reached and not self._probe.is_alive()

    def _ask_broker(self) -> None:
        # Whatever it is, it is no answer.
        with suppress(Exception):
            self._reach()
            self._reached = True


class Heartbeat(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """The step of a worker's start that begins to serve: before there is a broker, which may be away."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        """Serve, where a port is set for it; the worker ends if that is taken."""
        app = parent.app
        app.health.watch(parent.pool)
        if app.settings.metrics_port:
            metrics.look_inside(app)
            serve(app.settings.metrics_port, app.settings.metrics_host, app.metrics.registry, app.health)

    def stop(self, parent: Any) -> None:
        """The loop will not turn again, and need not."""
        parent.app.health.leave()

    def terminate(self, parent: Any) -> None:
        """The same."""
        self.stop(parent)

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:
        """Have each turn of the loop, one a second at least, be a beat; where there is no loop there is none."""
        parent.app.health.beat()
        hub.on_tick.add(parent.app.health.beat)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the standard library's signature
        """Who asks every few seconds would fill the log."""


def serve(port: int, host: str, registry: CollectorRegistry, health: Health) -> None:
    """Serve `/healthz`, and the figures in `registry` everywhere else, from a thread of its own.

    Raises:
        OSError: the address can't be had.
    """
    figures = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/healthz":
            shown: Iterable[bytes] = figures(environ, start_response)
            return shown
        troubles = health.troubles()
        status = "503 Service Unavailable" if troubles else "200 OK"
        start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
        return [json.dumps({"alive": not troubles, "troubles": troubles}).encode()]

    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    kind = type("_Server", (_Server,), {"address_family": family})
    server: WSGIServer = make_server(host, port, answer, kind, handler_class=_Silent)
    threading.Thread(target=server.serve_forever, name="figures", daemon=True).start()


def reach_broker(app: Any) -> None:
    """Connect to the broker of an application, which has to answer for that."""
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=_PROBE_SECONDS)
