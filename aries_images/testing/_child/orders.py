"""The worker, and beside it a thread that does what a test orders: load an image, script an outcome, begin anew."""

import json
import logging
import os
import signal
import socket
import sys
import threading
from datetime import datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from celery.signals import worker_ready
from redis import Redis
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from aries_images import contract
from aries_images.contract import CODES, Detail, Refusal
from aries_images.signing import SigningKey
from aries_images.testing._child.script import Script, Silence
from models import image_revisions, images, metadata, requests
from worker.auth import Door
from worker.celery import app
from worker.embedded import RedisServer

logger = logging.getLogger(__name__)

#: Seconds between two looks whether the parent is still there.
_LOOK_AGAIN = 0.5


def run(redis: RedisServer, parent: int) -> None:
    """Be the worker, until the process ends."""
    # What the migrations make (a test holds that), without the time that Alembic takes.
    metadata.create_all(app.database.engine)
    app.loader.import_default_modules()
    orders = Orders(Script(app))
    thread = threading.Thread(target=_serve, args=(orders, redis, parent), name="orders", daemon=True)
    worker_ready.connect(lambda **_: thread.start(), weak=False)
    # Alone on its broker: there is nobody to get to know, and nobody to be told that it lives.
    alone = {"without_mingle": True, "without_gossip": True, "without_heartbeat": True}
    app.Worker(hostname="testing@aries", loglevel="INFO", quiet=True, **alone).start()


def _serve(orders: "Orders", redis: RedisServer, parent: int) -> None:
    with socket.socket(fileno=sys.stdin.fileno()) as line, line.makefile("rb") as lines:
        _say(line, {"broker_url": app.settings.broker_url, "result_url": app.settings.result_url})
        while _is_spoken_to(line, parent) and (order := lines.readline()):
            _say(line, _answer_to(orders, *json.loads(order)))
    # Nothing of this is to be kept.
    redis.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _is_spoken_to(line: socket.socket, parent: int) -> bool:
    """Whether there is something to read; waits for it, or for the end of the parent.

    The line alone would not tell of that: other processes that the parent has forked may hold it open.
    """
    while os.getppid() == parent:
        if wait([line], _LOOK_AGAIN):
            return True
    return False


def _say(line: socket.socket, document: dict[str, Any]) -> None:
    line.sendall(json.dumps(document, default=datetime.isoformat).encode() + b"\n")


def _answer_to(orders: "Orders", name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"done": getattr(orders, name)(**arguments)}
    except ValueError as error:
        return {"refused": str(error)}
    except Exception as error:
        logger.exception("cannot do as ordered: %s", name)
        return {"refused": repr(error)}


class Orders:
    """What can be ordered: the methods, with their arguments as JSON has them."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._open_door = app.door
        self._keys = Path("keys").resolve()
        self._servers = [Redis.from_url(url) for url in (app.settings.broker_url, app.settings.result_url)]

    def begin(self) -> None:
        """Have everything be as if there had been nobody before."""
        broker, results = self._servers
        with self._script.between_tests(broker), app.database.transaction() as connection:
            broker.flushdb()
            results.flushdb()
            for table in (image_revisions, requests, images):
                connection.execute(delete(table))
            app.door = self._open_door

    def load(self, image: dict[str, Any]) -> None:
        """Insert an image.

        Raises:
            ValueError: no image can be like that, or another has its id or its name.
        """
        asks = contract.validate({field: image[field] for field in contract.FIELDS})
        if isinstance(asks, Refusal):
            raise ValueError("; ".join(detail.message for detail in asks.details))  # noqa: TRY004  # no matter of types
        moments = {name: datetime.fromisoformat(image[name]) for name in ("created_at", "updated_at")}
        try:
            with app.database.transaction() as connection:
                connection.execute(insert(images), image | asks.changes | moments)
        except IntegrityError:
            raise ValueError(f"another image has the id {image['id']} or the name {image['name']!r}") from None

    def images(self) -> list[dict[str, Any]]:
        """All images, as a reply has them, with their revisions."""
        rows = _rows(select(images).order_by(images.c.id))
        return [contract.image_document(row) | {"revision": row["revision"]} for row in rows]

    def revisions(self, id: int) -> list[dict[str, Any]]:  # noqa: A002  # as the test calls it
        """The rows of an image's revisions."""
        of_image = select(image_revisions).where(image_revisions.c.image_id == id)
        return _rows(of_image.order_by(image_revisions.c.revision))

    def requests(self) -> list[dict[str, Any]]:
        """What was asked so far."""
        return self._script.taken

    def refuse(self, code: str, details: list[list[str | None]], times: int) -> None:
        """Have the next requests refused; or run into a fault, which is a code too."""
        self._script.add(Refusal(CODES[code], tuple(Detail(*detail) for detail in details)), times)  # type: ignore[arg-type]

    def ignore(self, times: int, *, applied: bool) -> None:
        """Have the next requests not answered."""
        self._script.add(Silence(applied), times)

    def require_tokens(self) -> None:
        """Have the door closed to whoever has no token."""
        keys = {"auth": "on", "jwt_keys": str(self._make_keys()[1])}
        app.door = Door(app.settings.model_copy(update=keys))

    def token(self, caller: str, seconds: float, claims: dict[str, Any]) -> str:
        """A token that opens it."""
        return SigningKey(self._make_keys()[0].read_bytes(), caller).token(seconds, **claims)

    def _make_keys(self) -> tuple[Path, Path]:
        # Most tests have no use for them, and need not wait the tenth of a second that this import takes.
        from worker.commands.token import PRIVATE, PUBLIC, make_keys  # noqa: PLC0415

        make_keys(self._keys)
        return self._keys / PRIVATE, self._keys / PUBLIC


def _rows(query: Any) -> list[dict[str, Any]]:
    with app.database.snapshot() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]
