"""The dashboard: one that Grafana understands, as far as that is known without a Grafana."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from benchmarks.charts import Chart, page
from benchmarks.dashboard import PANELS as PANELS_DRAWN

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "aries-images.json").read_text())
PANELS = DASHBOARD["panels"]
#: Units by their names in Grafana.
UNITS = {"reqps", "ops", "s", "bytes", "percentunit", "short", "bool_yes_no"}

graphs = pytest.mark.parametrize(
    "panel", [panel for panel in PANELS if panel["type"] != "row"], ids=lambda panel: panel["title"]
)


def lost(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Where `theirs` lacks something of `ours`, or has it otherwise."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from lost(value, theirs[key], f"{path}.{key}") if key in theirs else [f"{path}.{key}"]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(mine, other, f"{path}[{number}]")
    elif ours != theirs:
        yield path


def as_grafana_has_it(document: dict[str, Any]) -> Any:
    """What is left of a dashboard when it has gone through Grafana's own model of one."""
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(document)))


def test_every_word_of_it_is_known_to_grafana() -> None:
    assert list(lost(DASHBOARD, as_grafana_has_it(DASHBOARD))) == []


def test_a_word_that_grafana_does_not_know_would_be_found() -> None:
    panel = PANELS[1] | {"titel": "x", "fieldConfig": {"defaults": {"units": "s"}, "overrides": []}}
    document = DASHBOARD | {"panels": [panel]}
    assert list(lost(document, as_grafana_has_it(document))) == [
        ".panels[0].fieldConfig.defaults.units",
        ".panels[0].titel",
    ]


def test_panels_have_ids_of_their_own_and_do_not_cover_each_other() -> None:
    assert max(Counter(panel["id"] for panel in PANELS).values()) == 1
    covered = Counter(cell for panel in PANELS for cell in cells(panel["gridPos"]))
    assert max(covered.values()) == 1
    assert max(column for column, _ in covered) == 23


def cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    columns, rows = (range(place[start], place[start] + place[size]) for start, size in (("x", "w"), ("y", "h")))
    return itertools.product(columns, rows)


@graphs
def test_a_panel_has_a_unit_an_explanation_and_names_for_its_lines(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["description"].endswith(".")
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    if panel["type"] == "timeseries":
        assert all(target["legendFormat"] for target in panel["targets"])


@graphs
def test_every_panel_goes_by_the_source_that_is_chosen_above(panel: dict[str, Any]) -> None:
    assert {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])} == {
        "${datasource}"
    }


def test_grafana_is_given_the_source_and_the_folder() -> None:
    [source] = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    prometheus = yaml.safe_load((GRAFANA.parent / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    [provider] = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "aries-images.yml").read_text())["providers"]
    assert (provider["type"], provider["options"]) == ("file", {"path": "/var/lib/grafana/dashboards"})


# --- its picture ---


def test_the_panels_that_are_drawn_are_there() -> None:
    assert set(PANELS_DRAWN) <= {panel["title"] for panel in PANELS if panel["type"] == "timeseries"}


@pytest.mark.parametrize("stacked", [False, True], ids=["lines", "stacked"])
def test_a_picture_shows_each_line_that_leaves_0_and_says_what_it_is(*, stacked: bool) -> None:
    lines = {
        "OK": [(0.0, 1.0), (30.0, math.nan), (60.0, 3.0), (90.0, 2.0)],
        "a <b>": [(0.0, 2.0), (60.0, 5.0), (90.0, 0.0)],
        "never": [(0.0, 0.0), (90.0, 0.0)],
    }
    chart = Chart("Answers & more", "reqps", lines, stacked, 90.0, [45.0])
    drawn = page([chart, chart, chart], "Title", ["a note"])
    texts = [element.text for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314  # our own
    assert texts[:2] == ["Title", "a note"]
    for words in ("Answers & more", "OK", "a <b>", "1", "1:30", "8/s" if stacked else "6/s"):
        assert texts.count(words) == 3, words
    assert "never" not in texts
    assert "nan" not in drawn
