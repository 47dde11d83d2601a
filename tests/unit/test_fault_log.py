"""What the log says of a fault: where it happened, not what a caller sent."""

import logging
import sys
from typing import Literal

import pytest

from worker.log_lines import formatter


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_logged_fault_shows_no_values_of_the_code_it_passed(form: Literal["text", "json"]) -> None:
    description = "what a caller " + "sent"
    try:
        raise ValueError(len(description))
    except ValueError:
        record = logging.LogRecord("tasks", logging.ERROR, __file__, 1, "cannot apply", None, sys.exc_info())
    text = formatter(form).format(record)
    assert "ValueError" in text
    assert "test_a_logged_fault" in text
    assert description not in text
