"""The account book: every call and every answer, held against what the database, the ledger and the queues say."""

import json
import random
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from aries_images import AriesImagesError, Image, ImageClient, InternalError, OutcomeUnknown, contract
from aries_images._answer import outcome_of
from tests.builders import Row, ledger, stored_images, stored_revisions
from worker.database import Database

#: Names that several images are after.
CONTESTED = [f"contested-{number}" for number in range(6)]
#: How often a caller asks for one answer before the run is called a failure.
_TRIES = 200

#: A definite answer, so that two can be compared: the image as JSON, or a code and its details.
Outcome = tuple[str, Any]


@dataclass
class Call:
    """One request, however often it was sent."""

    kwargs: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    #: Answers that leave it open: InternalError and OutcomeUnknown.
    open_answers: Counter[str] = field(default_factory=Counter)
    #: How often Redis confirmed to have it. Each of these messages is owed an event, however often it is resent.
    confirmed: int = 0
    began: float = 0.0
    ended: float = 0.0


def outcome(answer: Image | AriesImagesError) -> Outcome:
    if isinstance(answer, Image):
        return "OK", answer.model_dump_json()
    return str(answer.code), tuple(answer.details)


class Book:
    """Callers who ask for updates until they have a definite answer, and what they were told."""

    def __init__(self, client: ImageClient, images: int, seed: int = 1, timeouts: Iterable[float] = (1, 3, 10)) -> None:
        self._client = client
        self._images = images
        self._seed = seed
        self._timeouts = tuple(timeouts)
        self._lock = threading.Lock()
        self.calls: dict[str, Call] = {}
        self._left = 0
        self._given_up = self._closing = False
        self._failures: list[BaseException] = []

    # --- callers ---

    @contextmanager
    def callers(self, number: int, requests: int) -> Iterator[None]:
        """Have `number` callers send `requests` among them; at the end of the block wait until all are answered."""
        self._left += requests
        self._closing = False
        threads = [
            threading.Thread(target=self._call_on, args=(random.Random(self._seed * 1000 + n),), name=f"caller-{n}")
            for n in range(number)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        except BaseException:
            self._given_up = True
            raise
        finally:
            self._closing = True
            for thread in threads:
                thread.join()
        if self._failures:
            raise self._failures[0]

    def keep_going(self, requests: int = 1000) -> None:
        """Have the callers send so many more at least."""
        with self._lock:
            self._left = max(self._left, requests)

    @property
    def is_over(self) -> bool:
        """Whether every request has been sent at least once."""
        return self._left <= 0 or bool(self._failures)

    @property
    def answered(self) -> int:
        """Requests with a definite answer."""
        return sum(1 for call in list(self.calls.values()) if call.outcomes)

    def _call_on(self, choices: random.Random) -> None:
        try:
            while True:
                with self._lock:
                    is_idle = self._left <= 0
                    self._left -= not is_idle
                if self._given_up or (is_idle and self._closing):
                    return
                if is_idle:  # there may be more to send, while faults go on
                    time.sleep(0.01)
                else:
                    self._call(choices)
        except BaseException as error:  # told by the thread that waits for this one
            self._failures.append(error)
            raise

    def _call(self, choices: random.Random) -> None:
        request_id = str(uuid.UUID(int=choices.getrandbits(128), version=4))
        call = self.calls[request_id] = Call(self._kwargs(choices), began=time.monotonic())
        for _ in range(_TRIES):
            if self._given_up:
                return
            try:
                if call.open_answers and choices.random() < 0.2:
                    answer: Any = self._client.settle(request_id, timeout=choices.choice(self._timeouts))
                else:
                    timeout = choices.choice(self._timeouts)
                    pending = self._client.submit(**call.kwargs, request_id=request_id, timeout=timeout)
                    call.confirmed += 1
                    answer = pending.result()
            except (OutcomeUnknown, InternalError) as error:
                call.open_answers[type(error).__name__] += 1
                time.sleep(0.02 * choices.random())
                continue
            except AriesImagesError as error:
                answer = error
            call.ended = time.monotonic()
            call.outcomes.append(outcome(answer))
            return
        raise AssertionError(f"{request_id} was asked for {_TRIES} times without a definite answer")

    def _kwargs(self, choices: random.Random) -> dict[str, Any]:
        image, text = choices.randint(1, self._images), str(choices.getrandbits(64))
        kinds: list[dict[str, Any]] = [
            {"id": image, "description": text},
            {"id": image, "description": text, "os_name": "Debian"},
            {"id": image, "name": f"image-{image}-{text}"},
            {"id": image, "name": choices.choice(CONTESTED)},
            {"id": image},
            {"id": self._images + 1000, "description": text},
            {"id": image, "name": " "},
        ]
        return choices.choices(kinds, weights=(50, 15, 12, 12, 5, 3, 3))[0]

    # --- the reckoning ---

    def check(self, database: Database, broker: Redis | None = None, results: Redis | None = None) -> dict[str, int]:
        """Hold every call against what is on record; how many there were of each kind of answer."""
        lines, revisions, images = ledger(database), stored_revisions(database), stored_images(database)
        made: dict[str, list[Row]] = defaultdict(list)
        for revision in revisions:
            made[revision["request_id"]].append(revision)
        for request_id, call in self.calls.items():
            self._check_call(request_id, call, lines, made.get(request_id, []))
        assert set(made) <= set(self.calls), "nothing was applied that nobody asked for"
        check_history(images, revisions, lines)
        self._check_states(images, revisions, lines)
        self._check_order(lines)
        if broker is not None:
            self._check_events(broker, lines)
        if results is not None:
            self._check_results(results, lines)
        return Counter(call.outcomes[0][0] for call in self.calls.values())

    def _check_call(self, request_id: str, call: Call, lines: dict[str, Row], made: list[Row]) -> None:
        assert call.outcomes, f"lost: {request_id} has no answer"
        assert request_id in lines, f"{request_id} is not in the ledger"
        kept = json.loads(lines[request_id]["reply"])
        told = {outcome(outcome_of(kept)), *call.outcomes}
        assert len(told) == 1, f"{request_id} was answered with two values: {told}"
        assert len(made) <= 1, f"{request_id} was applied {len(made)} times"
        if kept["status"] != 200:
            assert not made, f"{request_id} was refused and applied"
        elif made:
            [row] = made
            said = (kept["image"]["id"], kept["revision"])
            assert said == (row["image_id"], row["revision"]), f"{request_id} was told another revision"
            told_of = {field: kept["image"][field] for field in contract.UPDATABLE}
            assert told_of == row["after"], f"{request_id} was told of another image"
            asked = {name: value for name, value in call.kwargs.items() if name != "id"}
            assert row["after"] == row["before"] | asked, f"{request_id} asked for something else"

    def _check_states(self, images: list[Row], revisions: list[Row], lines: dict[str, Row]) -> None:
        """The image in each reply, of what changed nothing too, is one that there was, under that very revision."""
        states = {(row["id"], row["revision"]): row for row in images}
        for row in revisions:
            states[row["image_id"], row["revision"] - 1] = row["before"]
            states.setdefault((row["image_id"], row["revision"]), row["after"])
        for request_id in self.calls:
            kept = json.loads(lines[request_id]["reply"])
            if kept["status"] == 200:
                state = states[kept["image"]["id"], kept["revision"]]
                assert all(kept["image"][name] == state[name] for name in contract.UPDATABLE), (
                    f"{request_id} is made up"
                )

    def _check_order(self, lines: dict[str, Row]) -> None:
        """Who asked after another one had his answer is not answered with an older image than that one."""
        of_image: dict[int, list[tuple[Call, int]]] = defaultdict(list)
        for request_id, call in self.calls.items():
            kept = json.loads(lines[request_id]["reply"])
            if kept["status"] == 200:
                of_image[kept["image"]["id"]].append((call, kept["revision"]))
        for answered in of_image.values():
            ended = sorted(answered, key=lambda each: -each[0].ended)
            seen = 0
            for call, revision in sorted(answered, key=lambda each: each[0].began):
                while ended and ended[-1][0].ended < call.began:
                    seen = max(seen, ended.pop()[1])
                assert revision >= seen, "an answer from the past"

    def _check_events(self, broker: Redis, lines: dict[str, Row]) -> None:
        """There is an event for each message, and every event says what the ledger says or leaves the outcome open.

        Callers who resend would be answered in the end though every second message were lost: so messages are counted.
        """
        told: Counter[str] = Counter()
        for entry in broker.lrange(contract.REPLY_QUEUE, 0, -1):
            reply = json.loads(json.loads(entry)["body"])["data"]
            told[reply["request_id"]] += 1
            if reply["status"] != 500 and reply["request_id"] in lines:
                kept = json.loads(lines[reply["request_id"]]["reply"])
                assert reply == kept, f"the event of {reply['request_id']} is not its reply"
        for request_id, call in self.calls.items():
            there = told[request_id]
            assert there >= call.confirmed, f"lost: {request_id} was sent {call.confirmed} times and has {there} events"

    def _check_results(self, results: Redis, lines: dict[str, Row]) -> None:
        """What is stored for the callers is what the ledger says, unless it leaves the outcome open."""
        for request_id in self.calls:
            stored = results.get(contract.RESULT_KEY_PREFIX + request_id)
            record = json.loads(stored) if stored else {"status": None}
            if record["status"] == "SUCCESS":
                kept = json.loads(lines[request_id]["reply"])
                assert record["result"] == kept, f"the result of {request_id} is not its reply"

    # --- how long it took ---

    def first_answer_after(self, moment: float) -> float:
        """Seconds from a moment on the monotonic clock to the first answer after it."""
        return min(call.ended for call in self.calls.values() if call.ended > moment) - moment

    def latencies(self) -> list[float]:
        """Seconds from the first sending of each request to its definite answer, sorted."""
        return sorted(call.ended - call.began for call in self.calls.values())


def check_history(images: list[Row], revisions: list[Row], lines: dict[str, Row]) -> None:
    """The sequential model: from its first state each image goes through its revisions, without a gap, to its last."""
    of_image: dict[int, list[Row]] = defaultdict(list)
    for revision in revisions:
        of_image[revision["image_id"]].append(revision)
    for image in images:
        state = {"revision": 1, "after": None}
        for row in of_image[image["id"]]:
            assert row["revision"] == state["revision"] + 1, f"image {image['id']} has a gap"
            assert state["after"] in (None, row["before"]), f"image {image['id']} jumps"
            assert row["before"] != row["after"], f"image {image['id']} has a revision that changed nothing"
            assert row["request_id"] in lines, f"image {image['id']} has a revision that is not in the ledger"
            state = row
        is_last = f"image {image['id']} is not what its last revision made of it"
        assert image["revision"] == state["revision"], is_last
        assert state["after"] in (None, {field: image[field] for field in contract.UPDATABLE}), is_last
    names = [image["name"] for image in images]
    assert len(set(names)) == len(names), "two images have one name"
