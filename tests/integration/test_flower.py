"""Flower in a browser, as an operator sees it: what became of each request and why, who is there, how much waits."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from aries_images import ImageClient, ImageNameExists, ImageNotFound, InternalError, InvalidParameter, contract
from models.migrations import upgrade
from tests.acl import redis_with_users, refusals, url_for
from tests.browsers import running_chromium
from tests.builders import SECRET, a_message, an_image, load, poison
from tests.flowers import ask
from tests.running import until
from tests.service import PATIENCE, Service, service_at
from tests.workers import CHECKOUT, Worker, running_worker
from worker.embedded import ServerFailedError
from worker.flower import FlowerServer

NODE = "images1@host-a"
#: A folder for pictures of the pages; `make pictures` names that of the docs.
PICTURES = os.environ.get("ARIES_PICTURES")
#: What a page shows, by the words on it. A request id is there twice, whole and short; one of the two is seen.
TABLE = """
const text = cell => (cell.querySelector('.task-uuid-full') || cell).textContent.trim();
const body = document.querySelector('table.dataTable tbody, #queue-table tbody');
const table = body && body.parentElement;
if (!table || !table.tHead) return [];  // the page is still at it
const names = [...table.tHead.rows[0].cells].map(text);
return [...table.tBodies[0].rows].map(row => Object.fromEntries([...row.cells].map((cell, i) => [names[i], text(cell)])));
"""
DETAILS = """
return Object.fromEntries([...document.querySelectorAll('dl.detail-list .detail-row')].map(
    row => [row.querySelector('dt').textContent.trim(), row.querySelector('dd').textContent.trim()]));
"""

Row = dict[str, str]


@dataclass(frozen=True)
class Town:
    """A service, Flower beside it, and somebody at a browser."""

    service: Service
    flower: FlowerServer
    browser: Chrome
    caller: ImageClient
    #: The environment of a worker.
    settings: dict[str, str]
    database: Path

    def open(self, path: str) -> None:
        self.browser.execute_script("localStorage.clear()")  # where Flower keeps what was searched for
        self.browser.get(self.flower.url + path)

    def rows(self, path: str) -> list[Row]:
        """The table on a page, as soon as it has something in it."""
        self.open(path)
        rows: list[Row] = until(self._rows_now)
        return rows

    def _rows_now(self) -> list[Row]:
        rows: list[Row] = self.browser.execute_script(TABLE)
        return [row for row in rows if len(row) > 1]  # else it is a line that says that there are none

    def row(self, path: str, **cells: str) -> Row:
        """The row of a table in which these cells are what is said here, as soon as there is one."""
        row: Row = until(lambda: next((row for row in self.rows(path) if cells.items() <= row.items()), None))
        return row

    def details(self, request_id: str) -> Row:
        """The page of a request, which is reached as by anybody: from the list."""
        self.row("/tasks", UUID=request_id)
        self.browser.find_element(By.LINK_TEXT, request_id).click()
        details: Row = until(lambda: self.browser.execute_script(DETAILS))
        return details

    def picture(self, name: str) -> None:
        if PICTURES:
            self.browser.save_screenshot(str(CHECKOUT / PICTURES / f"{name}.png"))

    def status(self, path: str, login: tuple[str, str] | None = None, method: str = "GET") -> int:
        return ask(self.flower.port, path, login, method)[0]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Each of them comes to Redis as a user of its own, and was refused nothing in the end."""
    folder = tmp_path_factory.mktemp("town")
    upgrade(f"sqlite:///{folder / 'images.db'}")
    with ExitStack() as stack:
        redis = stack.enter_context(redis_with_users(folder / "redis"))
        try:
            flower = stack.enter_context(FlowerServer(folder / "flower", url_for(redis, "flower")))
            browser = stack.enter_context(running_chromium())
        except ServerFailedError as error:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
        service = stack.enter_context(service_at(redis.url(0), redis.url(1), f"sqlite:///{folder / 'images.db'}"))
        load(service.database, an_image(1, "CentOS-7.9-x64"), an_image(2, "Ubuntu-24.04-x64"))
        poison(service.database)
        caller = stack.enter_context(ImageClient(url_for(redis, "orders"), url_for(redis, "orders", 1)))
        # Once for all: the browser sends it along from then on.
        browser.get(flower.url.replace("://", "://{}:{}@".format(*flower.login)))
        logins = {"ARIES_BROKER_URL": url_for(redis, "worker"), "ARIES_RESULT_URL": url_for(redis, "worker", 1)}
        yield Town(service, flower, browser, caller, service.environment | logins, folder / "images.db")
        assert refusals(service.broker) == []


@pytest.fixture(scope="module")
def worker(town: Town) -> Iterator[Worker]:
    with running_worker(town.settings, asked_at=town.service.broker_url, node=NODE) as worker:
        yield worker


# --- who comes in ---


@pytest.mark.parametrize("path", ["/", "/tasks", "/broker", "/task/order-1041", "/api/tasks", "/api/workers"])
def test_nobody_sees_anything_without_the_login(town: Town, path: str) -> None:
    user, password = town.flower.login
    assert town.status(path) == 401
    assert town.status(path, (user, password + "x")) == 401
    assert town.status(path, (user, password)) in (200, 404)


def test_figures_and_health_are_open_to_all(town: Town) -> None:
    assert [town.status(path) for path in ("/metrics", "/healthcheck")] == [200, 200]


def test_the_password_is_for_who_may_read_the_file(town: Town) -> None:
    _, password = town.flower.login
    assert len(password) >= 16
    assert (town.flower.folder / "login").stat().st_mode & 0o777 == 0o600
    assert password not in (town.flower.folder / "server.log").read_text()
    assert town.flower.process is not None
    assert password not in " ".join(psutil.Process(town.flower.process.pid).cmdline())


# --- what became of a request ---


def test_the_queues_are_known_before_a_worker_is_there(town: Town) -> None:
    assert [row["Queue"] for row in town.rows("/broker")] == [*contract.QUEUES]


def test_a_worker_is_there(town: Town, worker: Worker) -> None:
    assert town.row("/", Worker=worker.node)["Status"] == "Online"
    town.open(f"/worker/{worker.node}")
    assert "group commit:Pool" in until(lambda: town.browser.find_element(By.TAG_NAME, "main").text)


@pytest.mark.usefixtures("worker")
def test_what_became_of_each_request_and_why(town: Town) -> None:
    update, name = town.caller.update, "CentOS-7.9-x64-updated"
    update(1, name=name, request_id="order-1041")
    with pytest.raises(ImageNameExists):
        update(2, name=name, request_id="order-1042")
    with pytest.raises(InvalidParameter):
        update(2, os_type="bsd", request_id="order-1043")
    with pytest.raises(ImageNotFound):
        update(99, description="x", request_id="order-1044")
    with pytest.raises(InternalError):
        update(2, name="poison", request_id="order-1045")
    update(2, name="Ubuntu-24.04-x64-updated", request_id="order-1046")
    town.row("/tasks", UUID="order-1046", State="SUCCESS")
    town.picture("flower-tasks")
    outcomes = {row["UUID"]: (row["State"], row["Result"]) for row in town.rows("/tasks")}
    assert outcomes == {
        "order-1041": ("SUCCESS", "image 1, revision 2"),
        "order-1042": ("SUCCESS", "ImageNameExists: name taken"),
        "order-1043": ("SUCCESS", "InvalidParameter: os_type value_not_allowed"),
        "order-1044": ("SUCCESS", "ImageNotFound"),
        "order-1045": ("FAILURE", "InternalError('内部错误')"),
        "order-1046": ("SUCCESS", "image 2, revision 2"),
    }
    for request_id, image, end in (
        ("order-1041", 1, "Succeeded"),
        ("order-1042", 2, "Succeeded"),
        ("order-1045", 2, "Failed"),
    ):
        details = town.details(request_id)
        if request_id == "order-1042":
            town.picture("flower-refusal")
        assert (details["Status"], details["Result"]) == outcomes[request_id]
        assert (details["Name"], details["Keyword arguments"]) == (contract.TASK, f"{{'id': {image}, 'name': ...}}")
        assert details["Received"] <= details["Started"] <= details[end]


@pytest.mark.usefixtures("worker")
def test_a_fault_says_nothing_of_its_cause(town: Town) -> None:
    with pytest.raises(InternalError):
        town.caller.update(2, name="poison", request_id="order-1047")
    town.details("order-1047")
    page = town.browser.page_source
    assert "InternalError" in page
    assert not [word for word in (SECRET, "UPDATE", "Traceback", "sqlalchemy", "aries_images") if word in page]


@pytest.mark.usefixtures("worker")
def test_a_refusal_is_found_by_its_code(town: Town) -> None:
    with pytest.raises(ImageNotFound):
        town.caller.update(404, description="x", request_id="order-1048")
    town.row("/tasks", UUID="order-1048")
    field = town.browser.find_element(By.CSS_SELECTOR, "input[type=search]")
    field.send_keys("result:ImageNotFound kwargs:404")
    [found] = until(lambda: len(rows := town._rows_now()) == 1 and rows)
    assert found["UUID"] == "order-1048"


def seconds(duration: str) -> float:
    number, unit = duration.split()
    return float(number) * {"ms": 0.001, "s": 1}[unit]


@pytest.mark.usefixtures("worker")
def test_a_request_that_is_held_up_is_started_and_its_time_is_all_of_it(town: Town) -> None:
    inspect = town.service.celery.control.inspect([NODE], timeout=5)
    with closing(sqlite3.connect(town.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sent_at = time.monotonic()
        pending = town.caller.submit(1, description="held up", request_id="order-1049", timeout=PATIENCE)
        assert town.row("/tasks", UUID="order-1049", State="STARTED")["Result"] == ""
        seen_at = time.monotonic()
        assert [(held["id"], held["kwargs"]) for held in inspect.active()[NODE]] == [
            ("order-1049", "{'id': 1, 'description': ...}")
        ]
        time.sleep(6)  # its first try ends after five
        held_for = time.monotonic() - seen_at
        other.rollback()
    assert pending.result().description == "held up"
    runtime = seconds(town.row("/tasks", UUID="order-1049", State="SUCCESS")["Runtime"])
    assert held_for < runtime < time.monotonic() - sent_at
    assert inspect.active() == {NODE: []}


# --- what a monitor must not do, and what it must see ---


@pytest.mark.parametrize(
    "path",
    [
        f"/api/worker/shutdown/{NODE}",
        f"/api/worker/pool/grow/{NODE}",
        f"/api/worker/queue/cancel-consumer/{NODE}?queue=image.update",
        f"/api/task/rate-limit/image.update?workername={NODE}&ratelimit=1",
        "/api/task/revoke/order-1041",
        "/api/task/send-task/image.update",
    ],
)
def test_what_would_change_something_is_refused(town: Town, worker: Worker, path: str) -> None:
    assert town.status(path, town.flower.login, "POST") == 403
    assert town.service.celery.control.ping([worker.node], timeout=1)


def test_a_worker_that_has_left_is_offline_and_requests_wait(town: Town, worker: Worker) -> None:
    town.row("/", Worker=worker.node, Status="Online")
    worker.process.send_signal(signal.SIGTERM)  # the last test: nobody needs it any more
    town.row("/", Worker=worker.node, Status="Offline")
    worker.process.wait(PATIENCE)
    for queue, number in ((contract.QUEUE, 2), (contract.BULK_QUEUE, 3)):
        town.service.broker.lpush(queue, *(a_message({"id": 1})[1] for _ in range(number)))
    assert {row["Queue"]: row["Messages"] for row in town.rows("/broker")} == {
        contract.QUEUE: "2",
        contract.BULK_QUEUE: "3",
    }
