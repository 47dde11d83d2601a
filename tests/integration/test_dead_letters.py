"""Dead letters, from the worker that gives up on a message to the operator who sends it once more."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aries_images import contract
from tests.builders import a_message, stored_revisions
from tests.integration.conftest import NewDatabase
from tests.service import Service, service_at
from tests.workers import Worker, running_worker, until
from worker.__main__ import commands
from worker.leases import Keys

WARN, MOST = 3, 5


@pytest.fixture(scope="module")
def town(module_redis: tuple[str, str], new_database: NewDatabase) -> Iterator[tuple[Service, Worker]]:
    with service_at(*module_redis, new_database("sqlite")) as service:
        limits = {"ARIES_DEAD_LETTERS_WARN": str(WARN), "ARIES_DEAD_LETTERS_MAX": str(MOST)}
        with running_worker(service.environment | limits) as worker:
            yield service, worker


@pytest.fixture
def service(town: tuple[Service, Worker], monkeypatch: pytest.MonkeyPatch) -> Service:
    service = town[0]
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    service.broker.delete(Keys().dead)
    return service


def run(*words: str, **options: Any) -> Result:
    return CliRunner().invoke(commands, ["dead", *words], catch_exceptions=False, **options)


def listed(*words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("list", "--json", *words).output.splitlines()]


def give_up_on(service: Service, *entries: str | bytes) -> list[str]:
    """Have the worker give up on each; their ids as dead letters."""
    there = service.broker.xlen(Keys().dead)
    for number, entry in enumerate(entries, 1):
        service.push(entry)
        until(lambda expected=there + number: service.broker.xlen(Keys().dead) == expected)
    return [letter["id"] for letter in listed()][there:]


def worn_out(kwargs: Any) -> tuple[str, str]:
    """A request that has been delivered five times without an answer, as its sixth delivery finds it."""
    request_id, entry = a_message(kwargs)
    return request_id, '{"deliveries":6,' + entry[1:]


def test_they_are_listed_with_all_that_is_known_of_them(service: Service) -> None:
    request_id, worn = worn_out({"id": 1})
    unknown_id, unknown = a_message({}, headers={"task": "another"})
    give_up_on(service, b"\xff\x00 no JSON", unknown, worn)
    shown = [
        (letter["reason"], letter["list"], letter["deliveries"], letter["request_id"], letter["bytes"])
        for letter in listed()
    ]
    assert shown == [
        ("not_a_message", contract.QUEUE, 1, None, 10),
        ("unknown_task", contract.QUEUE, 1, unknown_id, len(unknown)),
        ("delivered_too_often", contract.QUEUE, 6, request_id, len(worn) - len('"deliveries":6,')),
    ]
    table = run("list").output
    assert "3 shown, 3 kept, at most 10000" in table
    assert all(letter["id"] in table for letter in listed())


def test_filters(service: Service) -> None:
    give_up_on(service, "no JSON", a_message({}, headers={"task": "another"})[1])
    assert [letter["reason"] for letter in listed("--reason", "unknown_task")] == ["unknown_task"]
    assert listed("--older-than", "1h") == []
    assert len(listed("--newer-than", "1h")) == 2
    assert listed("--newer-than", "1h", "--reason", "no_id") == []
    assert run("list", "--older-than", "soon").exit_code == 2


def test_one_is_shown_and_written_to_the_byte(service: Service) -> None:
    [letter] = give_up_on(service, b"\xff\x1b[2J \xe9\x95\x9c no JSON")
    shown = run("show", letter).output
    assert "not_a_message" in shown
    assert "\x1b" not in shown
    assert run("show", "--raw", letter).stdout_bytes == b"\xff\x1b[2J \xe9\x95\x9c no JSON"


def test_no_more_is_shown_than_fits_a_screen(service: Service) -> None:
    [letter] = give_up_on(service, b"x" * 2_000_000)
    shown = run("show", letter).output
    assert len(shown) < 5000
    assert "1996000 characters more" in shown
    assert len(run("show", "--raw", letter).stdout_bytes) == 2_000_000


def test_a_token_is_not_shown(service: Service) -> None:
    entry = a_message({}, headers={"task": "another", "authorization": "Bearer eyJ.secret.x"})[1]
    [letter] = give_up_on(service, entry)
    assert "secret" not in run("show", letter).output
    assert run("show", "--raw", letter).output == entry


@pytest.mark.parametrize("words", [("show", "1-1"), ("show", "no id"), ("replay", "1-1"), ("drop", "1-1", "--yes")])
def test_one_that_is_not_there(service: Service, words: tuple[str, ...]) -> None:
    give_up_on(service, "no JSON")
    result = run(*words)
    assert (result.exit_code, "there is no dead letter" in result.output) == (1, True)
    assert len(listed()) == 1


def test_one_that_is_replayed_is_delivered_as_if_for_the_first_time(service: Service) -> None:
    image = service.image()
    request_id, worn = worn_out({"id": image["id"], "description": "x"})
    [letter] = give_up_on(service, worn)
    assert service.stored(request_id)["status"] == "FAILURE"
    assert "1 dead letters replayed" in run("replay", letter).output
    until(lambda: service.stored(request_id)["status"] == "SUCCESS")
    [gave_up, answered] = service.wait_for_events(request_id, 2)
    assert (gave_up["headers"]["attempt"], answered["headers"]["attempt"]) == (6, 1)
    assert listed() == []


def test_one_that_was_applied_after_all_is_not_applied_again(service: Service) -> None:
    image = service.image()
    request_id, entry = a_message({"id": image["id"], "description": "x"})
    service.push(entry)
    service.wait_for_events(request_id)
    give_up_on(service, '{"deliveries":6,' + entry[1:])
    run("replay", "--all")
    last = service.wait_for_events(request_id, 3)[-1]
    assert (last["headers"]["replayed"], last["body"]["data"]["status"]) == (True, 200)
    assert len(stored_revisions(service.database, image["id"])) == 1


def test_all_that_a_filter_lets_through_are_replayed(service: Service) -> None:
    image = service.image()
    worn = [worn_out({"id": image["id"]}) for _ in range(2)]
    give_up_on(service, "no JSON", *(entry for _, entry in worn))
    assert "2 dead letters replayed" in run("replay", "--all", "--reason", "delivered_too_often").output
    for request_id, _ in worn:
        until(lambda request_id=request_id: service.stored(request_id)["status"] == "SUCCESS")
    assert [letter["reason"] for letter in listed()] == ["not_a_message"]


def test_what_is_still_wrong_comes_back(service: Service) -> None:
    [letter] = give_up_on(service, "no JSON")
    run("replay", letter)
    until(lambda: listed() and listed()[0]["id"] != letter)
    assert run("show", "--raw", listed()[0]["id"]).stdout_bytes == b"no JSON"


def test_they_are_dropped_on_confirmation(service: Service) -> None:
    first, _ = give_up_on(service, "no JSON", "nor this")
    assert run("drop", first, input="n\n").exit_code == 1
    assert len(listed()) == 2
    assert "1 dead letters dropped" in run("drop", first, input="y\n").output
    assert "1 dead letters dropped" in run("drop", "--all", "--yes").output
    assert listed() == []


@pytest.mark.parametrize(
    "words", [("replay",), ("drop", "--yes"), ("drop", "1-1", "--all"), ("replay", "1-1", "--reason", "no_id")]
)
def test_which_are_meant_must_be_said_in_one_way(service: Service, words: tuple[str, ...]) -> None:
    assert service.is_idle()
    assert run(*words).exit_code == 2


def test_the_newest_are_kept_and_many_are_warned_about(town: tuple[Service, Worker], service: Service) -> None:
    for number in range(2 * MOST):
        service.push(f"no JSON {number}")
    until(service.is_idle)
    until(lambda: b"no JSON 9" in run("show", "--raw", listed()[-1]["id"]).stdout_bytes)
    kept = [run("show", "--raw", letter["id"]).stdout_bytes.decode() for letter in listed()]
    assert kept == [f"no JSON {number}" for number in range(MOST, 2 * MOST)]
    log = town[1].log.read_text()
    assert f"{WARN} dead letters wait" in log
    assert f"{WARN - 1} dead letters wait" not in log


def test_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARIES_BROKER_URL", "redis://127.0.0.1:1/0")
    result = run("list")
    assert (result.exit_code, "ARIES_BROKER_URL: the broker can't be reached" in result.output) == (1, True)


def test_a_broker_that_has_dead_letters_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARIES_BROKER_URL", "amqp://127.0.0.1:1//")
    assert "dead letters are kept in Redis" in run("list").output
