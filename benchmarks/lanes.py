"""`python -m benchmarks.lanes`: how long a caller waits, alone, beside a file on the bulk lane, and behind it."""

import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import click
from redis import Redis

from aries_images import contract
from benchmarks.site import CONTENDERS, RESULT, Request, Site, requests

#: Requests of the file that wait at any moment, and how many at once it is refilled with.
_DEPTH, _REFILL = 3000, 500


class Flood:
    """A file that does not end: keeps a queue filled until the block is over, and counts what it sent."""

    def __init__(self, site: Site, queue: str) -> None:
        self._site, self._queue = site, queue
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0

    def __enter__(self) -> Self:
        self._thread.start()
        while self.sent < _DEPTH:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._site.broker.delete(self._queue)

    def _run(self) -> None:
        with Redis.from_url(self._site.urls["ARIES_BROKER_URL"]) as broker:
            while not self._over.wait(0.01):
                if broker.llen(self._queue) < _DEPTH:
                    broker.lpush(self._queue, *(each.message for each in requests(_REFILL, self._site.rows // 2)))
                    self.sent += _REFILL


def waits(site: Site, seconds: float) -> list[float]:
    """What one caller waited for each answer, in milliseconds, one request after the other."""
    channel = Redis.from_url(site.urls["ARIES_RESULT_URL"]).pubsub()
    end, found = time.monotonic() + seconds, []
    half = site.rows // 2
    while time.monotonic() < end:
        [made] = requests(1, 1)
        asked = Request(made.id, half + 1 + len(found) % half)
        begun = time.perf_counter()
        channel.subscribe(RESULT + asked.id)
        site.broker.lpush(contract.QUEUE, asked.message)
        while (message := channel.get_message(timeout=30)) is None or message["type"] != "message":
            pass
        found.append((time.perf_counter() - begun) * 1000)
        channel.unsubscribe(RESULT + asked.id)
    channel.close()
    return found


@click.command()
@click.option("--seconds", default=10.0, show_default=True, help="Of each of the three measurements.")
def main(seconds: float) -> None:
    """Measure, and print a table."""
    click.echo("| one caller | p50 ms | p99 ms | answers | of the file, updates/s |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="aries-bench-") as folder, Site(Path(folder), 10_000) as site:
        for name, queue in (
            ("alone", None),
            ("beside a file on the bulk lane", contract.BULK_QUEUE),
            ("behind the same file on his own lane", contract.QUEUE),
        ):
            site.clear()
            with site.worker(CONTENDERS[0]):
                if queue is None:
                    _show(name, waits(site, seconds), None)
                    continue
                with Flood(site, queue):
                    before = site.results.dbsize()
                    found = waits(site, seconds)
                    _show(name, found, (site.results.dbsize() - before - len(found)) / seconds)


def _show(name: str, found: list[float], rate: float | None) -> None:
    p99 = statistics.quantiles(found, n=100)[98] if len(found) > 1 else found[0]
    flow = "–" if rate is None else f"{rate:.0f}"
    click.echo(f"| {name} | {statistics.median(found):.1f} | {p99:.1f} | {len(found)} | {flow} |")


if __name__ == "__main__":
    main()
