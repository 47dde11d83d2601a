"""A Redis with the users of deploy/redis/users.acl, and a password for each."""

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from redis import Redis

from tests.workers import CHECKOUT
from worker.embedded import RedisServer

USERS = CHECKOUT / "deploy" / "redis" / "users.acl"
USERS_OF_OURS = ("worker", "orders", "flower", "operator", "gateway", "scaler")
PASSWORDS = {name: f"{name}-{uuid.uuid4().hex}" for name in USERS_OF_OURS}


@contextmanager
def redis_with_users(folder: Path) -> Iterator[RedisServer]:
    """With the users of the file; the user without a name stays for the test itself."""
    with RedisServer(folder, persistent=False) as server, Redis.from_url(server.url()) as redis:
        for line in USERS.read_text().splitlines():
            _, name, *rules = line.split()
            if name != "default":
                hashed = "#" + hashlib.sha256(PASSWORDS[name].encode()).hexdigest()
                redis.execute_command("ACL", "SETUSER", name, *[hashed if rule[0] == "#" else rule for rule in rules])
        yield server


def url_for(server: RedisServer, user: str, db: int = 0) -> str:
    """The URL that a user comes in with."""
    return urlsplit(server.url(db))._replace(netloc=f"{user}:{PASSWORDS[user]}@127.0.0.1:{server.port}").geturl()


def refusals(redis: Redis) -> list[tuple[object, ...]]:
    """Who was refused what since this was forgotten; the test's own user is not among them."""
    entries = [_pairs(entry) for entry in redis.execute_command("ACL", "LOG")]
    return [(entry[b"username"], entry[b"reason"], entry[b"object"]) for entry in entries]


def _pairs(entry: object) -> dict[bytes, object]:
    if isinstance(entry, dict):
        return {key.encode() if isinstance(key, str) else key: value for key, value in entry.items()}
    assert isinstance(entry, list)
    return dict(zip(entry[::2], entry[1::2], strict=True))
