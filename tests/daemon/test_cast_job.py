"""Jobs: a gathering room doesn't wait for failed machines, and subscribers receive only changes."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sender.cast.reporting.snapshot import ReceiverView
from sender.daemon.jobs.cast_job import LATE_JOIN_S, CastJob, EarlierRuns
from sender.daemon.jobs.owner import Owner
from sender.store.records.casts import CastMachine, CastPhase
from sender.store.store import Store
from sender.store.write_behind import Recorder
from tests.store.samples import START, add_cast, line


class RecordedRun:
    """A session that records its commands."""

    def __init__(self) -> None:
        self.not_waited_for_count = 0
        self.cancelled = ""
        self.late_counts: list[int] = []

    def expect_late(self, count: int) -> None:
        self.late_counts.append(count)

    def stop_waiting_for(self, count: int) -> None:
        self.not_waited_for_count = count

    def cancel(self, reason: str) -> None:
        self.cancelled = reason


def gathering(store: Store, directory: Path, *earlier: CastMachine) -> tuple[CastJob, RecordedRun]:
    record = dataclasses.replace(add_cast(store), phase=CastPhase.GATHERING)
    live = CastJob(
        record,
        Recorder(store, directory),
        owner=Owner("here", "d1", "r1"),
        earlier=EarlierRuns(list(earlier), [], []),
    )
    run = RecordedRun()
    live.run = run  # type: ignore[assignment]
    return live, run


def row(name: str, state: str) -> CastMachine:
    return line(name=name, machine_id=name, state=state)


def test_a_gathering_room_waits_for_a_failed_machine_only_after_it_rejoins(
    store: Store, tmp_path: Path
) -> None:
    live, run = gathering(store, tmp_path, row("pc00", "failed"))
    live.put_machine(row("pc01", "joined"))
    live.put_machine(row("pc02", "joined"))
    assert run.not_waited_for_count == 0, "machines that failed in an earlier run aren't waited for anyway"
    live.put_machine(row("pc01", "failed"))
    live.record_failure(row("pc03", "failed"))
    live.record_failure(dataclasses.replace(row("pc03", "failed"), error="no such disk"))
    assert run.not_waited_for_count == 2
    live.put_machine(row("pc01", "joined"))
    assert run.not_waited_for_count == 1


def test_a_cast_is_cancelled_when_every_machine_has_failed(store: Store, tmp_path: Path) -> None:
    live, run = gathering(store, tmp_path, row("pc01", "failed"))
    live.targets = dict.fromkeys(("pc01", "pc02"), "")
    live.put_machine(row("pc02", "joined"))
    assert not run.cancelled
    live.put_machine(row("pc02", "failed"))
    assert run.cancelled == "every machine has failed"


def test_a_cast_for_any_machine_continues_to_wait(store: Store, tmp_path: Path) -> None:
    live, run = gathering(store, tmp_path)
    live.put_machine(row("pc01", "failed"))
    assert not run.cancelled


def test_an_unchanged_machine_is_not_sent_again_to_subscribers(store: Store, tmp_path: Path) -> None:
    live, _run = gathering(store, tmp_path)
    live.records.change(phase=CastPhase.CASTING, casting_at=START)
    live.put_machine(dataclasses.replace(row("pc01", "receiving"), joined_at=START))
    live.put_machine(dataclasses.replace(row("pc02", "receiving"), joined_at=START))
    views = [
        ReceiverView(name, "receiving", 0.25, 1e6, 0.0, 0, "disk", False, False, None, 0.0, "")
        for name in ("pc01", "pc02")
    ]
    shown = []
    for progress in (0.25, 0.5):
        views[1] = dataclasses.replace(views[1], progress=progress)
        live.snapshot.view = cast("Any", SimpleNamespace(receivers=tuple(views)))
        shown.append({machine.name: machine for machine in live.snapshot.live_machines()})
    assert shown[0]["pc01"].eta_s
    assert shown[0]["pc01"] is shown[1]["pc01"], "a new ETA alone is no change"
    assert shown[1]["pc02"].progress == 0.5


def test_a_cast_that_is_nearly_over_waits_for_a_machine_that_was_just_assigned(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its assignment and its join the session doesn't know of it, and would end with the last of the others."""
    live, run = gathering(store, tmp_path)
    live.targets = {"pc02": "pc02"}
    live.put_machine(row("pc01", "joined"))
    assert run.late_counts == []
    live.put_machine(row("pc02", "assigned"))
    assert run.late_counts == [1]
    live.put_machine(row("pc02", "joined"))
    assert run.late_counts == [1, 0]
    live.put_machine(row("pc03", "assigned"))
    later = time.monotonic() + LATE_JOIN_S + 1.0
    monkeypatch.setattr(time, "monotonic", lambda: later)
    live.expect_loading(0)
    assert run.late_counts == [1, 0, 1, 0], "a machine that died before it joined costs a minute"
