"""Flower as a child process, out of an environment of its own."""

import os
import subprocess
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO

from worker.embedded import Server, ServerFailedError, start_child

_CHECKOUT = Path(__file__).parents[1]


class FlowerServer(Server):
    """Flower on the loopback interface, set up as `deploy/flowerconfig.py` says: read-only, and with a login."""

    def __init__(self, folder: Path, broker_url: str, port: int | None = None) -> None:
        super().__init__(folder, port)
        self._broker_url = broker_url
        self._login_file = self.folder / "login"

    @property
    def url(self) -> str:
        """The URL of its first page."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def login(self) -> tuple[str, str]:
        """User and password, made up when it was first started in this folder."""
        user, _, password = self._login_file.read_text().strip().partition(":")
        return user, password

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        celery = _CHECKOUT / ".venv-flower" / "bin" / "celery"
        if not celery.exists():
            raise ServerFailedError("Flower is not installed; `make .venv-flower/.installed` does that")
        # What the shell may have for another Flower is not for this one.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLOWER_")}
        own = {"ARIES_BROKER_URL": self._broker_url, "FLOWER_LOGIN_FILE": str(self._login_file)}
        place: list[str | Path] = ["--workdir", _CHECKOUT / "deploy", "-A", "flower_app"]
        return start_child(
            [celery, *place, "flower", f"--port={self.port}"],
            death=self.death,
            stdout=log,
            stderr=log,
            env=inherited | own,
        )

    def _answers(self, pid: int) -> bool:  # noqa: ARG002  # the port is nobody else's
        connection = HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
