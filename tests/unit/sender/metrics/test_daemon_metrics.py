"""The daemon's own metrics: quick while its database is down, and bounded whatever it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol.errors import DatabaseUnavailableError
from sender.cast.transmission.transmitter import TransmitterStatistics
from sender.metrics import daemon_metrics
from sender.metrics.daemon_metrics import DaemonMetrics, FleetSources, observe_request
from sender.metrics.fleet_metrics import ImageJobs
from sender.store.records.casts import CastPhase
from sender.store.records.images import Image
from sender.store.records.problems import Problem, ProblemKind
from sender.store.store import Store
from tests.shell.sender_rig import Rig, make_rig
from tests.support.network.lab import LIMIT_S


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = make_rig(tmp_path)
    with made.image:
        yield made


class FailingStore:
    """A database that has gone away."""

    problem = Problem(ProblemKind.DATABASE, "it is down", datetime.now(UTC))

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def run(self, _function: object, *_arguments: object) -> object:
        self.asked.set()
        raise DatabaseUnavailableError("it is down")


def made_metrics(runs: list[Any]) -> DaemonMetrics:
    """Return metrics of a daemon with these casts, whose database is unavailable."""
    image = SimpleNamespace(state=SimpleNamespace(value="available"), source="remote", fetched_bytes=5)
    problems = [FailingStore.problem, Problem(ProblemKind.DISK, "full", datetime.now(UTC))]
    sources = FleetSources(
        casts=lambda: runs,
        leases=lambda: len(runs),
        images=lambda: [cast("Image", image)],
        cache_limit_bytes=100,
        online_room_ids=lambda: ["a", "a", None],
        pending_writes=lambda: 3,
        problems=lambda: problems,
        machines_booting=lambda: 2,
        image_jobs=lambda: ImageJobs(captures={"uploading": 1}, capture_silent_s=7.0, export_bytes=9),
        event_clients=lambda: 2,
    )
    return DaemonMetrics("test", cast("Store", FailingStore()), sources)


def made_run(rig: Rig, phase: CastPhase) -> Any:
    return SimpleNamespace(
        run=object(),
        cast=SimpleNamespace(phase=phase),
        room_id="a",
        locked_session=rig.locked_session,
        transmitter=TransmitterStatistics(),
        feedback=SimpleNamespace(received_count=0),
    )


def watched(metrics: DaemonMetrics) -> None:
    """Let the daemon's watch take its copies once."""

    async def run() -> None:
        task = asyncio.ensure_future(metrics.run())
        await asyncio.wait_for(cast("FailingStore", metrics._store).asked.wait(), LIMIT_S)
        await asyncio.sleep(0)  # the copies are taken before the first wait
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_a_scrape_tells_what_the_daemon_knows_while_its_database_is_down(rig: Rig) -> None:
    rig.start_casting()
    metrics = made_metrics([made_run(rig, CastPhase.CASTING)])
    watched(metrics)
    found = samples(metrics.render())
    values = {name: value for (name, labels), value in found.items() if not labels}
    assert values["diskcast_database_up"] == 0
    assert values["diskcast_pending_writes"] == 3
    assert values["diskcast_leases"] == 1
    assert values["diskcast_event_clients"] == 2
    assert (values["diskcast_image_cache_bytes"], values["diskcast_image_cache_limit_bytes"]) == (5, 100)
    assert found["diskcast_machines_online", frozenset({("room", "a")})] == 2
    assert found["diskcast_machines_online", frozenset({("room", "")})] == 1
    problems = {dict(labels)["kind"]: v for (name, labels), v in found.items() if name == "diskcast_problems"}
    assert problems == dict.fromkeys(ProblemKind, 0) | {"database": 1, "disk": 1}
    assert {name for name, labels in found if ("machine", "pc-1") in labels} > {"diskcast_receiver_state"}
    assert values["process_resident_memory_bytes"] > 0


def test_what_was_sent_is_counted_on_when_a_cast_is_forgotten_or_runs_again(rig: Rig) -> None:
    """A sum that fell would look like a restart, and rates would leap."""

    def total() -> float:
        watched(metrics)
        return samples(metrics.render())["diskcast_daemon_sent_bytes_total", frozenset()]

    runs = [made_run(rig, CastPhase.CASTING)]
    metrics = made_metrics(runs)
    before = total()
    rig.session.statistics.bytes_transmitted = 1000
    assert total() - before == 1000
    assert total() - before == 1000
    rig.session.statistics.bytes_transmitted = 1500
    assert total() - before == 1500
    runs.clear()
    assert total() - before == 1500


def test_requests_are_counted_by_route_and_never_by_path() -> None:
    observe_request("/api/v1/casts/{cast_id}", "GET", 200, 0.01)
    observe_request("", "BREW", 404, 0.01)
    observe_request("/api/v1/check-in", "POST", 200, 20.0)
    observe_request("/api/v1/casts", "POST", 0, 0.01)
    found = samples(made_metrics([]).render())
    counted = {
        tuple(sorted(dict(labels).items())) for name, labels in found if name == "diskcast_api_requests_total"
    }
    assert (("method", "GET"), ("route", "/api/v1/casts/{cast_id}"), ("status", "2xx")) in counted
    assert (("method", "other"), ("route", "none"), ("status", "4xx")) in counted
    assert (("method", "POST"), ("route", "/api/v1/casts"), ("status", "none")) in counted
    assert found["diskcast_check_ins_total", frozenset()] >= 1


def test_somebody_who_makes_up_routes_makes_no_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_metrics, "_routes", {f"/{number}" for number in range(100)})
    observe_request("/made-up", "GET", 200, 0.01)
    routes = {
        dict(labels)["route"]
        for name, labels in samples(made_metrics([]).render())
        if name == "diskcast_api_requests_total"
    }
    assert "other" in routes
    assert "/made-up" not in routes


def test_scrapes_in_several_threads_agree(rig: Rig) -> None:
    """Two Prometheus servers scrape at once."""
    rig.start_casting()
    metrics = made_metrics([made_run(rig, CastPhase.CASTING)])
    watched(metrics)
    failures: list[BaseException] = []

    def scrape() -> None:
        try:
            for _ in range(5):
                samples(metrics.render())
        except BaseException as error:  # noqa: BLE001  shown by the test
            failures.append(error)

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_image_jobs_have_a_series_for_each_state_that_they_can_have() -> None:
    """Otherwise a panel shows nothing instead of zero, and an alert misses the first failure."""
    metrics = made_metrics([])
    watched(metrics)
    text = metrics.render().decode()
    assert 'diskcast_image_jobs{kind="capture",state="uploading"} 1.0' in text
    assert 'diskcast_image_jobs{kind="capture",state="complete"}' not in text
    for kind, states in (
        ("capture", ("planned", "proving")),
        ("upload", ("receiving", "waiting", "checking", "unpacking", "packing")),
        ("export", ("waiting", "converting")),
    ):
        for state in states:
            assert f'diskcast_image_jobs{{kind="{kind}",state="{state}"}} 0.0' in text
        assert f'diskcast_image_job_failures_total{{kind="{kind}"}}' in text
    for reason in ("damaged", "changed"):
        assert f'diskcast_capture_rejected_blocks_total{{reason="{reason}"}}' in text
    assert "diskcast_capture_silent_seconds 7.0" in text
    assert "diskcast_image_export_bytes 9.0" in text
