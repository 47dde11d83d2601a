"""deploy/systemd: by systemd's own judgement, and as the compose file runs the same."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.composed import DEPLOY, SERVICES
from worker.settings import PREFIX, Settings

FOLDER = DEPLOY / "systemd"
UNITS = ["aries-gateway.service", "aries-migrate.service", "aries-worker@.service"]
SYSTEM = Path("/usr/lib/systemd/system")
#: systemd's figure for what a service could do to the machine, from 0 to 10. What is left is the network.
EXPOSURE = 1.2

units = pytest.mark.parametrize("unit", UNITS)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The root of a machine on which everything is installed as the units expect it."""
    if shutil.which("systemd-analyze") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the package systemd is not installed")
    system = tmp_path / "usr" / "lib" / "systemd" / "system"
    shutil.copytree(SYSTEM, system, symlinks=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    for unit in UNITS:
        shutil.copy(FOLDER / unit, system)
    programs = tmp_path / "opt" / "aries-images" / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("celery", "python"):
        (programs / name).touch(0o755)
    return tmp_path


def judged(machine: Path, *words: str) -> str:
    """What systemd says of a unit, but for what it says of the system's own."""
    command = [str(shutil.which("systemd-analyze")), *words, f"--root={machine}"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return "".join(line for line in done.stdout.splitlines(keepends=True) if "aries" in line)


@units
def test_systemd_understands_every_line(machine: Path, unit: str) -> None:
    instance = unit.replace("@", "@1")
    assert judged(machine, "verify", "--man=no", instance) == ""
    broken = machine / "usr" / "lib" / "systemd" / "system" / unit
    broken.write_text(broken.read_text().replace("NoNewPrivileges=yes", "NoNewPrivileges=perhaps"))
    assert "perhaps" in judged(machine, "verify", "--man=no", instance)


@units
def test_a_service_can_do_nothing_to_its_machine(machine: Path, unit: str) -> None:
    said = judged(machine, "security", "--offline=true", unit.replace("@", "@1"))
    exposure = re.search(r"exposure level for \S+: ([0-9.]+)", said)
    assert exposure, said
    assert float(exposure[1]) <= EXPOSURE


def value(unit: str, name: str) -> str:
    found = re.findall(rf"^{name}=(.*)$", (FOLDER / unit).read_text(), re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


def command(unit: str) -> list[str]:
    program, *words = value(unit, "ExecStart").split()
    return [Path(program).name, *words]


def test_services_run_as_in_the_compose_file() -> None:
    in_container = [word.replace("0.0.0.0", "127.0.0.1") for word in SERVICES["gateway"]["command"]]  # noqa: S104  # replaced
    assert command("aries-gateway.service") == in_container
    assert command("aries-migrate.service") == SERVICES["migrate"]["command"]
    *same, name = command("aries-worker@.service")
    assert f"CMD {json.dumps(same)}" in (DEPLOY / "Dockerfile").read_text()
    assert name == "--hostname=worker%i@%%h"
    assert f"{value('aries-gateway.service', 'TimeoutStopSec')}s" == SERVICES["gateway"]["stop_grace_period"]
    assert f"{value('aries-worker@.service', 'TimeoutStopSec')}s" == SERVICES["worker"]["stop_grace_period"]


def test_what_the_example_sets_are_settings() -> None:
    lines = [line for line in (FOLDER / "worker.env.example").read_text().splitlines() if not line.startswith("#")]
    assert {line.split("=")[0] for line in lines} <= {PREFIX + name.upper() for name in Settings.model_fields}
