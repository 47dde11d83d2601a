"""Leases: which messages are taken, until when, and what became of them. In Redis, each step atomic.

A lease is a field of a hash (its tag -> the list it came from and the entry, to the byte) and a member of a sorted set
(its tag -> when it runs out, in milliseconds of the server's clock: a worker whose own clock is wrong takes nobody's
work away). A message that returns to its list after its lease ran out carries the number of its deliveries in front:
`{"deliveries":2,` and then its JSON as it came.
"""

import re
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

from redis import Redis

_COUNTED = re.compile(rb'\{"deliveries":(\d{1,9}),')


class Keys(NamedTuple):
    """Where leases and dead letters live in Redis."""

    leases: str = "image.update.leases"
    ends: str = "image.update.leases.ends"
    dead: str = "image.update.dead"


def deliveries(entry: bytes) -> int:
    """Which delivery of its message an entry is; 1 for the first."""
    counted = _COUNTED.match(entry)
    return int(counted[1]) if counted else 1


def uncounted(entry: bytes) -> bytes:
    """The message in an entry as its sender wrote it, without the count of its deliveries."""
    return _COUNTED.sub(b"{", entry, count=1)


#: Bytes that a message may have. One with a body of the largest size is smaller, however its body is written.
MESSAGE_BYTES_MAX = 1 << 20

#: Keys: the lists, the list of strays, then leases, ends and dead letters. Arguments: how many at most from the lists
#: in front and from the strays, milliseconds, prefix of the tags, the task whose messages are taken from the strays as
#: a pattern of Lua's, bytes that a message may have, dead letters that are kept, how many lists are in front, how many
#: at most from those behind. Returns the number of the list, the tag and the entry of each, flat. The strays are
#: Celery's own default list, where a stock caller's request lands who names no queue: it may be another application's,
#: so that only what names our task is taken, in order, and the rest is not touched. A message that is too large never
#: leaves the server: it goes to the dead letters, and one without a body, under its id, takes its place, for an
#: answer.
TAKE = """
local lists, prefix, task = #KEYS - 4, ARGV[3], ARGV[4]
local front, room, room_behind = tonumber(ARGV[7]), tonumber(ARGV[1]), tonumber(ARGV[8])
local now = redis.call('TIME')
local ends = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2]
local taken, leases, index = {}, {}, {}
local function without_body(list, entry)
  redis.call('XADD', KEYS[#KEYS], 'MAXLEN', ARGV[6], '*', 'reason', 'too_large', 'list', KEYS[list], 'entry', entry)
  local id = '"id": ?"([%w._:-]+)"'
  id = string.match(string.sub(entry, -4096), id) or string.match(string.sub(entry, 1, 4096), id)
  return id and '{"headers":{"task":"' .. string.gsub(task, '%%', '') .. '","id":"' .. id .. '"},"body":""}'
end
local function take(list, entry)
  if #entry > tonumber(ARGV[5]) then entry = without_body(list, entry) end
  if not entry then return end
  local tag = prefix .. #leases
  taken[#taken + 1] = list
  taken[#taken + 1] = tag
  taken[#taken + 1] = entry
  leases[#leases + 1] = tag
  leases[#leases + 1] = #KEYS[list] .. ':' .. KEYS[list] .. entry
  index[#index + 1] = ends
  index[#index + 1] = tag
end
local function take_all(first, last, room)
  for list = first, last do
    local found = room > 0 and redis.pcall('RPOP', KEYS[list], room)
    if found and not found.err then  -- an error: the key is no list
      for _, entry in ipairs(found) do take(list, entry) end
      room = room - #found
    end
  end
  return room
end
room = take_all(1, front, room)
take_all(front + 1, lists, room_behind)
local strays = KEYS[lists + 1]
if room > 0 and redis.call('TYPE', strays).ok == 'list' then
  local found = redis.call('LRANGE', strays, -room, -1)
  for i = #found, 1, -1 do
    if string.find(found[i], '"task": ?"' .. task .. '"') then
      redis.call('LREM', strays, -1, found[i])
      take(lists + 1, found[i])
    end
  end
end
if #leases > 0 then
  redis.call('HSET', KEYS[#KEYS - 2], unpack(leases))
  redis.call('ZADD', KEYS[#KEYS - 1], unpack(index))
end
return taken
"""

_END = """
local function end_lease(tag)
  local lease = redis.call('HGET', KEYS[1], tag)
  redis.call('ZREM', KEYS[2], tag)
  if not lease then return nil, nil end
  redis.call('HDEL', KEYS[1], tag)
  local size, start = string.match(lease, '^(%d+)():')
  return string.sub(lease, start + 1, start + size), string.sub(lease, start + size + 1)
end
local function counted(entry)
  if string.sub(entry, 1, 1) ~= '{' then return entry end
  local count, rest = string.match(entry, '^{"deliveries":(%d+),()')
  return '{"deliveries":' .. string.format('%d', (count or 1) + 1) .. ',' .. string.sub(entry, rest or 2)
end
"""

_GIVE_BACK = f"""
{_END}
for i = 2, #ARGV do
  local list, entry = end_lease(ARGV[i])
  if list then redis.call('RPUSH', list, ARGV[1] == '1' and counted(entry) or entry) end
end
"""

_TEND = f"""
{_END}
-- Changes nothing; but a server that is out of memory refuses a script at the first write that may need some, which
-- would be the ZADD below, and never one that has written already. Leases must not run out over that.
redis.call('ZREM', KEYS[2], '')
local now = redis.call('TIME')
local milliseconds = now[1] * 1000 + math.floor(now[2] / 1000)
for i = 2, #ARGV do redis.call('ZADD', KEYS[2], 'XX', milliseconds + ARGV[1], ARGV[i]) end
local returned = 0
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', milliseconds, 'LIMIT', 0, 1000)) do
  local list, entry = end_lease(tag)
  if list then
    redis.call('RPUSH', list, counted(entry))
    returned = returned + 1
  end
end
return returned
"""

_BURY = f"""
{_END}
local list, entry = end_lease(ARGV[1])
if list then
  redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[3], '*', 'reason', ARGV[2], 'list', list, 'entry', entry)
end
return redis.call('XLEN', KEYS[3])
"""


class Leases:
    """The messages that this process holds. They are the process's, not a connection's: they outlive a reconnect."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._done: list[str] = []

    def hold(self, tag: str) -> None:
        """From now on the lease is extended."""
        with self._lock:
            self._held.add(tag)

    def release(self, tag: str) -> None:
        """It is answered: its lease ends with the next flush."""
        with self._lock:
            self._done.append(tag)
            self._held.discard(tag)

    @property
    def to_flush(self) -> bool:
        """Whether anything was answered since the last flush."""
        return bool(self._done)

    def flush(self, client: Redis, keys: Keys) -> None:
        """End the leases of what is answered, in one round trip; after an error they are there for the next flush."""
        with self._lock:
            done, self._done = self._done, []
        if not done:
            return
        try:
            with client.pipeline(transaction=True) as pipe:
                pipe.hdel(keys.leases, *done)
                pipe.zrem(keys.ends, *done)
                pipe.execute()
        except Exception:
            with self._lock:
                self._done += done
            raise

    def tend(self, client: Redis, keys: Keys, milliseconds: int) -> int:
        """Extend what is held, and return to their lists the messages of anyone whose leases ran out; how many."""
        with self._lock:
            held = list(self._held)
        returned: Any = client.eval(_TEND, 2, keys.leases, keys.ends, str(milliseconds), *held)
        return int(returned)

    def give_back(self, client: Redis, keys: Keys, tags: Iterable[str], *, failed: bool) -> None:
        """Return messages to their lists, the last of `tags` to be taken first; counting it, if they `failed` here."""
        tags = list(tags)
        with self._lock:
            self._held.difference_update(tags)
        if tags:
            client.eval(_GIVE_BACK, 2, keys.leases, keys.ends, str(int(failed)), *tags)

    def bury(self, client: Redis, keys: Keys, tag: str, reason: str, most: int) -> int:
        """Put a message with the dead letters, to the byte, of which the newest `most` are kept; how many there are."""
        with self._lock:
            self._held.discard(tag)
        there: Any = client.eval(_BURY, 3, *keys, tag, reason, str(most))
        return int(there)
