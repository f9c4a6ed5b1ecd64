"""Tests of the dashboard files: Grafana accepts them, every query can have a result, every panel has a unit."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from docs.dashboards import DASHBOARDS as SOURCES
from receiver.reception.reporting.metrics import METRICS as AGENT_METRICS
from sender.metrics.cast_metrics import METRICS
from sender.metrics.daemon_metrics import INSTRUMENTS
from sender.metrics.fleet_metrics import FLEET_METRICS
from sender.metrics.metric import CAST_LABELS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
BUILT_IN_VARIABLES = {"__rate_interval"}
BUILT_IN_LABELS = {"instance", "job", "le"}
TARGET_LABELS = {"room", "machine"}
"""Labels of an agent's target in prometheus.yml."""
each_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)


def known_labels() -> dict[str, set[str]]:
    """Return the labels of every metric of diskcast."""
    known = {metric.name: {*CAST_LABELS, *metric.labels} for metric in METRICS}
    known |= {metric.name: set(metric.labels) for metric in FLEET_METRICS}
    known |= {metric.name: {*metric.labels, *TARGET_LABELS} for metric in AGENT_METRICS}
    for instrument in INSTRUMENTS:
        for family in instrument.describe():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            known[name] = set(instrument._labelnames)
    return known


def document(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]


def variables(dashboard: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


def test_the_files_match_their_sources() -> None:
    assert {path.stem for path in DASHBOARDS} == set(SOURCES)
    for path in DASHBOARDS:
        assert document(path) == SOURCES[path.stem](), f"{path.name} is stale: make docs"


@each_dashboard
def test_every_panel_has_a_description_and_a_unit(path: Path) -> None:
    dashboard = document(path)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(set(titles)) == len(titles)
    for panel in panels(dashboard):
        assert panel["title"], panel["id"]
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None, panel["title"]
    for variable in variables(dashboard).values():
        assert variable["description"]


@each_dashboard
def test_panels_do_not_overlap(path: Path) -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        return set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))

    for first, second in itertools.combinations(document(path)["panels"], 2):
        assert not cells(first) & cells(second), (first["title"], second["title"])


@each_dashboard
def test_a_dashboard_has_no_fixed_data_source(path: Path) -> None:
    assert set(re.findall(r'"uid": "([^"]*)"', path.read_text())) == {"${datasource}", document(path)["uid"]}
    assert variables(document(path))["datasource"]["type"] == "datasource"


@each_dashboard
def test_queries_use_metrics_labels_and_variables_that_exist(path: Path) -> None:
    dashboard = document(path)
    known = known_labels()
    definitions = [
        variable["definition"] for variable in variables(dashboard).values() if "definition" in variable
    ]
    for query in queries(dashboard) + definitions:
        assert set(re.findall(r"\$(\w+)", query)) <= variables(dashboard).keys() | BUILT_IN_VARIABLES, query
        for name, selector in re.findall(r"\b(diskcast_\w+)(?:\{([^}]*)\})?", query):
            labels = set(re.findall(r"(\w+)\s*!?=~?", selector)) - BUILT_IN_LABELS
            assert labels <= known[re.sub(r"_(bucket|sum|count)$", "", name)], query


@each_dashboard
def test_rates_take_the_interval_that_grafana_computes(path: Path) -> None:
    for query in queries(document(path)):
        assert re.findall(r"\[([^\]]+)\]", query) == ["$__rate_interval"] * query.count("["), query


@each_dashboard
def test_legends_name_labels_that_the_query_leaves(path: Path) -> None:
    """``max by (machine)`` has no cast to name."""
    for panel in panels(document(path)):
        for target in panel["targets"]:
            kept = re.match(r"(?:topk\(10, )?(?:sum|max|min|avg|quantile) by \(([^)]*)\)", target["expr"])
            if kept:
                assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= set(kept[1].split(", "))


def links(value: object) -> list[str]:
    """Return every ``url`` in a document."""
    if isinstance(value, dict):
        own = [value["url"]] if isinstance(value.get("url"), str) else []
        return own + [url for inner in value.values() for url in links(inner)]
    if isinstance(value, list):
        return [url for inner in value for url in links(inner)]
    return []


def test_links_lead_from_the_overview_to_the_cast_to_the_machine() -> None:
    by_uid = {document(path)["uid"]: document(path) for path in DASHBOARDS}
    reached: dict[str, set[str]] = {}
    for path in DASHBOARDS:
        for url in links(document(path)):
            match = re.match(r"/d/([\w-]+)\?", url)
            assert match, url
            target = by_uid[match[1]]
            reached.setdefault(path.stem, set()).add(match[1])
            assert set(re.findall(r"var-(\w+)=", url)) <= variables(target).keys(), url
            assert "var-datasource=${datasource}" in url
    assert {"diskcast-cast", "diskcast-machine"} <= reached["fleet"]
    assert "diskcast-machine" in reached["cast"]
    assert "diskcast-cast" in reached["machine"]


@each_dashboard
def test_links_carry_labels_and_columns_that_are_there(path: Path) -> None:
    for panel in panels(document(path)):
        headings: set[str] = set()
        for step in panel.get("transformations", []):
            headings |= set(step["options"].get("renameByName", {}).values())
        for url in links(panel):
            assert set(re.findall(r'\$\{__data\.fields\["([^"]+)"\]\}', url)) <= headings, panel["title"]
            for label in re.findall(r"\$\{__field\.labels\.(\w+)\}", url):
                assert all(re.search(rf"by \([^)]*\b{label}\b", t["expr"]) for t in panel["targets"]), panel[
                    "title"
                ]


def test_every_metric_of_a_cast_is_shown_somewhere() -> None:
    """Without a panel, an operator doesn't find the metric."""
    shown = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for path in DASHBOARDS
        for name in re.findall(r"diskcast_\w+", " ".join(queries(document(path))))
    }
    unshown = {metric.name for metric in (*METRICS, *FLEET_METRICS)} - shown
    assert unshown <= {"diskcast_nacked_symbols_total", "diskcast_receiver_behind"}, unshown


def test_provisioning_has_everything_that_grafana_needs() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = (provisioning / "datasources" / "diskcast.yml").read_text()
    provider = (provisioning / "dashboards" / "diskcast.yml").read_text()
    for text in (source, provider):
        assert re.search(r"^apiVersion: 1$", text, re.MULTILINE)
        assert "\t" not in text
    interval = re.search(r"timeInterval: (\S+)", source)
    scrape = re.search(r"scrape_interval: (\S+)", (DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert interval
    assert scrape
    assert interval[1] == scrape[1], "otherwise $__rate_interval holds too few scrapes for a rate"
