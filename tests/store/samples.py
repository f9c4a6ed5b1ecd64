"""Sample records for tests of the store, and a settable clock."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

from sender.store.machines.enrolment import Enrolment
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


def enrol(store: Store, **fields: Any) -> Machine:
    fields_of_agent: dict[str, Any] = {
        "macs": (), "serial": "", "asset_tag": "", "name": "live", "address": "10.0.0.9", "agent_version": "0.1",
        "inventory": {},
    }  # fmt: skip
    [enrolled] = store.machines.enrol([Enrolment(**(fields_of_agent | fields))])
    return enrolled


def add_cast(store: Store, cast_id: str = "00000001", **plan: Any) -> Cast:
    return store.casts.add(
        CastPlan(**({"image_id": IMAGE_ID} | plan)), cast_id, "windows", 1 << 30, 2, "local"
    )


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
