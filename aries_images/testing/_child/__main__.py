"""The main program: finds the application, starts a Redis, and then the worker. Its argument: the id of its parent."""

import os
import sys
from pathlib import Path

_TESTING = Path(__file__).resolve().parents[1]
#: The folder that `aries_images` is in. In a checkout the application is there too; the wheel has it as data.
_ROOT = _TESTING.parents[1]
_PACKED = _TESTING / "_application"
#: Tries to start Redis: between the look for a free port and the start of a server another may take the port.
_TRIES = 5


def main(parent: int) -> None:
    """Be the worker until the parent has ended, or hangs up."""
    # The application in front of everything: he who runs his tests may have a `worker` or a `models` of his own. And
    # us behind everything: he may have found us where Python does not look by itself.
    sys.path.insert(0, str(_PACKED if _PACKED.exists() else _ROOT))
    sys.path.append(str(_ROOT))
    from worker.embedded import RedisServer, ServerFailedError  # noqa: PLC0415  # can be found from here on

    for left in reversed(range(_TRIES)):
        redis = RedisServer(Path("redis"), persistent=False)
        try:
            redis.start()
            break
        except ServerFailedError:
            if not left:
                raise
    os.environ |= {
        "ARIES_AUTH": "off",
        "ARIES_BROKER_URL": redis.url(0),
        "ARIES_RESULT_URL": redis.url(1),
        "ARIES_DATABASE_URL": f"sqlite:///{Path('aries.db').resolve()}",
    }
    from aries_images.testing._child.orders import run  # noqa: PLC0415  # reads the environment

    run(redis, parent)


if __name__ == "__main__":
    main(int(sys.argv[1]))
