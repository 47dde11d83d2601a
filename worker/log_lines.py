"""The form of log lines, the worker's and the gateway's: for people, or one JSON object each."""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import structlog

Form = Literal["text", "json"]
Line = structlog.typing.EventDict

#: What a line says beside its sentence, where whoever logs it says so in `extra`; nothing else of a record is written,
#: for Celery hands over arguments and results there.
FIELDS = (
    "task",
    "method",
    "path",
    "request_id",
    "caller",
    "code",
    "reasons",
    "image_id",
    "revision",
    "replayed",
    "attempt",
    "tries",
    "batch",
    "batch_size",
    "queue_ms",
    "commit_ms",
    "total_ms",
    "trace_id",
    "worker",
    "status",
    "ms",
    "reason",
    "each",
)
#: The fields of the one line that most records are.
_ALONE: list[dict[str, Any]] = [{}]
#: The parts that are written by others too, who may have a URL with a password in hand, or a token.
_PROSE = ("event", "exception")
_PASSWORD = re.compile(r"://([^\s:/@]*):\S*@")
_TOKEN = re.compile(r"\beyJ[\w-]+(\.[\w-]*)+")
#: A value that stands in a line for people as it is; any other is put in quotation marks.
_BARE = re.compile(r"[^\s\"'=]+").fullmatch


def formatter(form: Form) -> logging.Formatter:
    """Writes records of any logger, whoever logs; what they carry of `FIELDS` follows the sentence.

    A record that carries a list of such fields as `each` stands for as many lines, written at once.
    """
    render = _json if form == "json" else _text

    def write(_logger: Any, _level: str, line: Line) -> str:
        each = line.pop("each", _ALONE)
        return "\n".join([render(_made_safe(line | fields)) for fields in each])

    # The traceback is Python's: structlog's own shows the values of variables, and so what callers sent.
    return structlog.stdlib.ProcessorFormatter(processors=[_line_of, structlog.processors.format_exc_info, write])


def _line_of(_logger: Any, level: str, event: Line) -> Line:
    record: logging.LogRecord = event["_record"]
    attributes = vars(record)
    line: Line = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")[:-6] + "Z",
        "level": level,
        "event": event["event"],
        "logger": record.name,
    }
    for name in FIELDS:
        if name in attributes:
            line[name] = attributes[name]
    if "exc_info" in event:
        line["exc_info"] = event["exc_info"]
    return line


def _made_safe(line: Line) -> Line:
    """Secrets are taken out; and what could end a line, or steer a terminal, is spelled out, whoever sent it."""
    for name in _PROSE:
        if name in line and ("://" in line[name] or "eyJ" in line[name]):
            line[name] = _TOKEN.sub("eyJ***", _PASSWORD.sub(r"://\1:***@", line[name]))
    for name, value in line.items():
        if isinstance(value, str) and not value.isprintable():
            line[name] = _spelled_out(value, keep="\n" if name == "exception" else "")
        elif isinstance(value, list):
            line[name] = [_spelled_out(str(one)) for one in value]
    return line


def _spelled_out(text: str, keep: str = "") -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)


def _json(line: Line) -> str:
    try:
        return orjson.dumps(line, default=str).decode()
    except TypeError:  # an integer of more than 64 bits, which a sender can have put into a header
        return json.dumps(line, default=str, ensure_ascii=False)


def _text(line: Line) -> str:
    """As `_json`, but a traceback follows on lines of its own: indented, so that none of them looks like a line."""
    traceback = line.pop("exception", "").replace("\n", "\n    ")
    start = f"{line.pop('timestamp')} [{line.pop('level'):<8}] {line.pop('event')} [{line.pop('logger')}]"
    said = [f"{name}={_shown(value)}" for name, value in line.items() if value not in (None, [])]
    return " ".join([start, *said]) + (f"\n    {traceback}" if traceback else "")


def _shown(value: object) -> str:
    text = ",".join(value) if isinstance(value, list) else str(value)
    return text if _BARE(text) else repr(text)
