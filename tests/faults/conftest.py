"""How large the fault tests are: short forms by default, the sizes of the score-card with ARIES_FAULTS=full."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

FULL = os.environ.get("ARIES_FAULTS") == "full"


@pytest.fixture(scope="session")
def size() -> Callable[[int, int], int]:
    """`size(short, full)`: how often, how many or how long."""
    return lambda short, full: full if FULL else short


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each the time that its size takes; pytest hands over those of other folders, too."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(7200 if FULL else 400))
