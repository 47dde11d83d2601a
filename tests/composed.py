"""The services of deploy/compose.yaml, run without an engine: their images, environment, commands and health checks."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml
from redis import Redis
from redis.exceptions import RedisError

from tests.images import Container, Stage, container_words, running_container
from tests.workers import CHECKOUT
from worker.embedded import RedisServer, free_port, redis_binary, start_child

DEPLOY = CHECKOUT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def variables(file: Path) -> dict[str, str]:
    """What an env file says."""
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


class ComposedRedis(RedisServer):
    """The server that the file deploy/redis/redis.conf makes, with the users in `secrets`."""

    def __init__(self, folder: Path, secrets: Path) -> None:
        super().__init__(folder)
        self._users = secrets / "users.acl"
        self.password = variables(secrets / "redis.env")["OPERATOR_PASSWORD"]

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        here = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "aclfile": self._users}
        options = [word for name, value in here.items() for word in (f"--{name}", str(value))]
        command = [redis_binary(), DEPLOY / "redis" / "redis.conf", *options]
        return start_child(command, death=self.death, stdout=log, stderr=log)

    def _answers(self, pid: int) -> bool:
        try:
            with Redis(port=self.port, username="operator", password=self.password, socket_timeout=1) as client:
                return bool(client.info("server")["process_id"] == pid)
        except RedisError:
            return False


class Composition:
    """A deployment on this machine; its addresses are the only thing that is not as the file has it."""

    def __init__(self, folder: Path, secrets: Path, redis: RedisServer, database_url: str) -> None:
        self._folder, self._secrets = folder, secrets
        self.ports = {port: free_port() for port in ("8080", "9108", "5555")}
        self._here = {
            r"@redis:6379": f"@127.0.0.1:{redis.port}",
            r"postgresql://\S+@postgres/aries": database_url,
            r"0\.0\.0\.0": "127.0.0.1",
            **{rf"\b{port}\b": str(here) for port, here in self.ports.items()},
        }

    def _at_home(self, text: str) -> str:
        for there, here in self._here.items():
            text = re.sub(there, here, text)
        return text

    def words(self, service: str, image: Stage, *command: str, **others: str) -> list[str | Path]:
        """The command line of a service, or of another command in its place."""
        asked = SERVICES[service]
        told = variables(self._secrets / Path(asked["env_file"]).name) | asked.get("environment", {})
        environment = {name: self._at_home(value) for name, value in told.items()}
        secrets = [self._secrets / name for name in asked.get("secrets", ())]
        words = command or asked.get("command", image.command)
        return container_words(image, environment | others, secrets, *map(self._at_home, words))

    def ran(self, service: str, image: Stage, *command: str, **others: str) -> tuple[int, str]:
        """A service that ends by itself: its exit code, and what it said."""
        words = self.words(service, image, *command, **others)
        done = subprocess.run(
            words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
        )
        return done.returncode, done.stdout

    @contextmanager
    def running(self, service: str, image: Stage) -> Iterator[Container]:
        """A service that stays."""
        with running_container(self.words(service, image), self._folder / f"{service}.log") as container:
            yield container

    def is_healthy(self, service: str, image: Stage) -> bool:
        """What its health check finds."""
        _, *command = SERVICES[service]["healthcheck"]["test"]
        return self.ran(service, image, *command)[0] == 0


def made_secrets(folder: Path) -> Path:
    """What an operator has in deploy/secrets before the first start, but for the keys."""
    secrets = folder / "secrets"
    subprocess.run([sys.executable, DEPLOY / "make_secrets.py", secrets], check=True, stdout=subprocess.DEVNULL)
    return secrets


def redis_is_healthy(redis: RedisServer, environment: Mapping[str, str]) -> bool:
    """What the health check of the broker finds, asked with Redis' own program in the place of Valkey's."""
    _, test = SERVICES["redis"]["healthcheck"]["test"]
    words = shlex.split(test.replace("$$OPERATOR_PASSWORD", environment["OPERATOR_PASSWORD"]))
    assert words[0] == "valkey-cli"
    return (
        subprocess.run([str(shutil.which("redis-cli")), "-p", str(redis.port), *words[1:]], check=False).returncode == 0
    )
