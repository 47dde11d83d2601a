"""The result store: how to reach it, and one look at a result."""

import logging
from collections.abc import Mapping
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import Redis
from redis.connection import ConnectionPool
from redis.exceptions import RedisError
from redis.sentinel import Sentinel, SentinelConnectionPool

from aries_images._request import result_key

#: Seconds that one exchange with a server may take. It bounds how far a call can overrun its timeout.
SOCKET_TIMEOUT = 0.8
#: Looks at the same time, per client: one takes well under a millisecond.
_LOOKS = 4

_log = logging.getLogger(__name__)


class ResultStore:
    """The Redis that Celery keeps results in."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.pool: ConnectionPool = pool_for(url, options, (ConnectionPool, Sentinel, SentinelConnectionPool))
        self._redis = Redis(connection_pool=self.pool)
        self._looks = BoundedSemaphore(_LOOKS)

    def look(self, request_id: str) -> bytes | None:
        """The record under the result key, if there is one and the server can be asked now."""
        if not self._looks.acquire(timeout=0.1):
            return None
        try:
            found: Any = self._redis.get(result_key(request_id))
        except (RedisError, OSError) as error:
            _log.debug("result of %s could not be looked up: %s", request_id, error)
            return None
        finally:
            self._looks.release()
        return found if isinstance(found, bytes) else None

    def close(self) -> None:
        """Close every connection."""
        self.pool.disconnect()


def pool_for(url: str, options: Mapping[str, Any], kinds: tuple[Any, Any, Any]) -> Any:
    """A pool of connections to the Redis at `url`.

    Args:
        url: of Redis, or of Sentinels, parted by `;`.
        options: kombu's transport options.
        kinds: redis-py's classes `ConnectionPool`, `Sentinel`, `SentinelConnectionPool`: the blocking ones, or those
            of `redis.asyncio`, which are made alike.

    Raises:
        ValueError: the URL can't be understood, or a Sentinel's lacks the option `master_name`.
    """
    plain, sentinels, of_sentinel = kinds
    settings: dict[str, Any] = {
        "socket_timeout": SOCKET_TIMEOUT,
        "socket_connect_timeout": SOCKET_TIMEOUT,
        "protocol": 2,
    }
    if not url.startswith("sentinel://"):
        # Celery, which reads the same URL in the worker, also takes the names of the ssl module.
        url = url.replace("ssl_cert_reqs=CERT_", "ssl_cert_reqs=").replace("=REQUIRED", "=required")
        return plain.from_url(url, **settings, socket_keepalive=True)
    if "master_name" not in options:
        raise ValueError("a Sentinel needs the transport option master_name")
    parts = [urlsplit(part) for part in url.split(";")]
    first = parts[0]
    login = {"username": unquote(first.username or "") or None, "password": unquote(first.password or "") or None}
    sentinel = sentinels(
        [(part.hostname, part.port or 26379) for part in parts],
        sentinel_kwargs={**settings, **options.get("sentinel_kwargs", {})},
    )
    database = int(parts[-1].path.strip("/") or 0)
    return of_sentinel(options["master_name"], sentinel, db=database, **login, **settings)
