"""What deploy/ ships works with the programs as they are: units, scrape configuration, dashboard."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from protocol import errors
from protocol.constants import DATA_PORT_DEFAULT
from receiver import cli as agent_cli
from receiver.metrics import METRICS as AGENT_METRICS
from sender import cli as sender_cli
from sender.metrics import METRICS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
BUILT_IN_VARIABLES = {"__rate_interval"}


def _name(path: Path) -> str:
    return path.name


# -- units ---------------------------------------------------------------------------------------------------------


def _settings(unit: Path) -> dict[str, list[str]]:
    settings: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            settings.setdefault(key, []).append(value)
    return settings


@pytest.mark.parametrize("unit", UNITS, ids=_name)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd isn't installed")
def test_systemd_finds_no_fault_in_a_unit(unit: Path, tmp_path: Path) -> None:
    installed = tmp_path / unit.name
    installed.write_text(re.sub(r"/opt/diskcast/bin/\S+", sys.executable, unit.read_text()))
    done = subprocess.run(
        ["systemd-analyze", "verify", installed], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if tmp_path.name in line or unit.name in line]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.parametrize("unit", UNITS, ids=_name)
def test_a_unit_starts_its_program_with_options_that_exist(unit: Path) -> None:
    [command] = _settings(unit)["ExecStart"]
    words = shlex.split(command)
    program, subcommand = Path(words[0]).name, words[1]
    group = {"diskcast": sender_cli.cli, "diskcast-agent": agent_cli.cli}[program]
    implementation = group.get_command(click.Context(group), subcommand)
    assert implementation is not None
    known = {option for parameter in implementation.params for option in parameter.opts}
    options = {word for word in words if word.startswith("--")}
    for example in (DEPLOY / "systemd").glob("*.env.example"):
        if ("AGENT" in example.read_text()) == (program == "diskcast-agent"):
            options |= {
                word
                for line in _assignments(example).values()
                for word in line.split()
                if word.startswith("--")
            }
    assert options <= known


def _assignments(environment: Path) -> dict[str, str]:
    lines = [line for line in environment.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_the_examples_define_every_variable_that_the_units_use() -> None:
    defined = {name for path in (DEPLOY / "systemd").glob("*.env.example") for name in _assignments(path)}
    used = {name for unit in UNITS for name in re.findall(r"\$\{?(\w+)", unit.read_text())}
    assert used == defined


@pytest.mark.parametrize("unit", UNITS, ids=_name)
def test_units_know_only_exit_codes_that_exist(unit: Path) -> None:
    codes = {
        member.exit_code
        for member in vars(errors).values()
        if isinstance(member, type) and issubclass(member, errors.DiskcastError)
    }
    codes |= {errors.EXIT_USAGE, errors.EXIT_INTERRUPTED}
    [mentioned] = _settings(unit)["RestartPreventExitStatus"]
    assert {int(word) for word in mentioned.split()} <= codes


# -- Prometheus ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus isn't installed")
def test_prometheus_accepts_its_configuration() -> None:
    path = DEPLOY / "prometheus" / "prometheus.yml"
    done = subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_metrics_ports_are_the_same_wherever_they_are_named() -> None:
    scraped = re.search(r"localhost:(\d+)", (DEPLOY / "prometheus" / "prometheus.yml").read_text())
    served = re.search(r"--metrics-port (\d+)", (DEPLOY / "systemd" / "send.env.example").read_text())
    assert scraped
    assert served
    assert scraped[1] == served[1]
    assert int(scraped[1]) != DATA_PORT_DEFAULT


def test_provisioning_says_what_grafana_needs() -> None:
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


# -- the dashboard ---------------------------------------------------------------------------------------------------


def _dashboard(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def _panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def _queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in _panels(dashboard) for target in panel["targets"]]


@pytest.mark.parametrize("path", DASHBOARDS, ids=_name)
def test_every_panel_says_what_it_shows_and_in_which_unit(path: Path) -> None:
    dashboard = _dashboard(path)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in _panels(dashboard):
        assert panel["title"], panel["id"]
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=_name)
def test_panels_do_not_overlap(path: Path) -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        return set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))

    for first, second in itertools.combinations(_dashboard(path)["panels"], 2):
        assert not cells(first) & cells(second), (first["title"], second["title"])


@pytest.mark.parametrize("path", DASHBOARDS, ids=_name)
def test_a_dashboard_brings_no_data_source_of_somebody_else(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"${datasource}", _dashboard(path)["uid"]}


@pytest.mark.parametrize("path", DASHBOARDS, ids=_name)
def test_queries_use_metrics_and_labels_that_exist(path: Path) -> None:
    dashboard = _dashboard(path)
    metrics = {metric.name: metric.labels for metric in (*METRICS, *AGENT_METRICS)}
    variables = {variable["name"] for variable in dashboard["templating"]["list"]} | BUILT_IN_VARIABLES
    definitions = [
        variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable
    ]
    for query in _queries(dashboard) + definitions:
        assert set(re.findall(r"\$(\w+)", query)) <= variables, query
        for name, selector in re.findall(r"(diskcast_\w+)\{([^}]*)\}", query):
            labels = set(re.findall(r"(\w+)\s*!?=~?", selector)) - {"instance"}
            assert labels <= set(metrics[re.sub(r"_(bucket|sum|count)$", "", name)]), query


@pytest.mark.parametrize("path", DASHBOARDS, ids=_name)
def test_rates_take_the_interval_that_grafana_computes(path: Path) -> None:
    for query in _queries(_dashboard(path)):
        assert re.findall(r"\[([^\]]+)\]", query) == ["$__rate_interval"] * query.count("["), query


@pytest.mark.parametrize("path", DASHBOARDS, ids=_name)
def test_every_metric_of_a_receiver_and_of_repair_is_shown(path: Path) -> None:
    """A metric that no panel shows is one that the operator looks for in vain."""
    shown = set(re.findall(r"diskcast_\w+", " ".join(_queries(_dashboard(path)))))
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    unshown = {metric.name for metric in METRICS} - shown
    assert unshown <= {"diskcast_receiver_state", "diskcast_nacked_symbols_total"}, unshown
