"""What deploy/ deploys: its images are built step by step, and run as the compose file says, with its own Redis."""

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from aries_images.signing import SigningKey
from tests.builders import an_image, load
from tests.composed import ComposedRedis, Composition, made_secrets, redis_is_healthy, variables
from tests.gateways import Gateway
from tests.images import Stage, build
from tests.servers import database_on
from tests.workers import CHECKOUT, until
from worker.commands.token import PRIVATE, make_keys
from worker.database import Database
from worker.embedded import ServerFailedError

DOCKERFILE = CHECKOUT / "deploy" / "Dockerfile"


def missing(reason: str) -> None:
    """A reason to skip on a desk, and a failure in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def built(folder: Path, target: str = "") -> Stage:
    if target == "flower" and not (CHECKOUT / ".venv-flower").exists():
        missing("no Flower: `make flower` installs it")
    try:
        return build(DOCKERFILE, folder, target)
    except ServerFailedError as error:
        missing(str(error))
        raise


@dataclass(frozen=True)
class Town:
    """A deployment before its first start: its servers are there, and empty."""

    composition: Composition
    redis: ComposedRedis
    secrets: Path
    database_url: str

    def token(self) -> str:
        return SigningKey((self.secrets / PRIVATE).read_bytes(), "orders").token(600)


@pytest.fixture
def town(postgres_url: str, tmp_path: Path) -> Iterator[Town]:
    secrets = made_secrets(tmp_path)
    make_keys(secrets)
    with ComposedRedis(tmp_path / "redis", secrets) as redis, database_on(postgres_url) as database_url:
        yield Town(Composition(tmp_path, secrets, redis, database_url), redis, secrets, database_url)


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


@pytest.mark.timeout(300)
def test_worker_gateway_and_commands_run_in_the_image_and_nothing_can_be_written(town: Town, tmp_path: Path) -> None:
    image, composition = built(tmp_path / "build"), town.composition
    assert closed_or_raw(image) == []
    assert composition.ran("worker", image, "python", "-c", WRITES) == (0, "1 10001 0000000000000000\n")
    assert composition.ran("worker", image, "python", "-m", "aries_images", "--help")[0] == 0
    code, said = composition.ran("migrate", image)
    assert (code, "it was empty" in said) == (0, True), said
    database = Database(town.database_url)
    load(database, an_image(1))
    database.close()
    with composition.running("worker", image) as worker, composition.running("gateway", image) as serving:
        gateway = Gateway(composition.ports["8080"], serving.log)
        until(lambda: gateway.is_up() and gateway.ask("GET", "/readyz").status == 200, 40)
        answer = gateway.put({"id": 1, "name": "from a container"}, authorization=f"Bearer {town.token()}")
        assert (answer.status, answer.headers["etag"]) == (200, '"2"'), answer.body
        assert composition.is_healthy("worker", image)
        assert composition.is_healthy("gateway", image)
        code, said = composition.ran("operator", image, ARIES_TOKEN=town.token())
        assert code == 0, said
        assert worker.stop(signal.SIGTERM) == 0
        assert not composition.is_healthy("worker", image)
        assert serving.stop(signal.SIGTERM) == 0
    assert '"event":"answered"' in worker.log.read_text()


def closed_or_raw(image: Stage) -> list[Path]:
    """What a user that owns nothing can't read, and what of ours is not compiled."""
    both = [path for folder in ("app", "venv") for path in (image.root / folder).rglob("*") if not path.is_symlink()]
    closed = [path for path in both if not path.stat().st_mode & (0o005 if path.is_dir() else 0o004)]
    ours = [file for file in (image.root / "app").rglob("*.py") if "versions" not in file.parts]
    assert ours
    return closed + [file for file in ours if not [*(file.parent / "__pycache__").glob(f"{file.stem}.*.pyc")]]


def test_flower_runs_in_its_image_and_asks_for_a_login(town: Town, tmp_path: Path) -> None:
    image, port = built(tmp_path / "build", "flower"), town.composition.ports["5555"]
    with town.composition.running("flower", image):
        until(lambda: status(port, "/healthcheck") == 200, 40)
        assert town.composition.is_healthy("flower", image)
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


def test_redis_is_healthy_only_where_the_operator_may_log_in(town: Town) -> None:
    if shutil.which("redis-cli") is None:
        missing("no redis-cli: the package redis-tools is not installed")
    told = variables(town.secrets / "redis.env")
    assert redis_is_healthy(town.redis, told)
    assert not redis_is_healthy(town.redis, {"OPERATOR_PASSWORD": "wrong"})
    town.redis.stop()
    assert not redis_is_healthy(town.redis, told)
