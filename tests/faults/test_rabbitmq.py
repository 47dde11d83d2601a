"""RabbitMQ instead of Redis: a worker killed, the broker stopped and killed, all under load; nothing lost or twice."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import Connection, Queue, pools

from aries_images import ImageClient, contract
from tests.faults.account import Book
from tests.faults.town import IMAGES, Town, town, until
from tests.servers import RabbitServer


class Replies:
    """The common reply queue, as the account book reads one."""

    def __init__(self, url: str) -> None:
        self._url = url

    def lrange(self, name: str, _first: int, _last: int) -> Iterator[str]:
        with Connection(self._url) as connection:
            queue = Queue(name, channel=connection.default_channel)
            while message := queue.get(no_ack=True):
                yield json.dumps({"body": message.body if isinstance(message.body, str) else message.body.decode()})


def depth(url: str, name: str) -> int:
    """Messages that wait in a queue; those that are handed out and not acknowledged are not among them."""
    with Connection(url) as connection:
        return int(connection.default_channel.queue_declare(name, passive=True).message_count)


@pytest.fixture
def there() -> Iterator[Town]:
    with town(own=True, workers=0) as there:
        yield there


def environment(rabbit: RabbitServer) -> dict[str, str]:
    return {"ARIES_BROKER_URL": rabbit.url}


def start(there: Town, rabbit: RabbitServer, number: int) -> None:
    pools.reset()  # kombu keeps connections for the whole process; a test before this one has broken them
    there.app.conf.broker_url = rabbit.url
    there.ready(*(there.worker(**environment(rabbit)) for _ in range(number)))


def check(there: Town, rabbit: RabbitServer, book: Book) -> None:
    for queue in contract.QUEUES:
        until(lambda queue=queue: depth(rabbit.url, queue) == 0, 60)
    replies: Any = Replies(rabbit.url)
    there.database.close()
    found = book.check(there.database, replies, there.results)
    print(dict(found), "the slowest took", f"{book.latencies()[-1]:.1f} s")
    assert there.workers
    assert all(worker.poll() is None for worker in there.workers), "a worker has ended"
    assert "is put with the dead letters" not in there.log()


def test_workers_are_killed_under_load(
    there: Town, rabbit_server: RabbitServer, size: Callable[[int, int], int]
) -> None:
    start(there, rabbit_server, 2)
    with ImageClient(rabbit_server.url, there.result_url) as client:
        book = Book(client, IMAGES, timeouts=(3, 10))
        with book.callers(16, size(2000, 10_000)):
            for _ in range(size(3, 20)):
                book.keep_going(500)
                time.sleep(1.5)
                there.end(there.workers[0])
                there.worker(**environment(rabbit_server))
    there.ready()
    check(there, rabbit_server, book)
    assert book.answered == len(book.calls)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_broker_is_restarted_under_load(
    there: Town, rabbit_server: RabbitServer, end: str, size: Callable[[int, int], int]
) -> None:
    start(there, rabbit_server, 2)
    with ImageClient(rabbit_server.url, there.result_url) as client:
        book = Book(client, IMAGES, timeouts=(3, 10))
        with book.callers(16, size(2000, 10_000)):
            time.sleep(1.5)
            getattr(rabbit_server, end)()
            time.sleep(1)
            rabbit_server.start()
            back = time.monotonic()
            book.keep_going(1000)
    print(f"first answer {book.first_answer_after(back):.1f} s after the broker was back")
    check(there, rabbit_server, book)
