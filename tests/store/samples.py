"""Sample records for tests of the store, and a settable clock."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from sender.store.backup import journal
from sender.store.database import schema
from sender.store.machines.machine_report import MachineReport
from sender.store.records.casts import Cast, CastMachine, CastPlan, Schedule
from sender.store.records.images import Image, ImageState
from sender.store.records.machine_states import MachineState
from sender.store.records.machines import Machine, Room
from sender.store.store import Store

START = datetime(2026, 3, 1, 8, 0, 0, 123456, tzinfo=UTC)
IMAGE_ID = "ab" * 32


class Clock:
    """A clock that advances by a millisecond per reading; tests can advance it further."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        self.time += timedelta(milliseconds=1)
        return self.time


def room(room_id: str = "lab", **fields: Any) -> Room:
    return dataclasses.replace(Room(room_id, room_id.title(), "", "", "", START), **fields)


def machine(name: str = "pc-01", **fields: Any) -> Machine:
    return dataclasses.replace(Machine("", name, None, (), "", "", "", "", "", "", {}, START, None), **fields)


def report(store: Store, **fields: Any) -> Machine:
    fields_of_agent: dict[str, Any] = {
        "macs": (), "serial": "", "asset_tag": "", "name": "live", "address": "10.0.0.9", "agent_version": "0.1",
        "inventory": {},
    }  # fmt: skip
    [reported] = store.machines.record([MachineReport(**(fields_of_agent | fields))])
    assert reported is not None
    return reported


def add_cast(store: Store, cast_id: str = "00000001", **plan: Any) -> Cast:
    return store.casts.add(
        CastPlan(**({"image_id": IMAGE_ID} | plan)), cast_id, "windows", 1 << 30, 2, "local"
    )


@contextlib.contextmanager
def old_daemon(revision: str) -> Iterator[None]:
    """Open stores as a daemon of an older schema does, from before there were join keys and uploaded signatures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "head", lambda: revision)
        patch.setattr("sender.store.open_store.head", lambda: revision)
        later = ("cast_keys", "sessions", "image_signatures", "boot_tokens", "image_requests", "wakes")
        later += (
            "captures",
            "image_entries",
            "image_contents",
            "room_templates",
            "machine_variables",
            "patch_sets",
        )
        for table in (*later, "machine_hardware"):
            patch.delitem(journal._TABLES, table)
        yield


def add_old_cast(store: Store, cast_id: str = "00000001") -> None:
    """Add a cast with the columns of the first schema, whatever the present one has."""
    values = {
        "cast_id": cast_id, "plan": json.dumps({"image_id": IMAGE_ID}), "image_id": IMAGE_ID, "image_name": "windows",
        "raw_bytes": 1 << 30, "phase": "planned", "paused": False, "owner": "", "group_address": "", "port": 0,
        "control_url": "", "required_count": 2, "run_count": 0, "created_at": START.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "created_by": "local", "reason": "", "seconds": 0.0, "bytes_sent": 0, "progress": 0.0, "joined_count": 0,
        "complete_count": 0, "failed_count": 0, "lease_owner": "", "lease_beat": 0,
    }  # fmt: skip
    columns, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
    insert = sa.text(f"INSERT INTO casts ({columns}) VALUES ({marks})")
    store._database.perform(lambda: store._database.connection.execute(insert, values), writes=True)


def line(cast_id: str = "00000001", name: str = "pc-01", **fields: Any) -> CastMachine:
    plain = CastMachine(
        cast_id,
        None,
        name,
        "10.0.0.9",
        MachineState.JOINED,
        "",
        None,
        "",
        0.0,
        0,
        0,
        0,
        0.0,
        0.0,
        0.0,
        0,
        0,
        False,
        START,
        None,
    )
    if "state" in fields:
        fields["state"] = MachineState(fields["state"])
    return dataclasses.replace(plain, **fields)


def schedule(schedule_id: str = "s1", **fields: Any) -> Schedule:
    return dataclasses.replace(
        Schedule(
            schedule_id,
            "nightly",
            "0 3 * * *",
            "Europe/Berlin",
            CastPlan(IMAGE_ID, "lab"),
            True,
            START,
            START,
            None,
        ),
        **fields,
    )


def image(image_id: str = IMAGE_ID, **fields: Any) -> Image:
    plain = Image(
        image_id, "windows", "/srv/w.dci", "folder", ImageState.AVAILABLE, 10, 5, 1 << 18, 5, "", None, START
    )
    return dataclasses.replace(plain, **fields)
