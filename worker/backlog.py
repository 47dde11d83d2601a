"""What is in the queue's Redis: how many requests wait and since when, how many are held, how many were given up on."""

import json
import time
from collections.abc import Mapping
from typing import NamedTuple

from redis import Redis
from redis.client import Pipeline

from aries_images import contract
from worker.leases import Keys

#: What a caller's priority adds to the name of the list that his request waits in.
_STEPS = ("", "\x06\x163", "\x06\x166", "\x06\x169")


class Lane(NamedTuple):
    """One of the two queues."""

    waiting: int
    #: When the caller of the oldest request sent it: Unix time, seconds; None where nothing waits, or none says so.
    oldest_sent_at: float | None


class Backlog(NamedTuple):
    """All that there is of requests in Redis."""

    lanes: Mapping[str, Lane]
    #: Requests that workers hold, and messages that were given up on.
    leases: int
    dead_letters: int


def look(client: Redis) -> Backlog:
    """Look at the queues in one round trip; of a waiting request only the oldest of each list is read."""
    keys = Keys()
    with client.pipeline(transaction=False) as pipe:
        for queue in contract.QUEUES:
            _ask(pipe, queue)
        pipe.hlen(keys.leases)
        pipe.xlen(keys.dead)
        *found, leases, dead_letters = pipe.execute()
    size = len(found) // len(contract.QUEUES)
    lanes = {queue: _lane(found[number * size :][:size]) for number, queue in enumerate(contract.QUEUES)}
    return Backlog(lanes, leases, dead_letters)


def _ask(pipe: Pipeline, queue: str) -> None:
    for step in _STEPS:
        pipe.llen(queue + step)
        pipe.lrange(queue + step, -1, -1)


def _lane(found: list[int | list[bytes]]) -> Lane:
    lengths, oldest = found[::2], found[1::2]
    sent = [_sent_at(entry) for entries in oldest if isinstance(entries, list) for entry in entries]
    return Lane(sum(each for each in lengths if isinstance(each, int)), min(filter(None, sent), default=None))


def _sent_at(entry: bytes) -> float | None:
    """When the caller sent it, Unix time, where he says so."""
    try:
        sent = json.loads(entry)["headers"][contract.SENT_AT]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return float(sent) if isinstance(sent, int | float) and 0 < sent < time.time() else None  # NaN is neither
