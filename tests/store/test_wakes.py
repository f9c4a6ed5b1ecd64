"""Records of wakes. Lost if these fail: nobody knows which machines never woke."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

from sender.store.records.wakes import Wake, WakeState, WokenMachine
from sender.store.repositories.audit import AuditNote
from sender.store.store import Store
from tests.store.samples import START, Clock, room

WAKE = Wake(
    wake_id="5e6f7a8b",
    room_id="lab",
    cast_id=None,
    created_at=START,
    created_by="ci",
    wave_size=8,
    pause_s=5.0,
    machines=(WokenMachine("m1", "pc01", WakeState.QUEUED, 1),),
)


def test_a_wake_is_recorded_with_the_result_of_each_machine(store: Store) -> None:
    store.wakes.put(WAKE, audit=AuditNote("ci", request_id="r-1"))
    woken = WokenMachine("m1", "pc01", WakeState.WOKE, 1, START, START + timedelta(seconds=41))
    ended = dataclasses.replace(
        WAKE, machines=(woken,), interfaces=("eth1",), ended_at=START + timedelta(seconds=41)
    )
    store.wakes.put(ended)
    store.wakes.put(ended)
    assert store.wakes.get(WAKE.wake_id) == ended
    assert store.wakes.get("00000000") is None
    [entry], _ = store.audit.list()
    assert (entry.actor, entry.action, entry.subject) == ("ci", "wake.start", "wake 5e6f7a8b")
    assert entry.detail == {"room_id": "lab", "cast_id": None, "machines": 1}


def test_wakes_are_listed_by_room_and_the_latest_first(store: Store) -> None:
    for index, room_id in enumerate(["lab", "attic", "lab"]):
        at = START + timedelta(minutes=index)
        store.wakes.put(dataclasses.replace(WAKE, wake_id=f"0000000{index}", room_id=room_id, created_at=at))
    first, cursor = store.wakes.list(limit=2)
    rest, end = store.wakes.list(limit=2, after=cursor)
    assert [wake.wake_id for wake in first + rest] == ["00000002", "00000001", "00000000"]
    assert end is None
    assert [wake.wake_id for wake in store.wakes.list("lab")[0]] == ["00000002", "00000000"]


def test_old_wakes_are_removed_with_the_history(store: Store, clock: Clock) -> None:
    store.wakes.put(WAKE)
    clock.time += timedelta(days=31)
    store.retention.apply(30)
    assert store.wakes.list() == ([], None)


def test_a_room_has_waves_of_its_own(store: Store) -> None:
    store.rooms.add(room(wake_wave_size=4, wake_pause_s=10.0))
    changed = store.rooms.change("lab", wake_wave_size=None, wake_pause_s=2.5)
    assert changed == room(wake_pause_s=2.5)
