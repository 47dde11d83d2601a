"""A worker with a Redis and a database of its own, in a process that ends with this one; and how to order it about."""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

#: What the process runs. By its path, so that nothing depends on what is on the path for modules.
_PROGRAM = Path(__file__).parent / "_child" / "__main__.py"
#: Environment variables that are not passed on: the worker, and Celery, would go by them.
_NOT_INHERITED = ("ARIES_", "CELERY_")
#: Seconds that it may take to start, to do as ordered, and to end.
_START, _ORDER, _END = 60.0, 30.0, 10.0
#: Lines of its log that are shown when it has failed.
_LINES = 25


class WorkerFailedError(RuntimeError):
    """The worker did not start, or is no longer there; the message ends with what it logged last."""


class WorkerProcess:
    """A worker that takes requests, from when this is made until `stop`.

    Args:
        folder: an empty one, for its database and its log.

    Attributes:
        broker_url: where requests go.
        result_url: where answers come from.
        log: the file that it logs to.

    Raises:
        WorkerFailedError: it did not start.
    """

    def __init__(self, folder: Path) -> None:
        self.log = folder / "worker.log"
        self._line, its_end = socket.socketpair()
        self._answers = self._line.makefile("rb")
        self._lock = threading.Lock()
        # -P: neither this folder nor the program's is looked into for modules. Tests are run in folders that have a
        # `worker` or a `models` of their own.
        command = [sys.executable, "-P", str(_PROGRAM), str(os.getpid())]
        with its_end, self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # a program of our own
                command,
                stdin=its_end.fileno(),
                stdout=log,
                stderr=log,
                cwd=folder,
                env={name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)},
                process_group=0,  # Ctrl-C is for pytest, which then ends this in order
            )
        urls = self._read_answer(_START)
        self.broker_url: str = urls["broker_url"]
        self.result_url: str = urls["result_url"]

    def order(self, name: str, **arguments: Any) -> Any:
        """Have something done; what comes of it.

        Raises:
            ValueError: it can't be done; the text says why.
            WorkerFailedError: the worker is no longer there.
        """
        with self._lock:
            try:
                self._line.sendall(json.dumps([name, arguments]).encode() + b"\n")
            except OSError:
                raise self._failed("has ended") from None
            answer = self._read_answer(_ORDER)
        if "refused" in answer:
            raise ValueError(answer["refused"])
        return answer["done"]

    def _read_answer(self, seconds: float) -> dict[str, Any]:
        self._line.settimeout(seconds)
        try:
            line = self._answers.readline()
        except TimeoutError:
            raise self._failed(f"has not answered for {seconds:g} s") from None
        except OSError:
            line = b""
        if not line:
            raise self._failed("has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End it, with all that it has started."""
        with suppress(OSError):  # it may have ended already
            # Closed alone it would stay open: what this process has forked may hold it.
            self._line.shutdown(socket.SHUT_RDWR)
        self._answers.close()
        self._line.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _failed(self, how: str) -> WorkerFailedError:
        self.stop()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-_LINES:])
        needs = "what it needs is installed by: pip install 'aries-images[testing]'"
        return WorkerFailedError(f"the worker {how}; {needs}. {self.log} ends with:\n{tail}")
