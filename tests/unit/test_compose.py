"""deploy/compose.yaml: by its schema, and against what it speaks of: settings, users of Redis, files, images."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.composed import COMPOSE, DEPLOY, SERVICES, made_secrets, variables
from tests.images import steps
from worker.settings import PREFIX, Settings

#: Built by us.
OURS = ("migrate", "worker", "gateway", "operator", "flower")

services = pytest.mark.parametrize("name", SERVICES)


def test_the_file_is_one_by_the_specification() -> None:
    compose = PyCompose.from_yaml(yaml.dump(COMPOSE, Dumper=yaml.SafeDumper))  # without merge keys, which it reads not
    compose.validate()
    compose.to_spec()


@services
def test_nobody_can_write_become_more_or_use_up_the_machine(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["logging"]["options"]["max-size"]
    assert "privileged" not in service
    assert name not in OURS or "cap_add" not in service


@services
def test_what_is_published_is_so_on_the_loopback_interface(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


@services
def test_who_stays_has_a_health_check_and_who_is_waited_for_too(name: str) -> None:
    service = SERVICES[name]
    assert ("healthcheck" in service) == (service["restart"] != "no")
    for other, wait in service.get("depends_on", {}).items():
        stays = SERVICES[other]["restart"] != "no"
        assert wait["condition"] == ("service_healthy" if stays else "service_completed_successfully")


@services
def test_what_is_mounted_is_there_or_is_a_volume(name: str, tmp_path: Path) -> None:
    made = {file.name for file in made_secrets(tmp_path).iterdir()} | {"jwks.json"}
    for mount in SERVICES[name].get("volumes", ()):
        source = mount.split(":")[0]
        if source.startswith("./secrets/"):
            assert source.removeprefix("./secrets/") in made
        else:
            assert (DEPLOY / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]
        assert mount.endswith(":ro") == source.startswith("./")
    assert Path(SERVICES[name].get("env_file", "secrets/redis.env")).name in made
    assert all(Path(COMPOSE["secrets"][secret]["file"]).name in made for secret in SERVICES[name].get("secrets", ()))


def told(name: str, secrets: Path) -> dict[str, Any]:
    service = SERVICES[name]
    return variables(secrets / Path(service["env_file"]).name) | service.get("environment", {})


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_ours_is_a_setting(name: str, tmp_path: Path) -> None:
    ours = {variable for variable in told(name, made_secrets(tmp_path)) if variable.startswith(PREFIX)}
    assert ours
    assert ours <= {PREFIX + setting.upper() for setting in Settings.model_fields}


@pytest.mark.parametrize("name", OURS)
def test_each_service_logs_in_as_a_user_that_redis_knows_and_in_a_network_with_its_servers(
    name: str, tmp_path: Path
) -> None:
    secrets = made_secrets(tmp_path)
    service, environment = SERVICES[name], told(name, secrets)
    user = re.fullmatch(r"redis://(\w+):(\S+)@redis:6379/0", environment["ARIES_BROKER_URL"])
    assert user
    assert f"\nuser {user[1]} on #" in (secrets / "users.acl").read_text()
    assert user[2] not in (secrets / "users.acl").read_text()
    needed = {"queue"} if name != "migrate" else set()
    needed |= {"database"} if "ARIES_DATABASE_URL" in environment else set()
    assert needed <= set(service["networks"])


def test_the_servers_with_data_can_not_reach_the_world_nor_be_reached() -> None:
    for name in ("redis", "postgres", "worker", "migrate", "operator"):
        assert all(COMPOSE["networks"][network] == {"internal": True} for network in SERVICES[name]["networks"])
        assert "ports" not in SERVICES[name]


def test_secrets_are_made_once_and_for_their_owner(tmp_path: Path) -> None:
    secrets = made_secrets(tmp_path)
    before = {file.name: file.read_text() for file in secrets.iterdir()}
    with pytest.raises(Exception, match="returned non-zero exit status 1"):
        made_secrets(tmp_path)
    assert {file.name: file.read_text() for file in secrets.iterdir()} == before
    assert {file.stat().st_mode & 0o777 for file in secrets.glob("*.env")} == {0o600}
    passwords = [value for file in secrets.glob("*.env") for value in re.findall(r":([\w-]{16,})@", file.read_text())]
    assert len(set(passwords)) == 7  # six users of Redis, one of PostgreSQL


def test_what_is_built_is_built_from_stages_that_are_there() -> None:
    stages = [
        rest.split(" AS ")[1]
        for name, rest in steps((DEPLOY / "Dockerfile").read_text())
        if " AS " in rest and name == "FROM"
    ]
    for name in OURS:
        build = SERVICES[name]["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).exists()
        assert build.get("target") in (None, *stages)
