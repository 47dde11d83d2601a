"""What other services install: the wheel, in a virtual environment that holds nothing else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.stand_in import stand_in

ROOT = Path(__file__).parents[2]

#: The first call that a service makes, with both URLs from the environment.
CALL = """
import json
from aries_images import ImageClient

with ImageClient() as client:
    image = client.update(1, name="Debian 12")
    print(json.dumps({"name": image.name, "revision": image.revision, "from": ImageClient.__module__}))
"""


def _run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it asks for, in the locked versions."""
    folder = tmp_path_factory.mktemp("environment")
    # Hashes may not stand in a constraints file: the versions alone go there.
    pins = re.findall(r"^[\w.\[\]-]+==[^\s;\\]+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins))
    _run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    _run(*_pip(python), "install", "--quiet", "--constraint", constraints, wheel)
    return python


def _pip(python: Path) -> list[str | Path]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]


def test_the_wheel_holds_the_client_alone(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"aries_images"}
    assert {"aries_images/client.py", "aries_images/contract.py", "aries_images/py.typed"} <= set(names)


@pytest.mark.timeout(300)
def test_installing_it_brings_nothing_of_the_worker(python: Path) -> None:
    installed = {package["name"].lower() for package in json.loads(_run(*_pip(python), "list", "--format=json"))}
    assert {"aries-images", "kombu", "redis", "pydantic"} <= installed
    assert not {"sqlalchemy", "alembic", "psycopg", "rich", "structlog", "pydantic-settings"} & installed
    _run(*_pip(python), "check")


@pytest.mark.timeout(300)
def test_a_call_from_the_installed_wheel_is_answered(python: Path, broker_url: str, result_url: str) -> None:
    urls = {"ARIES_BROKER_URL": broker_url, "ARIES_RESULT_URL": result_url}
    with stand_in(broker_url, result_url):
        said = _run(python, "-I", "-W", "error", "-c", CALL, env=os.environ | urls, cwd=python.parent)
    assert json.loads(said) == {"name": "Debian 12", "revision": 2, "from": "aries_images.client"}
