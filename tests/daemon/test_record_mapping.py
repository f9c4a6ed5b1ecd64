"""The ETA of a machine: it isn't as old as the last save."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta

import pydantic
import pytest

from sender.cast.reporting.snapshot import ReceiverView
from sender.daemon.jobs.record_mapping import eta_s
from sender.store.records.casts import Cast, CastMachine
from tests.console.api_double import AT, cast, cast_machine

BEGAN = datetime.fromisoformat(AT)
CAST = pydantic.TypeAdapter(Cast).validate_python(cast())
ROW = pydantic.TypeAdapter(CastMachine).validate_python(
    cast_machine("pc07", "joined", seconds=0.2, ended_at=None)
)
VIEW = ReceiverView("pc07", "receiving", 0.25, 1e6, 0.0, 0, "disk", False, False, None, 0.0, "")


def test_a_machines_eta_follows_from_its_average_pace() -> None:
    after = BEGAN + timedelta(seconds=30)
    assert eta_s(CAST, VIEW, ROW, after) == pytest.approx(90.0)
    early = dataclasses.replace(ROW, joined_at=BEGAN - timedelta(hours=1))
    assert eta_s(CAST, VIEW, early, after) == pytest.approx(90.0), "waiting for the others isn't its pace"
    late = dataclasses.replace(ROW, joined_at=BEGAN + timedelta(seconds=20))
    assert eta_s(CAST, VIEW, late, after) == pytest.approx(30.0)
    assert eta_s(dataclasses.replace(CAST, paused=True), VIEW, ROW, after) is None
    assert eta_s(CAST, dataclasses.replace(VIEW, progress=0.0), ROW, after) is None
