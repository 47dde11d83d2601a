"""The README's Python examples, as they stand: run one after the other against a real worker, or as tests by pytest."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aries_images.signing import SigningKey
from worker.commands.token import PRIVATE, PUBLIC, make_keys
from worker.embedded import end_child, start_child

ROOT = Path(__file__).parents[2]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


BLOCKS = python_blocks(ROOT / "README.md")
TESTS = [block for block in BLOCKS if "def test_" in block]
EXAMPLES = [block for block in BLOCKS if block not in TESTS]


def run(environment: dict[str, str], *words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def environment(broker_url: str, result_url: str, sqlite_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a running worker whose database has the sample images."""
    urls = {"ARIES_BROKER_URL": broker_url, "ARIES_RESULT_URL": result_url, "ARIES_DATABASE_URL": sqlite_url}
    make_keys(tmp_path)
    token = SigningKey((tmp_path / PRIVATE).read_bytes(), "readme").token(600)
    environment = os.environ | urls | {"ARIES_JWT_KEYS": str(tmp_path / PUBLIC), "ARIES_TOKEN": token}
    run(environment, "-m", "worker", "import", "worker/commands/samples.jsonl")
    with (tmp_path / "worker.log").open("wb") as log:
        command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "--without-mingle"]
        worker = start_child(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    yield environment
    end_child(worker, signal.SIGTERM)


def test_the_examples_do_what_they_say(environment: dict[str, str]) -> None:
    examples = EXAMPLES
    for number, name in enumerate(("ARIES_BROKER_URL", "ARIES_RESULT_URL")):
        in_readme = f"redis://127.0.0.1:6379/{number}"
        assert any(in_readme in example for example in examples)
        examples = [example.replace(in_readme, environment[name]) for example in examples]
    client, plain_celery, event = [run(environment, "-c", example) for example in examples]
    assert client == "CentOS-7.9-x64-updated 2\n"
    assert plain_celery.startswith("200 {'id': 1, 'name': 'CentOS-7.9-x64-updated'")
    assert "sent by plain Celery" in plain_celery
    assert event.startswith("aries.image.updated {'request_id': ")


def test_the_tests_of_a_service_pass(tmp_path: Path) -> None:
    [of_the_readme] = TESTS
    [of_its_page] = python_blocks(ROOT / "docs" / "testing.md")
    (tmp_path / "test_readme_section.py").write_text(of_the_readme)
    (tmp_path / "test_page.py").write_text(of_its_page)
    # Installed, pytest finds the plugin by itself (test_wheel.py). Here it is named, and others, which take seconds, not.
    words = ["-m", "pytest", "-p", "pytest_aries_images", f"--rootdir={tmp_path}", "-q", tmp_path]
    assert "4 passed" in run(os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, *words)
