"""The alerts: Prometheus' own checker runs them, and each has an entry in the runbook."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.servers import Promtool
from worker.__main__ import commands

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOK = ROOT / "docs" / "alerts.md"


def alerts() -> dict[str, dict[str, Any]]:
    """Every alert by its name."""
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def entries() -> dict[str, str]:
    """The runbook: what is written under each heading that is an alert's name."""
    parts = re.split(r"^### (\w+)\n", RUNBOOK.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(
    "words",
    [
        ("check", "config", PROMETHEUS / "prometheus.yml"),
        ("check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / "alerts.yml"),
        ("test", "rules", PROMETHEUS / "alerts.test.yml"),
    ],
    ids=["settings", "rules", "what they do"],
)
def test_prometheus_checker_is_content(promtool: Promtool, words: tuple[str | Path, ...]) -> None:
    found = promtool(*words)
    assert found.returncode == 0, found.stdout + found.stderr


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    """In one and the same course of events, so that it is the events that make the difference."""
    seen: set[str] = set()
    for course in yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]:
        moments = [{sample["labels"] for sample in moment["exp_samples"]} for moment in course["promql_expr_test"]]
        seen |= {label for fired in moments for label in fired if any(label not in others for others in moments)}
    assert {re.sub(r'.*"(\w+)".*', r"\1", label) for label in seen} == set(alerts())


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_where_to_read_on(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert all(alert["annotations"].values())
    assert alert["annotations"]["runbook_url"] == f"docs/alerts.md#{name.lower()}"


def test_alerts_and_runbook_are_one_to_one_and_in_the_same_order() -> None:
    assert list(entries()) == list(alerts())


@pytest.mark.parametrize("name", entries())
def test_an_entry_says_what_it_means_where_to_look_and_what_to_do(name: str) -> None:
    for part in ("**Means.** ", "**Look.** ", "**Do.** "):
        assert part in entries()[name]


def commands_in(text: str) -> list[list[str]]:
    """The words of every `python -m worker …` in it."""
    return [shlex.split(found) for found in re.findall(r"python -m worker ([^`\n]+)", text)]


def test_the_commands_of_the_runbook_exist() -> None:
    found = commands_in(RUNBOOK.read_text())
    assert len(found) > 5
    for words in found:
        command: click.Command = commands
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert not isinstance(command, click.Group), words
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options
