"""The dashboard shows a real cast: a real Prometheus scrapes it, and every query of every panel is asked.

A panel that stays empty or shows a wrong number is worse than none: an operator acts on it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.constants import MIB
from sender.demo import free_ports
from sender.image_file import ImageFile
from tests.lab import Program, diskcast, diskcast_agent

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "cast.json"
LIMIT_S = 60.0
SCRAPE_INTERVAL_MS = 200
RATE_INTERVAL = "2s"
"""Grafana would choose four scrapes at least; ten are safe on a machine that is busy with other tests."""
RATE = "24M"
"""3 MB/s: the image takes five seconds, which are twenty-five scrapes."""
RAW_BYTES = 15 * MIB


@dataclasses.dataclass(frozen=True, slots=True)
class ObservedCast:
    """A cast that is over, and the Prometheus that saw it."""

    prometheus_url: str
    instance: str
    agent_instances: tuple[str, ...]
    started_s: float
    ended_s: float
    source_symbol_count: int
    payload_bytes: int
    sender_result: dict[str, Any]
    dashboard: dict[str, Any]

    def get(self, path: str, **parameters: str) -> Any:
        """Ask the HTTP API of Prometheus."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(
            f"{self.prometheus_url}/api/v1/{path}?{query}", timeout=LIMIT_S
        ) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def substitute(self, query: str) -> str:
        """The query as Grafana sends it."""
        for name, value in (
            ("$__rate_interval", RATE_INTERVAL),
            ("$instance", self.instance),
            ("$receiver", ".*"),
            ("$agent", ".*"),
        ):
            query = query.replace(name, value)
        assert "$" not in query
        return query

    def series(self, query: str) -> dict[str, list[float]]:
        """Every series over the time of the cast: its label values, joined, and its values that are numbers."""
        data = self.get(
            "query_range",
            query=self.substitute(query),
            start=f"{self.started_s:.3f}",
            end=f"{self.ended_s:.3f}",
            step="0.2",
        )
        found = {}
        for entry in data["result"]:
            labels = {
                key: value
                for key, value in entry["metric"].items()
                if key not in ("instance", "job", "__name__")
            }
            values = [float(value) for _, value in entry["values"]]
            found[" ".join(labels[key] for key in sorted(labels))] = [v for v in values if not math.isnan(v)]
        return found

    def panel(self, title: str) -> dict[str, list[float]]:
        """All series of a panel's queries, the legend of queries without labels in front."""
        found = {}
        for panel in self.dashboard["panels"]:
            if panel["title"] == title:
                for target in panel["targets"]:
                    for name, values in self.series(target["expr"]).items():
                        found[name or target["legendFormat"]] = values
        assert found, title
        return found


def _write_prometheus_configuration(path: Path, metrics_port: int, agents: Path) -> None:
    """The shipped configuration, only faster and with this test's addresses."""
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    for pattern, replacement in (
        (r"scrape_interval: \S+", f"scrape_interval: {SCRAPE_INTERVAL_MS}ms"),
        (r"scrape_timeout: \S+", f"scrape_timeout: {SCRAPE_INTERVAL_MS}ms"),
        (r"localhost:\d+", f"127.0.0.1:{metrics_port}"),
        (r"/etc/prometheus/diskcast-agents", str(agents)),
    ):
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, pattern
    path.write_text(text)


def _wait_until_scraping(url: str, target_count: int, prometheus: Program) -> None:
    """Until Prometheus has tried every target once: nothing answers there yet."""
    deadline_s = time.monotonic() + LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/api/v1/targets?state=active", timeout=LIMIT_S) as answer:
                targets = json.load(answer)["data"]["activeTargets"]
        except urllib.error.URLError:
            targets = []
        if len(targets) == target_count and all(target["health"] == "down" for target in targets):
            return
        assert prometheus.exit_code is None, prometheus.describe()
        assert time.monotonic() < deadline_s, prometheus.describe()
        time.sleep(0.05)


def _free_tcp_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObservedCast]:
    """One cast to two agents, of which one loses datagrams, under the eyes of Prometheus."""
    executable = shutil.which("prometheus")
    if executable is None:
        if os.environ.get("DISKCAST_REQUIRE_PRIVILEGED_TESTS"):
            pytest.fail(
                "Prometheus isn't installed, and CI may skip nothing: apt install prometheus", pytrace=False
            )
        pytest.skip("Prometheus isn't installed: apt install prometheus")
    folder = tmp_path_factory.mktemp("dashboard")
    image = folder / "disk.dci"
    (folder / "disk.raw").write_bytes(np.random.default_rng(21).bytes(RAW_BYTES))
    with Program(diskcast("pack", folder / "disk.raw", "-o", image, "--json")) as packer:
        assert packer.wait(LIMIT_S) == 0, packer.describe()
    prometheus_port, metrics_port, *agent_ports = _free_tcp_ports(4)
    data_port, control_port = free_ports()
    agent_instances = tuple(f"127.0.0.1:{port}" for port in agent_ports)
    (folder / "agents").mkdir()
    (folder / "agents" / "room.yml").write_text(f"- targets: {json.dumps(agent_instances)}\n")
    configuration = folder / "prometheus.yml"
    _write_prometheus_configuration(configuration, metrics_port, folder / "agents")
    url = f"http://127.0.0.1:{prometheus_port}"
    arguments = [f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}"]
    arguments += [f"--web.listen-address=127.0.0.1:{prometheus_port}", "--log.level=warn"]
    with Program([executable, *arguments]) as prometheus:
        _wait_until_scraping(url, 1 + len(agent_ports), prometheus)
        started_s = time.time()
        send = [
            "send",
            image,
            "--interface",
            "lo",
            "--wait-for",
            "2",
            "--rate",
            RATE,
            "--port",
            str(data_port),
        ]
        send += ["--control", f"127.0.0.1:{control_port}", "--symbol-size", "1440", "--json"]
        send += ["--metrics-port", str(metrics_port), "--metrics-address", "127.0.0.1"]
        with Program(diskcast(*send)) as sender:
            introduction = sender.wait_event("cast_started", LIMIT_S)
            agents = []
            try:
                for number, port in enumerate(agent_ports, 1):
                    receive = ["receive", "--target", folder / f"{number}.img", "--interface", "lo", "--json"]
                    receive += ["--sender", introduction["control_url"], "--name", f"agent-{number}"]
                    receive += ["--metrics-port", str(port)]
                    if number == 2:
                        receive += ["--rehearse-loss", "5%"]
                    agents.append(Program(diskcast_agent(*receive)))
                assert sender.wait(LIMIT_S) == 0, sender.describe()
                for agent in agents:
                    assert agent.wait(LIMIT_S) == 0, agent.describe()
            finally:
                for agent in agents:
                    agent.close()
        with ImageFile.open(image) as packed:
            symbols = packed.manifest.source_symbols(introduction["symbol_bytes"])
            payload_bytes = packed.header.payload_bytes
        yield ObservedCast(
            prometheus_url=url,
            instance=f"127.0.0.1:{metrics_port}",
            agent_instances=agent_instances,
            started_s=started_s,
            ended_s=time.time(),
            source_symbol_count=int(symbols.sum(dtype=np.int64)),
            payload_bytes=payload_bytes,
            sender_result=sender.result,
            dashboard=json.loads(DASHBOARD.read_text()),
        )


def test_every_query_of_every_panel_shows_something(cast: ObservedCast) -> None:
    queries = [
        (panel["title"], target["expr"])
        for panel in cast.dashboard["panels"]
        for target in panel.get("targets", [])
    ]
    assert [(title, query) for title, query in queries if not any(cast.series(query).values())] == []


def test_variables_offer_the_sender_its_receivers_and_the_agents(cast: ObservedCast) -> None:
    def offered(name: str) -> list[str]:
        [definition] = [
            variable["definition"]
            for variable in cast.dashboard["templating"]["list"]
            if variable["name"] == name
        ]
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", definition)
        assert match, definition
        values: list[str] = cast.get(f"label/{match[2]}/values", **{"match[]": cast.substitute(match[1])})
        return values

    assert offered("instance") == [cast.instance]
    assert offered("receiver") == ["agent-1", "agent-2"]
    assert offered("agent") == sorted(cast.agent_instances)


def test_progress_rises_from_nothing_to_all_for_every_receiver(cast: ObservedCast) -> None:
    progress = cast.panel("Progress")
    assert sorted(progress) == ["agent-1", "agent-2"]
    for values in progress.values():
        assert values[0] == 0.0
        assert values == sorted(values)
        assert values[-1] == 1.0
    assert max(cast.panel("Room verified")["slowest"]) == 1.0


def test_the_cast_is_named_and_its_states_follow_one_another(cast: ObservedCast) -> None:
    [description] = cast.series('diskcast_cast_info{instance="$instance"}')
    assert "disk.raw" in description
    assert {"gathering", "casting"} <= cast.panel("State").keys()
    receivers = cast.panel("Receivers")
    assert max(receivers["complete"]) == 2.0
    assert max(receivers["failed"]) == max(receivers["lost"]) == 0.0
    [seconds] = {values[-1] for values in cast.panel("Time to completion").values()}
    assert 0 < seconds < LIMIT_S


def test_only_the_receiver_that_loses_datagrams_shows_loss_and_asks_for_repair(cast: ObservedCast) -> None:
    loss = cast.panel("Loss")
    assert 0.01 < max(loss["agent-2"]) < 0.2
    assert max(loss["agent-1"]) < 0.01
    asked = cast.panel("Asked for by NACK")
    assert max(asked["agent-2"]) > 0


def test_symbols_are_counted_by_cause(cast: ObservedCast) -> None:
    sent = {
        name: values[-1]
        for name, values in cast.series('diskcast_sent_symbols_total{instance="$instance"}').items()
    }
    assert sent["source"] >= cast.source_symbol_count
    assert sent["parity"] + sent["repair"] > 0
    overhead = cast.panel("Overhead")["sent so far"][-1]
    assert overhead == pytest.approx((sent["parity"] + sent["repair"]) / sent["source"])
    bytes_sent = max(cast.series('diskcast_sent_bytes_total{instance="$instance"}')[""])
    assert cast.payload_bytes < bytes_sent <= cast.sender_result["bytes_sent"]


def test_rates_are_those_of_the_cast(cast: ObservedCast) -> None:
    rates = cast.panel("Sending rate")
    wanted_bytes_per_s = float(RATE.removesuffix("M")) * 1e6 / 8
    assert max(rates["paced"]) == wanted_bytes_per_s
    assert 0 < max(rates["sent, counted"]) < 3 * wanted_bytes_per_s


def test_what_limited_the_cast_is_the_rate_that_was_asked_for_and_nobody_was_slow(cast: ObservedCast) -> None:
    assert "ceiling" in cast.panel("Limiter")
    limits = cast.panel("What limits the cast")
    assert 0.3 < max(limits["ceiling"]) < 1.5
    assert max(limits["disk"]) == 0.0
    assert {value for values in cast.panel("Stragglers").values() for value in values} == {0.0}
    lateness = cast.panel("Burst lateness")
    assert 0 <= max(lateness["half of them"]) <= max(lateness["99% of them"])


def test_nothing_was_rejected(cast: ObservedCast) -> None:
    for title in ("Datagrams rejected by the sender", "Datagrams rejected by agents"):
        for reason, values in cast.panel(title).items():
            assert max(values) == 0.0, (title, reason)


def test_agents_themselves_show_what_was_repaired_and_verified(cast: ObservedCast) -> None:
    by_instance = cast.get(
        "query",
        query="max by (instance) (max_over_time(diskcast_agent_verified_bytes[1h]))",
        time=f"{cast.ended_s:.3f}",
    )
    verified = {entry["metric"]["instance"]: float(entry["value"][1]) for entry in by_instance["result"]}
    assert verified.keys() == set(cast.agent_instances)
    assert max(verified.values()) <= RAW_BYTES
    repaired = cast.get(
        "query",
        query="sum by (instance) (max_over_time(diskcast_agent_repaired_blocks_total[1h]))",
        time=f"{cast.ended_s:.3f}",
    )
    counts = {entry["metric"]["instance"]: float(entry["value"][1]) for entry in repaired["result"]}
    assert counts[cast.agent_instances[1]] > counts[cast.agent_instances[0]] == 0.0
