"""Dead letters: messages that were given up on, kept in a bounded Redis stream until a human has looked at them."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import Redis

from worker import leases
from worker.leases import Keys

#: Letters read at a time.
_PAGE = 500
_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)

#: Key: the stream. Arguments: ids. Each letter goes back to the list it came from, without the count of its deliveries,
#: and out of the stream: both or neither. Returns how many were there.
_REPLAY = """
local replayed = 0
for _, id in ipairs(ARGV) do
  for _, letter in ipairs(redis.call('XRANGE', KEYS[1], id, id)) do
    local fields = {}
    for i = 1, #letter[2], 2 do fields[letter[2][i]] = letter[2][i + 1] end
    local rest = string.match(fields.entry, '^{"deliveries":%d+,()')
    redis.call('XDEL', KEYS[1], id)
    redis.call('LPUSH', fields.list, rest and '{' .. string.sub(fields.entry, rest) or fields.entry)
    replayed = replayed + 1
  end
end
return replayed
"""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message that was given up on."""

    #: The stream's: the time in milliseconds and a number.
    id: str
    #: Why, in one word: `no_id`, `delivered_too_often` and so on.
    reason: str
    #: The list it was taken from.
    list: str
    #: The message as it came, to the byte.
    message: bytes
    #: How often it was delivered.
    deliveries: int

    @property
    def at(self) -> datetime:
        """When it was given up on, by the clock of Redis."""
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)

    @property
    def request_id(self) -> str | None:
        """Of the request, where there is one that can be read."""
        try:
            request_id = json.loads(self.message)["headers"]["id"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return request_id if isinstance(request_id, str) else None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant."""

    reason: str | None = None
    older_than: timedelta | None = None
    newer_than: timedelta | None = None

    def admits(self, letter: DeadLetter, now: datetime) -> bool:
        """Whether `letter` is one of them."""
        age = now - letter.at
        return (
            self.reason in (None, letter.reason)
            and (self.older_than is None or age > self.older_than)
            and (self.newer_than is None or age < self.newer_than)
        )


class DeadLetters:
    """The dead letters in one Redis."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._key = Keys().dead

    def __len__(self) -> int:
        return int(self._client.xlen(self._key))

    def find(self, meant: Filter) -> Iterator[DeadLetter]:
        """Those that are meant, the oldest first."""
        now, start = datetime.now(UTC), "-"
        while page := self._read(start, "+", _PAGE):
            yield from (letter for letter in page if meant.admits(letter, now))
            start = f"({page[-1].id}"

    def get(self, letter_id: str) -> DeadLetter | None:
        """The one with that id."""
        if _ID.fullmatch(letter_id) is None:
            return None
        return next(iter(self._read(letter_id, letter_id, 1)), None)

    def replay(self, ids: Iterable[str]) -> int:
        """Send them once more, the first of `ids` first; how many there were.

        Each keeps its request id, so one that was applied after all is answered and not applied again.
        """
        return sum(int(self._client.eval(_REPLAY, 1, self._key, *some)) for some in _pages(ids))

    def drop(self, ids: Iterable[str]) -> int:
        """Throw them away; how many there were."""
        return sum(int(self._client.xdel(self._key, *some)) for some in _pages(ids))

    def _read(self, start: str, end: str, count: int) -> list[DeadLetter]:
        found: Any = self._client.xrange(self._key, start, end, count)
        return [_letter(letter_id, fields) for letter_id, fields in found]


def _letter(letter_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    entry = fields[b"entry"]
    return DeadLetter(
        id=letter_id.decode(),
        reason=fields[b"reason"].decode(),
        list=fields[b"list"].decode(errors="replace"),
        message=leases.uncounted(entry),
        deliveries=leases.deliveries(entry),
    )


def _pages(ids: Iterable[str]) -> Iterator[list[str]]:
    every = list(ids)
    return (every[start : start + _PAGE] for start in range(0, len(every), _PAGE))
