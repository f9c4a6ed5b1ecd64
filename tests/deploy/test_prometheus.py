"""Tests of the scrape configuration and the alert rules: a missing alert is noticed too late."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from protocol.constants import DATA_PORT_DEFAULT
from sender.config.server_config import ServerConfig
from tests.e2e.monitored_room import scaled_rules
from tests.support.network.tls_peer import shared_certificate
from tests.support.programs.processes import require_program

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
CONFIGURATION = (PROMETHEUS / "prometheus.yml").read_text()
RULES = (PROMETHEUS / "rules" / "diskcast.yml").read_text()
TESTS = (PROMETHEUS / "tests" / "diskcast.yml").read_text()
RUNBOOK = (ROOT / "docs" / "how-to" / "alerts.md").read_text()
ALERTS = re.findall(r"^ +- alert: (\w+)$", RULES, re.MULTILINE)


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        [require_program("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_its_configuration() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_prometheus_accepts_what_is_offered_in_comments(tmp_path: Path) -> None:
    """Uncommenting the optional lines gives a token file and an Alertmanager."""
    token = tmp_path / "token"
    token.write_text("dct_view_…")
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "diskcast.yml").write_text(RULES)
    text = re.sub(r"^( *)#((?:  )*\S)", r"\1\2", CONFIGURATION, flags=re.MULTILINE)
    assert "\nalerting:" in text
    assert "\n    authorization:" in text
    path = tmp_path / "prometheus.yml"
    text = text.replace("/etc/prometheus/diskcast.pem", str(shared_certificate().certificate_file))
    path.write_text(text.replace("/etc/prometheus/diskcast-token", str(token)))
    promtool("check", "config", path)


def test_prometheus_accepts_the_rules() -> None:
    promtool("check", "rules", PROMETHEUS / "rules" / "diskcast.yml")


def test_each_alert_fires_on_its_fault_and_only_then() -> None:
    promtool("test", "rules", PROMETHEUS / "tests" / "diskcast.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_and_says_how_bad_it_is_and_what_to_do(alert: str) -> None:
    rule = RULES.partition(f"- alert: {alert}\n")[2].partition("- alert:")[0]
    assert re.search(r"^ +for: \d+[sm]$", rule, re.MULTILINE)
    assert re.search(r"^ +severity: (critical|warning)$", rule, re.MULTILINE)
    assert "summary: " in rule
    assert "description: " in rule
    runbook = re.search(r"runbook: docs/how-to/alerts\.md#(\S+)", rule)
    assert runbook
    assert runbook[1] == alert.lower(), "the anchor that Markdown makes of the heading"
    assert f"\n## {alert}\n" in RUNBOOK
    assert f'alertname="{alert}"' in TESTS


def test_the_runbook_has_no_alert_that_is_gone() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == ALERTS


def test_every_waiting_time_is_scaled_for_the_live_test() -> None:
    times = re.findall(r"for: (\d+)ms$", scaled_rules(RULES), re.MULTILINE)
    assert len(times) == len(re.findall(r"^ +(?:keep_firing_)?for: ", RULES, re.MULTILINE))


def test_ports_are_those_that_the_programs_use() -> None:
    daemon = re.search(r"localhost:(\d+)\n.*\n.*diskcast send", CONFIGURATION, re.DOTALL)
    assert daemon
    assert f":{daemon[1]}" in ServerConfig().server.listen
    example = (ROOT / "deploy" / "systemd" / "send.env.example").read_text()
    served = re.search(r"--metrics-port (\d+)", example)
    assert served
    assert f"localhost:{served[1]}" in CONFIGURATION
    assert int(served[1]) != DATA_PORT_DEFAULT
