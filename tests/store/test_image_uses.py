"""Uses that keep an image when the library is pruned: casts, rooms and schedules."""

from __future__ import annotations

from datetime import datetime, timedelta

from sender.store.records.casts import CastPhase, CastPlan
from sender.store.store import Store
from tests.store.samples import START, add_cast, room, schedule


def end_cast(store: Store, cast_id: str, image_id: str, phase: CastPhase, at: datetime, **plan: str) -> None:
    add_cast(store, cast_id, image_id=image_id, **plan)
    store.casts.change(cast_id, phase=phase, ended_at=at)


def test_a_cast_that_has_not_ended_uses_its_image(store: Store) -> None:
    add_cast(store, "00000001", image_id="aa" * 32)
    add_cast(store, "00000002", image_id="bb" * 32)
    store.casts.change("00000002", phase=CastPhase.CASTING)
    assert store.image_uses.of_casts() == {"aa" * 32, "bb" * 32}


def test_a_cast_that_has_ended_uses_no_image(store: Store) -> None:
    end_cast(store, "00000001", "aa" * 32, CastPhase.DONE, START)
    end_cast(store, "00000002", "bb" * 32, CastPhase.FAILED, START)
    assert store.image_uses.of_casts() == set()


def test_a_room_uses_only_the_image_that_it_got_last(store: Store) -> None:
    store.rooms.add(room("lab"))
    end_cast(store, "00000001", "aa" * 32, CastPhase.DONE, START, room_id="lab")
    end_cast(store, "00000002", "bb" * 32, CastPhase.DONE, START + timedelta(hours=1), room_id="lab")
    assert store.image_uses.of_rooms() == {"bb" * 32}


def test_each_room_uses_an_image_of_its_own(store: Store) -> None:
    store.rooms.add(room("lab"))
    store.rooms.add(room("attic"))
    end_cast(store, "00000001", "aa" * 32, CastPhase.DONE, START, room_id="lab")
    end_cast(store, "00000002", "bb" * 32, CastPhase.DONE, START + timedelta(hours=1), room_id="attic")
    assert store.image_uses.of_rooms() == {"aa" * 32, "bb" * 32}


def test_a_failed_cast_leaves_a_room_its_image(store: Store) -> None:
    store.rooms.add(room("lab"))
    end_cast(store, "00000001", "aa" * 32, CastPhase.DONE, START, room_id="lab")
    end_cast(store, "00000002", "bb" * 32, CastPhase.FAILED, START + timedelta(hours=1), room_id="lab")
    assert store.image_uses.of_rooms() == {"aa" * 32}


def test_a_failed_cast_that_ended_with_a_good_one_uses_no_image(store: Store) -> None:
    store.rooms.add(room("lab"))
    end_cast(store, "00000001", "aa" * 32, CastPhase.DONE, START, room_id="lab")
    end_cast(store, "00000002", "bb" * 32, CastPhase.CANCELLED, START, room_id="lab")
    assert store.image_uses.of_rooms() == {"aa" * 32}


def test_a_cast_without_a_room_uses_no_image_of_a_room(store: Store) -> None:
    end_cast(store, "00000001", "aa" * 32, CastPhase.DONE, START)
    assert store.image_uses.of_rooms() == set()


def test_a_schedule_uses_its_image_also_while_it_is_disabled(store: Store) -> None:
    store.schedules.add(schedule("s1", plan=CastPlan("aa" * 32)))
    store.schedules.add(schedule("s2", plan=CastPlan("bb" * 32), enabled=False))
    assert store.image_uses.of_schedules() == ({"aa" * 32, "bb" * 32}, set())


def test_a_schedule_that_follows_a_name_uses_its_newest_version(store: Store) -> None:
    store.schedules.add(schedule("s1", plan=CastPlan("aa" * 32, latest_of="exam")))
    assert store.image_uses.of_schedules() == ({"aa" * 32}, {"exam"})
