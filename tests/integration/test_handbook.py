"""Every command of the handbook, page by page as a reader pastes them into a terminal, against real parts."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from aries_images.signing import SigningKey
from models.migrations import upgrade
from tests.conftest import NeedProgram
from tests.pages import CHINESE, PAGES, Block, blocks
from tests.servers import database_on
from tests.terminals import Terminal
from tests.workers import CHECKOUT, running_worker
from worker.commands.import_images import insert_images, read_images
from worker.commands.token import PRIVATE, PUBLIC, make_keys
from worker.commands.up import SAMPLES
from worker.database import Database
from worker.embedded import RedisServer, redis_binary

#: Pages that begin with nothing. The others take servers and a token for granted, and name them by their variables.
FROM_NOTHING = {"README.md", "incidents.md", "quickstart.md"}
#: Pages for those who call a service that is there.
WITH_A_WORKER = {"callers.md"}
#: Programs that a page may not be without.
PROGRAMS = {"git", "jq", "pg_dump", "pg_restore", "createdb", "prlimit", "psql", "redis-cli", "sqlite3"}
#: Flower's environment, which `make run` would install otherwise.
FLOWER = CHECKOUT / ".venv-flower"
#: What is made, installed or kept beside the checkout, and is no part of it.
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", "var", "build", "dist", "node_modules", ".*_cache")
#: What a reader has who did as the pages say.
ARIES_IMAGES = '#!/bin/sh\nexec python -m aries_images "$@"\n'
FREE_PORT = '#!/bin/sh\nexec python -c "from worker.embedded import free_port; print(free_port())"\n'

TO_RUN = {page: [block for block in blocks(page) if block.is_run] for page in PAGES if page != CHINESE}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout, with its environments, in which nobody has done anything yet."""
    copy = tmp_path / "aries-images"
    shutil.copytree(CHECKOUT, copy, ignore=NOT_COPIED)
    for name, environment in {".venv": Path(sys.prefix), FLOWER.name: FLOWER}.items():
        (copy / name).mkdir()
        for entry in environment.iterdir():
            if entry.name != ".installed":
                (copy / name / entry.name).symlink_to(entry)
        # Newer than the lock, so that make finds nothing to do.
        (copy / name / ".installed").touch()
    return copy


@pytest.fixture
def environment(checkout: Path, tmp_path: Path) -> dict[str, str]:
    """The variables of somebody who has just logged in."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "redis-server").symlink_to(redis_binary())
    for name, text in {"aries-images": ARIES_IMAGES, "free-port": FREE_PORT}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
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
    code = block.code if block.language == "sh" else f"python -c {shlex.quote(block.code)}"
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


@pytest.fixture(params=[page for page, found in TO_RUN.items() if found], ids=lambda page: page.stem)
def page(request: pytest.FixtureRequest, need_program: NeedProgram) -> Path:
    """A page that has something to run, where there is what it takes."""
    page: Path = request.param
    for program in PROGRAMS.intersection(re.findall(r"[a-z_-]+", page.read_text())):
        need_program(program)
    if not (FLOWER / ".installed").exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Flower is not installed")
    return page


@pytest.fixture
def terminal(page: Path, checkout: Path, environment: dict[str, str], servers: dict[str, str]) -> Iterator[Terminal]:
    """The terminal of somebody who begins to read the page, in the checkout."""
    given = {name.replace("ARIES", "SPARE"): value for name, value in servers.items()}
    if page.name not in FROM_NOTHING:
        given |= servers
    with ExitStack() as stack:
        if page.name in WITH_A_WORKER:
            stack.enter_context(running_worker(servers))
        yield stack.enter_context(Terminal(checkout, environment | given, notes=checkout.parent))


@pytest.mark.timeout(300)
def test_every_command_of_the_page_does_what_it_says(page: Path, terminal: Terminal) -> None:
    for block in TO_RUN[page]:
        try:
            _do(terminal, block)
        except AssertionError as error:
            raise AssertionError(f"{block.place}: {error}") from error
