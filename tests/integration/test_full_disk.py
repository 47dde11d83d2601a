"""Redis' disk is full: nothing is taken in and nothing is lost; when there is room again all goes on by itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from aries_images import OutcomeUnknown
from tests.builders import stored_image
from tests.service import service_at
from tests.workers import CHECKOUT, running_worker, until
from worker.embedded import RedisServer, ServerFailedError, start_child

#: In a file system of its own, which nobody else sees.
OF_ITS_OWN = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
MOUNT = 'mount -t tmpfs -o size=16m tmpfs "$0" && exec "$@"'


class SmallDisk(RedisServer):
    """A Redis whose folder has room for 16 MiB."""

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        with_disk = [*OF_ITS_OWN, MOUNT, str(self.folder), *map(str, self.command())]
        return start_child(with_disk, death=signal.SIGKILL, stdout=log, stderr=log)

    @property
    def _filler(self) -> Path:
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{self.folder}/filler")

    def fill(self) -> None:
        """Leave no room."""
        file = os.open(self._filler, os.O_CREAT | os.O_WRONLY)
        with suppress(OSError):
            while True:
                os.write(file, bytes(4096))
        os.close(file)
        assert os.statvfs(self._filler).f_bavail == 0

    def clear(self) -> None:
        """What an operator does."""
        self._filler.unlink()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        with SmallDisk(tmp_path / "redis") as server:
            yield server
    except ServerFailedError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no disk of its own to be had: {error}")


def test_a_full_disk_of_redis_is_told_and_survived(redis: SmallDisk, postgresql_url: str) -> None:
    with (
        service_at(redis.url(0), redis.url(1), postgresql_url) as service,
        running_worker(service.environment),
    ):
        image = service.image()
        assert service.client.update(image["id"], description="before").revision == 2
        redis.fill()

        def is_refused() -> bool:
            try:
                service.client.update(image["id"], description="meanwhile", request_id="r-1", timeout=2)
            except OutcomeUnknown as error:
                return "No space left on device" in str(error)
            return False

        until(is_refused, 30)
        said = subprocess.run(
            [sys.executable, "-m", "worker", "check"],
            check=False, cwd=CHECKOUT, env=os.environ | service.environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert said.returncode == 2
        assert "✗ persistence" in said.stdout
        assert "its disk is full, or broken" in said.stdout
        redis.clear()
        assert service.client.update(image["id"], description="meanwhile", request_id="r-1", timeout=40).revision == 3
        assert stored_image(service.database, image["id"])["revision"] == 3
        until(service.is_idle, 40)
