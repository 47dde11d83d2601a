"""The same with Celery's own pools: a worker is killed at each step of a request, and another one finishes it."""

import pytest

from tests.faults.crash_cell import DATABASES, killed_at
from tests.faults.crash_points import STEPS


@pytest.mark.parametrize("database", DATABASES)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
def test_killed_at(pool: str, step: str, database: str) -> None:
    killed_at(step, pool, database)
