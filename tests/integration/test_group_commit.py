"""The group-commit pool in a real worker: one transaction for what waits, and all that Celery's users rely on."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import group

from aries_images import contract
from tests.builders import SECRET, poison, run_ddl
from tests.extra_tasks import SIGNALS_FILE
from tests.running import Site, Worker, id_of, request, site, until
from worker.leases import Keys

#: Words for workers that need not look for others first, which takes a second.
AT_ONCE = ("--without-mingle", "--without-gossip")
DEADLINE = contract.DEADLINE_EXCEEDED.name


@pytest.fixture(scope="module")
def town(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that the tests of this module share, with the worker below."""
    with site(postgres_url, tmp_path_factory.mktemp("site")) as town:
        poison(town.database)
        yield town


@pytest.fixture(scope="module")
def signals_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("signals") / "signals"
    file.touch()
    return file


@pytest.fixture(scope="module")
def _shared(town: Site, signals_file: Path) -> Iterator[Worker]:
    with town.worker("-I", "tests.extra_tasks", *AT_ONCE, **{SIGNALS_FILE: str(signals_file)}) as worker:
        yield worker


@pytest.fixture(autouse=True)
def worker(_shared: Worker) -> Iterator[Worker]:
    """The shared worker, which no test may stop."""
    yield _shared
    assert _shared.is_up, _shared.log.read_text()


def send(town: Site, image: int, *, description: str = "", **options: Any) -> str:
    """Send a request as a stock Celery caller does; its id."""
    kwargs = {"id": image, "description": description} if description else {"id": image}
    sent = town.app.send_task(contract.TASK, kwargs=kwargs, queue=contract.QUEUE, **options)
    return str(sent.id)


# --- batches ---


def push_while_busy(town: Site, worker: Worker, *messages: dict[str, Any]) -> None:
    """Have all messages wait in the pool, behind a task of somebody else's, before it may begin with any."""
    inspect = town.app.control.inspect([worker.name], timeout=5)
    gate = town.folder / str(uuid.uuid4())
    first = town.app.send_task("tests.stand_still", (str(gate),), queue=contract.QUEUE)
    try:
        until(lambda: first.id in [task["id"] for task in inspect.active()[worker.name]])
        town.push(*messages)
        until(lambda: inspect.stats()[worker.name]["pool"]["waiting"] == len(messages))
    finally:
        gate.touch()


def test_what_waits_is_committed_in_one_transaction(town: Site, worker: Worker) -> None:
    messages = [request(image, description="all at once") for image in range(1, 51)]
    push_while_busy(town, worker, *messages)
    replies = [town.reply(id_of(message)) for message in messages]
    assert {reply["revision"] for reply in replies} == {2}
    transactions = town.query(
        "SELECT DISTINCT xmin::text, at FROM image_revisions WHERE request_id = ANY(%s)", [*map(id_of, messages)]
    )
    assert len(transactions) == 1
    assert len({town.event(id_of(message)).headers["commit_ms"] for message in messages}) == 1


def test_a_batch_has_no_more_than_its_limit(town: Site, worker: Worker) -> None:
    messages = [request(image, description="more than one batch") for image in range(101, 251)]
    push_while_busy(town, worker, *messages)
    until(lambda: len(town.applied(map(id_of, messages))) == len(messages))
    sizes = town.query(
        "SELECT count(*) FROM image_revisions WHERE request_id = ANY(%s) GROUP BY xmin::text",
        [id_of(message) for message in messages],
    )
    assert sorted(size for (size,) in sizes) == [50, 100]


def test_a_fault_in_a_batch_does_not_cost_the_others_their_answer(town: Site, worker: Worker) -> None:
    good = [request(image, description="beside a fault") for image in range(51, 71)]
    fault, refused = request(71, name="poison in the middle"), request(71, name="")
    push_while_busy(town, worker, *good[:10], fault, refused, *good[10:])
    assert [town.code(id_of(message)) for message in good] == ["OK"] * 20
    assert town.code(id_of(fault)) == contract.INTERNAL_ERROR.name
    assert town.code(id_of(refused)) == contract.INVALID_PARAMETER.name
    assert sorted(town.applied(map(id_of, [*good, fault, refused]))) == sorted(map(id_of, good))


def test_a_request_alone_does_not_wait_for_others(town: Site) -> None:
    took = []
    for number in range(10):
        began = time.monotonic()
        town.reply(send(town, 72, description=str(number)))
        took.append(time.monotonic() - began)
    assert sorted(took)[5] < 0.2


def test_a_row_that_is_locked_holds_up_nobody_else(town: Site) -> None:
    stuck = [send(town, 71, description=str(number)) for number in range(3)]
    with town.locked(71):
        held = [send(town, 71, description=f"held {number}") for number in range(3)]
        until(lambda: all(town.holds(one) for one in held))
        began = time.monotonic()
        for number in range(8):
            held.append(send(town, 71, description=f"held later {number}"))
            free = send(town, 72, description=str(number))
            assert town.code(free, seconds=5) == "OK"
        assert time.monotonic() - began < 4  # a second each, if each of them waited for the row
        assert all(town.holds(one) for one in held)
    assert [town.code(one) for one in stuck + held] == ["OK"] * 14
    assert all(town.event(one).headers["attempt"] == 1 for one in held)


def test_each_is_given_up_at_its_own_deadline(town: Site) -> None:
    began = datetime.now(UTC)
    with town.locked(73):
        soon = send(town, 73, description="soon", expires=began + timedelta(seconds=3))
        later = send(town, 73, description="later", expires=began + timedelta(seconds=30))
        assert town.code(soon) == "InternalError"
        assert 1 < (datetime.now(UTC) - began).total_seconds() < 5
        assert town.holds(later)
    assert town.code(later) == "OK"


def test_a_task_of_another_runs_beside(town: Site) -> None:
    with town.locked(73):
        waits = send(town, 73, description="waits")
        sums = [town.app.send_task("tests.add", (number, 1), queue=contract.QUEUE) for number in range(3)]
        until(lambda: town.holds(waits))
    assert [town.reply(one.id) for one in sums] == [{"sum": 1}, {"sum": 2}, {"sum": 3}]
    assert town.code(waits) == "OK"
    failed = town.record(town.app.send_task("tests.fail", queue=contract.QUEUE).id)
    assert (failed["status"], failed["result"]["exc_message"]) == ("FAILURE", ["on purpose"])


# --- events and signals ---


@contextmanager
def celery_events(town: Site) -> Iterator[list[dict[str, Any]]]:
    """Celery's events as Flower gets them, from now on."""
    seen: list[dict[str, Any]] = []
    leaving = threading.Event()
    with town.app.connection_for_read() as connection:
        receiver = town.app.events.Receiver(connection, handlers={"*": seen.append})

        def listen() -> None:
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=False):
                if leaving.is_set():
                    return

        thread = threading.Thread(target=listen)
        others = town.broker.pubsub_numpat()
        thread.start()
        until(lambda: town.broker.pubsub_numpat() > others)
        try:
            yield seen
        finally:
            leaving.set()
            # One more event, so that the thread sees it.
            with town.app.connection_for_write() as other, town.app.events.Dispatcher(other) as dispatcher:
                dispatcher.send("worker-test-is-over")
            thread.join()


def test_each_request_has_the_events_of_celery(town: Site, worker: Worker) -> None:
    good = request(80, description="seen")
    refused = request(10_000_000)
    bad = request(81, name="poison seen")
    with celery_events(town) as seen:

        def of(message: dict[str, Any]) -> list[dict[str, Any]]:
            return [event for event in seen if event.get("uuid") == id_of(message)]

        town.push(good, refused, bad)
        until(lambda: all(len(of(message)) == 3 for message in (good, refused, bad)))
    for message, last in ((good, "task-succeeded"), (refused, "task-succeeded"), (bad, "task-failed")):
        assert [event["type"] for event in of(message)] == ["task-received", "task-started", last]
        assert {event["hostname"] for event in of(message)} == {worker.name}
    assert of(good)[0]["name"] == contract.TASK
    assert 0 < of(good)[-1]["runtime"] < 5
    assert of(good)[0]["timestamp"] <= of(good)[1]["timestamp"] <= of(good)[2]["timestamp"] - of(good)[2]["runtime"]
    assert [of(message)[-1]["result"] for message in (good, refused)] == ["image 80, revision 2", "ImageNotFound"]
    failed = of(bad)[-1]
    assert "traceback" not in failed
    assert failed["exception"].startswith("InternalError(")
    assert SECRET not in json.dumps(failed)


def test_the_signals_of_celery_are_sent_with_the_request_in_place(town: Site, signals_file: Path) -> None:
    good, bad = request(82, description="signals"), request(83, name="poison signals")
    town.push(good, bad)

    def of(message: dict[str, Any]) -> list[list[Any]]:
        lines = [json.loads(line) for line in signals_file.read_text().splitlines()]
        return [[name, task_id, state] for name, task_id, current, state in lines if current == id_of(message)]

    until(lambda: len(of(good)) + len(of(bad)) == 6)
    assert of(good) == [
        ["prerun", id_of(good), None],
        ["success", None, None],
        ["postrun", id_of(good), "SUCCESS"],
    ]
    assert of(bad) == [
        ["prerun", id_of(bad), None],
        ["failure", id_of(bad), "InternalError"],
        ["postrun", id_of(bad), "FAILURE"],
    ]


# --- when, and whether at all ---


def test_a_countdown_is_waited_for(town: Site) -> None:
    due = datetime.now(UTC) + timedelta(seconds=1)
    sent = send(town, 84, description="later", countdown=1)
    assert town.code(sent) == "OK"
    assert town.query("SELECT at >= %s FROM image_revisions WHERE request_id = %s", due, sent) == [(True,)]


def test_what_is_expired_is_answered_and_never_applied(town: Site) -> None:
    sent = send(town, 85, description="too late", expires=datetime.now(UTC) - timedelta(seconds=1))
    assert town.code(sent) == DEADLINE
    assert town.event(sent).reply["error"]["code"] == DEADLINE
    assert town.applied([sent]) == []


def test_what_expires_while_its_batch_is_held_up_is_never_applied(town: Site) -> None:
    with town.locked(86):
        first = send(town, 86, description="holds the batch up")
        until(lambda: town.holds(first))
        deadline = datetime.now(UTC) + timedelta(seconds=0.3)
        second = send(town, 86, description="expires meanwhile", expires=deadline)
        until(lambda: town.holds(second) and datetime.now(UTC) > deadline)
    assert [town.code(first), town.code(second)] == ["OK", DEADLINE]
    assert town.applied([second]) == []


def told(town: Site, request_id: str) -> list[tuple[str, str]]:
    """The Celery states that a caller is told of in turn, each with its code, until the reply event is there."""
    key = contract.RESULT_KEY_PREFIX + request_id
    states: list[tuple[str, str]] = []

    def is_over() -> bool:
        is_answered = bool(town.events(request_id))
        if town.results.exists(key):
            state = (town.record(request_id)["status"], town.code(request_id))
            states.extend([state] if state not in states[-1:] else [])
        return is_answered

    until(is_over)
    return states


def test_what_is_revoked_before_it_is_due_is_answered_and_never_applied(town: Site, worker: Worker) -> None:
    sent = send(town, 87, description="revoked", countdown=1)
    inspect = town.app.control.inspect([worker.name], timeout=5)
    until(lambda: inspect.scheduled()[worker.name])
    town.app.control.revoke(sent)
    assert told(town, sent) == [("SUCCESS", DEADLINE)]
    assert town.applied([sent]) == []


def test_what_is_revoked_while_it_waits_in_the_worker_is_never_applied(town: Site, worker: Worker) -> None:
    inspect = town.app.control.inspect([worker.name], timeout=5)
    with town.locked(88):
        first = send(town, 88, description="holds the batch up")
        until(lambda: town.holds(first))
        sent = send(town, 89, description="revoked while it waits")
        until(lambda: sent in [task["id"] for task in inspect.reserved()[worker.name]])
        town.app.control.revoke(sent)
        until(lambda: sent in inspect.revoked()[worker.name])
    until(lambda: town.events(sent))
    assert town.code(sent) == DEADLINE
    assert town.applied([sent]) == []


@pytest.mark.parametrize("terminate", [False, True])
def test_nobody_is_told_that_a_request_is_revoked_which_is_applied(
    town: Site, worker: Worker, *, terminate: bool
) -> None:
    inspect = town.app.control.inspect([worker.name], timeout=5)
    with town.locked(89):
        sent = send(town, 89, description=f"under way when it is revoked: {terminate}")
        until(lambda: sent in [task["id"] for task in inspect.active()[worker.name]])
        town.app.control.revoke(sent, terminate=terminate)
        until(lambda: sent in inspect.revoked()[worker.name])
        assert not town.results.exists(contract.RESULT_KEY_PREFIX + sent), town.record(sent)
    assert told(town, sent) == [("SUCCESS", "OK")]
    assert town.applied([sent]) == [sent]


def test_a_rate_limit_is_kept(town: Site, worker: Worker) -> None:
    inspect = town.app.control.inspect([worker.name], timeout=5)
    assert town.app.control.rate_limit(contract.TASK, "10/s", reply=True, destination=[worker.name], timeout=5)
    try:
        began = time.monotonic()
        sent = [send(town, 90, description=str(number)) for number in range(8)]
        assert [town.code(one) for one in sent] == ["OK"] * 8
        assert time.monotonic() - began > 0.6
    finally:
        town.app.control.rate_limit(contract.TASK, "0", reply=True, destination=[worker.name], timeout=5)
    assert inspect.reserved() == {worker.name: []}


# --- results ---


def published(town: Site, send_it: Any, request_id: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What is published for a request, what is stored for it, and for how many seconds."""
    key = contract.RESULT_KEY_PREFIX + request_id
    with town.results.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(key)
        until(lambda: town.results.pubsub_numsub(key)[0][1])
        send_it()
        announced = until(lambda: channel.get_message(timeout=0.1))
    return json.loads(announced["data"]), town.record(request_id), town.results.ttl(key)


def kinds(record: dict[str, Any]) -> dict[str, type]:
    """Keys and types of what is stored of a task; of an exception's too."""
    kinds = {key: type(value) for key, value in record.items()}
    if record["status"] == "FAILURE":
        kinds |= {f"result.{key}": type(value) for key, value in record["result"].items()}
    return kinds


CASES = {
    "success": ({"id": 91, "description": "kept"}, {}),
    "refusal": ({"id": 10_000_000}, {}),
    "fault": ({"id": 92, "name": "poison kept"}, {}),
    "member of a group": ({"id": 91}, {"group_id": "the-group"}),
    "child": ({"id": 91}, {"parent_id": "the-parent", "root_id": "the-root"}),
}


@pytest.mark.parametrize(("kwargs", "options"), CASES.values(), ids=CASES)
def test_a_result_is_what_celerys_own_backend_writes(
    town: Site, kwargs: dict[str, Any], options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    case = request.node.callspec.id.replace(" ", "-")
    faulty = case == "fault"

    def send_ours() -> None:
        town.app.send_task(contract.TASK, kwargs=kwargs, task_id=f"{case}-ours", queue=contract.QUEUE, **options)

    def send_theirs() -> None:
        name, args = ("tests.fail", ()) if faulty else ("tests.add", (1, 2))
        town.app.send_task(name, args, task_id=f"{case}-theirs", queue=contract.QUEUE, **options)

    announced, ours, ttl = published(town, send_ours, f"{case}-ours")
    theirs_announced, theirs, theirs_ttl = published(town, send_theirs, f"{case}-theirs")
    assert announced == ours
    assert theirs_announced == theirs
    assert 3590 < ttl <= 3600
    assert 3590 < theirs_ttl <= 3600
    if faulty:
        assert theirs.pop("traceback").startswith("Traceback")
        assert ours.pop("traceback") is None
    assert kinds(ours) == kinds(theirs)
    same = ("status", "children", "group_id", "parent_id")
    assert {key: ours.get(key) for key in same} == {key: theirs.get(key) for key in same}
    assert datetime.fromisoformat(ours["date_done"]).utcoffset() == timedelta()


def test_a_group_of_requests_gathers_its_replies(town: Site) -> None:
    update = town.app.signature(contract.TASK, queue=contract.QUEUE, app=town.app)
    sent = group([update.clone(kwargs={"id": image}) for image in (93, 94)], app=town.app).apply_async()
    assert [reply["image"]["id"] for reply in sent.get(timeout=10)] == [93, 94]


def test_a_fault_reaches_a_stock_caller_without_what_is_ours(town: Site) -> None:
    sent = town.app.send_task(contract.TASK, kwargs={"id": 95, "name": "poison told"}, queue=contract.QUEUE)
    with pytest.raises(Exception, match=contract.INTERNAL_ERROR.message) as raised:
        sent.get(timeout=10)
    assert type(raised.value).__name__ == "InternalError"
    assert SECRET not in json.dumps(town.record(sent.id))


def test_a_reply_that_is_not_stored_never_replaces_one_that_is(town: Site) -> None:
    stored = request(96, description="stored")
    town.push(stored)
    before = town.record(id_of(stored))
    reused = request(96, id_of(stored), description="another body")
    announced, after, _ = published(town, lambda: town.push(reused), id_of(stored))
    assert announced["result"]["error"]["details"][0]["reason"] == "request_id_reused"
    assert after == before


def test_a_stored_reply_replaces_a_fault(town: Site) -> None:
    request_id = "first-a-fault"
    town.push(request(97, request_id, name="poison first"))
    assert town.code(request_id) == contract.INTERNAL_ERROR.name
    town.push(request(97, request_id, description="then good"))
    until(lambda: town.code(request_id) == "OK")


def test_a_caller_who_wants_no_result_gets_the_event_alone(town: Site) -> None:
    sent = send(town, 98, description="event alone", ignore_result=True)
    assert town.event(sent).reply["status"] == 200
    assert not town.results.exists(contract.RESULT_KEY_PREFIX + sent)


# --- leaving ---


def leave_with_a_batch_under_way(town: Site, leaves: Worker, seconds: float) -> tuple[str, float]:
    """SIGTERM while a batch is at a change that takes `seconds`; the request, and how long it took to leave."""
    run_ddl(
        town.database,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$",
        "CREATE TRIGGER slow BEFORE UPDATE ON images FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    sent = send(town, 1, description="under way when the worker leaves")
    until(lambda: town.query("SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
    began = time.monotonic()
    leaves.process.terminate()
    leaves.process.wait(10)
    return sent, time.monotonic() - began


@pytest.mark.parametrize("remap", ["", "SIGQUIT"], ids=["warm", "soft"])
def test_a_worker_that_leaves_finishes_its_batch(postgres_url: str, tmp_path: Path, remap: str) -> None:
    environment = {"REMAP_SIGTERM": remap} if remap else {}
    with site(postgres_url, tmp_path) as village, village.worker(*AT_ONCE, **environment) as leaves:
        sent, took = leave_with_a_batch_under_way(village, leaves, 0.5)
        assert took < 5
        assert leaves.process.returncode == 0
        assert "Unrecoverable" not in leaves.log.read_text()
        assert village.code(sent, seconds=1) == "OK"
        assert village.event(sent).headers["replayed"] is False
        assert village.is_at_rest()
        assert not village.broker.exists(Keys().dead)
