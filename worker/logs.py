"""Log lines: for people, or one JSON object each."""

import logging
from typing import Any, Literal

import structlog
from celery.signals import after_setup_logger, after_setup_task_logger

_FIRST: list[Any] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.stdlib.ExtraAdder(
        allow=["request_id", "caller", "code", "image_id", "replayed", "attempt", "queue_ms", "commit_ms"]
    ),
]


def formatter(form: Literal["text", "json"]) -> logging.Formatter:
    """Writes records of any logger, Celery's too; what they carry beside the message, as fields."""
    last: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        last += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    else:
        # Plain: structlog's own traceback shows the values of variables, and so what callers sent.
        plain = structlog.dev.plain_traceback
        last += [structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, exception_formatter=plain)]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_FIRST, processors=last)


def configure(form: Literal["text", "json"]) -> None:
    """Have Celery's handlers write in this form; levels and files stay Celery's (`--loglevel`, `--logfile`)."""

    def use(logger: logging.Logger, **_: Any) -> None:
        for handler in logger.handlers:
            handler.setFormatter(formatter(form))

    after_setup_logger.connect(use, weak=False)
    after_setup_task_logger.connect(use, weak=False)
