"""The account book itself: it finds nothing wrong in an honest record, and each lie that is put into one."""

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import delete, update

from aries_images import contract
from models import image_revisions, images, requests
from tests.builders import Row, stored_revisions
from tests.faults.account import Book
from tests.faults.town import Town, town


@pytest.fixture(scope="module")
def honest() -> Iterator[tuple[Town, Book]]:
    """A town in which callers were answered, and their book; neither worker nor caller is at work any more."""
    with town(on_sqlite=True, workers=1) as there:
        book = there.book()
        with book.callers(16, 600):
            pass
        there.settle_accounts(book)
        there.end(there.workers[0])
        yield there, book


class Record:
    """What there is to lie about: the record of one request that changed an image, and of the one before it."""

    def __init__(self, there: Town, book: Book) -> None:
        self.there, self.book = there, book
        self.before, self.row = next(
            (first, last)
            for image in range(1, 40)
            for first, last in [stored_revisions(there.database, image)[-2:]]
            if last["after"]["os_name"] == "Debian"
        )
        self.id: str = self.row["request_id"]
        self.key = contract.RESULT_KEY_PREFIX + self.id
        [self.place] = [place for place, reply in enumerate(self.events()) if reply["id"] == self.id]

    def events(self) -> list[dict[str, Any]]:
        entries = self.there.broker.lrange(contract.REPLY_QUEUE, 0, -1)
        return [json.loads(json.loads(entry)["body"]) for entry in entries]

    def execute(self, statement: Any) -> None:
        with self.there.database.transaction() as connection:
            connection.execute(statement)

    # --- lies ---

    def lost(self) -> None:
        self.book.calls[self.id].outcomes.clear()

    def told_twice(self) -> None:
        self.book.calls[self.id].outcomes.append(("OK", "something else"))

    def told_late(self) -> None:
        self.book.calls[self.before["request_id"]].began = self.book.calls[self.id].ended + 1

    def not_in_the_ledger(self) -> None:
        self.execute(delete(requests).where(requests.c.request_id == self.id))

    def applied_by_nobody(self) -> None:
        self.execute(
            update(image_revisions).where(image_revisions.c.request_id == self.id).values(request_id="of nobody")
        )

    def no_revision(self) -> None:
        self.execute(delete(image_revisions).where(image_revisions.c.request_id == self.before["request_id"]))

    def more_than_was_asked_for(self) -> None:
        after: Row = self.row["after"] | {"os_name": "changed"}
        self.execute(update(image_revisions).where(image_revisions.c.request_id == self.id).values(after=after))

    def another_image(self) -> None:
        self.execute(update(images).where(images.c.id == self.row["image_id"]).values(os_name="changed"))

    def no_event(self) -> None:
        self.there.broker.lset(contract.REPLY_QUEUE, self.place, self.there.broker.lindex(contract.REPLY_QUEUE, -1))

    def another_event(self) -> None:
        entry = json.loads(self.there.broker.lindex(contract.REPLY_QUEUE, self.place))
        body = json.loads(entry["body"])
        body["data"]["revision"] += 1
        self.there.broker.lset(contract.REPLY_QUEUE, self.place, json.dumps(entry | {"body": json.dumps(body)}))

    def another_result(self) -> None:
        stored = json.loads(self.there.results.get(self.key))
        stored["result"]["revision"] += 1
        self.there.results.set(self.key, json.dumps(stored))


LIES: dict[Callable[[Record], None], str] = {
    Record.lost: "lost",
    Record.told_twice: "two values",
    Record.told_late: "from the past",
    Record.not_in_the_ledger: "not in the ledger",
    Record.applied_by_nobody: "nobody asked for",
    Record.no_revision: "has a gap",
    Record.more_than_was_asked_for: "another image",
    Record.another_image: "its last revision",
    Record.no_event: "lost: .* has 0 events",
    Record.another_event: "the event of .* is not its reply",
    Record.another_result: "the result of .* is not its reply",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_the_book_finds(honest: tuple[Town, Book], lie: Callable[[Record], None]) -> None:
    there, book = honest
    record = Record(there, book)
    file, copy = there.folder / "images.db", there.folder / "honest.db"
    there.database.close()
    shutil.copy(file, copy)
    events, stored = there.broker.dump(contract.REPLY_QUEUE), there.results.dump(record.key)
    calls = {id_: (call.began, [*call.outcomes]) for id_, call in book.calls.items()}
    try:
        lie(record)
        with pytest.raises(AssertionError, match=LIES[lie]):
            book.check(there.database, there.broker, there.results)
    finally:
        there.database.close()
        shutil.copy(copy, file)
        there.broker.restore(contract.REPLY_QUEUE, 0, events, replace=True)
        there.results.restore(record.key, 0, stored, replace=True)
        for id_, (began, outcomes) in calls.items():
            book.calls[id_].began, book.calls[id_].outcomes = began, outcomes
    book.check(there.database, there.broker, there.results)
