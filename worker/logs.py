"""What a worker logs: Celery's handlers write in our form, and of each request there is one line, ours."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger, celeryd_init, worker_shutdown
from celery.utils.log import get_multiprocessing_logger

from worker.log_lines import Form, formatter
from worker.task import Answer

logger = logging.getLogger(__name__)

#: Says of each request that it succeeded, with its reply in full, where one of Celery's own pools has run it.
_SAYS_IT_AGAIN = "celery.app.trace"


def configure(form: Form) -> None:
    """Have Celery's handlers write in this form; levels and files stay Celery's (`--loglevel`, `--logfile`)."""
    logging.getLogger(_SAYS_IT_AGAIN).setLevel(logging.WARNING)

    def use(logger: logging.Logger, **_: Any) -> None:
        # billiard's, which tells of children that were lost, has a handler of its own that no signal speaks of.
        for handler in (*logger.handlers, *get_multiprocessing_logger().handlers):
            handler.setFormatter(formatter(form))

    after_setup_logger.connect(use, weak=False)
    after_setup_task_logger.connect(use, weak=False)
    if form == "json":
        celeryd_init.connect(_say_nothing_else, weak=False)
        worker_shutdown.connect(_say_goodbye, weak=False)


def _say_nothing_else(instance: Any, **_: Any) -> None:
    """What Celery prints past its loggers is for people: its banner, and on stdout that it leaves.

    Python's warnings, before Celery has handlers to log them with, get one that it takes away again.
    """
    instance.quiet = True
    sys.__stdout__ = None  # type: ignore[misc]  # Celery looks whether it is there
    handler = logging.StreamHandler()
    handler.setFormatter(formatter("json"))
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(capture=True)


def _say_goodbye(sender: Any, **_: Any) -> None:
    logger.info("%s leaves", sender.hostname)


def log_answers(answers: Sequence[Answer], sent_at: float, trace_ids: Sequence[str | None]) -> None:
    """The line of each request: sent, at that Unix time in seconds, is the last that happens to it."""
    if answers and logger.isEnabledFor(logging.INFO):
        each = [
            answer.summary | {"total_ms": answer.milliseconds_until(sent_at), "trace_id": trace_id}
            for answer, trace_id in zip(answers, trace_ids, strict=True)
        ]
        logger.info("answered", extra={"each": each})  # one by one they cost twice as much
