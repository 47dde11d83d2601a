"""Many updates through a real worker, in Python and by the command."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aries_images import contract
from aries_images.aio import AsyncImageClient
from aries_images.bulk import ReplyFile, code_of
from tests.builders import an_image, load, stored_image
from tests.command import lines_in, ran
from tests.service import Service, service_at
from tests.workers import running_worker, until

MANY = 3000


@pytest.fixture(scope="module")
def _worked(module_redis: tuple[str, str], new_database: Any) -> Iterator[Service]:
    url = new_database("sqlite")
    with service_at(*module_redis, url) as service, running_worker(service.environment):
        load(service.database, *(an_image(number) for number in range(1, 101)))
        yield service


@pytest.fixture
def service(_worked: Service) -> Service:
    return _worked


# --- update_many ---


def test_every_line_gets_its_reply(service: Service, tmp_path: Path) -> None:
    lines = [
        {"id": 1, "name": "one"},
        {"id": 2, "name": "one"},
        {"id": 999},
        {"id": 3, "colour": "red"},
        {"id": 4, "name": "\ud800"},
        {"id": 5, "request_id": "no good"},
        {"id": 1, "description": "second", "request_id": "mine", "if_revision": 2},
    ]
    with ReplyFile(tmp_path / "replies.jsonl") as replies:
        documents = list(service.client.update_many(lines, replies=replies))
    assert Counter(map(code_of, documents)) == {
        "OK": 2, "ImageNameExists": 1, "ImageNotFound": 1, "InvalidParameter": 3,
    }  # fmt: skip
    assert lines_in(tmp_path / "replies.jsonl") == documents
    (mine,) = [document for document in documents if document["request_id"] == "mine"]
    assert mine == json.loads(service.results.get(contract.RESULT_KEY_PREFIX + "mine"))["result"]


def test_lines_for_one_image_are_applied_in_their_order(service: Service) -> None:
    lines = [{"id": 10 + number % 3, "description": str(number)} for number in range(600)]
    assert {code_of(document) for document in service.client.update_many(lines, window=500)} == {"OK"}
    assert [stored_image(service.database, 10 + number)["description"] for number in range(3)] == ["597", "598", "599"]


def test_leaving_early_leaves_nothing_behind(service: Service) -> None:
    arriving = service.client.update_many(({"id": number % 100 + 1} for number in range(10_000)), window=50)
    assert code_of(next(arriving)) == "OK"
    arriving.close()
    until(lambda: service.results.pubsub_channels() == [])
    assert list(service.client.update_many([{"id": 1}]))


def test_it_can_be_awaited(service: Service) -> None:
    async def many() -> list[dict[str, Any]]:
        async with AsyncImageClient(service.broker_url, service.result_url) as client:
            return [document async for document in client.update_many({"id": number} for number in range(1, 51))]

    assert len(asyncio.run(many())) == 50


# --- the command ---


def test_update_prints_the_image_and_settle_prints_it_again(service: Service) -> None:
    words = ("update", "20", "--name", "镜像", "--request-id", "cli-1")
    code, out, err = ran(service, *words)
    assert (code, err) == (0, "")
    assert json.loads(out)["name"] == "镜像"
    assert ran(service, "settle", "cli-1") == (0, out, "")


@pytest.mark.parametrize(
    ("lang", "said"),
    [
        ("C.UTF-8", "error: ImageNameExists: name 'taken' is used by another image (request "),
        ("zh_CN.UTF-8", "错误：镜像名称已存在 (ImageNameExists)：name 已被其他镜像使用（请求 "),
    ],
)
def test_a_refusal_is_one_line_in_the_language_of_the_locale(lang: str, said: str, service: Service) -> None:
    service.client.update(21, name="taken")
    code, out, err = ran(service, "update", "22", "--name", "taken", lang=lang)
    assert (code, out) == (1, "")
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), ""),
        (("update",), "缺少 ID"),
        (("update", "x"), "ID 的值不正确"),
        (("update", "1", "--nam"), "没有选项 --nam"),
        (("apply", "/no/such/file"), "FILE 的值不正确"),
        (("update", "1", "--timeout", "-1"), "timeout"),
    ],
)
def test_a_command_that_cannot_be_understood_is_one_line(words: tuple[str, ...], said: str, service: Service) -> None:
    code, out, err = ran(service, *words, lang="zh_CN.UTF-8")
    if words:
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("错误：")
        assert said in err
    else:
        assert "Usage:" in out + err


def test_apply_is_0_if_all_was_applied_and_1_if_not(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "images.csv"
    file.write_text("id,description\n30,a\n31,b\n")
    code, out, err = ran(service, "apply", file)
    assert (code, out) == (0, "")
    assert "2 lines: 2 OK" in err
    assert len(lines_in(tmp_path / "images.csv.replies.jsonl")) == 2
    file.write_text("id,description\n30,a\n31,b\n999,c\n")
    code, out, err = ran(service, "apply", file)
    assert code == 1
    assert "3 lines: 2 OK, 1 ImageNotFound" in err
    assert len(lines_in(tmp_path / "images.csv.replies.jsonl")) == 3


def test_watch_shows_events_as_they_come(service: Service) -> None:
    service.broker.delete(contract.REPLY_QUEUE)
    service.client.update(40, name="watched", request_id="watch-1")
    code, out, _ = ran(service, "watch", "--timeout", "2")
    assert code == 0
    assert "200 OK image 40 at revision 2: watched (request watch-1)" in out
    service.client.update(40, description="again", request_id="watch-2")
    code, out, _ = ran(service, "watch", "--json", "--timeout", "2")
    assert [json.loads(line)["request_id"] for line in out.splitlines()] == ["watch-2"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_completion_for_each_shell(shell: str, service: Service) -> None:
    code, out, _ = ran(service, "completion", shell)
    assert code == 0
    assert "_ARIES_IMAGES_COMPLETE" in out
