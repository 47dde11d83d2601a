"""The client with `await` against a real Redis, and a stand-in for the worker that can be told what to do."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection
from redis import Redis

from aries_images import (
    AriesImagesError,
    DeadlineExceeded,
    Image,
    ImageNotFound,
    InvalidParameter,
    OutcomeUnknown,
    contract,
)
from aries_images._aio_outbox import envelope
from aries_images._broker import Outbox
from aries_images._credentials import Credentials
from aries_images._request import Outgoing, compose
from aries_images.aio import AsyncImageClient
from aries_images.contract import Refusal, Reply
from tests.stand_in import IMAGE, MOMENT, Taken, failure_of, record_of, stand_in
from worker.embedded import RedisServer

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
#: A caller who has a thousand updates under way and measures his own memory at its highest, in MiB. (The figure of
#: `getrusage` has that of the process before `exec` in it, on Linux.)
THOUSAND = """
import asyncio, resource
from pathlib import Path
from aries_images.aio import AsyncImageClient

async def main():
    async with AsyncImageClient() as client:
        await asyncio.gather(*(client.update(1, name=f"image {number}", timeout=60) for number in range(1000)))

asyncio.run(main())
status = Path("/proc/self/status")
if status.exists():
    [peak] = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    print(int(peak) / 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)
"""

Call = Callable[[AsyncImageClient], Awaitable[Any]]
Run = Callable[[Call], Any]


@pytest.fixture
def run(broker_url: str, result_url: str) -> Run:
    """Runs a coroutine function with a client, in an event loop of its own."""

    def run(call: Call, **options: Any) -> Any:
        async def main() -> Any:
            async with AsyncImageClient(broker_url, result_url, **options) as client:
                return await call(client)

        return asyncio.run(main())

    return run


@pytest.fixture
def results(result_url: str) -> Iterator[Redis]:
    with Redis.from_url(result_url) as results:
        yield results


@pytest.fixture
def broker(broker_url: str) -> Iterator[Redis]:
    with Redis.from_url(broker_url) as broker:
        yield broker


def silence(_: Taken) -> None:
    return None


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for is on a server
            await asyncio.sleep(0.01)


# --- the message ---


def a_request() -> Outgoing:
    kwargs = {"id": 1, "name": "镜像 é"}
    options: dict[str, Any] = {"headers": {}, "reply_to": None, "credentials": Credentials(None, None)}
    return compose("order-1", kwargs, own_id=True, timeout=30, **options)


def test_the_entry_is_to_the_byte_what_kombu_writes(broker_url: str, broker: Redis) -> None:
    request = a_request()
    outbox = Outbox(broker_url, {})
    outbox.send(request, time.monotonic() + 5)
    outbox.close()
    [theirs] = broker.lrange(contract.QUEUE, 0, -1)
    tag = len('00000000-0000-0000-0000-000000000000"}}')
    assert theirs.decode()[:-tag] == envelope(request)[:-tag]


def test_what_goes_with_the_request_is_sent(broker_url: str, result_url: str, run: Run) -> None:
    with stand_in(broker_url, result_url) as worker:
        run(lambda client: client.update(1, name="x", request_id="order-1", if_revision=3, traceparent=TRACE))
    [taken] = worker.taken
    assert (taken.request_id, taken.kwargs) == ("order-1", {"id": 1, "name": "x"})
    assert (taken.headers["if_revision"], taken.headers["traceparent"]) == (3, TRACE)


def test_a_broker_other_than_redis_is_spoken_to_by_kombu(result_url: str) -> None:
    async def main() -> None:
        async with AsyncImageClient("memory://", result_url) as client:
            await client.submit(1, name="x")

    asyncio.run(main())
    with Connection("memory://") as connection:
        queue = connection.SimpleQueue(contract.QUEUE)
        assert queue.get(timeout=1).headers["task"] == contract.TASK
        queue.close()


def test_a_relayed_request_carries_its_own_proof_and_never_the_clients(
    broker_url: str, result_url: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARIES_TOKEN", "of-the-relay")

    async def relay(client: AsyncImageClient) -> None:
        await client.update(1)
        for proof in (None, "Bearer his"):
            pending = await client.relay({"id": 1}, authorization=proof)
            await pending.result()

    with stand_in(broker_url, result_url) as worker:
        run(relay)
    proofs = [taken.headers.get("authorization") for taken in worker.taken]
    assert proofs == ["Bearer of-the-relay", None, "Bearer his"]


# --- the answer ---


def test_an_update_returns_the_image(broker_url: str, result_url: str, run: Run) -> None:
    with stand_in(broker_url, result_url):
        image = run(lambda client: client.update(1, name="Debian 12"))
    assert image.model_dump() == IMAGE | {"name": "Debian 12", "revision": 2}


@pytest.mark.parametrize("code", contract.CODES.values(), ids=contract.CODES)
def test_each_refusal_raises_its_class(code: contract.Code, broker_url: str, result_url: str, run: Run) -> None:
    def answer(taken: Taken) -> Reply | bytes:
        return failure_of(taken.request_id) if code is contract.INTERNAL_ERROR else taken.refusal(code)

    with stand_in(broker_url, result_url, answer), pytest.raises(AriesImagesError) as raised:
        run(lambda client: client.update(1))
    assert type(raised.value).__name__ == raised.value.code == code.name


def test_a_settlement_speaks_of_the_request_that_it_settles(broker_url: str, result_url: str, run: Run) -> None:
    def fence(taken: Taken) -> bytes:
        assert (taken.headers["task"], taken.kwargs) == (contract.SETTLE_TASK, {"request_id": "order-1"})
        return record_of(Reply.refused("order-1", None, Refusal(contract.DEADLINE_EXCEEDED)))

    with stand_in(broker_url, result_url, fence), pytest.raises(DeadlineExceeded) as raised:
        run(lambda client: client.settle("order-1"))
    assert raised.value.request_id == "order-1"


def test_a_pending_update_can_be_asked_later_and_again(broker_url: str, result_url: str, run: Run) -> None:
    async def ask(client: AsyncImageClient) -> tuple[Image, Image]:
        pending = await client.submit(1, name="x")
        with pytest.raises(OutcomeUnknown):
            await pending.result(timeout=0)
        with stand_in(broker_url, result_url):
            return await pending.result(), await pending.result(timeout=0)

    first, second = run(ask)
    assert first == second


def test_two_calls_with_one_id_are_both_answered(broker_url: str, result_url: str, run: Run) -> None:
    async def ask(client: AsyncImageClient) -> list[Image]:
        pending = [await client.submit(1, request_id="order-1") for _ in range(2)]
        with stand_in(broker_url, result_url):
            return [await one.result() for one in pending]

    assert [image.id for image in run(ask)] == [1, 1]


def test_an_older_result_of_another_body_is_told_apart(
    broker_url: str, result_url: str, run: Run, results: Redis
) -> None:
    older = Taken({"headers": {"id": "order-1"}}, {"id": 1, "name": "another"}).success()
    results.set("celery-task-meta-order-1", record_of(older))
    with stand_in(broker_url, result_url, silence), pytest.raises(InvalidParameter) as raised:
        run(lambda client: client.update(1, name="mine", request_id="order-1"))
    assert [detail.reason for detail in raised.value.details] == ["request_id_reused"]


def test_no_answer_is_an_unknown_outcome_in_time(run: Run) -> None:
    begun = time.monotonic()
    with pytest.raises(OutcomeUnknown) as raised:
        run(lambda client: client.update(1, request_id="order-1", timeout=0.3))
    assert raised.value.request_id == "order-1"
    assert time.monotonic() - begun < 1.5


# --- many at once ---


def test_a_thousand_updates_under_way_need_three_connections(
    broker_url: str, result_url: str, run: Run, results: Redis
) -> None:
    async def ask(client: AsyncImageClient) -> tuple[list[str], int]:
        calls = [asyncio.create_task(client.update(1, name=f"image {number}")) for number in range(1000)]
        await until(lambda: len(results.pubsub_channels()) == 1000)
        connections = len(results.client_list()) - before
        with stand_in(broker_url, result_url):
            return [image.name for image in await asyncio.gather(*calls)], connections

    before = len(results.client_list())
    names, connections = run(ask)
    assert names == [f"image {number}" for number in range(1000)]
    assert connections <= 3


def test_a_thousand_updates_under_way_cost_less_than_120_mib(broker_url: str, result_url: str) -> None:
    with stand_in(broker_url, result_url):
        urls = {"ARIES_BROKER_URL": broker_url, "ARIES_RESULT_URL": result_url}
        folder = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", THOUSAND],
            env=urls, cwd=folder, check=True, capture_output=True, text=True, timeout=90,
        )  # fmt: skip
    assert float(done.stdout) < 120


# --- giving up early ---


def test_a_cancelled_call_leaves_nothing_behind(run: Run, results: Redis) -> None:
    async def cancel(client: AsyncImageClient) -> None:
        calls = [asyncio.create_task(client.update(number)) for number in range(1, 21)]
        await until(lambda: len(results.pubsub_channels()) == 20)
        for call in calls:
            call.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*calls, return_exceptions=True)
        )
        await until(lambda: not results.pubsub_channels())
        assert not client._mailbox._waiting

    run(cancel)


def test_a_call_that_is_cancelled_before_the_broker_is_back_is_not_sent(tmp_path: Path, result_url: str) -> None:
    async def main(server: RedisServer) -> None:
        async with AsyncImageClient(server.url(), result_url) as client:
            call = asyncio.create_task(client.update(1))
            await until(lambda: client._outbox._trouble)  # type: ignore[attr-defined]
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await asyncio.to_thread(server.start)
            await client.submit(2)

    server = RedisServer(tmp_path)
    asyncio.run(main(server))
    with Redis.from_url(server.url()) as broker:
        assert broker.llen(contract.QUEUE) == 1
    server.stop()


def test_cancelling_one_who_waits_does_not_cancel_another(broker_url: str, result_url: str, run: Run) -> None:
    async def ask(client: AsyncImageClient) -> Image:
        pending = await client.submit(1)
        impatient, patient = (asyncio.create_task(pending.result()) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        with stand_in(broker_url, result_url):
            return await patient

    assert run(ask).id == 1


# --- servers that come and go ---


@pytest.mark.parametrize("stores", [True, False])
def test_an_answer_that_is_only_stored_or_only_published_is_found(
    *, stores: bool, broker_url: str, result_url: str, run: Run
) -> None:
    with stand_in(broker_url, result_url) as worker:
        worker.stores, worker.publishes = stores, not stores
        assert run(lambda client: client.update(1, timeout=5)).id == 1


def test_the_key_is_read_once_before_giving_up(broker_url: str, result_url: str, run: Run) -> None:
    with stand_in(broker_url, result_url) as worker:
        worker.publishes = False
        images = run(lambda client: asyncio.gather(*(client.update(1, timeout=0.5) for _ in range(50))))
    assert len(images) == 50


def test_a_cut_subscription_is_made_anew(broker_url: str, result_url: str, run: Run, results: Redis) -> None:
    async def ask(client: AsyncImageClient) -> Image:
        pending = await client.submit(1)
        results.client_kill_filter(_type="pubsub")
        await until(results.pubsub_channels)
        with stand_in(broker_url, result_url) as worker:
            worker.stores = False
            return await pending.result()

    assert run(ask).id == 1


def test_a_broker_that_comes_back_in_time_is_waited_for(tmp_path: Path) -> None:
    async def main(server: RedisServer) -> str:
        server.start()
        async with AsyncImageClient(server.url(0), server.url(1)) as client:
            with stand_in(server.url(0), server.url(1)):
                await client.update(1, name="before")
            server.stop()
            call = asyncio.create_task(client.update(1, name="after", timeout=20))
            await until(lambda: client._mailbox.trouble)
            await asyncio.to_thread(server.start)
            with stand_in(server.url(0), server.url(1)):
                return (await call).name

    server = RedisServer(tmp_path)
    assert asyncio.run(main(server)) == "after"
    server.stop()


@pytest.mark.parametrize("away", ["broker", "results"])
def test_a_server_that_stays_away_is_an_unknown_outcome(away: str, broker_url: str, result_url: str) -> None:
    nobody = "redis://127.0.0.1:1/0"

    async def main() -> None:
        urls = (nobody, result_url) if away == "broker" else (broker_url, nobody)
        async with AsyncImageClient(*urls) as client:
            await client.update(1, timeout=0.5)

    with pytest.raises(OutcomeUnknown, match="can't be reached"):
        asyncio.run(main())


def test_a_closed_client_says_so(broker_url: str, result_url: str) -> None:
    async def main() -> None:
        async with AsyncImageClient(broker_url, result_url) as client:
            pass
        await client.update(1)

    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(main())


# --- reply events ---


def test_reply_events_come_as_they_are_made_and_again_until_the_next_is_asked_for(broker_url: str, run: Run) -> None:
    def publish(request_id: str) -> None:
        reply = Reply.refused(request_id, None, Refusal(contract.IMAGE_NOT_FOUND), 1)
        with Connection(broker_url) as connection:
            queue = connection.SimpleQueue(contract.REPLY_QUEUE)
            queue.put("no event")
            queue.put(contract.reply_event(reply, MOMENT), serializer="raw", content_type="application/json")
            queue.close()

    async def read(client: AsyncImageClient) -> list[str]:
        threading.Timer(0.2, publish, ["order-1"]).start()
        async with aclosing(client.replies()) as events:
            first = await anext(events)
        assert isinstance(first.error, ImageNotFound)
        again = [event.id async for event in client.replies(timeout=0.5)]
        return again + [event.id async for event in client.replies(timeout=0.5)]

    assert run(read) == ["order-1"]
