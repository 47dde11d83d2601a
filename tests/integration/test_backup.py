"""The commands of docs/upkeep.md for backup and restore, run as they stand while a worker is at work."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.builders import stored_images
from tests.pages import blocks
from tests.service import Service, service_at
from tests.workers import CHECKOUT, running_worker, until
from worker.database import Database

SCRIPTS = [block.code for block in blocks(CHECKOUT / "docs" / "upkeep.md")]
[BACKUP] = [script for script in SCRIPTS if "pg_dump" in script]
[RESTORE] = [script for script in SCRIPTS if "createdb" in script]
#: What stands there for the restored database.
EXAMPLE = "postgresql://aries:secret@db.internal/aries_restored"


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    """A script of the documentation."""
    script = script.replace("python -m", f"{sys.executable} -m").replace("var/", f"{folder}/")
    done = subprocess.run(
        ["/bin/sh", "-euc", script],
        check=False, cwd=CHECKOUT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def under_load(service: Service, image: int) -> Iterator[None]:
    """One update after the other, until the end of the block."""
    ends = threading.Event()

    def ask() -> None:
        number = 0
        while not ends.is_set():
            number += 1
            service.client.update(image, description=str(number))

    caller = threading.Thread(target=ask)
    caller.start()
    yield
    ends.set()
    caller.join()


@pytest.fixture
def restored(postgresql_url: str) -> Iterator[str]:
    """The URL that the restored database will have."""
    url = urlsplit(postgresql_url)._replace(path="/aries_restored").geturl()
    yield url
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS aries_restored WITH (FORCE)")


def test_what_was_backed_up_at_work_is_whole_when_it_is_restored(
    broker_url: str, result_url: str, postgresql_url: str, restored: str, tmp_path: Path
) -> None:
    for program in ("pg_dump", "redis-cli"):
        if shutil.which(program) is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {program} on the PATH")
    with service_at(broker_url, result_url, postgresql_url) as service:
        image = service.image()
        with running_worker(service.environment), under_load(service, image["id"]):
            until(lambda: stored_images(service.database)[0]["revision"] > 10)
            run(BACKUP, tmp_path, service.environment)
        said = run(RESTORE.replace(EXAMPLE, restored), tmp_path, service.environment)
        assert "up to date" in said
        assert service.results.dbsize() == 0
        database = Database(restored)
        [then], [now] = stored_images(database), stored_images(service.database)
        database.close()
        assert 10 < then["revision"] <= now["revision"]
    with (
        service_at(broker_url, result_url, restored) as service,
        running_worker(service.environment),
    ):
        assert service.client.update(image["id"], name="goes on").revision == then["revision"] + 1
