"""Measure a daemon with a room of 500 machines and 20 open dashboards: ``python -m tests.load.room``.

A real ``diskcast serve`` on the loopback interface, a room imported from CSV, machines that check in, join, report and
complete (:mod:`tests.load.machines`), clients of the server-sent events (:mod:`tests.load.watchers`), and a scraper of
the metrics, each in its own process.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import psutil
import rich.console
import rich.table

from protocol.constants import KIB, MIB
from tests.load.machines import machine_of
from tests.support.network.lab import LIMIT_S
from tests.support.network.loopback_cast import pack
from tests.support.programs.serving import Daemon, wait_until

ROOM = "load"
SCRAPE_INTERVAL_S = 5.0
SAMPLE_INTERVAL_S = 0.5
SETTLE_S = 2.0
"""Seconds at the start and the end of the cast that don't count: machines come and go, and watchers may resync."""

DELAY_BAR_S = 1.0
CPU_BAR = 1.0
RSS_BAR_BYTES = 500e6
SCRAPE_BAR_S = 1.0
SCRAPE_BAR_BYTES = 5e6
_EPSILON = 1e-6


@dataclasses.dataclass(slots=True)
class RoomLoad:
    """The measurements of a run."""

    machine_count: int
    complete_count: int
    cast_s: float
    cast_cpu_s: float
    bytes_sent: int
    peak_bytes: int
    delays_s: dict[str, list[float]]
    """Seconds from a machine's REPORT to each watcher that was shown it, by topic."""
    slow_at_s: dict[str, int]
    """Number of changes that took longer than the bound, by second of the cast."""
    updates_lost: int
    fulls_unexpected: int
    streams_broken: list[str]
    events: int
    sse_bytes: int
    scrapes: list[tuple[float, int]]
    nacks: int
    machines_errors: list[str]
    frames_lost: int
    load_before: float


def run_room(
    directory: Path,
    *,
    machine_count: int,
    watcher_count: int,
    seconds: float,
    rate_bytes_per_s: float,
    seed: int = 1,
) -> RoomLoad:
    """Cast to a room for about ``seconds``."""
    image = _make_image(directory, int(seconds * rate_bytes_per_s), seed)
    load_before = os.getloadavg()[0]
    settings = {"log": {"level": "info"}}
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(Daemon(directory / "daemon", settings=settings))
        process = psutil.Process(daemon.program.pid)
        daemon.add_image(image)
        room_id = daemon.ask("POST", "/rooms", {"name": ROOM, "room_id": ROOM})["room_id"]
        _import(daemon, room_id, machine_count)
        machines_log, watchers_log = directory / "machines.json", directory / "watchers.json"
        machines = stack.enter_context(
            _started(
                "tests.load.machines",
                daemon.url,
                str(machine_count),
                str(seed),
                str(machines_log),
                token=daemon.secret("enrol"),
            )
        )
        wait_until(
            "all machines are online",
            lambda: daemon.server()["machines_online"] >= machine_count,
            describe=daemon.describe,
        )
        cast_id = daemon.create_cast(
            "load",
            room_id=room_id,
            start="manual",
            rate_bytes_per_s=rate_bytes_per_s,
            wait_for=machine_count,
            slow="wait",  # the simulated machines can't be demoted
        )
        topics = f"overview,room:{room_id},cast:{cast_id}"
        watchers = stack.enter_context(
            _started(
                "tests.load.watchers",
                daemon.url,
                topics,
                str(watcher_count),
                str(watchers_log),
                token=daemon.secret("view"),
            )
        )
        assert watchers.stdout is not None
        assert watchers.stdin is not None
        assert watchers.stdout.readline() == b"watching\n"
        daemon.wait_phase(cast_id, "gathering")
        wait_until(
            "all machines have joined",
            lambda: daemon.cast(cast_id)["joined_count"] >= machine_count,
            describe=daemon.describe,
        )
        scraper = stack.enter_context(Scraper(daemon.url, daemon.secret("view")))
        cpu_before_s, began = _cpu_s(process), time.monotonic()
        daemon.ask("POST", f"/casts/{cast_id}/start")
        cast = _wait_cast(daemon, cast_id, machines, seconds)
        cast_s, cast_cpu_s = time.monotonic() - began, _cpu_s(process) - cpu_before_s
        machines.wait(LIMIT_S)
        watchers.stdin.write(f"{machine_count}\n".encode())
        watchers.stdin.close()
        watchers.wait(LIMIT_S)
        scraper.stop()
        peak_bytes = _peak_bytes(process)
        reported, shown = json.loads(machines_log.read_text()), json.loads(watchers_log.read_text())
    assert machines.returncode == 0
    delays_s, lost, slow_at = _delays(reported, shown)
    slow_at_s = dict(collections.Counter(str(int(at - began)) for at in sorted(slow_at)))
    return RoomLoad(
        machine_count=machine_count,
        complete_count=cast["complete_count"],
        cast_s=cast_s,
        cast_cpu_s=cast_cpu_s,
        bytes_sent=cast["bytes_sent"],
        peak_bytes=peak_bytes,
        delays_s=delays_s,
        slow_at_s=slow_at_s,
        updates_lost=lost,
        fulls_unexpected=_unexpected_fulls(shown, began, began + cast_s),
        streams_broken=shown["broken"],
        events=sum(map(len, shown["arrivals"])),
        sse_bytes=sum(shown["bytes"]),
        scrapes=scraper.scrapes,
        nacks=reported["nacks"],
        machines_errors=reported["errors"],
        frames_lost=reported["frames_lost"],
        load_before=load_before,
    )


def _make_image(directory: Path, byte_count: int, seed: int) -> Path:
    """Write an incompressible image quickly: a repeated block is random to the packer too."""
    block = random.Random(seed).randbytes(256 * KIB)
    source = directory / "load.disk"
    with source.open("wb") as file:
        for _ in range(max(8, byte_count // len(block))):
            file.write(block)
    image = pack(source, directory / "load.dci", "--name", "load")
    source.unlink()
    return image


def _import(daemon: Daemon, room_id: str, count: int) -> None:
    machines = map(machine_of, range(count))
    lines = [f"{m.name},{m.mac},{m.serial},,row {m.index // 20} seat {m.index % 20}" for m in machines]
    answer = daemon.api.post(
        f"/rooms/{room_id}/import",
        content="name,mac,serial,asset_tag,position\n" + "\n".join(lines) + "\n",
        headers={"Content-Type": "text/csv"},
    )
    assert answer.is_success, answer.text
    assert answer.json()["added"] == count, answer.text


@contextlib.contextmanager
def _started(module: str, *arguments: str, token: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "DISKCAST_TOKEN": token},
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _wait_cast(
    daemon: Daemon, cast_id: str, machines: subprocess.Popen[bytes], seconds: float
) -> dict[str, Any]:
    def ended() -> dict[str, Any]:
        assert machines.poll() in (None, 0), "the machines' process failed"
        time.sleep(SAMPLE_INTERVAL_S)
        cast = daemon.cast(cast_id)
        return cast if cast["ended_at"] is not None else {}

    def describe() -> str:
        rows = daemon.live_machines(cast_id)
        states = collections.Counter(row["state"] for row in rows.values())
        late = [row for row in rows.values() if row["state"] != "complete"][:3]
        return f"{states}; {late}; {daemon.describe()}"

    cast = wait_until("the cast has ended", ended, 3 * seconds + LIMIT_S, describe=describe)
    assert cast["phase"] == "done", cast
    return cast


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _peak_bytes(process: psutil.Process) -> int:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * KIB
    raise AssertionError("the kernel doesn't say the peak")


class Scraper:
    """A thread that scrapes like Prometheus; a context manager.

    Attributes:
        scrapes: seconds and bytes of each scrape.
    """

    def __init__(self, url: str, token: str) -> None:
        self._headers = {"Authorization": f"Bearer {token}"}
        self.scrapes: list[tuple[float, int]] = []
        self._url = f"{url}/metrics"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._scrape, name="scraper")

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _scrape(self) -> None:
        with httpx.Client(headers=self._headers, timeout=LIMIT_S, trust_env=False) as client:
            while True:
                begin = time.monotonic()
                answer = client.get(self._url)
                assert answer.is_success, answer.text
                self.scrapes.append((time.monotonic() - begin, len(answer.content)))
                if self._stopped.wait(SCRAPE_INTERVAL_S):
                    return


# -- evaluation -------------------------------------------------------------------------------------------------


def _delays(
    reported: dict[str, Any], shown: dict[str, Any]
) -> tuple[dict[str, list[float]], int, list[float]]:
    """Return the latencies of changes to watchers by topic, the number of lost ones, and the times of the slow ones."""
    events = shown["events"]
    changes: dict[str, list[tuple[float, float]]] = {name: [] for name in reported["names"]}
    for at, index, progress in reported["progress"]:
        name = reported["names"][index]
        if not changes[name] or progress > changes[name][-1][1]:
            changes[name].append((at, progress))
    delays: dict[str, list[float]] = {"room": [], "cast": []}
    lost, slow_at = 0, []
    for arrivals in shown["arrivals"]:
        for topic, found in delays.items():
            seen: dict[str, list[tuple[float, float]]] = {}
            for at, event_index in arrivals:
                event = events[event_index]
                if event["topic"] != topic:
                    continue
                for name, progress in event["progress"].items():
                    rows = seen.setdefault(name, [])
                    if not rows or progress > rows[-1][0]:
                        rows.append((progress, at))
            for name, steps in changes.items():
                rows = seen.get(name, [])
                for at, progress in steps:
                    if progress == 0:
                        continue
                    position = bisect.bisect_left(rows, (progress - _EPSILON, 0.0))
                    if position == len(rows):
                        lost += 1
                    else:
                        found.append(max(0.0, rows[position][1] - at))
                        if found[-1] > DELAY_BAR_S:
                            slow_at.append(at)
    return delays, lost, slow_at


def _unexpected_fulls(shown: dict[str, Any], began: float, ended: float) -> int:
    """Return the number of resyncs of slow watchers that missed events, while all machines were there."""
    events = shown["events"]
    return sum(
        events[index]["full"]
        for arrivals in shown["arrivals"]
        for at, index in arrivals
        if began + SETTLE_S < at < ended - SETTLE_S
    )


def percentile(values: list[float], share: float) -> float:
    """Return the quantile of the values; nan if there are none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def rows_of(load: RoomLoad) -> list[tuple[str, str, str, bool]]:
    """Return name, value, bound and verdict of each measurement."""
    rows = [
        (
            "machines complete",
            f"{load.complete_count} of {load.machine_count}",
            "all",
            load.complete_count == load.machine_count,
        )
    ]
    for topic, delays in load.delays_s.items():
        median, p99 = statistics.median(delays or [float("nan")]), percentile(delays, 0.99)
        rows.append(
            (
                f"REPORT to {topic} event, median",
                f"{median:.2f} s",
                f"{DELAY_BAR_S:g} s",
                median <= DELAY_BAR_S,
            )
        )
        rows.append(
            (f"REPORT to {topic} event, 99 %", f"{p99:.2f} s", f"{DELAY_BAR_S:g} s", p99 <= DELAY_BAR_S)
        )
    cpu = load.cast_cpu_s / load.cast_s
    rows.append(("daemon's CPU while casting", f"{cpu:.2f} cores", f"< {CPU_BAR:g}", cpu < CPU_BAR))
    rows.append(
        (
            "daemon's peak memory",
            f"{load.peak_bytes / 1e6:.0f} MB",
            "< 500 MB",
            load.peak_bytes < RSS_BAR_BYTES,
        )
    )
    slowest, largest = max(seconds for seconds, _ in load.scrapes), max(size for _, size in load.scrapes)
    rows.append(("/metrics, slowest", f"{slowest:.2f} s", f"< {SCRAPE_BAR_S:g} s", slowest < SCRAPE_BAR_S))
    rows.append(("/metrics, largest", f"{largest / 1e6:.2f} MB", "< 5 MB", largest < SCRAPE_BAR_BYTES))
    missed = load.updates_lost + load.fulls_unexpected + len(load.streams_broken)
    rows.append(("events lost, or resent to slow watchers", str(missed), "0", missed == 0))
    return rows


@click.command()
@click.option("--machines", "machine_count", type=click.IntRange(2, 1000), default=500, show_default=True)
@click.option("--watchers", "watcher_count", type=click.IntRange(1, 100), default=20, show_default=True)
@click.option("--seconds", type=click.FloatRange(2), default=60.0, show_default=True)
@click.option("--rate-mbit", type=click.FloatRange(1), default=100.0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="all figures, into a file")
def main(
    machine_count: int, watcher_count: int, seconds: float, rate_mbit: float, json_path: Path | None
) -> None:
    """Load a daemon with a room, and compare its costs with their bounds."""
    console = rich.console.Console(width=120)
    with tempfile.TemporaryDirectory(prefix="diskcast-load-") as directory:
        load = run_room(
            Path(directory),
            machine_count=machine_count,
            watcher_count=watcher_count,
            seconds=seconds,
            rate_bytes_per_s=rate_mbit * 1e6 / 8,
        )
    table = rich.table.Table(
        "what",
        "measured",
        "bar",
        "",
        title=f"{machine_count} machines, {watcher_count} watchers",
        title_justify="left",
    )
    rows = rows_of(load)
    for what, measured, bar, kept in rows:
        table.add_row(what, measured, bar, "PASS" if kept else "FAIL")
    console.print(table)
    console.print(
        f"cast of {load.bytes_sent / MIB:.0f} MiB in {load.cast_s:.0f} s, {load.nacks} NACKs; {load.events} events, "
        f"{load.sse_bytes / MIB:.0f} MiB of them; {len(load.scrapes)} scrapes; {load.frames_lost} datagrams lost by "
        f"the listener, {len(load.machines_errors)} exchanges repeated; load average {load.load_before:.1f} before"
    )
    if load.slow_at_s:
        console.print(
            f"late by the second of the cast: {', '.join(f'{at}: {count}' for at, count in load.slow_at_s.items())}"
        )
    for text in itertools.islice(load.streams_broken, 5):
        console.print(text)
    if json_path is not None:
        json_path.write_text(json.dumps({"rows": rows, "load": dataclasses.asdict(load)}))
    sys.exit(0 if all(kept for *_, kept in rows) else 1)


if __name__ == "__main__":
    main()
