"""`python -m benchmarks.dashboard`: two workers under load and in trouble, as the dashboard shows it, as a picture."""

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import yaml

from aries_images import contract
from benchmarks.charts import Chart, Line, page
from benchmarks.modes import machine
from models.migrations import upgrade
from tests.builders import an_image, load
from tests.running import IMAGES, Site, request
from tests.servers import PostgresServer, PrometheusServer
from worker.embedded import RedisServer, free_port

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "pictures" / "dashboard.svg"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "aries-images.json"
#: The panels that are drawn, by their titles; of two with the same title the first.
PANELS = (
    "Answers by code",
    "From sending to the answer",
    "Waiting requests",
    "Age of the oldest",
    "Transactions that failed, by cause",
    "Requests put off or delivered again",
    "Answers",
    "Processor",
)
#: Seconds between two looks of Prometheus, and that a rate looks back.
_STEP, _SPAN = 1, 5
#: Requests of callers in a second, and in a file of bulk.
_RATE, _BULK = 120, 15_000
#: An image whose row is held for a while.
_HELD = 7


class Story:
    """What happens meanwhile: callers all the time, and one thing after the other beside them."""

    def __init__(self, there: Site, database: PostgresServer, kill: Callable[[], None], seconds: float) -> None:
        self._site, self._database, self._kill = there, database, kill
        self._random = random.Random(7)  # noqa: S311  # no secret
        self._stack = ExitStack()
        at = [seconds * share for share in (0.12, 0.42, 0.48, 0.58, 0.62, 0.8, 0.82)]
        self._events = [
            (at[0], self._bulk),
            (at[1], lambda: self._stack.enter_context(there.locked(_HELD))),
            (at[2], self._stack.close),
            (at[3], lambda: database.stop("fast")),
            (at[4], database.start),
            (at[5], self._bulk),
            (at[6], kill),
        ]
        #: When something begins, seconds from the start, and what it is.
        self.marks = [
            (at[0], f"{_BULK:,} requests come for bulk"),
            (at[1], f"somebody holds one row for {at[2] - at[1]:.0f} s"),
            (at[3], f"PostgreSQL is down for {at[4] - at[3]:.0f} s"),
            (at[6], "bulk again, and one worker is killed"),
        ]

    def tell(self, seconds: float) -> None:
        """Live through it."""
        began = time.monotonic()
        sent = 0
        while (now := time.monotonic() - began) < seconds:
            while self._events and self._events[0][0] <= now:
                self._events.pop(0)[1]()
            due = round((time.monotonic() - began) * _RATE)
            if due > sent:
                self._push(contract.QUEUE, due - sent)
                sent = due
            time.sleep(0.02)

    def _bulk(self) -> None:
        for _ in range(_BULK // 1000):
            self._push(contract.BULK_QUEUE, 1000)

    def _push(self, queue: str, number: int) -> None:
        self._site.push(*(self._a_request() for _ in range(number)), queue=queue)

    def _a_request(self) -> dict[str, Any]:
        """Mostly a good one."""
        chance, number = self._random.random(), self._random.randint(1, IMAGES)
        fields: dict[str, Any] = {"description": f"{chance}"}
        if chance < 0.06:  # noqa: PLR2004  # shares of what is refused
            number = IMAGES + 1
        elif chance < 0.1:  # noqa: PLR2004
            fields = {"name": f"image-{number % IMAGES + 1}"}
        elif chance < 0.12:  # noqa: PLR2004
            fields = {"os_type": "beos"}
        elif chance > 0.995:  # noqa: PLR2004
            number = _HELD
        message = request(number, **fields)
        message["headers"][contract.SENT_AT] = time.time()
        return message


def _site(redis: RedisServer, database_url: str, folder: Path) -> Site:
    """A site in the database that a server has from the beginning, to which nothing here stays connected."""
    upgrade(database_url)
    there = Site(redis, database_url, folder)
    load(there.database, *(an_image(number) for number in range(1, IMAGES + 1)))
    return there


def _watch(folder: Path, ports: dict[str, int]) -> PrometheusServer:
    """A Prometheus for workers by their names."""
    workers = [{"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}} for name, port in ports.items()]
    job = {"job_name": "aries-images", "static_configs": workers}
    folder.mkdir()
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump({"global": {"scrape_interval": f"{_STEP}s"}, "scrape_configs": [job]})
    )
    return PrometheusServer(folder)


def _lines(prometheus: PrometheusServer, panel: dict[str, Any], start: float, end: float) -> Iterator[tuple[str, Line]]:
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", f"{_SPAN}s").replace("$instance", ".*")
        found = prometheus.ask("query_range", query=query, start=start, end=end, step=_STEP)["result"]
        for series in found:
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            yield name, [(float(at) - start, float(value)) for at, value in series["values"]]


def _charts(prometheus: PrometheusServer, start: float, end: float, marks: list[float]) -> Iterator[Chart]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    for title in PANELS:
        panel = next(each for each in panels if each["title"] == title and each["type"] == "timeseries")
        look = panel["fieldConfig"]["defaults"]
        lines = dict(_lines(prometheus, panel, start, end))
        shown = "Answers of each worker" if title == "Answers" else title
        yield Chart(shown, look["unit"], lines, look["custom"]["stacking"]["mode"] == "normal", end - start, marks)


@click.command()
@click.option("--seconds", default=180, show_default=True, help="How long it takes.")
def main(seconds: int) -> None:
    """Start two workers with all that they need, load and disturb them, and draw docs/pictures/dashboard.svg."""
    ports = {name: free_port() for name in ("worker1", "worker2")}
    with tempfile.TemporaryDirectory(prefix="aries-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL may run as another user
        database = stack.enter_context(PostgresServer(folder / "postgres"))
        there = stack.enter_context(
            closing(_site(stack.enter_context(RedisServer(folder / "redis")), database.url, folder))
        )
        workers = [
            stack.enter_context(there.worker(name=each, ARIES_METRICS_PORT=str(port), ARIES_LEASE_SECONDS="5"))
            for each, port in ports.items()
        ]
        prometheus = stack.enter_context(_watch(folder / "prometheus", ports))
        story = Story(there, database, workers[1].kill, seconds)
        click.echo(f"{seconds} s of load …", err=True)
        story.tell(_SPAN)
        start = time.time()
        story.tell(seconds)
        charts = [*_charts(prometheus, start, time.time(), [at for at, _ in story.marks])]
    said = "; ".join(f"({number}) {what}" for number, (_, what) in enumerate(story.marks, 1))
    where = f"{datetime.now(UTC):%Y-%m-%d}, {machine()}, for PostgreSQL, Redis, Prometheus and callers too"
    notes = [f"{_RATE} requests a second; {said}.", f"{where}. What stays at 0 is not drawn."]
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(page(charts, "aries-images: two workers, as the dashboard shows them", notes))
    click.echo(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    main()
