"""The operator's commands: migrate, import and images, on either database."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aries_images.contract import image_document
from models import images
from tests.builders import run_ddl
from worker.__main__ import commands
from worker.database import Database

SAMPLES = Path(__file__).parents[2] / "worker" / "commands" / "samples.jsonl"


@pytest.fixture
def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("ARIES_DATABASE_URL", database_url)
    database = Database(database_url)
    yield database
    database.close()


def run(*words: str) -> Result:
    return CliRunner().invoke(commands, list(words), catch_exceptions=False)


def line(name: str, **other: Any) -> str:
    image = {"name": name, "os_type": "linux", "os_name": "Debian", "description": "", "source_path": "/images/it.iso"}
    return json.dumps(image | other)


def import_lines(folder: Path, *lines: str) -> Result:
    file = folder / "images.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return run("import", str(file))


def stored(database: Database) -> list[dict[str, Any]]:
    with database.transaction() as connection:
        rows = connection.execute(images.select().order_by(images.c.id)).mappings().all()
    return [image_document(dict(row)) for row in rows]


def test_an_empty_database_is_migrated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARIES_DATABASE_URL", f"sqlite:///{tmp_path / 'new.db'}")
    refused = run("images")
    assert refused.exit_code == 1
    assert "migrate" in refused.output
    assert "it was empty" in run("migrate").output
    assert "it was" not in run("migrate").output
    assert run("images").exit_code == 0


@pytest.mark.parametrize("words", [("migrate",), ("images",), ("check",)], ids=lambda words: words[0])
def test_after_going_back_to_an_older_version_its_commands_say_so(database: Database, words: tuple[str, ...]) -> None:
    run_ddl(database, "UPDATE alembic_version SET version_num = '9999'")
    result = run(*words)
    assert "at 9999, which a newer version made" in result.output
    assert "worker migrate" not in result.output


def test_what_is_imported_is_what_a_reply_would_say(database: Database) -> None:
    result = run("import", str(SAMPLES))
    assert "4 images imported." in result.output
    assert stored(database) == [json.loads(sample) for sample in SAMPLES.read_text().splitlines()]
    assert "CentOS 7.9 64位基础镜像" in run("images").output


def test_ids_that_the_database_gives_come_after_those_in_the_file(database: Database, tmp_path: Path) -> None:
    assert import_lines(tmp_path, line("a"), "", line("b", id=7), line("c")).exit_code == 0
    assert import_lines(tmp_path, line("d")).exit_code == 0
    assert [(image["name"], image["id"]) for image in stored(database)] == [("b", 7), ("a", 8), ("c", 9), ("d", 10)]


BAD_LINES = {
    "{": "the line is not JSON that can be read",
    "[]": "the line is not a JSON object",
    "{}": "name is required",
    line("x", id=True): "id must be a JSON integer",
    line("x", os_type="bsd"): "os_type must be 'linux' or 'windows'",
    line(" x"): "name must not begin or end with white space",
    line("x", revision=3): "revision can't be changed",
    line("x", size=3): "size is not a field",
    line("x", source_path=""): "source_path must be",
    line("x", created_at="2024-03-20T10:30:00"): "created_at must be a time",
    line("x", updated_at=1710930600): "updated_at must be a time",
    line("good"): "name 'good' is used in line 1",
    line("x", id=1): "id 1 is used by an image in the database",
    line("there"): "name 'there' is used by an image in the database",
}


def test_every_bad_line_is_named_and_nothing_is_half_imported(database: Database, tmp_path: Path) -> None:
    import_lines(tmp_path, line("there", id=1))
    before = stored(database)
    result = import_lines(tmp_path, line("good"), *BAD_LINES)
    assert result.exit_code == 1
    for number, problem in enumerate(BAD_LINES.values(), 2):
        assert f"line {number}: {problem}" in result.output
    assert f"{len(BAD_LINES)} bad lines; nothing was imported" in result.output
    assert stored(database) == before
