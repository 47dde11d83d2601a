"""Lines of a file as requests, and the file of replies that a later run goes on from."""

import json
from pathlib import Path
from typing import Any

import pytest

from aries_images import ImageNameExists, InternalError, contract
from aries_images.bulk import BulkRequest, ReplyFile, UnreadableLine, read_lines, reply_document, request_in
from aries_images.contract import Detail, Image
from tests.stand_in import IMAGE

RUN = "0123456789abcdef"


def reply(request_id: str, code: str | None = None) -> dict[str, Any]:
    outcome: Any = Image.model_validate({**IMAGE, "revision": 2})
    if code is not None:
        outcome = {"ImageNameExists": ImageNameExists, "InternalError": InternalError}[code]("no")
    return reply_document(request_id, "d" * 64, outcome)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "replies.jsonl"


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- lines ---


def test_json_lines_are_mappings_and_what_is_not_json_is_unreadable(tmp_path: Path) -> None:
    content = b'{"id": 1, "name": "\xe9\x95\x9c"}\n\n[1]\n{"id": 1, "id": 2}\n\xff\n{"id": 2}'
    first, *broken, last = read_lines(written(tmp_path / "a.jsonl", content))
    assert (first, last) == ({"id": 1, "name": "镜"}, {"id": 2})
    assert [type(line) for line in broken] == [UnreadableLine] * 3


def test_of_an_endless_line_only_the_beginning_is_kept(tmp_path: Path) -> None:
    lines = list(read_lines(written(tmp_path / "a.jsonl", b'{"id": 1}\n' + b"x" * 5_000_000 + b'\n{"id": 2}\n')))
    assert [lines[0], lines[2]] == [{"id": 1}, {"id": 2}]
    assert isinstance(lines[1], UnreadableLine)
    assert len(lines[1].raw) <= 1 << 20


def test_rows_have_the_fields_whose_cells_are_not_empty(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,name,description,if_revision\n1,a,,3\n,,,\nx,"b, c",d,\n-5,e,,\n'
    assert list(read_lines(written(tmp_path / "a.CSV", content))) == [
        {"id": 1, "name": "a", "if_revision": 3},
        {"id": "x", "name": "b, c", "description": "d"},
        {"id": -5, "name": "e"},
    ]


def test_a_row_that_is_not_utf_8_is_refused_and_no_other(tmp_path: Path) -> None:
    rows = list(read_lines(written(tmp_path / "a.csv", b"id,name\n1,\xff\n2,b\n")))
    refused, sent = (request_in(row, place, RUN) for place, row in enumerate(rows, 1))
    assert refused.refusal is not None
    assert sent.body == {"id": 2, "name": "b"}


def test_a_quote_that_is_never_closed_is_an_unreadable_line(tmp_path: Path) -> None:
    lines = list(read_lines(written(tmp_path / "a.csv", b'id,name\n1,a\n2,"b\n')))
    assert lines[0] == {"id": 1, "name": "a"}
    assert isinstance(lines[-1], UnreadableLine)


# --- request ids ---


def test_the_same_line_of_the_same_run_is_the_same_request() -> None:
    line = {"id": 1, "name": "a"}
    once, again = request_in(line, 7, RUN), request_in(dict(reversed(line.items())), 7, RUN)
    assert once == again
    others = [request_in(line, 8, RUN), request_in(line, 7, "another"), request_in({"id": 1, "name": "b"}, 7, RUN)]
    assert len({once.request_id, *(other.request_id for other in others)}) == 4
    assert contract.is_request_id(once.request_id)


def test_a_request_id_that_is_given_is_taken_and_one_that_cannot_be_is_refused() -> None:
    given = request_in({"id": 1, "request_id": "order-1", "if_revision": 2}, 1, RUN)
    assert given == BulkRequest("order-1", {"id": 1}, 2)
    for bad in ("", "a b", 7, ["x"]):
        assert request_in({"id": 1, "request_id": bad}, 1, RUN).refusal is not None


# --- the file of replies ---


def test_what_is_answered_for_good_is_recalled(file: Path) -> None:
    with ReplyFile(file) as replies:
        replies.add([reply("a"), reply("b", "ImageNameExists"), reply("c", "InternalError")])
    with ReplyFile(file) as replies:
        assert [replies.recall(request_id) for request_id in "abcd"] == [True, True, False, False]
        assert replies.codes == {"OK": 1, "ImageNameExists": 1}
        replies.add([reply("c")])
    with ReplyFile(file) as replies:
        assert replies.recall("c")
    documents = [json.loads(line) for line in file.read_text().splitlines()]
    assert [document["request_id"] for document in documents] == ["a", "b", "c", "c"]
    assert documents[1]["error"]["message"] == "镜像名称已存在"


def test_a_line_that_was_cut_off_is_dropped(file: Path) -> None:
    with ReplyFile(file) as replies:
        replies.add([reply("a")])
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:50])
    with ReplyFile(file) as replies:
        replies.add([reply("b")])
    assert [json.loads(line)["request_id"] for line in file.read_text().splitlines()] == ["a", "b"]


def test_a_file_of_something_else_is_left_alone(file: Path) -> None:
    file.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match="line 1"):
        ReplyFile(file)
    assert file.read_text() == '{"id": 1}\n'


def test_only_one_process_writes(file: Path) -> None:
    with ReplyFile(file), pytest.raises(ValueError, match="another process"):
        ReplyFile(file)


def test_a_run_keeps_its_name_from_before_its_first_reply_on(file: Path) -> None:
    with ReplyFile(file) as replies:
        run = replies.run
    with ReplyFile(file) as replies:
        assert replies.run == run
        replies.add([reply(request_in({"id": 1}, 1, run).request_id)])
    assert [path.name for path in file.parent.iterdir()] == ["replies.jsonl"]
    with ReplyFile(file) as replies:
        assert replies.run == run


def test_a_new_file_is_a_new_run(file: Path) -> None:
    with ReplyFile(file) as replies:
        run = replies.run
    file.unlink()
    with ReplyFile(file) as replies:
        assert replies.run != run


def test_a_reply_document_is_the_workers_own_to_the_letter() -> None:
    row = Image.model_validate({**IMAGE, "revision": 7})
    worker = contract.Reply.success("a", "d" * 64, row.model_dump(), revision=7)
    assert reply_document("a", "d" * 64, row) == worker.document
    detail = Detail("name", "taken", "name 'x' is used by another image")
    refusal = contract.Refusal(contract.IMAGE_NAME_EXISTS, (detail,))
    refused = reply_document("a", "d" * 64, ImageNameExists("no", details=(detail,)))
    assert refused == contract.Reply.refused("a", "d" * 64, refusal, 1).document
