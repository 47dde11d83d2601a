"""What a worker can be told to include: tasks of somebody else's, and a record of the signals that Celery sends."""

import json
import os
import time
from pathlib import Path
from typing import Any

from celery import shared_task, signals

#: Where the signals are written down, one JSON array a line: signal, task id, id of `task.request`, state.
SIGNALS_FILE = "TESTS_SIGNALS_FILE"


@shared_task(name="tests.add")  # type: ignore[untyped-decorator]
def add(first: int, second: int) -> dict[str, int]:
    return {"sum": first + second}


@shared_task(name="tests.stand_still")  # type: ignore[untyped-decorator]
def stand_still(until_there_is: str) -> None:
    while not Path(until_there_is).exists():
        time.sleep(0.01)


@shared_task(name="tests.fail")  # type: ignore[untyped-decorator]
def fail() -> None:
    raise ValueError("on purpose")


def _record(name: str, sender: Any, task_id: str | None, state: str | None = None) -> None:
    if file := os.environ.get(SIGNALS_FILE):
        with Path(file).open("a") as lines:
            lines.write(json.dumps([name, task_id, sender.request.id, state]) + "\n")


@signals.task_prerun.connect  # type: ignore[untyped-decorator]
def _before(sender: Any, task_id: str, **_: Any) -> None:
    _record("prerun", sender, task_id)


@signals.task_postrun.connect  # type: ignore[untyped-decorator]
def _after(sender: Any, task_id: str, state: str, **_: Any) -> None:
    _record("postrun", sender, task_id, state)


@signals.task_success.connect  # type: ignore[untyped-decorator]
def _succeeded(sender: Any, **_: Any) -> None:
    _record("success", sender, None)


@signals.task_failure.connect  # type: ignore[untyped-decorator]
def _failed(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    _record("failure", sender, task_id, type(exception).__name__)
