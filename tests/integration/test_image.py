"""The container images: what deploy/Dockerfile says is done step by step, and its worker, gateway and commands run."""

import os
import signal
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from aries_images.signing import SigningKey
from tests.builders import an_image, load
from tests.gateways import Gateway
from tests.images import SECRETS, Stage, build, container_words, running_container
from tests.servers import database_on
from tests.workers import CHECKOUT, until
from worker.commands.token import PRIVATE, PUBLIC, make_keys
from worker.database import Database
from worker.embedded import ServerFailedError, free_port

DOCKERFILE = CHECKOUT / "deploy" / "Dockerfile"


def built(folder: Path, target: str = "") -> Stage:
    """An image. What is missing to build it is a reason to skip on a desk, and a failure in CI."""
    missing = pytest.fail if os.environ.get("CI") else pytest.skip
    if target == "flower" and not (CHECKOUT / ".venv-flower").exists():
        missing("no Flower: `make flower` installs it")
    try:
        return build(DOCKERFILE, folder, target)
    except ServerFailedError as error:
        missing(str(error))


@pytest.fixture
def settings(broker_url: str, result_url: str, postgres_url: str) -> Iterator[dict[str, str]]:
    """Of a deployment whose database is empty."""
    with database_on(postgres_url) as database_url:
        yield {
            "ARIES_BROKER_URL": broker_url,
            "ARIES_RESULT_URL": result_url,
            "ARIES_DATABASE_URL": database_url,
            "ARIES_JWT_KEYS": f"{SECRETS}/{PUBLIC}",
            "ARIES_METRICS_PORT": str(free_port()),
        }


WRITES = """
import os
for path in ("/x", "/app/x", "/venv/x", "/etc/x", "/app/worker/__pycache__/x", "/run/x", "/run/secrets/x"):
    try:
        open(path, "w")
    except OSError:
        continue
    raise SystemExit(path)
print(os.getpid(), os.getuid(), *(line.split()[1] for line in open("/proc/self/status") if "CapEff" in line))
"""


def test_the_image_runs_worker_gateway_and_commands_with_nothing_to_write_to(
    settings: dict[str, str], tmp_path: Path
) -> None:
    image = built(tmp_path / "build")
    make_keys(tmp_path)
    keys = [tmp_path / PUBLIC]

    def ran(*command: str, **others: str) -> tuple[int, str]:
        done = subprocess.run(
            container_words(image, settings | others, keys, *command),
            check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout

    assert is_for_everybody(image)
    assert ran("python", "-c", WRITES) == (0, "1 10001 0000000000000000\n")
    assert ran("python", "-m", "aries_images", "--help")[0] == 0
    code, said = ran("python", "-m", "worker", "migrate")
    assert (code, "it was empty" in said) == (0, True), said
    database = Database(settings["ARIES_DATABASE_URL"])
    load(database, an_image(1))
    database.close()
    port = free_port()
    serve = ["uvicorn", "gateway.app:app", "--host=127.0.0.1", f"--port={port}", "--no-access-log"]
    with (
        running_container(container_words(image, settings, keys), tmp_path / "worker.log") as worker,
        running_container(container_words(image, settings, [], *serve), tmp_path / "gateway.log") as gate,
    ):
        gateway = Gateway(port, gate.log)
        until(lambda: gateway.is_up() and gateway.ask("GET", "/readyz").status == 200, 40)
        token = SigningKey((tmp_path / PRIVATE).read_bytes(), "orders").token(600)
        answer = gateway.put({"id": 1, "name": "from a container"}, authorization=f"Bearer {token}")
        assert (answer.status, answer.headers["etag"]) == (200, '"2"'), answer.body
        code, said = ran("python", "-m", "worker", "check", ARIES_TOKEN=token)
        assert (code, "✗" in said) == (1, False), said  # the tests' Redis keeps nothing
        assert worker.stop(signal.SIGTERM) == 0
        assert gate.stop(signal.SIGTERM) == 0
    assert "Warm shutdown" in worker.log.read_text()


def is_for_everybody(image: Stage) -> bool:
    """Whether a user that owns nothing can read everything, and all of ours is compiled."""
    closed = [
        path
        for folder in ("app", "venv")
        for path in (image.root / folder).rglob("*")
        if not path.is_symlink() and not path.stat().st_mode & (0o005 if path.is_dir() else 0o004)
    ]
    ours = [file for file in (image.root / "app").rglob("*.py") if "versions" not in file.parts]
    raw = [file for file in ours if not [*(file.parent / "__pycache__").glob(f"{file.stem}.*.pyc")]]
    assert ours
    assert (closed, raw) == ([], [])
    return True


def test_the_image_of_flower_asks_for_a_login(broker_url: str, tmp_path: Path) -> None:
    image, port = built(tmp_path / "build", "flower"), free_port()
    settings = {"ARIES_BROKER_URL": broker_url, "FLOWER_BASIC_AUTH": "aries:secret", "FLOWER_ADDRESS": "127.0.0.1"}
    command = [*image.command, f"--port={port}", "--address=127.0.0.1"]
    with running_container(container_words(image, settings, [], *command), tmp_path / "flower.log"):
        until(lambda: status(port, "/healthcheck") == 200, 40)
        assert status(port, "/workers") == 401


def status(port: int, path: str) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()
