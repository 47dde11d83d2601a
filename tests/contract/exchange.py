"""Messages to a live worker, and everything that came of them held against the model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aries_images import contract
from tests.builders import Row, an_image, clear, ledger, load, stored_images, stored_revisions
from tests.contract.model import Expected, World
from tests.contract.reading import Claims, Message
from tests.contract.rules import Document
from tests.contract.values import IDS
from tests.service import Service
from tests.workers import until
from worker.leases import Keys

#: An image that was changed in the future: its time must not go back.
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
#: Kombu's own, for remote control.
_KOMBUS = (b"_kombu.", b"unacked")
_RESULT = contract.RESULT_KEY_PREFIX.encode()


def when(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _as_told(row: Row) -> Row:
    return row | {name: when(row[name]) for name in ("created_at", "updated_at")}


@dataclass(frozen=True)
class Event:
    """A reply event as it stands in a queue."""

    queue: str
    entry: Document
    cloud: Document
    #: The reply document, to the byte.
    reply: str

    @property
    def document(self) -> Document:
        return json.loads(self.reply)


class Exchange:
    """A worker's two Redis databases and its database, and a model of what must be in them."""

    def __init__(self, service: Service, tokens: dict[str, Claims]) -> None:
        self.service, self.tokens = service, tokens
        self.node: str | None = None
        self.messages = 0

    def begin(self) -> None:
        """Images as on the first day, and nothing else."""
        broker, results = self.service.broker, self.service.results
        rows = [an_image(number) for number in IDS[:-1]]
        rows[1] |= {"os_type": "windows", "description": "two\n"}
        rows[2] |= {"updated_at": FUTURE, "revision": 7}
        clear(self.service.database)
        load(self.service.database, *rows)
        for client in (broker, results):
            if names := [name for name in client.scan_iter() if not name.startswith(_KOMBUS)]:
                client.delete(*names)
        self.world = World([_as_told(row) for row in rows], self.tokens)
        self._stored: dict[str, Document] = {}
        self._said: dict[str, list[Document]] = {}
        self._replies: dict[str, str] = {}
        self._results: set[bytes] = set()

    def send(self, entries: Sequence[bytes], queue: str = contract.QUEUE) -> None:
        """Push, wait until all of it is dealt with, and look at what came of it."""
        began = when(datetime.now(UTC))
        self.service.broker.lpush(queue, *entries)
        self.wait(queue)
        self.check(entries, began)

    def wait(self, *queues: str) -> None:
        names = (*contract.QUEUES, *queues, Keys().leases, Keys().ends)
        until(lambda: not self.service.broker.exists(*names), 30)

    def check(self, entries: Sequence[bytes], began: str, *, redelivered: bool = False) -> None:
        """Everything there is now is what the model says of `entries`; with `redelivered`, said more than once."""
        self.messages += len(entries)
        events = self._events()
        expected = [self._expected(entry, events, began) for entry in entries]
        self._check_events(entries, expected, events, redelivered=redelivered)
        self._check_dead(entries, expected)
        self._check_results(expected)
        self._check_database()
        self._check_keys(expected)
        self._forget()

    # --- what is there ---

    def _events(self) -> list[Event]:
        broker, found = self.service.broker, []
        for name in broker.keys(contract.REPLY_QUEUE + "*"):
            assert 0 < broker.ttl(name) <= 3600
            for entry in reversed(broker.lrange(name, 0, -1)):
                message = json.loads(entry)
                cloud, mark = message["body"], ',"data":'
                found.append(
                    Event(name.decode(), message, json.loads(cloud), cloud[cloud.index(mark) + len(mark) : -1])
                )
        return found

    def _expected(self, entry: bytes, events: list[Event], began: str) -> Expected:
        """What the model says; when an image was changed, its reply must say, and that must be meanwhile."""
        request_id = Message(entry, {}).request_id
        images = [event.document.get("image") for event in events if event.cloud["id"] == request_id]
        changed_at = next((image["updated_at"] for image in images if image), began)
        changes = len(self.world.revisions)
        expected = self.world.expect(entry, changed_at)
        if len(self.world.revisions) > changes:
            assert began <= changed_at <= when(datetime.now(UTC)) or changed_at == when(FUTURE), entry[:2000]
        return expected

    # --- what must be there ---

    def _check_events(
        self, entries: Sequence[bytes], expected: list[Expected], events: list[Event], *, redelivered: bool
    ) -> None:
        left, said = list(events), set()
        for entry, one in zip(entries, expected, strict=True):
            if one.request_id is None:
                continue
            its = next((event for event in left if self._fits(one, event, redelivered=redelivered)), None)
            assert its, (
                f"{entry[:2000]!r} must be answered {one}, not {[each for each in left if each.cloud['id'] == one.document['request_id']]}"
            )
            left.remove(its)
            said.add((its.cloud["id"], its.reply))
            if one.stored:
                first = self._replies.setdefault(one.document["request_id"], its.reply)
                assert its.reply == first, "the same id gets the same bytes"
        if redelivered:
            left = [event for event in left if (event.cloud["id"], event.reply) not in said]
        assert not left, f"nobody asked for {left}"

    def _fits(self, one: Expected, event: Event, *, redelivered: bool) -> bool:
        cloud, headers = event.cloud, event.entry["headers"]
        code = one.document.get("error", {}).get("code")
        kind = "updated" if code is None else "update_failed" if code == "InternalError" else "update_refused"
        replayed = headers["replayed"] == one.replayed and headers["attempt"] == 1
        return (
            (event.queue, cloud["id"]) == (one.queue, one.document["request_id"])
            and fits(one.document, event.document)
            and cloud["type"] == f"aries.image.{kind}"
            and (cloud["specversion"], cloud["source"], cloud["datacontenttype"])
            == ("1.0", "/aries/images", "application/json")
            and (code is not None or cloud["subject"] == f"image/{one.document['image']['id']}")
            and event.entry["properties"]["correlation_id"] == one.correlation_id
            and event.entry["content-type"] == "application/json"
            and headers.keys() == {"replayed", "attempt", "queue_ms", "commit_ms", "worker", "traceparent"}
            and headers["traceparent"] == one.traceparent
            and headers["worker"] == (self.node or headers["worker"])
            and (replayed or redelivered)
            and min(headers["queue_ms"], headers["commit_ms"]) >= 0
        )

    def _check_dead(self, entries: Sequence[bytes], expected: list[Expected]) -> None:
        letters = [fields[b"entry"] for _, fields in self.service.broker.xrange(Keys().dead)]
        dead = [entry for entry, one in zip(entries, expected, strict=True) if one.is_dead]
        assert sorted(letters) == sorted(dead)

    def _check_results(self, expected: list[Expected]) -> None:
        wanted = {one.request_id for one in expected if one.request_id is not None and one.wants_result}
        for one in expected:
            if one.request_id in wanted and one.wants_result:
                self._said.setdefault(one.request_id, []).append(one.document)
                if one.stored:
                    self._stored[one.request_id] = one.document
        for request_id in wanted:
            record = json.loads(self.service.results.get(contract.RESULT_KEY_PREFIX + request_id) or b"null")
            # Of those that are not stored it keeps one: they say as little, all of them.
            known = [self._stored[request_id]] if request_id in self._stored else self._said[request_id]
            assert any(fits(document, record["result"]) for document in known), (record, known)
            assert (record["status"], record["traceback"], record["children"]) == ("SUCCESS", None, [])
            assert record["task_id"] == request_id
            assert 0 < self.service.results.ttl(contract.RESULT_KEY_PREFIX + request_id) <= 3600

    def _check_database(self) -> None:
        database = self.service.database
        assert {row["id"]: _as_told(row) for row in stored_images(database)} == self.world.images
        revisions = {
            (row["image_id"], row["revision"], row["request_id"], row["caller"]) for row in stored_revisions(database)
        }
        assert revisions == self.world.revisions
        lines = ledger(database)
        assert lines.keys() == self.world.ledger.keys(), {
            request_id: lines.get(request_id) for request_id in lines.keys() ^ self.world.ledger.keys()
        }
        for request_id, line in self.world.ledger.items():
            kept = lines[request_id]
            assert (kept["caller"], kept["digest"]) == (line.caller, line.digest)
            assert kept["reply"] == self._replies[request_id], "the ledger keeps what was sent, to the byte"

    def _check_keys(self, expected: list[Expected]) -> None:
        """Nothing was written where nothing belongs."""
        queues = {one.queue.encode() for one in expected if one.request_id is not None}
        keys = {name for name in self.service.broker.scan_iter() if not name.startswith(_KOMBUS)}
        assert keys <= queues | {Keys().dead.encode()}
        self._results |= {_RESULT + one.request_id.encode() for one in expected if one.request_id is not None}
        assert {name for name in self.service.results.scan_iter() if not name.startswith(_KOMBUS)} <= self._results

    def _forget(self) -> None:
        names = self.service.broker.keys(contract.REPLY_QUEUE + "*")
        self.service.broker.delete(Keys().dead, *names)


def fits(expected: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Whether a reply is the expected one; sentences that the contract leaves open may be any."""
    if "error" not in expected or "error" not in document:
        return expected == document
    wanted, details = expected["error"]["details"], document["error"]["details"]
    if len(wanted) != len(details):
        return False
    told = [
        detail if want["message"] else detail | {"message": None} for want, detail in zip(wanted, details, strict=True)
    ]
    return expected == {**document, "error": document["error"] | {"details": told}}
