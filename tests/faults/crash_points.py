"""For `celery -A worker worker -I tests.faults.crash_points`: a worker that kills itself at a step, named in CRASH_AT.

Nothing in the worker knows of this. Each step is one of its own functions, wrapped from outside; the worker dies with
all its processes, by SIGKILL, as it would for want of memory or power.
"""

import functools
import os
import signal
from collections.abc import Callable
from typing import Any, NoReturn

from redis.connection import Connection

from tasks import rows
from worker import answers, intake, strategy
from worker.leases import Leases

CRASH_AT = "ARIES_TEST_CRASH_AT"
#: In the message of a request that kills every worker that takes it.
POISON = "this request kills its worker"


def die(*_: object) -> NoReturn:
    os.killpg(os.getpgid(0), signal.SIGKILL)
    raise SystemExit


def before(owner: Any, name: str) -> None:
    setattr(owner, name, die)


def after(owner: Any, name: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> NoReturn:
        original(*args, **kwargs)
        die()

    setattr(owner, name, wrapped)


def half_sent(mark: bytes) -> None:
    """Die when half of the commands that go out together are on their way to Redis."""
    original = Connection.send_packed_command

    def send(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        data = command if isinstance(command, bytes) else b"".join(command)
        if mark in data:
            self._sock.sendall(data[: len(data) // 2])
            die()
        original(self, command, *args, **kwargs)

    Connection.send_packed_command = send


def after_acknowledgement() -> None:
    original = Leases.flush

    def flush(self: Leases, *args: Any) -> None:
        matters = self.to_flush
        original(self, *args)
        if matters:
            die()

    Leases.flush = flush  # type: ignore[method-assign]


def poisonous() -> None:
    original = strategy.read_message

    def read(message: Any) -> Any:
        if POISON in str(message.body):
            die()
        return original(message)

    strategy.read_message = read


#: The steps of a request through a worker, in order.
STEPS: dict[str, Callable[[], None]] = {
    "reserved": functools.partial(before, intake.Channel, "_hand_over"),
    "decoded": functools.partial(after, strategy, "read_message"),
    "rows locked": functools.partial(after, rows, "read"),
    "before commit": functools.partial(after, rows, "write"),
    "after commit, before the answer": functools.partial(before, answers._Answering, "_send"),
    "half of the answers sent": functools.partial(half_sent, b"\r\nimage.replies\r\n"),
    "after the answer, before the acknowledgement": functools.partial(after, answers._Answering, "_send"),
    "half of the acknowledgements sent": functools.partial(half_sent, b"\r\nHDEL\r\n"),
    "after the acknowledgement": after_acknowledgement,
}

if CRASH_AT in os.environ:
    (STEPS | {POISON: poisonous})[os.environ[CRASH_AT]]()
