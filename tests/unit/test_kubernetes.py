"""deploy/kubernetes: by Kubernetes' schemas, and against what it speaks of: settings, users of Redis, the compose file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from aries_images import contract
from gateway.request import LONGEST_WAIT
from tests.composed import DEPLOY, SERVICES
from worker.settings import PREFIX, Settings

FOLDER = DEPLOY / "kubernetes"
#: Kinds that come with an operator, whose schemas no package has.
OF_OPERATORS = ("ScaledObject", "TriggerAuthentication", "PodMonitor")
#: The oldest that knows all that is used, and the newest that the package knows.
VERSIONS = ("1.30", kubernetes_validate.latest_version())

Document = dict[str, Any]


def documents(file: Path) -> Iterator[Document]:
    yield from yaml.safe_load_all(file.read_text())


FILES = [file for file in sorted(FOLDER.rglob("*.yaml")) if file.name != "kustomization.yaml"]
ALL = {f"{each['kind']}/{each['metadata']['name']}": each for file in FILES for each in documents(file)}
PODS = {name: each["spec"]["template"] for name, each in ALL.items() if name.split("/")[0] in ("Deployment", "Job")}
DEPLOYMENTS = [name for name in PODS if name.startswith("Deployment/")]

pods = pytest.mark.parametrize("name", PODS)


def container(name: str) -> Document:
    [found] = PODS[name]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [name for name in ALL if name.split("/")[0] not in OF_OPERATORS])
def test_each_is_what_kubernetes_expects(name: str, version: str) -> None:
    kubernetes_validate.validate(ALL[name], version, strict=True)


@pytest.mark.parametrize("folder", ["base", "operators"])
def test_every_file_but_the_example_is_applied(folder: str) -> None:
    kustomization = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
    there = {file.name for file in FILES if file.parent.name == folder} - {"secret.example.yaml"}
    assert {name for name in kustomization["resources"] if name.endswith(".yaml")} == there
    for patch in kustomization.get("patches", ()):
        assert f"{patch['target']['kind']}/{patch['target']['name']}" in ALL


@pods
def test_pods_are_restricted_as_the_namespace_demands(name: str) -> None:
    assert ALL["Namespace/aries-images"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod, inside = PODS[name]["spec"], container(name)["securityContext"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert inside == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert "memory" in container(name)["resources"]["limits"]


@pods
def test_what_a_pod_is_told_is_a_setting_and_comes_from_what_is_there(name: str) -> None:
    for source in container(name)["envFrom"]:
        [(kind, reference)] = source.items()
        there = ALL[f"{'ConfigMap' if kind == 'configMapRef' else 'Secret'}/{reference['name']}"]
        variables = there.get("data", {}) | there.get("stringData", {})
        assert variables.keys() <= {PREFIX + setting.upper() for setting in Settings.model_fields}
    for volume in PODS[name]["spec"].get("volumes", ()):
        assert "emptyDir" in volume or f"Secret/{volume['secret']['secretName']}" in ALL


def test_everything_runs_as_it_does_in_the_compose_file() -> None:
    assert container("Deployment/aries-gateway")["command"] == SERVICES["gateway"]["command"]
    assert container("Job/aries-migrate")["command"] == SERVICES["migrate"]["command"]
    assert "command" not in container("Deployment/aries-worker")
    assert "command" not in SERVICES["worker"]
    told = ALL["ConfigMap/aries"]["data"]
    assert told.keys() == SERVICES["worker"]["environment"].keys()
    [keys] = [mount for mount in container("Deployment/aries-worker")["volumeMounts"] if mount["name"] == "keys"]
    assert told["ARIES_JWT_KEYS"] == f"{keys['mountPath']}/jwks.json"
    assert list(ALL["Secret/aries-keys"]["stringData"]) == ["jwks.json"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_probes_ask_ports_that_are_served(name: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(name)["ports"]}
    served = {"metrics": ALL["ConfigMap/aries"]["data"]["ARIES_METRICS_PORT"], "http": "8080"}
    assert {port: str(number) for port, number in ports.items()} == {port: served[port] for port in ports}
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        asked = container(name)[probe]["httpGet"]
        assert asked["port"] in ports
        assert asked["path"] == (
            "/readyz" if (name, probe) == ("Deployment/aries-gateway", "readinessProbe") else "/healthz"
        )


def test_nobody_is_killed_who_would_have_left_in_time() -> None:
    """A worker leaves within 5 s: tests/integration/test_intake.py."""
    assert PODS["Deployment/aries-worker"]["spec"]["terminationGracePeriodSeconds"] > 5
    gateway = PODS["Deployment/aries-gateway"]["spec"]
    pause = container("Deployment/aries-gateway")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert f"--timeout-graceful-shutdown={LONGEST_WAIT}" in container("Deployment/aries-gateway")["command"]
    assert gateway["terminationGracePeriodSeconds"] > pause + LONGEST_WAIT
    assert int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s")) > LONGEST_WAIT


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_node_that_is_emptied_leaves_one_running(name: str) -> None:
    short = name.split("/")[1]
    labels = PODS[name]["metadata"]["labels"]
    assert ALL[name]["spec"]["replicas"] >= 2
    assert ALL[f"PodDisruptionBudget/{short}"]["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
    assert ALL[name]["spec"]["selector"]["matchLabels"] == labels
    [spread] = PODS[name]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels


def test_the_network_lets_in_and_out_what_pods_need_and_nothing_else() -> None:
    policies = {name.split("/")[1]: each["spec"] for name, each in ALL.items() if name.startswith("NetworkPolicy/")}
    assert policies.pop("aries-nobody") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    reached = {
        name: {
            port["port"]
            for policy in policies.values()
            if selects(policy["podSelector"], PODS[name]["metadata"]["labels"])
            for way in policy.get("egress", []) + policy.get("ingress", [])
            for port in way["ports"]
        }
        for name in PODS
    }
    assert reached == {
        "Deployment/aries-worker": {53, 6379, 5432, "metrics"},
        "Deployment/aries-gateway": {53, 6379, "http"},
        "Job/aries-migrate": {53, 6379, 5432},
    }


def selects(selector: Document, labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ())
    )


def test_workers_are_as_many_as_both_queues_ask_for_and_who_counts_can_do_nothing_else() -> None:
    scaled = ALL["ScaledObject/aries-worker"]["spec"]
    assert f"Deployment/{scaled['scaleTargetRef']['name']}" in ALL
    assert tuple(trigger["metadata"]["listName"] for trigger in scaled["triggers"]) == contract.QUEUES
    assert scaled["minReplicaCount"] >= 2
    assert all(f"TriggerAuthentication/{trigger['authenticationRef']['name']}" in ALL for trigger in scaled["triggers"])
    login = ALL["Secret/aries-scaler"]["stringData"]
    for told in ALL["TriggerAuthentication/aries-scaler"]["spec"]["secretTargetRef"]:
        assert (told["name"], told["key"] in login) == ("aries-scaler", True)
    assert f"\nuser {login['username']} on" in (DEPLOY / "redis" / "users.acl").read_text()


def test_who_collects_figures_finds_the_workers() -> None:
    spec = ALL["PodMonitor/aries-worker"]["spec"]
    assert spec["selector"]["matchLabels"] == PODS["Deployment/aries-worker"]["metadata"]["labels"]
    assert [endpoint["port"] for endpoint in spec["podMetricsEndpoints"]] == ["metrics"]
