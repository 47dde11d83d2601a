"""`python -m worker up`: everything at once, Flower with it, and nothing of it left when it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.flowers import ask
from tests.running import until
from tests.workers import CHECKOUT
from worker.embedded import end_child, start_child

LINK = re.compile(r"Watch it in Flower: http://127\.0\.0\.1:(\d+) +user: (\S+) +password: (\S+)\n")


def environment(checkout: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ARIES_")}
    return inherited | {"PYTHONPATH": str(checkout)}


@pytest.fixture
def somebody_at_5555() -> Iterator[None]:
    with socket.socket() as other:
        with suppress(OSError):  # in use already, which is as good
            other.bind(("127.0.0.1", 5555))
            other.listen()
        yield


@pytest.mark.usefixtures("somebody_at_5555")
def test_it_brings_up_flower_prints_a_link_and_takes_all_of_it_down(tmp_path: Path) -> None:
    log = tmp_path / "up.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "worker", "up"]
        up = start_child(command, cwd=tmp_path, env=environment(CHECKOUT), stdout=out, stderr=out)
    try:
        until(lambda: up.poll() is not None or "Ctrl-C" in log.read_text(), 60)
        if "without Flower" in log.read_text():
            (pytest.fail if os.environ.get("CI") else pytest.skip)("Flower is not installed")
        port, user, password = until(lambda: LINK.search(log.read_text()), 5).groups()  # type: ignore[union-attr]
        assert port != "5555"
        assert ask(int(port), "/api/tasks")[0] == 401
        until(lambda: "image 1, revision 2" in ask(int(port), "/api/tasks", (user, password))[1])
        family = psutil.Process(up.pid).children(recursive=True)
        assert len(family) == 3  # Redis, worker, Flower
    finally:
        end_child(up, signal.SIGTERM)
    assert up.returncode == 0
    until(lambda: not any(process.is_running() for process in family))


def test_without_flower_it_says_so_in_one_line_and_goes_on(tmp_path: Path) -> None:
    for name in ("aries_images", "celeryconfig.py", "models", "tasks", "worker"):
        (tmp_path / name).symlink_to(CHECKOUT / name)  # a checkout without .venv-flower
    program = """
from contextlib import ExitStack
from worker.commands import up
from worker.settings import load_settings
assert up._start_flower(ExitStack(), load_settings()) is None
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=environment(tmp_path), check=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.stdout.splitlines()[1:] == [
        "without Flower: Flower is not installed; `make .venv-flower/.installed` does that"
    ]
