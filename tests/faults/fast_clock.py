"""For `celery -A worker worker -I tests.faults.fast_clock`: a worker whose clock is two hours fast."""

import time

_right = time.time


def _fast() -> float:
    return _right() + 7200


time.time = _fast
