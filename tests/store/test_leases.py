"""Leases: a cast has one daemon at a time, and a dead daemon is replaced without comparing clocks."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import sqlalchemy as sa

from sender.store.open_store import open_database
from sender.store.records.casts import CastPhase
from sender.store.repositories.leases import IMAGE_GRACE_S
from sender.store.store import Store
from tests.store.samples import START, add_cast, room
from tests.support.network.lab import LIMIT_S

WORKERS = 2
CASTS = 40


def _take_all(store: Store, owner: str) -> list[str]:
    taken: list[str] = []
    while got := store.leases.acquire(owner, START, (), 3):
        taken += [cast.cast_id for cast in got]
    return taken


def _take_in_process(url: str, owner: str, barrier: object, taken: object) -> None:
    store = open_database(sa.make_url(url), upkeep=False)
    barrier.wait()
    taken.put(_take_all(store, owner))
    store.close()


def test_threads_that_acquire_at_once_take_no_cast_twice(store: Store) -> None:
    for number in range(CASTS):
        add_cast(store, f"{number:08x}")
    barrier = threading.Barrier(WORKERS)

    def work(index: int) -> list[str]:
        barrier.wait()
        return _take_all(store, f"daemon-{index}/1")

    with ThreadPoolExecutor(WORKERS) as pool:
        taken = [cast_id for part in pool.map(work, range(WORKERS)) for cast_id in part]
    # With skipped locks, a call can return nothing while others hold the rows; a later call takes the rest.
    taken += _take_all(store, "last/1")
    assert sorted(taken) == [f"{number:08x}" for number in range(CASTS)]
    assert all(cast.run_count == 1 for cast in store.casts.list(limit=CASTS)[0])


def test_processes_that_acquire_at_once_take_no_cast_twice(store: Store, url: sa.URL) -> None:
    for number in range(CASTS):
        add_cast(store, f"{number:08x}")
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(WORKERS), context.Queue()
    text = url.render_as_string(hide_password=False)
    workers = [
        context.Process(target=_take_in_process, args=(text, f"daemon-{index}/1", barrier, queue))
        for index in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    taken = [cast_id for _ in workers for cast_id in queue.get(timeout=LIMIT_S)]
    for worker in workers:
        worker.join(LIMIT_S)
    taken += _take_all(store, "last/1")
    assert sorted(taken) == [f"{number:08x}" for number in range(CASTS)]


def test_only_due_casts_of_served_sites_are_acquired_the_oldest_first(store: Store) -> None:
    store.rooms.add(room("north-1", site="north"))
    store.rooms.add(room("south-1", site="south"))
    store.rooms.add(room("anywhere"))
    for cast_id, plan in {
        "0000000a": {"room_id": "south-1"},
        "0000000b": {"room_id": "north-1"},
        "0000000c": {"room_id": "anywhere"},
        "0000000d": {},
        "0000000e": {"room_id": "north-1", "start_at": START + timedelta(hours=1)},
    }.items():
        add_cast(store, cast_id, **plan)
    take = store.leases.acquire
    assert take("n/1", START, ["north"], 0) == []
    assert [cast.cast_id for cast in take("n/1", START, ["north"], 2)] == ["0000000b", "0000000c"]
    assert [cast.cast_id for cast in take("n/1", START, ["north"], 9)] == ["0000000d"]
    assert [cast.cast_id for cast in take("any/1", START + timedelta(hours=1), [], 9)] == [
        "0000000a",
        "0000000e",
    ]


def test_a_cast_is_taken_over_only_if_its_owner_has_stopped_beating(store: Store) -> None:
    add_cast(store)
    add_cast(store, "00000002")
    store.leases.acquire("one/1", START, (), 1)
    assert store.leases.renew("one/1", ["00000001", "00000002"]) == {"00000001"}
    owner, beat = store.leases.beats()["00000001"]
    assert owner == "one/1"
    assert store.leases.renew("one/1", ["00000001"]) == {"00000001"}
    assert not store.leases.take_over("00000001", "one/1", beat, "two/1"), "it has beaten since"
    beat = store.leases.beats()["00000001"][1]
    assert store.leases.take_over("00000001", "one/1", beat, "two/1")
    assert not store.leases.take_over("00000001", "one/1", beat, "three/1"), "another daemon was faster"
    assert store.leases.renew("one/1", ["00000001"]) == set(), "its former owner learns that it has lost it"
    assert not store.leases.release("one/1", "00000001")
    assert store.leases.release("two/1", "00000001")
    assert store.leases.acquire("one/2", START, (), 5)[0].run_count == 3


def test_a_daemon_without_the_image_takes_a_cast_only_when_nobody_else_did(store: Store) -> None:
    """Otherwise the cast fails at a daemon that can't send it, while another one could."""
    due = add_cast(store).created_at
    planned = add_cast(store, "00000002", start_at=due + timedelta(hours=1)).plan.start_at
    assert store.leases.acquire("two/1", due, (), 5, image_ids=()) == []
    [taken] = store.leases.acquire("two/1", due + timedelta(seconds=IMAGE_GRACE_S), (), 5, image_ids=())
    assert taken.cast_id == "00000001"
    assert store.leases.acquire("two/1", planned, (), 5, image_ids=("another",)) == []
    [own] = store.leases.acquire("one/1", planned, (), 5, image_ids=(taken.plan.image_id,))
    assert own.cast_id == "00000002"


def test_an_ended_cast_is_never_taken(store: Store) -> None:
    add_cast(store)
    store.leases.acquire("one/1", START, (), 1)
    store.casts.change("00000001", phase=CastPhase.DONE, ended_at=START)
    assert store.leases.beats() == {}
    beat = 1
    assert not store.leases.take_over("00000001", "one/1", beat, "two/1")
    store.leases.release("one/1", "00000001")
    assert store.leases.acquire("two/1", START, (), 1) == []
