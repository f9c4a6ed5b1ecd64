"""Entries of images: numbers that never change or return, notes, pins and origins."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from sender.store.open_store import open_database
from sender.store.records.image_entries import ImageOrigin, OriginKind
from sender.store.repositories.audit import AuditNote
from sender.store.store import Store
from tests.store.samples import IMAGE_ID, Clock, image, old_daemon
from tests.support.postgres.server import PostgresServer

ORIGIN = ImageOrigin(OriginKind.CAPTURED, "pc01", "/dev/sda, serial 7")


def test_numbers_are_per_name_and_never_given_twice(store: Store) -> None:
    entries = [
        store.image_entries.enter(f"{index:064x}", name) for index, name in enumerate(["lab", "lab", "exam"])
    ]
    assert [(entry.name, entry.number) for entry in entries] == [("lab", 1), ("lab", 2), ("exam", 1)]
    store.images.put(image("1".zfill(64), name="lab"))
    assert store.images.remove("1".zfill(64))
    assert store.image_entries.enter("9" * 64, "lab").number == 3
    assert store.image_entries.enter("1".zfill(64), "lab").number == 2


def test_what_is_entered_first_stays(store: Store) -> None:
    store.image_entries.enter(IMAGE_ID, "lab")
    entry = store.image_entries.enter(IMAGE_ID, "lab", "anna", ORIGIN)
    assert (entry.added_by, entry.origin) == ("anna", ORIGIN)
    again = store.image_entries.enter(IMAGE_ID, "lab", "bert", ImageOrigin(OriginKind.FETCHED, "https://x"))
    assert (again.added_by, again.origin) == ("anna", ORIGIN)


def test_a_note_and_a_pin_are_changed_with_an_audit_entry(store: Store) -> None:
    assert store.image_entries.change(IMAGE_ID, note="x") is None
    store.images.put(image())
    store.image_entries.enter(IMAGE_ID, "windows", "anna", ORIGIN)
    store.image_entries.change(IMAGE_ID, audit=AuditNote("anna"), note="for June\nand July", pinned=True)
    store.image_entries.change(IMAGE_ID, audit=AuditNote("anna"), pinned=True)
    kept = store.images.get(IMAGE_ID)
    assert kept is not None
    assert (kept.number, kept.note, kept.pinned, kept.added_by, kept.origin) == (
        1, "for June\nand July", True, "anna", ORIGIN,
    )  # fmt: skip
    [entry] = store.audit.list()[0]
    assert (entry.action, entry.detail["to"]) == (
        "image.change",
        {"note": "for June\nand July", "pinned": True},
    )


def test_changes_are_read_in_pieces(store: Store) -> None:
    for index in range(4):
        store.image_entries.enter(f"{index:064x}", "lab")
    first = store.image_entries.changed()
    assert {entry.number for entry in first} == {1, 2, 3, 4}
    last = first[-1]
    assert store.image_entries.changed(last.changed_at, last.image_id) == []
    store.image_entries.change("0" * 64, note="new")
    [changed] = store.image_entries.changed(last.changed_at, last.image_id)
    assert changed.note == "new"


def test_changes_of_a_daemon_whose_clock_is_behind_are_read(url: sa.URL) -> None:
    fast, slow = Clock(), Clock()
    fast.time += timedelta(minutes=5)
    stores = [open_database(url, now=clock, upkeep=False) for clock in (fast, slow)]
    stores[0].image_entries.enter(IMAGE_ID, "lab")
    stores[0].image_entries.enter("9" * 64, "lab")
    [*_, last] = stores[0].image_entries.changed()
    for field in ({"note": "new"}, {"pinned": True}):
        stores[1].image_entries.change(IMAGE_ID, **field)
        [changed] = stores[0].image_entries.changed(last.changed_at, last.image_id)
        assert (changed.image_id, changed.note) == (IMAGE_ID, "new")
        last = changed
    assert last.pinned
    stores[1].image_entries.enter("8" * 64, "lab")
    [entered] = stores[0].image_entries.changed(last.changed_at, last.image_id)
    assert entered.image_id == "8" * 64
    for each in stores:
        each.close()


def test_two_daemons_number_one_name_without_gaps(postgres: PostgresServer) -> None:
    url = sa.make_url(postgres.new_database())
    stores = [open_database(url, upkeep=False) for _ in range(2)]
    barrier = threading.Barrier(2)

    def enter(which: int) -> list[int]:
        barrier.wait()
        return [
            stores[which].image_entries.enter(f"{which}{index:063x}", "lab").number for index in range(20)
        ]

    with ThreadPoolExecutor(2) as pool:
        numbers = [number for found in pool.map(enter, range(2)) for number in found]
    assert sorted(numbers) == list(range(1, 41))
    for each in stores:
        each.close()


def test_images_of_an_older_daemon_are_numbered_in_order_of_appearance(file_url: sa.URL) -> None:
    with old_daemon("0011"):
        older = open_database(file_url, upkeep=False)
        for image_id, day in (("aa" * 32, 3), ("bb" * 32, 1), ("cc" * 32, 2)):
            older.images.put(image(image_id, name="lab", first_seen_at=datetime(2026, 1, day, tzinfo=UTC)))
        older.close()
    newer = open_database(file_url, upkeep=False)
    numbers = {found.image_id[:2]: found.number for found in newer.images.list()[0]}
    assert numbers == {"bb": 1, "cc": 2, "aa": 3}
    assert newer.image_entries.enter("dd" * 32, "lab").number == 4
    newer.close()
