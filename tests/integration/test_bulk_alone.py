"""Many updates where no worker listens, or one that is killed, or a stand-in that can be told what to do."""

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from aries_images import ImageClient, OutcomeUnknown, contract
from aries_images.bulk import code_of
from tests.builders import an_image, load, stored_image
from tests.command import command, lines_in, ran
from tests.service import service_at
from tests.stand_in import Taken, stand_in
from tests.workers import running_worker, until

MANY = 3000


def test_the_bulk_lane_is_used_and_no_more_than_the_window_is_under_way(broker_url: str, result_url: str) -> None:
    with ImageClient(broker_url, result_url) as client:
        arriving = client.update_many(({"id": number} for number in range(1, 100)), window=7, timeout=1)
        with pytest.raises(OutcomeUnknown, match="no answer to 7 requests"):
            next(arriving)
    with Redis.from_url(broker_url) as broker:
        assert (broker.llen(contract.QUEUE), broker.llen(contract.BULK_QUEUE)) == (0, 7)


def test_what_came_too_fast_is_sent_again(broker_url: str, result_url: str) -> None:
    tries: Counter[str] = Counter()

    def answer(taken: Taken) -> Any:
        tries[taken.request_id] += 1
        return taken.refusal(contract.TOO_MANY_REQUESTS) if tries[taken.request_id] == 1 else taken.success()

    with stand_in(broker_url, result_url, answer), ImageClient(broker_url, result_url) as client:
        documents = list(client.update_many([{"id": 1}, {"id": 1, "name": "b"}, {"id": 2}]))
    assert [code_of(document) for document in documents] == ["OK"] * 3
    assert set(tries.values()) == {2}


def test_an_answer_that_was_only_stored_is_found(broker_url: str, result_url: str) -> None:
    with stand_in(broker_url, result_url, Taken.success) as worker, ImageClient(broker_url, result_url) as client:
        worker.publishes = False
        assert len(list(client.update_many([{"id": 1}, {"id": 2}], timeout=5))) == 2


def test_no_answer_is_said_with_the_request_id(broker_url: str, result_url: str, sqlite_url: str) -> None:
    with service_at(broker_url, result_url, sqlite_url) as service:
        code, out, err = ran(service, "update", "1", "--timeout", "0.5", "--request-id", "cli-2")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "--request-id cli-2" in err


def test_apply_goes_on_after_worker_and_command_were_killed(
    broker_url: str, result_url: str, sqlite_url: str, tmp_path: Path
) -> None:
    file, out = tmp_path / "images.jsonl", tmp_path / "replies.jsonl"
    file.write_text("".join(json.dumps({"id": 1 + n % 50, "description": str(n)}) + "\n" for n in range(MANY)))
    with service_at(broker_url, result_url, sqlite_url) as service:
        load(service.database, *(an_image(number) for number in range(1, 51)))
        words = ("apply", file, "--out", out, "--window", "200", "--timeout", "2")
        with running_worker(service.environment | {"ARIES_LEASE_SECONDS": "3"}) as worker:
            with command(service, *words) as process:
                until(lambda: out.exists() and len(out.read_bytes().splitlines()) > 200)
                worker.kill()
                _, err = process.communicate(timeout=30)
            assert process.returncode == 3, err
            assert "the same command goes on from here" in err
        with running_worker(service.environment | {"ARIES_LEASE_SECONDS": "3"}):
            with command(service, *words) as process:
                before = len(out.read_bytes().splitlines())
                until(lambda: len(out.read_bytes().splitlines()) > before + 200, 30)
                process.send_signal(signal.SIGKILL)
                process.wait()
            code, _, err = ran(service, *words)
        assert code == 0, err
        assert f"{MANY:,} lines: {MANY:,} OK" in err
        replies = lines_in(out)
        assert len({reply["request_id"] for reply in replies}) == MANY
        assert [stored_image(service.database, image)["revision"] for image in (1, 50)] == [1 + MANY // 50] * 2
        assert stored_image(service.database, 50)["description"] == str(MANY - 1)


def test_apply_that_is_interrupted_says_how_to_go_on(
    broker_url: str, result_url: str, sqlite_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "images.jsonl"
    file.write_text('{"id": 1}\n')
    with service_at(broker_url, result_url, sqlite_url) as service, command(service, "apply", file) as process:
        until(lambda: service.broker.llen(contract.BULK_QUEUE) == 1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "goes on from here" in err
