"""What a log line may hold: no line that somebody else made up, no secret, no value of the code that it passed."""

import io
import json
import logging
import sys
from typing import Any, Literal

import pytest

from worker.log_lines import formatter

Form = Literal["text", "json"]
#: What could end a line, steer a terminal, or turn the order of letters round.
HOSTILE = "x\n2026-01-01T00:00:00.000000Z [info    ] answered\r\x1b[31m\x85\u2028\u2029\u202e\x00\ud800"
PASSWORD, TOKEN = "s3cr3t", "eyJhbGciOiJFZERTQSJ9." + "eyJzdWIiOiJvcmRlcnMifQ.c2lnbmF0dXJl"


@pytest.fixture(params=["text", "json"])
def form(request: pytest.FixtureRequest) -> Form:
    form: Form = request.param
    return form


@pytest.fixture
def log(form: Form) -> tuple[logging.Logger, io.StringIO]:
    """A logger, and what it has written; one that pytest does not know, which could not pass on what is hostile."""
    logger, written = logging.Logger(__name__), io.StringIO()  # noqa: LOG001  # as it says above
    handler = logging.StreamHandler(written)
    handler.setFormatter(formatter(form))
    logger.addHandler(handler)
    return logger, written


def test_a_logged_fault_shows_no_values_of_the_code_it_passed(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    description = "what a caller " + "sent"
    try:
        raise ValueError(len(description))
    except ValueError:
        logger.exception("cannot apply")
    assert "ValueError" in written.getvalue()
    assert "test_a_logged_fault" in written.getvalue()
    assert description not in written.getvalue()


@pytest.mark.parametrize("place", ["sentence", "field", "list"])
def test_nothing_that_somebody_sent_makes_a_line(
    log: tuple[logging.Logger, io.StringIO], form: Form, place: str
) -> None:
    logger, written = log
    fields: dict[str, Any] = {"field": {"request_id": HOSTILE}, "list": {"reasons": [HOSTILE]}}.get(place, {})
    logger.warning("said: %s", HOSTILE if place == "sentence" else "", extra=fields)
    [line] = written.getvalue().splitlines()
    assert line.isprintable()
    if form == "json":
        assert json.loads(line)["event"].startswith("said: ")


def test_a_field_for_people_does_not_look_like_two(log: tuple[logging.Logger, io.StringIO], form: Form) -> None:
    logger, written = log
    logger.warning("said", extra={"task": "x code=OK", "caller": "", "request_id": None})
    line = written.getvalue()
    assert ("task='x code=OK' caller=''" in line) if form == "text" else (json.loads(line)["task"] == "x code=OK")


def test_a_traceback_makes_no_line_either(log: tuple[logging.Logger, io.StringIO], form: Form) -> None:
    logger, written = log
    logger.error("cannot apply", exc_info=ValueError(HOSTILE))
    first, *rest = written.getvalue().splitlines()
    assert all(line.isprintable() for line in [first, *rest])
    assert all(line.startswith("    ") for line in rest)
    assert bool(rest) == (form == "text")


def test_no_secret_is_written_whoever_says_it(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    url = f"redis://user:{PASSWORD}@host:6379/0"
    logger.warning("cannot reach %s with Bearer %s", url, TOKEN, exc_info=ValueError(f"{url} {TOKEN}"))
    said = written.getvalue()
    assert PASSWORD not in said
    assert TOKEN.split(".")[2] not in said
    assert said.count("redis://user:***@host:6379/0") == 2


def test_an_integer_of_any_size_is_written(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    logger.warning("said", extra={"attempt": -(10**30)})
    assert str(-(10**30)) in written.getvalue()


def test_what_celery_hands_over_beside_a_sentence_is_not_written(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    logger.warning("succeeded", extra={"data": {"args": ["a value"]}})
    assert "a value" not in written.getvalue()


def test_a_line_is_what_its_record_says(form: Form) -> None:
    record = logging.LogRecord("worker.logs", logging.INFO, __file__, 1, "answered", None, None)
    record.created = 1_764_000_000.000001
    vars(record).update(request_id="r-1", reasons=["name:taken", "id:missing"], image_id=None, total_ms=7)
    assert (
        formatter(form).format(record)
        == {
            "text": "2025-11-24T16:00:00.000001Z [info    ] answered [worker.logs] "
            "request_id=r-1 reasons=name:taken,id:missing total_ms=7",
            "json": '{"timestamp":"2025-11-24T16:00:00.000001Z","level":"info","event":"answered","logger":"worker.logs",'
            '"request_id":"r-1","reasons":["name:taken","id:missing"],"image_id":null,"total_ms":7}',
        }[form]
    )


def test_a_record_of_a_batch_is_a_line_for_each_request(log: tuple[logging.Logger, io.StringIO], form: Form) -> None:
    logger, written = log
    logger.warning("answered", extra={"each": [{"request_id": f"r-{number}", "caller": HOSTILE} for number in (1, 2)]})
    first, second = written.getvalue().splitlines()
    assert first == second.replace("r-2", "r-1")
    assert first.isprintable()
    assert (json.loads(first)["request_id"] if form == "json" else first.split("request_id=")[1][:3]) == "r-1"


def test_the_exception_that_is_logged_may_be_the_one_at_hand(form: Form) -> None:
    try:
        raise KeyError("at hand")
    except KeyError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", None, sys.exc_info())
    assert "KeyError" in formatter(form).format(record)
