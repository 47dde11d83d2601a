"""What other services install: the wheel, in virtual environments that hold nothing but what it asks for."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

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


#: A service that has code of its own under names that are ours in the checkout, and its tests.
SERVICE = {
    "worker.py": """
from aries_images import ImageClient

def rename(image, name):
    with ImageClient() as client:
        return client.update(image, name=name, timeout=1).name
""",
    "models/__init__.py": "TABLE = 'orders'\n",
    "tasks.py": "raise ImportError('nobody asked for the tasks of the service')\n",
    "celeryconfig.py": "raise ImportError('nor for its settings')\n",
    "tests/test_orders.py": """
import pytest
import models
import worker
from aries_images import ImageNameExists, OutcomeUnknown

def test_a_rename(aries_images):
    aries_images.load(1)
    assert worker.rename(1, "new") == "new"
    assert aries_images.image(1).revision == 2
    assert models.TABLE == "orders"

def test_a_name_that_is_taken(aries_images):
    aries_images.load(1)
    aries_images.refuse_next(ImageNameExists)
    with pytest.raises(ImageNameExists):
        worker.rename(1, "new")

def test_silence(aries_images):
    aries_images.load(1)
    aries_images.ignore_next()
    with pytest.raises(OutcomeUnknown):
        worker.rename(1, "new")
    assert aries_images.image(1).revision == 1
""",
}


def _run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # By way of the sdist, which has to hold all that the wheel is made from.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
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


def test_the_wheel_holds_nothing_that_could_be_anothers(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    top = {name.split("/")[0].split("-")[0] for name in names}
    assert top == {"aries_images", "pytest_aries_images.py"}
    assert {"aries_images/client.py", "aries_images/contract.py", "aries_images/py.typed"} <= set(names)


def test_the_wheel_has_the_application_whole_as_data(wheel: Path) -> None:
    prefix = "aries_images/testing/_application/"
    packed = {name.removeprefix(prefix) for name in ZipFile(wheel).namelist() if name.startswith(prefix)}
    files = [file for part in ("models", "tasks", "worker") for file in (ROOT / part).rglob("*.*")]
    there = {str(file.relative_to(ROOT)) for file in files if file.suffix != ".pyc"}
    assert packed == there | {"celeryconfig.py"}


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


def _asked_for(requirement: str, path: list[str]) -> Iterator[metadata.Distribution]:
    """What is installed on `path` of what is asked for, and of what that asks for in its turn."""
    waiting, seen = [Requirement(requirement)], set()
    while waiting:
        wanted = waiting.pop()
        key = (wanted.name, *sorted(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        distribution = next(iter(metadata.distributions(name=wanted.name, path=path)))
        yield distribution
        extras = [{"extra": extra} for extra in ("", *wanted.extras)]
        needs = [Requirement(line) for line in distribution.requires or ()]
        waiting += [need for need in needs if not need.marker or any(map(need.marker.evaluate, extras))]


@pytest.fixture(scope="module")
def service_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and what its extra `testing` asks for, and nothing else.

    In the versions that are installed here, to which it has links: that takes no network, and hardly any time.
    """
    folder = tmp_path_factory.mktemp("service-environment")
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    _run(*_pip(python), "install", "--quiet", "--no-deps", "--no-index", wheel)
    [packages] = folder.glob("lib/python*/site-packages")
    for distribution in [*_asked_for("aries-images[testing]", [str(packages), *sys.path])]:
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(str(distribution.locate_file(name)))
    return python


def test_a_services_tests_have_a_worker_from_the_wheel(service_python: Path, tmp_path: Path) -> None:
    _run(*_pip(service_python), "check")
    for name, text in SERVICE.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    # With no other Redis at hand than the one that was installed.
    environment = {"PATH": str(service_python.parent)}
    said = _run(service_python, "-m", "pytest", "-W", "error", cwd=tmp_path, env=environment)
    assert "3 passed" in said
