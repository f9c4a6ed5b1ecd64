"""Metrics of a daemon's fleet: casts, machines, images, database and problems; one table.

They are read from a :class:`Fleet`, a copy that the daemon's event loop makes every few seconds: a scrape waits for
nothing, and is as quick while the database is unavailable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from sender.metrics.metric import Samples
from sender.store.records.captures import CaptureState
from sender.store.records.image_exports import ExportState
from sender.store.records.image_uploads import UploadState
from sender.store.records.problems import ProblemKind


@dataclasses.dataclass(frozen=True, slots=True)
class ImageJobs:
    """The jobs of a daemon that make images, or files of them.

    Attributes:
        captures: unfinished captures by state.
        uploads: running uploads by state.
        exports: unfinished exports by state.
        capture_silent_s: time without progress of the capture that is stuck for longest.
        export_bytes: size of all exported files.
    """

    captures: Mapping[str, int] = dataclasses.field(default_factory=dict)
    uploads: Mapping[str, int] = dataclasses.field(default_factory=dict)
    exports: Mapping[str, int] = dataclasses.field(default_factory=dict)
    capture_silent_s: float = 0.0
    export_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Fleet:
    """A copy of the daemon's figures.

    Attributes:
        casts: unfinished casts of all daemons of the database, by phase.
        machines_known: machines in the database, by room id.
        machines_online: machines that have checked in here recently, by room id; ``""`` for machines without a room.
        images: images by state.
        cache_bytes: size of copies of remote images.
        cache_limit_bytes: limit of that size.
        database_up: True if the last attempt to use the database succeeded.
        pending_writes: records of running casts that wait for the database.
        problems: problems that an operator should look at, by kind.
        leases: casts that this daemon runs.
        schedule_failures: schedules whose last cast couldn't be planned.
        event_clients: browsers and programs subscribed to live events.
        machines_booting: machines that load the live system.
        image_jobs: captures, uploads and exports.
    """

    casts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    machines_known: Mapping[str, int] = dataclasses.field(default_factory=dict)
    machines_online: Mapping[str, int] = dataclasses.field(default_factory=dict)
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)
    cache_bytes: int = 0
    cache_limit_bytes: int = 0
    database_up: bool = True
    pending_writes: int = 0
    problems: Mapping[str, int] = dataclasses.field(default_factory=dict)
    leases: int = 0
    schedule_failures: int = 0
    event_clients: int = 0
    machines_booting: int = 0
    image_jobs: ImageJobs = dataclasses.field(default_factory=ImageJobs)


@dataclasses.dataclass(frozen=True, slots=True)
class FleetMetric:
    """A row of the table: a :class:`sender.metrics.metric.Metric` that is read from a :class:`Fleet`."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...]
    read: Callable[[Fleet], Samples]


def _value(read: Callable[[Fleet], float]) -> Callable[[Fleet], Samples]:
    return lambda fleet: [((), read(fleet))]


def _by_label(read: Callable[[Fleet], Mapping[str, int]]) -> Callable[[Fleet], Samples]:
    return lambda fleet: [((label,), count) for label, count in read(fleet).items()]


def _image_jobs(fleet: Fleet) -> Samples:
    # All states exist from the start: a panel shows zeros instead of nothing.
    jobs = fleet.image_jobs
    return [
        ((kind, state.value), found.get(state, 0))
        for kind, states, found in (
            ("capture", CaptureState, jobs.captures),
            ("upload", UploadState, jobs.uploads),
            ("export", ExportState, jobs.exports),
        )
        for state in states
        if not state.ended
    ]


def _problems(fleet: Fleet) -> Samples:
    # All kinds exist from the start, so that an alert sees a change.
    kinds: dict[str, int] = dict.fromkeys(ProblemKind, 0) | dict(fleet.problems)
    return [((kind,), count) for kind, count in kinds.items()]


FLEET_METRICS: Final[tuple[FleetMetric, ...]] = (
    FleetMetric(
        "diskcast_casts",
        "gauge",
        "Casts of this database that haven't ended, by phase: the same from each of its daemons.",
        ("phase",),
        _by_label(lambda f: f.casts),
    ),
    FleetMetric(
        "diskcast_machines_known",
        "gauge",
        "Machines of each room in the database: the same from each of its daemons.",
        ("room",),
        _by_label(lambda f: f.machines_known),
    ),
    FleetMetric(
        "diskcast_machines_online",
        "gauge",
        "Machines whose agents have checked in at this daemon recently.",
        ("room",),
        _by_label(lambda f: f.machines_online),
    ),
    FleetMetric(
        "diskcast_machines_booting",
        "gauge",
        "Machines that load the live system over the network and haven't checked in yet.",
        (),
        _value(lambda f: f.machines_booting),
    ),
    FleetMetric("diskcast_images", "gauge", "Images by state.", ("state",), _by_label(lambda f: f.images)),
    FleetMetric(
        "diskcast_image_jobs",
        "gauge",
        "Captures, uploads and exports of this daemon that haven't ended, by kind and state.",
        ("kind", "state"),
        _image_jobs,
    ),
    FleetMetric(
        "diskcast_capture_silent_seconds",
        "gauge",
        "Time without progress of the capture that is stuck for longest; 0 while none is uploading or proving.",
        (),
        _value(lambda f: f.image_jobs.capture_silent_s),
    ),
    FleetMetric(
        "diskcast_image_export_bytes",
        "gauge",
        "Size of the files that exports have made and that can be downloaded.",
        (),
        _value(lambda f: f.image_jobs.export_bytes),
    ),
    FleetMetric(
        "diskcast_image_cache_bytes",
        "gauge",
        "Size of copies of remote images.",
        (),
        _value(lambda f: f.cache_bytes),
    ),
    FleetMetric(
        "diskcast_image_cache_limit_bytes",
        "gauge",
        "Limit of the size of copies of remote images.",
        (),
        _value(lambda f: f.cache_limit_bytes),
    ),
    FleetMetric(
        "diskcast_database_up",
        "gauge",
        "1 if the last attempt to use the database succeeded.",
        (),
        _value(lambda f: float(f.database_up)),
    ),
    FleetMetric(
        "diskcast_pending_writes",
        "gauge",
        "Records of running casts that wait for the database.",
        (),
        _value(lambda f: f.pending_writes),
    ),
    FleetMetric(
        "diskcast_problems",
        "gauge",
        "Problems that an operator should look at, by kind.",
        ("kind",),
        _problems,
    ),
    FleetMetric("diskcast_leases", "gauge", "Casts that this daemon runs.", (), _value(lambda f: f.leases)),
    FleetMetric(
        "diskcast_schedules_failing",
        "gauge",
        "Schedules whose last cast couldn't be planned.",
        (),
        _value(lambda f: f.schedule_failures),
    ),
    FleetMetric(
        "diskcast_event_clients",
        "gauge",
        "Browsers and programs subscribed to live events.",
        (),
        _value(lambda f: f.event_clients),
    ),
)


class FleetCollector(Collector):
    """A collector that reads the table from a copy."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[MetricFamily]:
        """Yield a metric family for each row."""
        for metric in FLEET_METRICS:
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for labels, value in metric.read(self._fleet):
                family.add_metric(labels, value)
            yield family
