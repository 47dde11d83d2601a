"""Every command of the handbook, page by page as a reader pastes them into a terminal, against real parts."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aries_images.signing import SigningKey
from models.migrations import upgrade
from tests.pages import CHINESE, PAGES, Block, blocks
from tests.servers import database_on
from tests.terminals import Terminal
from tests.workers import CHECKOUT
from worker.commands.import_images import insert_images, read_images
from worker.commands.token import PRIVATE, PUBLIC, make_keys
from worker.commands.up import SAMPLES
from worker.database import Database
from worker.embedded import RedisServer, redis_binary

SHELL = "sh"
#: Pages that begin with nothing: they start what they need. The others say what they take for granted, which is below.
FROM_NOTHING = {"README.md", "quickstart.md"}
#: What is made, installed or kept beside the checkout, and is no part of it.
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", "var", "build", "dist", "node_modules", "__pycache__", ".*_cache")
WITH_COMMANDS = [page for page in PAGES if page != CHINESE and any(block.language == SHELL for block in blocks(page))]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout, with its environments, in which nobody has done anything yet."""
    copy = tmp_path / "aries-images"
    shutil.copytree(CHECKOUT, copy, ignore=NOT_COPIED)
    for environment in CHECKOUT.glob(".venv*"):
        if (environment / "bin").exists():
            (copy / environment.name).mkdir()
            for entry in environment.iterdir():
                (copy / environment.name / entry.name).symlink_to(entry)
            # Newer than the lock, so that make finds nothing to do.
            (copy / environment.name / ".installed").unlink(missing_ok=True)
            (copy / environment.name / ".installed").touch()
    return copy


@pytest.fixture
def environment(checkout: Path, tmp_path: Path) -> dict[str, str]:
    """The variables of somebody who has just logged in."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "redis-server").symlink_to(redis_binary())
    inherited = {name: os.environ[name] for name in ("HOME", "USER", "CI") if name in os.environ}
    path = f"{checkout / '.venv' / 'bin'}:{programs}:{os.environ['PATH']}"
    return inherited | {"PATH": path, "LANG": "C.UTF-8", "TERM": "dumb"}


@pytest.fixture
def servers(postgres_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Redis and a PostgreSQL with the sample images, keys, and the token of a caller, by their variables."""
    keys = tmp_path / "keys"
    make_keys(keys)
    with database_on(postgres_url) as database_url, RedisServer(tmp_path / "redis") as redis:
        upgrade(database_url)
        _load_samples(database_url)
        yield {
            "ARIES_BROKER_URL": redis.url(0),
            "ARIES_RESULT_URL": redis.url(1),
            "ARIES_DATABASE_URL": database_url,
            "ARIES_JWT_KEYS": str(keys / PUBLIC),
            "ARIES_TOKEN": SigningKey((keys / PRIVATE).read_bytes(), "orders").token(600),
        }


def _load_samples(database_url: str) -> None:
    database = Database(database_url)
    with database.transaction() as connection, SAMPLES.open("rb") as lines:
        rows, _ = read_images(lines)
        insert_images(connection, rows, Console(quiet=True))
    database.close()


def _do(terminal: Terminal, block: Block) -> None:
    """Do with a block what its notes say; without any: run it, and see that it succeeds."""
    for commands in block.noted("first"):
        terminal.run(commands)
    code = block.code
    for example, command in block.examples.items():
        assert example in code, f"{example} is not in the block"
        code = code.replace(example, terminal.run(command).strip())
    if words := block.note("stays up"):
        printed = terminal.keep_up(code, words)
        # As it asks for.
        terminal.run("\n".join(line for line in printed.splitlines() if line.strip().startswith("export ")))
    elif block.note("make -n") is not None:
        printed = terminal.run(f"export MAKEFLAGS=n; {code}\nunset MAKEFLAGS")
    else:
        printed = terminal.run(code, int(block.note("exit code") or 0))
    for words in block.noted("prints"):
        assert words in printed, f"it does not print {words!r}, but\n{printed}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_every_command_of_the_page_does_what_it_says(
    page: Path, checkout: Path, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    given: dict[str, Any] = {} if page.name in FROM_NOTHING else request.getfixturevalue("servers")
    with Terminal(checkout, environment | given, notes=tmp_path) as terminal:
        for block in blocks(page):
            if block.language == SHELL and block.note("run by") is None and block.note("not run") is None:
                try:
                    _do(terminal, block)
                except AssertionError as error:
                    raise AssertionError(f"{block.place}: {error}") from error
