"""How much is generated: short forms by default, and the same ones each time; at random and for minutes with ARIES_FUZZ=long."""

import os

from hypothesis import HealthCheck, Phase, settings

LONG = os.environ.get("ARIES_FUZZ") == "long"


def budget(short: int, long: int, *, steps: int = 20) -> settings:
    """As many examples as the form has; `steps` is for those that go on, each with what the one before it left."""
    return settings(
        max_examples=long if LONG else short,
        stateful_step_count=steps,
        derandomize=not LONG,  # what fails in CI fails here
        # Not made smaller: a smaller batch says no more than the sentence about the one message that is wrong in it.
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        deadline=None,  # a worker may have to start meanwhile
        suppress_health_check=list(HealthCheck),
        print_blob=LONG,
    )
