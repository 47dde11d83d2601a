"""A real Prometheus that watches a real worker: what the dashboard shows, and what the alerts say."""

import json
import math
import re
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml

from aries_images import contract
from aries_images.errors import ImageNotFound
from tests.integration.conftest import NewDatabase
from tests.servers import PrometheusServer, Promtool
from tests.service import Service, service_at
from tests.workers import CHECKOUT, Worker, running_worker, until
from worker.embedded import RedisServer, free_port
from worker.leases import Keys

DEPLOY = CHECKOUT / "deploy"
PANELS = json.loads((DEPLOY / "grafana" / "dashboards" / "aries-images.json").read_text())["panels"]
#: Panel and expression, with what Grafana puts in for its variables.
EXPRESSIONS = [
    (panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*"))
    for panel in PANELS
    for target in panel.get("targets", ())
]
RULES = (DEPLOY / "prometheus" / "alerts.yml").read_text()
#: Seconds in which Prometheus has asked and decided, on a machine that is busy with other things.
PATIENCE = 30.0


class Town(NamedTuple):
    service: Service
    worker: Worker
    prometheus: PrometheusServer

    def firing(self) -> dict[str, str]:
        """The alerts that fire, and their summaries."""
        alerts = self.prometheus.ask("alerts")["alerts"]
        return {
            alert["labels"]["alertname"]: alert["annotations"]["summary"]
            for alert in alerts
            if alert["state"] == "firing"
        }


def hasty(rules: str) -> str:
    """The same alerts, which fire at once and look back seconds where they would look back minutes."""
    document = yaml.safe_load(
        re.sub(r"(\[|offset )\d+m(:15s)?", lambda span: f"{span[1]}5s{(span[2] and ':1s') or ''}", rules)
    )
    for rule in document["groups"][0]["rules"]:
        rule.pop("for", None)
    return yaml.safe_dump(document)


def settings(port: int) -> str:
    """Those of the project, in a hurry, for one worker on this machine."""
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    document["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    [job] = document["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    return yaml.safe_dump(document)


@pytest.fixture(scope="module")
def town(promtool: Promtool, new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    del promtool  # whoever has it has Prometheus
    port, folder = free_port(), tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text(settings(port))
    (folder / "alerts.yml").write_text(hasty(RULES))
    with (
        RedisServer(tmp_path_factory.mktemp("redis"), persistent=False) as redis,
        service_at(redis.url(0), redis.url(1), new_database("sqlite")) as service,
        running_worker(service.environment | {"ARIES_METRICS_PORT": str(port)}) as worker,
        PrometheusServer(folder) as prometheus,
    ):
        yield Town(service, worker, prometheus)


def has_data(prometheus: PrometheusServer, expression: str) -> bool:
    """Whether it comes to a number, and not to nothing or to 0 / 0."""
    found = prometheus.ask("query", query=expression)["result"]
    return any(math.isfinite(float(sample["value"][1])) for sample in found)


def test_every_line_of_every_panel_finds_data(town: Town) -> None:
    until(lambda: has_data(town.prometheus, "aries_alive"), PATIENCE)
    service, image = town.service, town.service.image()
    for _ in range(3):
        service.client.update(image["id"], description="x")
        with pytest.raises(ImageNotFound):
            service.client.update(10_000_000, description="x")
    bulk = service.celery.send_task(contract.TASK, kwargs={"id": image["id"]}, queue=contract.BULK_QUEUE)
    assert bulk.get(timeout=10)["status"] == 200
    assert len(EXPRESSIONS) > 30
    for title, expression in EXPRESSIONS:
        try:
            until(lambda wanted=expression: has_data(town.prometheus, wanted), PATIENCE)
        except AssertionError:
            pytest.fail(f"{title}: {expression} finds nothing")


def test_every_figure_that_a_panel_or_an_alert_goes_by_is_there(town: Town) -> None:
    until(lambda: has_data(town.prometheus, "aries_alive"), PATIENCE)
    expressions = [expression for _, expression in EXPRESSIONS]
    expressions += [rule["expr"] for rule in yaml.safe_load(RULES)["groups"][0]["rules"]]
    named = {name for expression in expressions for name in re.findall(r"\b(?:up|aries_\w+|process_\w+)\b", expression)}
    assert len(named) > 20
    assert named - set(town.prometheus.ask("label/__name__/values")) == set()


def test_an_alert_fires_says_what_is_wrong_and_ends(town: Town) -> None:
    until(lambda: has_data(town.prometheus, "aries_alive") and not town.firing(), PATIENCE)
    town.service.push("no message", "nor this")
    until(lambda: town.firing() == {"AriesDeadLetters": "2 messages were given up on"}, PATIENCE)
    town.service.broker.delete(Keys().dead)
    until(lambda: not town.firing(), PATIENCE)
    town.worker.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: "AriesNoWorker" in town.firing(), PATIENCE)
        assert "can't be asked" in town.firing()["AriesWorkerGone"]
    finally:
        town.worker.process.send_signal(signal.SIGCONT)
    until(lambda: not town.firing(), PATIENCE)


def test_every_rule_can_be_evaluated(town: Town) -> None:
    rules = []

    def are_evaluated() -> bool:
        rules[:] = town.prometheus.ask("rules")["groups"][0]["rules"]
        return all(rule["health"] != "unknown" for rule in rules)

    until(are_evaluated, PATIENCE)
    assert len(rules) == RULES.count("- alert: ")
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
