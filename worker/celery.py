"""The application, put together: `celery -A worker worker`."""

import itertools
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_process_init, worker_process_shutdown
from celery.worker.control import Panel
from kombu.transport import TRANSPORT_ALIASES

import celeryconfig
from worker import amqp
from worker.answers import BACKENDS
from worker.auth import Door
from worker.database import Database
from worker.events import register_serializer
from worker.health import Health, Heartbeat, reach_broker
from worker.intake import TRANSPORTS
from worker.logs import configure, log_answers
from worker.metrics import Metrics
from worker.settings import Settings
from worker.task import Answer
from worker.tracing import Tracing, tracing_for

logger = logging.getLogger(__name__)


class ImagesApp(Celery):  # type: ignore[misc]  # Celery has no types
    """The Celery application, with what its tasks need beside a message."""

    settings: Settings
    database: Database
    door: Door
    metrics: Metrics
    health: Health
    tracing: Tracing

    def tell(self, answers: Sequence[Answer], sent_from: float) -> None:
        """Count, log and trace answers that were sent, from `sent_from` (Unix time in seconds) on: no caller waits."""
        self.metrics.sent(answers)
        sent_at = time.time()
        log_answers(answers, sent_at, self.tracing.answered(answers, sent_from, sent_at))


def names_prefork(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for Celery's prefork pool.

    Celery takes `-P prefork` for its own default and then prefers the pool that is configured.
    """
    pairs = itertools.pairwise(arguments)
    return any(word in ("-Pprefork", "--pool=prefork") for word in arguments) or any(
        pair in (("-P", "prefork"), ("--pool", "prefork")) for pair in pairs
    )


def check_door(sender: Any, **_: Any) -> None:
    """A worker starts with keys to check tokens with, or with authentication off, and says so.

    Raises:
        SystemExit: it has neither.
    """
    if sender.app.settings.auth == "off":
        logger.warning("ARIES_AUTH=off: whoever can reach the queue can update every image")
    try:
        sender.app.door.check()
    except ValueError as error:
        raise SystemExit(f"ARIES_JWT_KEYS: {error}.") from None


#: Commands of remote control that an operator of this worker has no use for, and that whoever may publish to the
#: control exchange could do harm with: have it take from other lists, or change its size.
_NOT_BY_REMOTE = frozenset(
    {
        "add_consumer",
        "cancel_consumer",
        "autoscale",
        "pool_grow",
        "pool_restart",
        "pool_shrink",
        "time_limit",
        "memdump",
        "memsample",
        "objgraph",
    }
)


def limit_remote_control(**_: Any) -> None:
    """Forget the commands that nobody needs."""
    for name in _NOT_BY_REMOTE:
        Panel.data.pop(name, None)


def build_app(settings: Settings) -> ImagesApp:
    """An application for `settings`; nothing is connected yet."""
    app = ImagesApp("aries-images", set_as_current=True)
    app.config_from_object(celeryconfig)
    app.loader.override_backends = BACKENDS
    # By their names, not as class paths: Flower reads the URL's scheme.
    TRANSPORT_ALIASES.update(TRANSPORTS | amqp.TRANSPORTS)
    register_serializer()
    configure(settings.log)
    if names_prefork(sys.argv):
        app.conf.worker_pool = "prefork"
    app.settings = settings
    app.tracing = tracing_for(settings)
    app.metrics = Metrics()
    app.database = Database(settings.database_url, app.metrics.failed, app.tracing.transaction)
    app.door = Door(settings)
    app.health = Health(settings.health_seconds, lambda: reach_broker(app))
    app.steps["worker"].add(Heartbeat)

    def after_fork(**_: Any) -> None:
        app.database.forget_connections()

    def before_exit(**_: Any) -> None:
        app.tracing.stop()

    worker_process_init.connect(after_fork, weak=False)
    worker_process_shutdown.connect(before_exit, weak=False)
    worker_init.connect(check_door, weak=False)
    worker_init.connect(limit_remote_control, weak=False)
    return app


app = build_app(celeryconfig.SETTINGS)
