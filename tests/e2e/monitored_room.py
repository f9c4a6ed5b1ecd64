"""A real Prometheus with the shipped configuration and rules, a real daemon, and casts with faults.

First a healthy cast to ``lab-1``. Then one to ``lab-2``, where each machine but one has its own fault: one is killed,
one has a slow disk, one loses datagrams, and the disk of one loses a bit that was written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from protocol.constants import MIB
from tests.support.disks.disk_images import make_image
from tests.support.disks.slow_disk import Action, Behaviour, Fault, Operation, SlowDisk, slow_disk
from tests.support.network.lab import LIMIT_S, Program
from tests.support.network.ports import free_port_range
from tests.support.programs.processes import require_program
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online, wait_until

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
SCRAPE_INTERVAL_S: Final = 1.0
"""Also the timeout of a scrape: a failed one would reset the ``for:`` of an alert."""
RATE_INTERVAL: Final = "4s"
"""The value that Grafana would compute."""
TIME_SCALE: Final = 20
"""The rules' ``for:`` and ``keep_firing_for:`` are divided by it."""
HEALTHY: Final = ("pc-1", "pc-2")
KILLED, SLOW_DISK, LOSSY, FORGETFUL, SOUND = "pc-killed", "pc-slow", "pc-lossy", "pc-forgetful", "pc-3"
TROUBLED: Final = (SOUND, KILLED, SLOW_DISK, LOSSY, FORGETFUL)
LOSS: Final = 0.2
"""High enough that random variation never takes it below the alert's 5 %."""
SLOW_BYTES_PER_S: Final = 300e3
ALERT_OF: Final = {
    KILLED: "DiskcastReceiverFailed",
    SLOW_DISK: "DiskcastDiskSlow",
    LOSSY: "DiskcastLossHigh",
    FORGETFUL: "DiskcastVerificationMismatch",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Sizes, rates and times of the casts.

    Attributes:
        blocks: of the image, 256 KiB each.
        healthy_bytes_per_s: rate of the healthy cast.
        troubled_bytes_per_s: rate of the other.
        retention_s: how long an ended cast's series stay: the healthy one's vanish before the other is over.
    """

    blocks: int = 80
    healthy_bytes_per_s: float = 4e6
    troubled_bytes_per_s: float = 2e6
    retention_s: float = 10.0


@dataclasses.dataclass(slots=True)
class Scene:
    """The casts that ran, and the Prometheus that scraped them; times are Unix seconds."""

    url: str
    daemon: Daemon
    instance: str
    living_instances: tuple[str, ...]
    """Of the agents that run all the time."""
    raw_bytes: int
    retention_s: float
    healthy_cast: str = ""
    troubled_cast: str = ""
    started_s: float = 0.0
    healthy_at_s: float = 0.0
    """A time in the middle of the healthy cast."""
    troubled_from_s: float = 0.0
    firing_at_s: float = 0.0
    """The time at which the first three faults had fired their alerts."""
    ended_s: float = 0.0
    troubled_machines: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def get(self, path: str, **parameters: str) -> Any:
        """Query the HTTP API of Prometheus."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=LIMIT_S) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def at(self, query: str, time_s: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Return labels and values at a time, by default now."""
        parameters = {} if time_s is None else {"time": f"{time_s:.3f}"}
        result = self.get("query", query=query, **parameters)["result"]
        return [(entry["metric"], float(entry["value"][1])) for entry in result]

    def over(
        self,
        query: str,
        start_s: float | None = None,
        end_s: float | None = None,
        step_s: float = SCRAPE_INTERVAL_S,
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Return labels and points of a time range, by default the whole time, without values that aren't numbers."""
        end_s = end_s or self.ended_s
        start_s = end_s - (end_s - (start_s or self.started_s)) // step_s * step_s
        data = self.get(
            "query_range",
            query=query,
            start=f"{start_s:.3f}",
            end=f"{end_s:.3f}",
            step=f"{step_s:.3f}",
        )
        return [
            (entry["metric"], [(at, float(v)) for at, v in entry["values"] if not math.isnan(float(v))])
            for entry in data["result"]
        ]

    def missed(self) -> bool:
        """Return whether a running program didn't answer Prometheus in time, for example on a busy machine: an
        alert about that is right, another one began its waiting anew, and neither says anything of the programs.
        """
        return bool(self.over(f'up{{instance=~"{"|".join((self.instance, *self.living_instances))}"}} == 0'))

    def alert_expressions(self) -> dict[str, str]:
        """Return the expressions of the loaded rules, by alert name."""
        groups = self.get("rules", type="alert")["groups"]
        return {rule["name"]: rule["query"] for group in groups for rule in group["rules"]}

    def alerts(self, start_s: float | None = None, end_s: float | None = None) -> set[tuple[str, str, str]]:
        """Return name, cast and machine of every alert that fired in a time range."""
        found = self.over('ALERTS{alertstate="firing"}', start_s, end_s)
        return {
            (labels["alertname"], labels.get("cast", ""), labels.get("machine", "")) for labels, _ in found
        }


def shipped_dashboards() -> dict[str, dict[str, Any]]:
    """Return the shipped dashboards by file name."""
    folder = DEPLOY / "grafana" / "dashboards"
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def substitute(query: str, **variables: str) -> str:
    """Return a query as Grafana sends it."""
    query = query.replace("$__rate_interval", RATE_INTERVAL)
    for name, value in variables.items():
        query = query.replace(f"${name}", value)
    assert "$" not in query, query
    return query


def scaled_rules(text: str) -> str:
    """Return the shipped rules with shorter waiting times, divided by :data:`TIME_SCALE`."""
    units = {"s": 1000, "m": 60_000}
    scaled, count = re.subn(
        r"(for): (\d+)([sm])$",
        lambda match: f"{match[1]}: {int(match[2]) * units[match[3]] // TIME_SCALE}ms",
        text,
        flags=re.MULTILINE,
    )
    assert count > text.count("- alert:"), "each alert has a for:"
    return scaled


def write_configuration(folder: Path, daemon_port: int, sender_port: int) -> Path:
    """Return the shipped configuration with shorter intervals and these addresses."""
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    milliseconds = f"{SCRAPE_INTERVAL_S * 1000:.0f}ms"
    for pattern, replacement in (
        (r"scrape_interval: \S+", f"scrape_interval: {milliseconds}"),
        (r"scrape_timeout: \S+", f"scrape_timeout: {milliseconds}"),
        (r"evaluation_interval: \S+", f"evaluation_interval: {milliseconds}"),
        (r"localhost:7400", f"127.0.0.1:{daemon_port}"),
        (r"localhost:9411", f"127.0.0.1:{sender_port}"),
        (r"/etc/prometheus/diskcast-agents", str(folder / "agents")),
    ):
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, pattern
    (folder / "agents").mkdir()
    (folder / "rules").mkdir()
    for rules in (DEPLOY / "prometheus" / "rules").glob("*.yml"):
        (folder / "rules" / rules.name).write_text(scaled_rules(rules.read_text()))
    path = folder / "prometheus.yml"
    path.write_text(text)
    return path


@contextlib.contextmanager
def _prometheus(configuration: Path, port: int) -> Iterator[str]:
    """Run Prometheus; yield its URL once it answers."""
    executable = require_program("prometheus")
    arguments = [f"--config.file={configuration}", f"--storage.tsdb.path={configuration.parent / 'data'}"]
    arguments += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    url = f"http://127.0.0.1:{port}"
    with Program([executable, *arguments]) as program:

        def ready() -> bool:
            assert program.exit_code is None, program.describe()
            with contextlib.suppress(urllib.error.URLError):
                return bool(urllib.request.urlopen(f"{url}/-/ready", timeout=LIMIT_S).status == 200)
            return False

        wait_until("Prometheus is ready", ready, LIMIT_S, describe=program.describe)
        yield url


@contextlib.contextmanager
def monitored_room(folder: Path, plan: Plan) -> Iterator[Scene]:
    """Run both casts; needs root for the disks with faults."""
    require_program("prometheus")
    made = make_image("r" * plan.blocks, block_bytes=MIB // 4, seed=21, name="lab-2026")
    image = made.write(folder / "lab-2026.dci")
    prometheus_port, sender_port, *agent_ports = free_port_range(2 + len(HEALTHY) + len(TROUBLED))
    ports = dict(zip((*HEALTHY, *TROUBLED), agent_ports, strict=True))
    settings: dict[str, dict[str, object]] = {
        "casts": {"receiver_timeout_s": 5.0, "resume_wait_s": 5},
        "metrics": {"retention_s": plan.retention_s, "public": True},
        "log": {"level": "info"},
    }
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(Daemon(folder / "daemon", name="diskcast-1", settings=settings))
        daemon_port = int(daemon.url.rpartition(":")[2])
        configuration = write_configuration(folder, daemon_port, sender_port)
        for name, port in ports.items():
            target = {"targets": [f"127.0.0.1:{port}"], "labels": {"room": _room_of(name), "machine": name}}
            (folder / "agents" / f"{name}.yml").write_text(json.dumps([target]))
        scene = Scene(
            url=stack.enter_context(_prometheus(configuration, prometheus_port)),
            daemon=daemon,
            instance=f"127.0.0.1:{daemon_port}",
            living_instances=tuple(f"127.0.0.1:{port}" for name, port in ports.items() if name != KILLED),
            raw_bytes=len(made.raw),
            retention_s=plan.retention_s,
        )
        image_id = daemon.add_image(image)["image_id"]
        for room in ("lab-1", "lab-2"):
            daemon.ask("POST", "/rooms", {"name": room, "room_id": room})
        for name in ports:
            daemon.ask("POST", "/machines", {"name": name, "room_id": _room_of(name), "serial": f"SN-{name}"})
        slow = _disk(stack, folder / "slow", Behaviour(write_bytes_per_s=SLOW_BYTES_PER_S))
        flip = Fault(Operation.WRITE, Action.FLIP, count=1, start_bytes=3 * MIB, stop_bytes=4 * MIB, seed=3)
        forgetful = _disk(stack, folder / "forgetful", Behaviour(faults=(flip,)))
        targets = {SLOW_DISK: slow.directory / "disk", FORGETFUL: forgetful.directory / "disk"}
        agents = {
            name: stack.enter_context(
                ServiceAgent(
                    folder / "disks",
                    name,
                    [daemon],
                    target=targets.get(name),
                    options=_options_of(name, port),
                )
            )
            for name, port in ports.items()
        }
        # Prometheus takes five seconds to learn its targets; until then no daemon is there for it.
        _wait_seen(scene, "the daemon", 'up{job="diskcast"} == 1')
        wait_until("it misses nothing", lambda: not scene.at("ALERTS"), LIMIT_S, describe=daemon.describe)
        wait_online(daemon, agents)
        scene.started_s = time.time()
        _present_wrong_token(daemon)
        _wait_seen(scene, "its rejection", "diskcast_http_rejections_total")
        _present_wrong_token(daemon)
        _healthy_cast(scene, image_id, plan.healthy_bytes_per_s)
        _troubled_cast(scene, image_id, plan.troubled_bytes_per_s, agents[KILLED], slow)
        yield scene


def _options_of(name: str, metrics_port: int) -> tuple[str, ...]:
    options = ("--metrics-port", str(metrics_port), "--memory", "4MiB")
    return (*options, "--rehearse-loss", f"{LOSS:.0%}") if name == LOSSY else options


def _room_of(name: str) -> str:
    return "lab-1" if name in HEALTHY else "lab-2"


def _present_wrong_token(daemon: Daemon) -> None:
    request = urllib.request.Request(
        f"{daemon.url}/api/v1/rooms", headers={"Authorization": "Bearer dct_view_wrong"}
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request)


def _wait_seen(scene: Scene, what: str, query: str) -> None:
    wait_until(f"Prometheus sees {what}", lambda: scene.at(query), LIMIT_S, describe=scene.daemon.describe)


def _healthy_cast(scene: Scene, image_id: str, bytes_per_s: float) -> None:
    """Run the healthy cast to two machines, with a pause in the middle."""
    daemon = scene.daemon
    cast = daemon.create_cast(image_id, room_id="lab-1", name="Monday", rate_bytes_per_s=bytes_per_s)
    scene.healthy_cast = cast
    daemon.wait_progress(cast, 0.3)
    daemon.ask("POST", f"/casts/{cast}/pause")
    _wait_seen(scene, "the pause", f'diskcast_cast_paused{{cast="{cast}"}} == 1')
    scene.healthy_at_s = time.time()
    daemon.ask("POST", f"/casts/{cast}/resume")
    daemon.wait_phase(cast, "done")
    _wait_seen(scene, "its end", f'diskcast_cast_outcome{{cast="{cast}"}}')


def _troubled_cast(
    scene: Scene,
    image_id: str,
    bytes_per_s: float,
    killed: ServiceAgent,
    slow: SlowDisk,
) -> None:
    """Run the cast with faults until every fault has fired its alert."""
    daemon = scene.daemon
    scene.troubled_from_s = time.time()
    cast = daemon.create_cast(
        image_id,
        room_id="lab-2",
        name="Tuesday",
        wait_for=len(TROUBLED),
        rate_max_bytes_per_s=bytes_per_s,
        slow_for_s=1.0,
    )
    scene.troubled_cast = cast
    daemon.wait_progress(cast, 0.15, [SOUND, KILLED])
    killed.kill()
    _wait_firing(scene, {(ALERT_OF[name], cast, name) for name in (KILLED, SLOW_DISK, LOSSY)})
    scene.firing_at_s = time.time()
    slow.set_behaviour(Behaviour())
    daemon.wait_phase(cast, "failed")  # one machine was killed
    _wait_firing(scene, {(ALERT_OF[FORGETFUL], cast, FORGETFUL)})
    _wait_seen(scene, "its end", f'diskcast_cast_outcome{{cast="{cast}"}}')
    of_healthy = f'diskcast_cast_info{{cast="{scene.healthy_cast}"}}'
    if scene.retention_s < LIMIT_S:
        wait_until("it is forgotten", lambda: not scene.at(of_healthy), LIMIT_S, describe=daemon.describe)
    scene.troubled_machines = daemon.machines_of(cast)
    scene.ended_s = time.time()


def _disk(stack: contextlib.ExitStack, folder: Path, behaviour: Behaviour) -> SlowDisk:
    folder.mkdir()
    return stack.enter_context(slow_disk(folder, behaviour))


def _wait_firing(scene: Scene, expected: Iterable[tuple[str, str, str]]) -> None:
    wanted = set(expected)

    def firing() -> bool:
        return wanted <= scene.alerts(scene.troubled_from_s, time.time())

    def describe() -> str:
        found = scene.alerts(scene.troubled_from_s, time.time())
        return f"fired: {sorted(found)}; {scene.daemon.describe()}"

    wait_until(f"{sorted(wanted)} fire", firing, LIMIT_S, describe=describe)


def panels_of(dashboard: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Return the panels without the row headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]
