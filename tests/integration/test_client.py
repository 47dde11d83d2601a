"""The client against a real Redis, and a stand-in for the worker that can be told what to do."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from kombu import Connection, Producer
from redis import Redis

from aries_images import (
    AriesImagesError,
    ImageClient,
    ImageNotFound,
    InvalidParameter,
    OutcomeUnknown,
    contract,
)
from aries_images.contract import Detail, Reply
from tests.stand_in import IMAGE, MOMENT, StandIn, Taken, failure_of, record_of, stand_in
from worker.embedded import RedisServer

Work = Callable[..., StandIn]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def client(broker_url: str, result_url: str) -> Iterator[ImageClient]:
    with ImageClient(broker_url, result_url) as client:
        yield client


@pytest.fixture
def results(result_url: str) -> Iterator[Redis]:
    with Redis.from_url(result_url) as results:
        yield results


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def silence(_: Taken) -> None:
    return None


# --- the ordinary course ---


def test_an_update_returns_the_image(broker_url: str, result_url: str, client: ImageClient) -> None:
    with stand_in(broker_url, result_url) as worker, at_most(1):
        image = client.update(1, name="Debian 12", os_type="linux")
    assert image.model_dump() == IMAGE | {"name": "Debian 12", "revision": 2}
    assert worker.taken[0].kwargs == {"id": 1, "name": "Debian 12", "os_type": "linux"}


def test_none_is_sent_and_absent_is_not(broker_url: str, result_url: str, client: ImageClient) -> None:
    refused = Detail("description", "null_not_allowed", "description must not be null")
    with stand_in(broker_url, result_url, lambda taken: taken.refusal(contract.INVALID_PARAMETER, refused)) as worker:
        with pytest.raises(InvalidParameter) as raised:
            client.update(1, description=None)  # type: ignore[arg-type]
        assert raised.value.details == (refused,)
        assert worker.taken[0].kwargs == {"id": 1, "description": None}


def test_what_goes_with_the_request_is_sent(broker_url: str, result_url: str) -> None:
    with (
        ImageClient(broker_url, result_url, reply_to="image.replies.orders") as client,
        stand_in(broker_url, result_url) as worker,
    ):
        client.update(1, request_id="order-1", if_revision=3, traceparent=TRACE)
    (taken,) = worker.taken
    assert taken.request_id == "order-1"
    assert taken.headers["if_revision"] == 3
    assert taken.headers["traceparent"] == TRACE
    assert taken.envelope["properties"]["reply_to"] == "image.replies.orders"
    assert taken.envelope["properties"]["correlation_id"] == "order-1"


@pytest.mark.parametrize("code", contract.CODES.values(), ids=contract.CODES)
def test_each_refusal_raises_its_class(
    code: contract.Code, broker_url: str, result_url: str, client: ImageClient
) -> None:
    def answer(taken: Taken) -> Reply | bytes:
        return failure_of(taken.request_id) if code is contract.INTERNAL_ERROR else taken.refusal(code)

    with stand_in(broker_url, result_url, answer) as worker:
        with pytest.raises(AriesImagesError) as raised:
            client.update(1)
        assert type(raised.value).__name__ == raised.value.code == code.name
        assert raised.value.request_id == worker.taken[0].request_id


def test_a_pending_update_can_be_asked_later_and_again(broker_url: str, result_url: str, client: ImageClient) -> None:
    pending = client.submit(1, name="Debian 12")
    with at_most(1), pytest.raises(OutcomeUnknown) as raised:
        pending.result(timeout=0)
    assert raised.value.request_id == pending.request_id
    with stand_in(broker_url, result_url):
        assert pending.result().name == "Debian 12"
        with at_most(0.1):
            assert pending.result(timeout=0).name == "Debian 12"


def test_threads_may_wait_for_one_pending_update(broker_url: str, result_url: str, client: ImageClient) -> None:
    pending = client.submit(1)
    with stand_in(broker_url, result_url), ThreadPoolExecutor() as threads, at_most(3):
        waiting = [threads.submit(pending.result) for _ in range(4)]
        assert {result.result().id for result in waiting} == {1}


def test_a_pending_update_outlives_the_name_of_its_client(broker_url: str, result_url: str) -> None:
    pending = ImageClient(broker_url, result_url).submit(1)
    with stand_in(broker_url, result_url), at_most(1):
        assert pending.result().id == 1


def test_two_calls_with_one_id_are_both_answered(broker_url: str, result_url: str, client: ImageClient) -> None:
    pending = [client.submit(1, request_id="order-1") for _ in range(2)]
    with stand_in(broker_url, result_url):
        assert [one.result().id for one in pending] == [1, 1]


def test_a_thousand_pending_updates_are_answered(
    broker_url: str, result_url: str, client: ImageClient, results: Redis
) -> None:
    pending = [client.submit(1, name=f"image {number}") for number in range(1000)]
    assert _pubsub_connections(results) == 1
    with stand_in(broker_url, result_url):
        assert [one.result().name for one in pending] == [f"image {number}" for number in range(1000)]


# --- older results under a chosen id ---


def _older(results: Redis, record: bytes) -> None:
    results.set("celery-task-meta-order-1", record)


def _sent(**kwargs: Any) -> Taken:
    return Taken({"headers": {"id": "order-1"}}, {"id": 1, **kwargs})


@pytest.mark.parametrize(
    "older",
    [
        failure_of("order-1"),
        record_of(_sent().refusal(contract.TOO_MANY_REQUESTS)),
        record_of(_sent().refusal(contract.UNAUTHORIZED)),
    ],
)
def test_an_older_result_that_the_ledger_does_not_keep_never_answers(
    older: bytes, broker_url: str, result_url: str, client: ImageClient, results: Redis
) -> None:
    _older(results, older)
    slowly = threading.Event()

    def answer(taken: Taken) -> Reply:
        slowly.wait(2.5)
        return taken.success()

    with stand_in(broker_url, result_url, answer):
        assert client.update(1, request_id="order-1").id == 1


def test_an_older_result_that_the_ledger_would_repeat_answers(client: ImageClient, results: Redis) -> None:
    _older(results, record_of(_sent().refusal(contract.IMAGE_NOT_FOUND)))
    with at_most(2), pytest.raises(ImageNotFound):
        client.update(1, request_id="order-1")


@pytest.mark.parametrize("published", [True, False])
def test_an_older_result_of_another_body_is_told_apart(
    *, published: bool, broker_url: str, result_url: str, client: ImageClient
) -> None:
    older = _sent(name="another").success()
    with stand_in(broker_url, result_url, lambda _: older) as worker:
        worker.publishes = published
        with at_most(2), pytest.raises(InvalidParameter) as raised:
            client.update(1, name="mine", request_id="order-1")
        assert [detail.reason for detail in raised.value.details] == ["request_id_reused"]


# --- lost and broken answers ---


def test_a_result_that_is_only_published_is_enough(broker_url: str, result_url: str, client: ImageClient) -> None:
    with stand_in(broker_url, result_url) as worker, at_most(1):
        worker.stores = False
        assert client.update(1, request_id="order-1").id == 1


@pytest.mark.parametrize("request_id", [None, "order-1"])
def test_a_result_whose_publication_is_missed_is_found(
    request_id: str | None, broker_url: str, result_url: str, client: ImageClient
) -> None:
    with stand_in(broker_url, result_url) as worker, at_most(2):
        worker.publishes = False
        assert client.update(1, request_id=request_id).id == 1


def test_a_lost_pubsub_connection_costs_no_answer(
    broker_url: str, result_url: str, client: ImageClient, results: Redis
) -> None:
    def answer(taken: Taken) -> Reply:
        results.client_kill_filter(_type="pubsub")
        return taken.success()

    with stand_in(broker_url, result_url, answer):
        for _ in range(5):
            with at_most(2):
                assert client.update(1).id == 1


def test_a_silent_pubsub_connection_costs_a_second_and_is_replaced(broker_url: str, result_url: str) -> None:
    with _Proxy(result_url) as proxy, ImageClient(broker_url, proxy.url) as client, stand_in(broker_url, result_url):
        client.update(1)
        proxy.swallow_what_is_open()
        with at_most(2.5):
            assert client.update(1).id == 1
        until(lambda: _soon(client))


def _soon(client: ImageClient) -> bool:
    started = time.monotonic()
    client.update(1)
    return time.monotonic() - started < 0.5


def test_garbage_is_passed_over(broker_url: str, result_url: str, client: ImageClient) -> None:
    def answer(taken: Taken) -> Reply:
        for garbage in (b"", b"\xff", b"null", b'{"status": "SUCCESS", "result": {"status": 200}}', b"[" * 99_999):
            worker.say(taken.request_id, garbage)
        return taken.success()

    with stand_in(broker_url, result_url, answer) as worker:
        for _ in range(3):
            assert client.update(1).id == 1


def test_after_nothing_but_garbage_the_outcome_is_unknown(
    broker_url: str, result_url: str, client: ImageClient
) -> None:
    with (
        stand_in(broker_url, result_url, lambda _: b'{"status": "SUCCESS", "result": {"image": 1}}'),
        at_most(2),
        pytest.raises(OutcomeUnknown),
    ):
        client.update(1, timeout=1)


# --- nobody there ---


def test_without_an_answer_the_outcome_is_unknown_in_time(client: ImageClient) -> None:
    with at_most(1.5), pytest.raises(OutcomeUnknown) as raised:
        client.update(1, request_id="order-1", timeout=0.5)
    assert raised.value.request_id == "order-1"
    assert raised.value.code is raised.value.status is raised.value.retry is None


def test_forgotten_updates_give_up_their_subscriptions(client: ImageClient, results: Redis) -> None:
    client.submit(1, request_id="order-1", timeout=0.2)
    assert results.pubsub_channels("*order-1") == [b"celery-task-meta-order-1"]
    until(lambda: results.pubsub_channels("*order-1") == [])


@contextmanager
def _refusing() -> Iterator[str]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{unused.getsockname()[1]}/0"


@contextmanager
def _mute() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


@pytest.mark.parametrize("away", [_refusing, _mute])
@pytest.mark.parametrize("which", ["broker", "results"])
def test_a_server_that_is_away_makes_the_outcome_unknown_in_time(
    which: str, away: Callable[[], Any], broker_url: str, result_url: str
) -> None:
    with away() as url:
        urls = (url, result_url) if which == "broker" else (broker_url, url)
        with (
            ImageClient(*urls) as client,
            at_most(2),
            pytest.raises(OutcomeUnknown, match="can't be reached") as raised,
        ):
            client.update(1, timeout=1)
        assert raised.value.request_id is not None


def test_a_frozen_server_holds_nobody_beyond_the_timeout(tmp_path: Path) -> None:
    with RedisServer(tmp_path, persistent=False) as server, ImageClient(server.url(0), server.url(1)) as client:
        with stand_in(server.url(0), server.url(1)):
            client.update(1)
        server.process.send_signal(signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(20) as threads, at_most(2):
                calls = [threads.submit(client.update, 1, timeout=1) for _ in range(20)]
                assert {type(call.exception()) for call in calls} == {OutcomeUnknown}
        finally:
            server.process.send_signal(signal.SIGCONT)
        with stand_in(server.url(0), server.url(1)), at_most(3):
            assert client.update(1).id == 1


def test_a_restarted_server_is_found_again(tmp_path: Path) -> None:
    with RedisServer(tmp_path, persistent=False) as server, ImageClient(server.url(0), server.url(1)) as client:
        with stand_in(server.url(0), server.url(1)):
            client.update(1)
        server.kill()
        with ThreadPoolExecutor() as threads:
            call = threads.submit(client.update, 1)
            server.start()
            with stand_in(server.url(0), server.url(1)), at_most(3):
                assert call.result().id == 1


# --- threads and processes ---


def _connections(results: Redis) -> int:
    return len([client for client in results.client_list() if client["id"] != str(results.client_id())])


def _pubsub_connections(results: Redis) -> int:
    return len(results.client_list(_type="pubsub"))


def test_two_hundred_threads_share_a_few_connections(
    broker_url: str, result_url: str, client: ImageClient, results: Redis
) -> None:
    with stand_in(broker_url, result_url) as worker:
        client.update(1)
        before = _connections(results)
        with ThreadPoolExecutor(200) as threads:
            calls = [threads.submit(client.update, 1, name=f"image {number}") for number in range(1000)]
            until(lambda: len(worker.taken) > 500, 30)
            during = _connections(results)
            assert [call.result().name for call in calls] == [f"image {number}" for number in range(1000)]
        assert during <= before + 8
        assert _connections(results) <= before + 8
        assert _pubsub_connections(results) == 1


def test_closing_leaves_no_connection_and_no_thread(broker_url: str, result_url: str, results: Redis) -> None:
    before, threads = _connections(results), threading.active_count()
    with ImageClient(broker_url, result_url) as client, stand_in(broker_url, result_url):
        client.update(1)
    assert threading.active_count() == threads
    until(lambda: _connections(results) <= before)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(broker_url: str, result_url: str, client: ImageClient) -> None:
    with stand_in(broker_url, result_url):
        client.update(1, name="parent")
        child = os.fork()
        if child == 0:
            try:
                names = [client.update(1, name=f"child {number}").name for number in range(50)]
                os._exit(0 if names == [f"child {number}" for number in range(50)] else 1)
            finally:  # whatever happens: a second test run must not go on from here
                os._exit(2)
        names = [client.update(1, name=f"parent {number}").name for number in range(50)]
        assert names == [f"parent {number}" for number in range(50)]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.update(1, name="afterwards").name == "afterwards"


# --- reply events ---


def _publish(broker_url: str, queue: str, *bodies: str) -> None:
    with Connection(broker_url) as connection:
        producer = Producer(connection.channel())
        for body in bodies:
            producer.publish(
                body, routing_key=queue, content_type="application/json", content_encoding="utf-8",
                headers={"attempt": 1},
            )  # fmt: skip


def _event(number: int) -> str:
    request = Taken({"headers": {"id": f"order-{number}"}}, {"id": number})
    return contract.reply_event(request.success(), MOMENT)


def test_reply_events_come_in_order_until_none_has_come_for_a_while(broker_url: str, client: ImageClient) -> None:
    _publish(broker_url, "image.replies", *(_event(number) for number in range(1, 4)))
    with at_most(3):
        events = list(client.replies(timeout=0.5))
    assert [(event.id, event.image.id) for event in events if event.image] == [
        ("order-1", 1), ("order-2", 2), ("order-3", 3)
    ]  # fmt: skip
    assert events[0].headers == {"attempt": 1}
    assert events[0].time == MOMENT
    assert events[0].reply == json.loads(_event(1))["data"]


def test_an_event_that_was_not_finished_comes_again(broker_url: str, client: ImageClient) -> None:
    _publish(broker_url, "image.replies.orders", _event(1), _event(2))
    first = client.replies("image.replies.orders", timeout=1)
    assert next(first).id == "order-1"
    assert next(first).id == "order-2"
    first.close()  # type: ignore[attr-defined]
    assert [event.id for event in client.replies("image.replies.orders", timeout=1)] == ["order-2"]


def test_what_is_no_event_is_dropped(broker_url: str, client: ImageClient) -> None:
    _publish(broker_url, "image.replies", "{}", "no JSON", _event(1))
    assert [event.id for event in client.replies(timeout=0.5)] == ["order-1"]
    assert list(client.replies(timeout=0.2)) == []


def test_the_keys_of_a_worker_are_not_touched(broker_url: str, client: ImageClient) -> None:
    _publish(broker_url, "image.replies", _event(1))
    with Redis.from_url(broker_url) as broker:
        for _ in client.replies(timeout=0.5):
            held = set(broker.keys())
        assert b"image.replies:unacked" in held
        assert not {b"unacked", b"unacked_index"} & held
        assert broker.hlen("image.replies:unacked") == 0


def test_a_consumer_survives_a_lost_connection(broker_url: str, client: ImageClient) -> None:
    _publish(broker_url, "image.replies", _event(1))
    events = client.replies(timeout=10)
    assert next(events).id == "order-1"
    with Redis.from_url(broker_url) as broker:
        broker.client_kill_filter(_type="normal", skipme=True)
    _publish(broker_url, "image.replies", _event(2))
    # The first may come once more: whether its acknowledgement got through is open.
    assert any(event.id == "order-2" for event in events)


class _Proxy:
    """A TCP proxy in front of a server that can leave open connections without an answer for ever."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("redis://").split("/")[0].split(":")
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(f"{host}:{port}", f"127.0.0.1:{self._server.getsockname()[1]}")
        self._generation = 0
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for connection in [self._server, *self._open]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # a thread that waits in it would keep it open
            connection.close()

    def swallow_what_is_open(self) -> None:
        self._generation += 1

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink, self._generation), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, generation: int) -> None:
        try:
            while data := source.recv(65536):
                if generation == self._generation:
                    sink.sendall(data)
        except OSError:
            return
