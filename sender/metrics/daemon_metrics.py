"""The daemon's ``/metrics``: its casts, fleet, API and process, in Prometheus' text format.

::

    event loop ── DaemonMetrics.run() ──► copies: casts, Fleet ┐
    sessions, each under its own lock ─────────────────────────┼──► DaemonMetrics.render(), in any thread
    counters of requests, check-ins, the loop's lag ───────────┘

Counters belong to the process, as is usual with Prometheus.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from protocol.errors import DiskcastError
from sender.http.rejections import HTTP_REJECTIONS
from sender.metrics.boot_metrics import BOOT_TOKEN_REFUSALS, BOOTS, IMAGE_REFUSALS
from sender.metrics.cast_collector import CastsCollector, ObservedCast
from sender.metrics.fleet_metrics import Fleet, FleetCollector, ImageJobs
from sender.metrics.image_job_metrics import IMAGE_JOB_COUNTERS
from sender.store.records.casts import CastPhase
from sender.store.records.images import Image
from sender.store.records.problems import Problem
from sender.store.store import Store

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

FLEET_INTERVAL_S: Final = 2.0
"""Age of the fleet's copy, at most: less than a scrape's interval."""
STORE_INTERVAL_S: Final = 10.0
"""Interval of counting rows in the database; machines and plans don't change faster."""
LAG_INTERVAL_S: Final = 0.25
"""Interval of measuring the event loop's lag."""
_LAG_BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_REQUEST_BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds from an answer from memory to the end of a long poll."""
_ROUTES_MAX: Final = 100
"""Route templates with series of their own: the API has half as many. Further ones are ``other``."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PAGE_COUNT: Final = 500

_T = TypeVar("_T")

disable_created_metrics()  # type: ignore[no-untyped-call]  # they are a third more series, without use

API_REQUESTS: Final = Counter(
    "diskcast_api_requests",
    "Answered requests, by route template and class of the status.",
    ("method", "route", "status"),
    registry=None,
)
API_SECONDS: Final = Histogram(
    "diskcast_api_request_seconds",
    "Time from a request to the end of its response. Check-ins wait on purpose, live events until the client leaves.",
    ("method", "route"),
    buckets=_REQUEST_BOUNDS_S,
    registry=None,
)
CHECK_INS: Final = Counter("diskcast_check_ins", "Answered check-ins of agents.", registry=None)
SENT_BYTES: Final = Counter(
    "diskcast_daemon_sent_bytes",
    "Bytes of data datagrams sent by this daemon, in all casts since its start.",
    registry=None,
)
LOOP_LAG: Final = Histogram(
    "diskcast_event_loop_lag_seconds",
    "Delay of the event loop, measured four times a second by a task without work.",
    buckets=_LAG_BOUNDS_S,
    registry=None,
)
BUILD_INFO: Final = Gauge(
    "diskcast_build_info",
    "Always 1; the labels are the version and the name of the daemon.",
    ("version", "name"),
    registry=None,
)
INSTRUMENTS: Final = (
    BUILD_INFO,
    API_REQUESTS,
    API_SECONDS,
    CHECK_INS,
    BOOTS,
    BOOT_TOKEN_REFUSALS,
    IMAGE_REFUSALS,
    *IMAGE_JOB_COUNTERS,
    SENT_BYTES,
    LOOP_LAG,
    HTTP_REJECTIONS,
)
"""Metrics counted as events happen; all others are read when Prometheus scrapes."""

_process = ProcessCollector(registry=None)
_lock = threading.Lock()
_routes: set[str] = set()
_sent_bytes: dict[str, int] = {}
"""Bytes sent by each run of a cast, as of the last scrape."""


@dataclasses.dataclass(frozen=True, slots=True)
class _StoreCounts:
    """Counts of database rows: casts by phase, machines by room, failing schedules."""

    casts: dict[str, int] = dataclasses.field(default_factory=dict)
    machines: dict[str, int] = dataclasses.field(default_factory=dict)
    failing_schedules: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class FleetSources:
    """Functions that read the daemon's parts, called in the event loop.

    Attributes:
        casts: casts with a session, running or ended recently.
        leases: number of casts that this daemon runs.
        images: images of the library.
        cache_limit_bytes: limit of copies of remote images.
        online_room_ids: room of each machine that is online.
        pending_writes: records that wait for the database.
        problems: problems that an operator should look at.
        event_clients: subscribers of live events.
        machines_booting: number of machines that load the live system.
        image_jobs: captures, uploads and exports.
    """

    casts: Callable[[], Iterable[ObservedCast]]
    leases: Callable[[], int]
    images: Callable[[], list[Image]]
    cache_limit_bytes: int
    online_room_ids: Callable[[], Iterable[str | None]]
    pending_writes: Callable[[], int]
    problems: Callable[[], list[Problem]]
    event_clients: Callable[[], int]
    machines_booting: Callable[[], int]
    image_jobs: Callable[[], ImageJobs]


def observe_request(route: str, method: str, status: int, seconds: float) -> None:
    """Count an answered request. Thread-safe.

    Args:
        route: the template, e.g. ``/api/v1/casts/{cast_id}``; empty if none matched. A path would be a series each.
        method: HTTP method.
        status: status of the answer; 0 if there was none.
        seconds: time from the request to the end of the answer.
    """
    route = _bounded_route(route)
    method = method if method in _METHODS else "other"
    API_REQUESTS.labels(method, route, f"{status // 100}xx" if status else "none").inc()
    API_SECONDS.labels(method, route).observe(seconds)
    if route.endswith("/check-in") and 200 <= status < 300:
        CHECK_INS.inc()


class DaemonMetrics:
    """The ``/metrics`` of one daemon."""

    def __init__(self, daemon_name: str, store: Store, sources: FleetSources) -> None:
        self._daemon_name = daemon_name
        self._store = store
        self._sources = sources
        self._counts = _StoreCounts()
        self._fleet = Fleet()
        self._casts: list[ObservedCast] = []

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format. It never waits for the database and is thread-safe.

        They are the copies of :meth:`run` and the current figures of the casts' sessions. A cast of 500 machines takes
        50 ms and 0.9 MB: call this in a thread, so that the event loop isn't blocked.
        """
        fleet, casts = self._fleet, self._casts
        _count_sent_bytes(casts)
        BUILD_INFO.labels(importlib.metadata.version("diskcast"), self._daemon_name).set(1)
        registry = CollectorRegistry(auto_describe=False)
        for collector in (*INSTRUMENTS, _process, FleetCollector(fleet), CastsCollector(lambda: casts)):
            registry.register(collector)
        return generate_latest(registry)

    async def run(self) -> None:
        """Refresh the copies and measure the event loop's lag, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_casts())
            group.create_task(self._watch_store())
            group.create_task(self._watch_fleet())

    async def _watch_casts(self) -> None:
        """Copy the list of casts, and measure how late this task runs."""
        while True:
            self._casts = list(self._sources.casts())
            due = time.monotonic() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            LOOP_LAG.observe(max(0.0, time.monotonic() - due))

    async def _watch_store(self) -> None:
        """Count rows in the database periodically; while it is unavailable, the last counts stay."""
        while True:
            with contextlib.suppress(DiskcastError):
                self._counts = await self._store.run(_store_counts, self._store)
            await asyncio.sleep(STORE_INTERVAL_S)

    async def _watch_fleet(self) -> None:
        while True:
            self._fleet = self._read_fleet()
            await asyncio.sleep(FLEET_INTERVAL_S)

    def _read_fleet(self) -> Fleet:
        sources, counts = self._sources, self._counts
        images = sources.images()
        return Fleet(
            casts=counts.casts,
            machines_known=counts.machines,
            machines_online=Counts(room_id or "" for room_id in sources.online_room_ids()),
            images=Counts(image.state.value for image in images),
            cache_bytes=sum(image.fetched_bytes for image in images if image.source == "remote"),
            cache_limit_bytes=sources.cache_limit_bytes,
            database_up=self._store.problem is None,
            pending_writes=sources.pending_writes(),
            problems=Counts(problem.kind for problem in sources.problems()),
            leases=sources.leases(),
            schedule_failures=counts.failing_schedules,
            event_clients=sources.event_clients(),
            machines_booting=sources.machines_booting(),
            image_jobs=sources.image_jobs(),
        )


def _store_counts(store: Store) -> _StoreCounts:
    """Count casts by phase, machines by room and failing schedules; in a thread of the store."""
    casts = {}
    for phase in CastPhase:
        if not phase.ended:
            casts[phase.value] = sum(1 for _ in _all(store.casts.list, phase=phase))
    known = {room.room_id: room.machine_count for room in _all(store.rooms.list)}
    failing = sum(bool(schedule.problem) for schedule in _all(store.schedules.list))
    return _StoreCounts(casts, known, failing)


def _all(list_page: Callable[..., tuple[list[_T], str | None]], **filters: object) -> Iterator[_T]:
    """Yield all items of a list, page by page."""
    after = None
    while True:
        page, after = list_page(after=after, limit=_PAGE_COUNT, **filters)
        yield from page
        if after is None:
            return


def _count_sent_bytes(casts: Iterable[ObservedCast]) -> None:
    """Add the bytes sent since the last scrape: the sum stays when a cast and its counter are forgotten."""
    with _lock:
        now = {}
        for cast in casts:
            with cast.locked_session.read() as (session, _now):
                parameters = session.parameters
                run = f"{parameters.cast_id:08x}-{parameters.incarnation:08x}"
                now[run] = session.statistics.bytes_transmitted
        for run, byte_count in now.items():
            SENT_BYTES.inc(max(0, byte_count - _sent_bytes.get(run, 0)))
        _sent_bytes.clear()
        _sent_bytes.update(now)


def _bounded_route(route: str) -> str:
    if not route:
        return "none"
    if route not in _routes:
        if len(_routes) >= _ROUTES_MAX:
            return "other"
        _routes.add(route)
    return route
