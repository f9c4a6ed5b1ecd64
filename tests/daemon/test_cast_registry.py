"""The casts that a daemon knows. A wrong answer would start a cast twice, or give its lease to another daemon."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sender.daemon.jobs.cast_job import CastJob
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.owner import Owner
from sender.store.records.casts import CastPhase
from sender.store.store import Store
from sender.store.write_behind import Recorder
from tests.store.samples import add_cast

HERE = Owner("here", "d1", "r1")


@pytest.fixture
def job(store: Store, tmp_path: Path) -> CastJob:
    return CastJob(add_cast(store), Recorder(store, tmp_path), owner=HERE)


@pytest.fixture
def registry(job: CastJob) -> CastRegistry:
    made = CastRegistry(ended_kept_s=60.0)
    made.jobs[job.cast_id] = job
    made.unfinished[job.cast_id] = job.cast
    return made


def give_session(job: CastJob) -> None:
    job.run = cast("Any", SimpleNamespace())


def test_a_cast_that_only_prepares_has_no_metrics(registry: CastRegistry, job: CastJob) -> None:
    assert registry.jobs_with_session() == []
    give_session(job)
    assert registry.jobs_with_session() == [job]


def test_an_ended_cast_keeps_its_lease_until_the_database_knows(registry: CastRegistry, job: CastJob) -> None:
    give_session(job)
    job.records.change(phase=CastPhase.DONE)
    registry.retire(job.cast_id)
    assert registry.leased_ids() == [job.cast_id]
    assert registry.job(job.cast_id) is job
    assert registry.jobs_with_session() == [job]
    registry.replace_unfinished([dataclasses.replace(job.cast, phase=CastPhase.CASTING)])
    assert registry.unfinished == {}, "the database hasn't heard of its end"


def test_an_abandoned_cast_is_forgotten(registry: CastRegistry, job: CastJob) -> None:
    registry.retire(job.cast_id)
    assert registry.job(job.cast_id) is None
    assert registry.leased_ids() == []


def test_a_running_cast_is_known_better_than_its_row(registry: CastRegistry, job: CastJob) -> None:
    recorded = job.cast
    job.records.change(phase=CastPhase.GATHERING)
    registry.replace_unfinished([recorded])
    assert registry.unfinished[job.cast_id].phase is CastPhase.GATHERING
    assert registry.latest(recorded) is job.cast
    assert registry.phases() == {job.cast_id: CastPhase.GATHERING}
