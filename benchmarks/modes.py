"""The three ways of being busy: a backlog to drain, one caller at a time, thirty-two callers at a time."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any

import psutil
from celery import Celery
from redis import Redis

from benchmarks.site import QUEUE, RESULT, Contender, Cost, Request, Site, requests, tree

#: Figures of one run: what the tables show. A run whose rows or answers are wrong has `void`, and why.
Figures = dict[str, Any]

_CALLERS, _CLIENTS = 32, 2
_CLOSED_SECONDS = 4.0


def drain(site: Site, contender: Contender, count: int, processes: int = 1) -> Figures:
    """`count` requests wait when the worker wakes up; until the last result is there."""
    return drain_of(site, contender, requests(count, site.rows), processes)


def drain_of(site: Site, contender: Contender, asked: Sequence[Request], processes: int = 1) -> Figures:
    """The same of these requests."""
    count = len(asked)
    site.clear()
    with site.worker(contender, processes) as workers:
        everyone = [process for worker in workers for process in tree(worker)]
        for process in everyone:
            process.suspend()
        site.push(asked)
        there = site.results.dbsize()
        before = site.cost(workers)
        begun = time.perf_counter()
        for process in everyone:
            process.resume()
        site.wait_for(there + count, seconds=300)
        took = time.perf_counter() - begun
        time.sleep(0.5)  # what comes after the last result belongs to its cost: acknowledgements, events
        figures = {"updates/s": count / took, **_per_update(before, site.cost(workers), count)}
    return _checked(site, asked, figures)


def idle(site: Site, contender: Contender, count: int, processes: int = 1) -> Figures:
    """One caller of plain Celery, who waits for each answer before the next request."""
    asked = requests(count, site.rows)
    app = Celery(broker=site.urls["ARIES_BROKER_URL"], backend=site.urls["ARIES_RESULT_URL"], set_as_current=False)
    site.clear()
    with site.worker(contender, processes) as workers:
        before = site.cost(workers)
        took = [_call(app, request) for request in asked]
        figures = {
            "p50 ms": statistics.median(took) * 1000,
            "p90 ms": statistics.quantiles(took, n=10)[8] * 1000,
            **_per_update(before, site.cost(workers), count),
        }
    app.close()
    return _checked(site, asked, figures)


def closed(site: Site, contender: Contender, _count: int, processes: int = 1) -> Figures:
    """Thirty-two callers in two processes, each of whom waits for his answer: a light one, `LPUSH` and `SUBSCRIBE`."""
    site.clear()
    context = get_context("spawn")
    with site.worker(contender, processes) as workers:
        answered = context.Queue()
        urls = (site.urls["ARIES_BROKER_URL"], site.urls["ARIES_RESULT_URL"])
        clients = [
            context.Process(target=_client, args=(number, site.rows, urls, answered)) for number in range(_CLIENTS)
        ]
        before = site.cost(workers)
        for client in clients:
            client.start()
        done: list[list[Request]] = [answered.get() for _ in clients]
        for client in clients:
            client.join()
        asked = [request for requests_ in done for request in requests_]
        figures = {
            "updates/s": len(asked) / _CLOSED_SECONDS,
            **_per_update(before, site.cost(workers), len(asked)),
        }
    return _checked(site, asked, figures)


MODES: dict[str, Callable[[Site, Contender, int, int], Figures]] = {"drain": drain, "idle": idle, "closed": closed}


def _per_update(before: Cost, after: Cost, count: int) -> Figures:
    return {
        "worker ms": (after.worker - before.worker) / count * 1000,
        "postgresql ms": (after.postgresql - before.postgresql) / count * 1000,
        "redis ms": (after.redis - before.redis) / count * 1000,
        "worker MiB": after.memory,
    }


def _checked(site: Site, asked: Sequence[Request], figures: Figures) -> Figures:
    wrong = site.check(asked)
    return figures | ({"void": wrong} if wrong else {})


def _call(app: Celery, request: Request) -> float:
    kwargs = {"id": request.image, "name": f"n-{request.id}", "description": "benchmark"}
    begun = time.perf_counter()
    app.send_task(QUEUE, kwargs=kwargs, queue=QUEUE, task_id=request.id).get(timeout=10)
    return time.perf_counter() - begun


def _client(number: int, rows: int, urls: tuple[str, str], answered: Any) -> None:
    """A process with its share of the callers; puts what was answered in time."""
    share, done = _CALLERS // _CLIENTS, []
    own = rows // _CALLERS  # each caller has images of his own
    until = time.monotonic() + _CLOSED_SECONDS
    threads = [
        threading.Thread(target=_caller, args=(range(each * own + 1, (each + 1) * own), urls, until, done.append))
        for each in range(number * share, (number + 1) * share)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answered.put(done)


def _caller(images: range, urls: tuple[str, str], until: float, done: Callable[[Request], None]) -> None:
    broker, channel = Redis.from_url(urls[0]), Redis.from_url(urls[1]).pubsub()
    number = 0
    while time.monotonic() < until:
        [request] = [Request(each.id, images[number % len(images)]) for each in requests(1, 1)]
        number += 1
        channel.subscribe(RESULT + request.id)
        _next(channel, "subscribe")
        broker.lpush(QUEUE, request.message)
        _next(channel, "message")
        done(request)
        channel.unsubscribe()
        _next(channel, "unsubscribe")


def _next(channel: Any, kind: str) -> None:
    until = time.monotonic() + 20
    while (message := channel.get_message(timeout=1)) is None or message["type"] != kind:
        if time.monotonic() > until:
            raise TimeoutError(f"no {kind}")


def machine() -> str:
    """What the figures were measured on."""
    memory = psutil.virtual_memory().total >> 30
    return f"{psutil.cpu_count()} cores, {memory + 1} GiB"
