"""The daemon's ``/metrics``: its casts, what it looks after, its API and its process, in Prometheus' text format.

::

    event loop ── watch_daemon() ──► copies: casts, Fleet ─────┐
    sessions, each under its own lock ─────────────────────────┼──► render_metrics(), in any thread
    counters of requests, check-ins, the loop's lag ───────────┘

Counters are the process's, as is usual with Prometheus, so that whoever serves a request needs nothing but the module.
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
from typing import TYPE_CHECKING, Final, TypeVar

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
from sender.metrics.fleet_metrics import Fleet, FleetCollector
from sender.metrics.metrics_server import CastsCollector, ObservedCast
from sender.store.records.casts import CastPhase

if TYPE_CHECKING:
    from sender.daemon.context import Services
    from sender.store.store import Store

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

FLEET_INTERVAL_S: Final = 2.0
"""How old the copy of what the daemon knows may be: younger than a scrape's interval."""
STORE_INTERVAL_S: Final = 10.0
"""How often the database is asked for counts; machines and plans don't come and go faster."""
LAG_INTERVAL_S: Final = 0.25
"""How often the event loop's lag is looked at."""
_LAG_BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_REQUEST_BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From an answer out of memory to the end of a long poll."""
_ROUTES_MAX: Final = 100
"""Templates of routes that are told apart: the API has half of that. What comes after them is ``other``."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PAGE_COUNT: Final = 500

_T = TypeVar("_T")

disable_created_metrics()  # type: ignore[no-untyped-call]  # a third more series, which nobody asks for

API_REQUESTS: Final = Counter(
    "diskcast_api_requests",
    "Requests that were answered, by the route's template and the status's class.",
    ("method", "route", "status"),
    registry=None,
)
API_SECONDS: Final = Histogram(
    "diskcast_api_request_seconds",
    "Time from a request to the end of its answer. Check-ins wait on purpose, live events as long as they are read.",
    ("method", "route"),
    buckets=_REQUEST_BOUNDS_S,
    registry=None,
)
CHECK_INS: Final = Counter("diskcast_check_ins", "Check-ins of agents that were answered.", registry=None)
SENT_BYTES: Final = Counter(
    "diskcast_daemon_sent_bytes",
    "Bytes of data datagrams that this daemon has sent, in all casts since its start.",
    registry=None,
)
LOOP_LAG: Final = Histogram(
    "diskcast_event_loop_lag_seconds",
    "How much later than it should the event loop came to a task of no work, looked at four times a second.",
    buckets=_LAG_BOUNDS_S,
    registry=None,
)
BUILD_INFO: Final = Gauge(
    "diskcast_build_info", "1; which diskcast this is.", ("version", "name"), registry=None
)
INSTRUMENTS: Final = (BUILD_INFO, API_REQUESTS, API_SECONDS, CHECK_INS, SENT_BYTES, LOOP_LAG)
"""What is counted as it happens; all else is read when Prometheus scrapes."""

_process = ProcessCollector(registry=None)
_lock = threading.Lock()
_routes: set[str] = set()
_sent_bytes: dict[str, int] = {}
"""What each run of a cast had sent when it was last looked at."""


@dataclasses.dataclass(frozen=True, slots=True)
class _StoreCounts:
    """What the database counts: casts by phase, machines by room, schedules that fail."""

    casts: dict[str, int] = dataclasses.field(default_factory=dict)
    machines: dict[str, int] = dataclasses.field(default_factory=dict)
    failing_schedules: int = 0


_counted: list[_StoreCounts] = [_StoreCounts()]
_latest: list[Fleet] = [Fleet()]
_casts: list[list[ObservedCast]] = [[]]
"""Each the one copy of now, replaced as a whole."""


def observe_request(route: str, method: str, status: int, seconds: float) -> None:
    """Count an answered request; from any thread.

    Args:
        route: the template, e.g. ``/api/v1/casts/{cast_id}``; empty if none matched. A path would be a series each.
        method: of HTTP.
        status: of the answer; 0 if there was none.
        seconds: from the request to the end of the answer.
    """
    route = _bounded_route(route)
    method = method if method in _METHODS else "other"
    API_REQUESTS.labels(method, route, f"{status // 100}xx" if status else "none").inc()
    API_SECONDS.labels(method, route).observe(seconds)
    if route.endswith("/check-in") and 200 <= status < 300:
        CHECK_INS.inc()


def render_metrics(services: Services) -> bytes:
    """All that Prometheus scrapes, in its text format; waits for no database and is safe in any thread.

    What it says is :func:`watch_daemon`'s copy, and what the casts' sessions say now. 500 machines in one cast take
    50 ms and 0.9 MB: call it in a thread, so that the event loop goes on meanwhile.
    """
    fleet, casts = _latest[0], _casts[0]
    _count_sent_bytes(casts)
    BUILD_INFO.labels(importlib.metadata.version("diskcast"), services.config.server.name).set(1)
    registry = CollectorRegistry(auto_describe=False)
    for collector in (*INSTRUMENTS, _process, FleetCollector(fleet), CastsCollector(lambda: casts)):
        registry.register(collector)
    return generate_latest(registry)


async def watch_daemon(services: Services) -> None:
    """Keep the copies fresh and watch the event loop's lag, until cancelled: a task of the daemon's."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_watch_casts(services))
        group.create_task(_watch_store(services))
        group.create_task(_watch_fleet(services))


async def _watch_casts(services: Services) -> None:
    """Note which casts there are, and how late the event loop comes to it."""
    while True:
        _casts[0] = _observed(services)
        due = time.monotonic() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        LOOP_LAG.observe(max(0.0, time.monotonic() - due))


async def _watch_store(services: Services) -> None:
    """Ask the database now and then; while it fails, the last counts stay and the store shows its own problem."""
    while True:
        with contextlib.suppress(DiskcastError):
            _counted[0] = await services.store.run(_store_counts, services.store)
        await asyncio.sleep(STORE_INTERVAL_S)


async def _watch_fleet(services: Services) -> None:
    while True:
        _latest[0] = _fleet(services, _counted[0])
        await asyncio.sleep(FLEET_INTERVAL_S)


def _fleet(services: Services, counted: _StoreCounts) -> Fleet:
    images = services.library.images()
    return Fleet(
        casts=counted.casts,
        machines_known=counted.machines,
        machines_online=_online(services),
        images=Counts(image.state.value for image in images),
        cache_bytes=sum(image.fetched_bytes for image in images if image.source == "remote"),
        cache_limit_bytes=services.config.library.cache_bytes,
        database_up=services.store.problem is None,
        pending_writes=services.recorder.pending_count,
        problems=Counts(problem.kind for problem in services.problems()),
        leases=sum(not run.cast.phase.ended for run in services.supervisor.casting()),
        schedule_failures=counted.failing_schedules,
        event_clients=services.live.subscriber_count,
    )


def _online(services: Services) -> dict[str, int]:
    return Counts(attendance.machine.room_id or "" for attendance in services.presence.online)


def _store_counts(store: Store) -> _StoreCounts:
    """Casts by phase, machines by room, schedules that fail; in a thread of the store's."""
    casts = {}
    for phase in CastPhase:
        if not phase.ended:
            casts[phase.value] = sum(1 for _ in _all(store.casts.list, phase=phase))
    known = {room.room_id: room.machine_count for room in _all(store.rooms.list)}
    failing = sum(bool(schedule.problem) for schedule in _all(store.schedules.list))
    return _StoreCounts(casts, known, failing)


def _all(list_page: Callable[..., tuple[list[_T], str | None]], **filters: object) -> Iterator[_T]:
    """Everything of a list, page by page."""
    after = None
    while True:
        page, after = list_page(after=after, limit=_PAGE_COUNT, **filters)
        yield from page
        if after is None:
            return


def _observed(services: Services) -> list[ObservedCast]:
    """Casts that speak to their rooms, or did lately; one that only prepares has no session."""
    return [run for run in services.supervisor.casting() if run.run is not None]


def _count_sent_bytes(casts: Iterable[ObservedCast]) -> None:
    """What was sent since the last look: a cast's own counter goes when the cast is forgotten, the sum stays."""
    with _lock:
        now = {}
        for cast in casts:
            with cast.shared.read() as (session, _now):
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
