"""Row 12 of the score-card: Redis fails over to its replica, or becomes one, under load."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from aries_images import ImageClient, contract
from tests.faults.account import Book
from tests.faults.town import IMAGES, town, until
from worker.embedded import RedisServer, end_child, free_port, redis_binary, start_child
from worker.leases import Keys

NAME = "main"


@contextmanager
def sentinel(master: RedisServer, folder: Path) -> Iterator[Redis]:
    """A Sentinel that promotes a replica when the master has been away for a second."""
    folder.mkdir()
    settings, port = folder / "sentinel.conf", free_port()
    settings.write_text(
        f"port {port}\nsentinel monitor {NAME} 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds {NAME} 1000\nsentinel failover-timeout {NAME} 5000\n"
    )
    with (folder / "sentinel.log").open("wb") as log:
        process = start_child([redis_binary(), settings, "--sentinel"], cwd=folder, stdout=log, stderr=log)
    with Redis(port=port, decode_responses=True) as client:
        until(lambda: answers(client))
        yield client
    end_child(process, RedisServer.ending)


def answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def test_row_12_failover(size: Callable[[int, int], int], tmp_path: Path) -> None:
    with (
        town(own=True, workers=0) as there,
        RedisServer(tmp_path / "replica") as replica,
        Redis.from_url(replica.url(), decode_responses=True) as second,
        sentinel(there.redis, tmp_path / "sentinel") as watching,
    ):
        second.replicaof("127.0.0.1", there.redis.port)
        until(lambda: second.info("replication")["master_link_status"] == "up")
        until(lambda: watching.sentinel_master(NAME)["num-slaves"] == 1)
        at = f"sentinel://127.0.0.1:{watching.connection_pool.connection_kwargs['port']}/"
        urls = {"ARIES_BROKER_URL": f"{at}0", "ARIES_RESULT_URL": f"{at}1", "ARIES_SENTINEL_MASTER": NAME}
        there.ready(there.worker(**urls), there.worker(**urls))
        with ImageClient(f"{at}0", f"{at}1", transport_options={"master_name": NAME}) as client:
            book = Book(client, IMAGES)
            with book.callers(16, size(4000, 20_000)):
                time.sleep(1)
                there.redis.kill()
                until(lambda: second.info("replication")["role"] == "master")
                back = time.monotonic()
                book.keep_going(2000)
        until(lambda: not second.exists(contract.QUEUE, Keys().leases, Keys().ends), 60)
        assert all(worker.poll() is None for worker in there.workers)
        assert not second.exists(Keys().dead)
        there.database.close()
        print(dict(book.check(there.database)))
        print(f"first answer {book.first_answer_after(back):.1f} s after the replica was promoted")
        assert book.first_answer_after(back) < 5


def test_row_12_read_only_for_a_while(size: Callable[[int, int], int]) -> None:
    """Redis becomes a replica under the eyes of its clients: who waits is UNBLOCKED, who writes is told READONLY."""
    backs: list[float] = []
    with town(own=True) as there:
        book = there.book()
        with book.callers(16, size(3000, 20_000)):
            for _ in range(size(3, 20)):
                book.keep_going()
                time.sleep(1)
                there.broker.replicaof("127.0.0.1", free_port())  # of nobody: it keeps what it has
                time.sleep(0.5)
                answered = book.answered
                time.sleep(1.5)
                assert book.answered == answered, "nobody can be answered now"
                there.broker.replicaof("NO", "ONE")
                backs.append(time.monotonic())
                book.keep_going()
        print(dict(there.settle_accounts(book)))
    recoveries = [book.first_answer_after(back) for back in backs]
    print("first answer after", [f"{seconds:.1f}" for seconds in recoveries], "s")
    assert max(recoveries) < 3
