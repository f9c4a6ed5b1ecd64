"""Whom a gathering room waits for: not for machines that have failed; and what of a cast is news to who watches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from sender.cast.reporting.snapshot import ReceiverView
from sender.daemon.jobs.cast_job import CastJob, EarlierRuns
from sender.daemon.jobs.owner import Owner
from sender.store.records.casts import CastMachine, CastPhase
from sender.store.store import Store
from sender.store.write_behind import Recorder
from tests.store.samples import START, add_cast, line


class AskedRun:
    """What a cast in the network is asked for."""

    def __init__(self) -> None:
        self.excused_count = 0
        self.cancelled = ""

    def stop_waiting_for(self, count: int) -> None:
        self.excused_count = count

    def cancel(self, reason: str) -> None:
        self.cancelled = reason


def gathering(store: Store, directory: Path, *earlier: CastMachine) -> tuple[CastJob, AskedRun]:
    record = dataclasses.replace(add_cast(store), phase=CastPhase.GATHERING)
    live = CastJob(
        record,
        Recorder(store, directory),
        owner=Owner("here", "d1", "r1"),
        earlier=EarlierRuns(list(earlier), [], []),
    )
    run = AskedRun()
    live.run = run  # type: ignore[assignment]
    return live, run


def row(name: str, state: str) -> CastMachine:
    return line(name=name, machine_id=name, state=state)


def test_a_machine_that_fails_while_the_room_gathers_is_not_waited_for_until_it_comes_again(
    store: Store, tmp_path: Path
) -> None:
    live, run = gathering(store, tmp_path, row("pc00", "failed"))
    live.put_machine(row("pc01", "joined"))
    live.put_machine(row("pc02", "joined"))
    assert run.excused_count == 0, (
        "whoever failed in an earlier run isn't among those that this one waits for"
    )
    live.put_machine(row("pc01", "failed"))
    live.record_failure(row("pc03", "failed"))
    live.record_failure(dataclasses.replace(row("pc03", "failed"), error="no such disk"))
    assert run.excused_count == 2
    live.put_machine(row("pc01", "joined"))
    assert run.excused_count == 1


def test_a_room_whose_every_machine_has_failed_waits_for_nobody(store: Store, tmp_path: Path) -> None:
    live, run = gathering(store, tmp_path, row("pc01", "failed"))
    live.targets = dict.fromkeys(("pc01", "pc02"), "")
    live.put_machine(row("pc02", "joined"))
    assert not run.cancelled
    live.put_machine(row("pc02", "failed"))
    assert run.cancelled == "every machine has failed"


def test_a_cast_for_whoever_comes_goes_on_waiting(store: Store, tmp_path: Path) -> None:
    live, run = gathering(store, tmp_path)
    live.put_machine(row("pc01", "failed"))
    assert not run.cancelled


def test_a_machine_that_reports_nothing_new_is_not_sent_again_to_who_watches(
    store: Store, tmp_path: Path
) -> None:
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
    assert shown[0]["pc01"] is shown[1]["pc01"], "its time to go alone is no news"
    assert shown[1]["pc02"].progress == 0.5
