"""What a running cast writes down never waits for the database and isn't lost when that is away."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from sender.store import write_behind as recorder_module
from sender.store.backup.crc_lines import pack_line
from sender.store.open_store import open_database
from sender.store.records.casts import Cast, CastEvent, CastPhase, CastRequest, Command, TimelinePoint
from sender.store.repositories.audit import Audit, new_entry_key
from sender.store.repositories.casts import Casts
from sender.store.repositories.images import Images
from sender.store.repositories.leases import Leases
from sender.store.repositories.machines import Machines
from sender.store.repositories.rooms import Rooms
from sender.store.store import Store
from sender.store.write_behind import RECORDABLE, SPOOL_NAME, Recorder, _parameters
from tests.store.samples import START, Clock, add_cast, image, line, machine
from tests.support.network.lab import LIMIT_S
from tests.support.postgres.server import PostgresServer, postgres_server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as started:
        yield started


@pytest.fixture
def remote(server: PostgresServer) -> Iterator[Store]:
    store = open_database(sa.make_url(server.new_database()), now=Clock(), upkeep=False)
    yield store
    store.close()


@contextlib.asynccontextmanager
async def running(recorder: Recorder):
    task = asyncio.create_task(recorder.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def mine(store: Store) -> Cast:
    add_cast(store)
    [cast] = store.leases.acquire("one/1", START, (), 1)
    return cast


def test_the_latest_of_each_key_is_written_and_in_order(store: Store, tmp_path: Path) -> None:
    cast = mine(store)
    done: list[str] = []
    original = store.casts.put_machines
    store.casts.put_machines = lambda machines, **options: (  # type: ignore[method-assign]
        done.extend(f"{item.name}:{item.progress}" for item in machines) or original(machines, **options)
    )
    recorder = Recorder(store, tmp_path)

    async def work() -> None:
        for step in range(5):
            for name in ("a", "b", "c"):
                recorder.put(("machine", name), Casts.put_machine, line(name=name, progress=step / 10))
        recorder.put(("machine", "a"), Casts.put_machine, line(name="a", progress=0.9))
        recorder.put(("cast",), Casts.save, dataclasses.replace(cast, phase=CastPhase.CASTING))
        assert recorder.pending_count == 4
        async with running(recorder):
            assert await recorder.drain(LIMIT_S)
            assert done == ["b:0.4", "c:0.4", "a:0.9"]
            recorder.put(("machine", "b"), Casts.put_machine, line(name="b", progress=1.0))
            assert not await recorder.drain(0.0)
            assert await recorder.drain(LIMIT_S)

    asyncio.run(work())
    assert store.casts.get("00000001").phase is CastPhase.CASTING
    assert {item.name: item.progress for item in store.casts.machines("00000001")} == {
        "a": 0.9,
        "b": 1.0,
        "c": 0.4,
    }
    assert recorder.problem is None
    recorder.close()
    assert not (tmp_path / SPOOL_NAME).exists()


def test_an_outage_is_told_survived_and_forgotten(
    server: PostgresServer, remote: Store, tmp_path: Path
) -> None:
    cast = mine(remote)
    recorder = Recorder(remote, tmp_path)

    async def work() -> None:
        async with running(recorder):
            await asyncio.to_thread(server.stop)
            for step in range(20):
                for number in range(50):
                    recorder.put(
                        ("m", str(number)), Casts.put_machine, line(name=f"pc-{number}", progress=step / 20)
                    )
                event = CastEvent(START + timedelta(seconds=step), "tick", "", "")
                recorder.put(("event", str(step)), Casts.add_event, "00000001", event)
            recorder.put(
                ("cast",), Casts.save, dataclasses.replace(cast, phase=CastPhase.DONE, ended_at=START)
            )
            assert recorder.pending_count == 71
            async with asyncio.timeout(LIMIT_S):
                while recorder.problem is None or not (tmp_path / SPOOL_NAME).exists():
                    await asyncio.sleep(0.01)
            assert "71 records wait" in recorder.problem.text
            assert "doesn't answer" in recorder.problem.text
            await asyncio.to_thread(server.start)
            assert await recorder.drain(LIMIT_S)
            async with asyncio.timeout(LIMIT_S):
                while recorder.problem is not None or (tmp_path / SPOOL_NAME).exists():
                    await asyncio.sleep(0.01)

    asyncio.run(work())
    assert remote.casts.get("00000001").phase is CastPhase.DONE
    assert {item.progress for item in remote.casts.machines("00000001")} == {0.95}
    assert len(remote.casts.events("00000001")) == 20


def test_what_an_ended_daemon_couldnt_write_the_next_one_does(
    server: PostgresServer, remote: Store, tmp_path: Path
) -> None:
    cast = mine(remote)
    known = remote.machines.add(machine())
    recorder = Recorder(remote, tmp_path)
    ended = dataclasses.replace(cast, phase=CastPhase.DONE, ended_at=START, reason="all \ud800 well")
    rows = [line(name=f"pc-{n}", machine_id=known.machine_id if n == 0 else None) for n in range(3)]
    points = tuple(TimelinePoint(float(n), 1, 2, 0, 0, 0, 1, 0, "x") for n in range(3))
    event = CastEvent(START, "x", "pc", "t")
    seen_at = START + timedelta(days=1)
    remote.casts.request(CastRequest("00000001", Command.PAUSE, "anna"))

    async def work() -> None:
        server.stop()
        async with running(recorder):
            recorder.put(("1",), Casts.put_machines, rows[:2], lease="one/1")
            recorder.put(("2",), Casts.put_machine, rows[2])
            recorder.put(("3",), Casts.put_timeline, "00000001", points)
            recorder.put(("4",), Casts.add_event, "00000001", event)
            recorder.put(("5",), Casts.clear_request, "00000001", Command.PAUSE)
            recorder.put(("6",), Machines.touch, {known.machine_id: seen_at})
            recorder.put(("7",), Images.put, image())
            recorder.put(("8",), Casts.save_progress, dataclasses.replace(cast, bytes_sent=3))
            recorder.put(("9",), Casts.save, ended)
            recorder.put(("10",), Leases.release, "one/1", "00000001")
            assert not await recorder.drain(0.2)

    asyncio.run(work())
    recorder.close()
    assert (tmp_path / SPOOL_NAME).stat().st_mode & 0o077 == 0
    with (tmp_path / SPOOL_NAME).open("ab") as spool:
        spool.write(b"deadbeef {half a li")
    server.start()

    async def next_one() -> None:
        recorder = Recorder(remote, tmp_path)
        assert recorder.pending_count == 10
        assert recorder.dropped_count == 1
        async with running(recorder):
            assert await recorder.drain(LIMIT_S)
            async with asyncio.timeout(LIMIT_S):
                while (tmp_path / SPOOL_NAME).exists():
                    await asyncio.sleep(0.01)

    asyncio.run(next_one())
    assert remote.casts.get("00000001").reason == "all \ufffd well"
    assert remote.casts.get("00000001").phase is CastPhase.DONE
    assert remote.casts.machines("00000001") == rows
    assert remote.casts.timeline("00000001") == list(points)
    assert remote.casts.events("00000001") == [event]
    assert remote.machines.get(known.machine_id).last_seen_at == seen_at
    assert remote.images.get(image().image_id) == image()
    assert remote.casts.requests("one/1") == []
    assert remote.leases.renew("one/1", ["00000001"]) == set()


def test_a_spool_of_version_0_1_0_is_written(store: Store, tmp_path: Path) -> None:
    """It has ``limiter`` for ``bottleneck``, times with ``+00:00``, and plans without fields that came later."""
    mine(store)
    row = {
        "cast_id": "00000001", "machine_id": None, "name": "pc-01", "address": "10.0.0.9", "state": "lost",
        "error": "silent", "exit_code": None, "limiter": "disk", "progress": 0.5, "bytes_verified": 7,
        "bytes_kept": 0, "blocks_rewritten": 0, "seconds": 1, "rate_bytes_per_s": 7.0, "loss": 0.0,
        "nacks_count": 1, "socket_drops_count": 0, "demoted": False,
        "joined_at": "2026-03-01T08:00:00.123456+00:00", "ended_at": None,
    }  # fmt: skip
    cast = {
        "cast_id": "00000001", "plan": {"image_id": "a" * 64, "room_id": "lab", "start": "joined"},
        "image_name": "img", "raw_bytes": 10, "phase": "casting", "paused": True, "owner": "one", "group": "",
        "port": 9, "control_url": "", "required_count": 2, "run_count": 1,
        "created_at": "2026-03-01T08:00:00.123456+00:00", "created_by": "anna", "schedule_id": None,
        "gathering_at": "2026-03-01T08:00:00.123456+00:00", "casting_at": None, "ended_at": None, "reason": "",
        "seconds": 1.5, "bytes_sent": 10, "progress": 0.25, "joined_count": 2, "complete_count": 0,
        "failed_count": 0,
    }  # fmt: skip
    point = {
        "at_s": 1.0, "rate_bytes_per_s": 1, "goodput_bytes_per_s": 2, "loss": 0, "parity": 0, "progress": 0,
        "active_count": 1, "complete_count": 0, "limiter": "the disk of pc-01",
    }  # fmt: skip
    lines = [
        {"key": ["1"], "method": "casts.save", "args": [cast], "options": {}},
        {"key": ["2"], "method": "casts.put_machine", "args": [row], "options": {"lease": "one/1"}},
        {"key": ["3"], "method": "casts.put_timeline", "args": ["00000001", [point]], "options": {}},
        {"key": ["4"], "method": "rooms.remove", "args": ["lab"], "options": {}},
    ]
    (tmp_path / SPOOL_NAME).write_bytes(b"".join(pack_line(line) for line in lines))

    async def work() -> None:
        recorder = Recorder(store, tmp_path)
        assert (recorder.pending_count, recorder.dropped_count) == (3, 1)
        async with running(recorder):
            assert await recorder.drain(LIMIT_S)

    asyncio.run(work())
    assert store.casts.machines("00000001") == [
        line(state="lost", error="silent", bottleneck="disk", progress=0.5, bytes_verified=7, seconds=1.0,
             rate_bytes_per_s=7.0, nacks_count=1, joined_at=START)
    ]  # fmt: skip
    assert store.casts.timeline("00000001")[0].bottleneck == "the disk of pc-01"
    saved = store.casts.get("00000001")
    assert saved is not None
    assert (saved.phase, saved.paused, saved.gathering_at) == (CastPhase.CASTING, True, START)


def test_a_record_that_the_database_refuses_holds_up_no_other(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine(store)
    recorder = Recorder(store, tmp_path)

    async def work() -> None:
        recorder.put(("1",), Casts.put_machine, line(name="a"))
        recorder.put(("2",), Casts.put_machine, line(name="b", bytes_verified=1 << 80))
        recorder.put(("3",), Casts.put_machine, line(name="c"))
        async with running(recorder):
            assert await recorder.drain(LIMIT_S)

    asyncio.run(work())
    assert [item.name for item in store.casts.machines("00000001")] == ["a", "c"]
    assert recorder.dropped_count == 1
    assert "dropped" in caplog.text


def test_the_queue_is_bounded_and_says_when_it_is_full(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "PENDING_MAX", 10)
    recorder = Recorder(store, tmp_path)
    for number in range(12):
        recorder.put((str(number),), Casts.put_machine, line(name=f"pc-{number}"))
    recorder.put(("0",), Casts.put_machine, line(name="pc-0", progress=1.0))
    assert (recorder.pending_count, recorder.dropped_count) == (10, 2)
    assert "further records of casts are lost" in recorder.problem.text
    with pytest.raises(ValueError, match="can't be recorded"):
        recorder.put(("x",), Rooms.remove, "lab")


@pytest.mark.parametrize("method", RECORDABLE)
def test_every_recordable_method_can_be_kept_in_the_spool(method: str) -> None:
    assert _parameters(method)


def test_an_audit_entry_whose_answer_was_lost_stands_there_once(store: Store, tmp_path: Path) -> None:
    key, at = new_entry_key(), START + timedelta(hours=1)
    told = ("anna", "cast.cancel", "cast 00000001", {"reason": "wrong image"}, "r1")
    store.audit.add(*told, entry_key=key, at=at)
    recorder = Recorder(store, tmp_path)

    async def work() -> None:
        recorder.put(("audit", key), Audit.add, *told, entry_key=key, at=at)
        other = new_entry_key()
        recorder.put(("audit", other), Audit.add, *told, entry_key=other, at=at + timedelta(hours=1))
        async with running(recorder):
            assert await recorder.drain(LIMIT_S)

    asyncio.run(work())
    store.audit.add("anna", "x", "y")
    store.audit.add("anna", "x", "y")
    entries, _ = store.audit.list(subject="cast 00000001")
    assert [(entry.at, entry.detail) for entry in entries] == [
        (at + timedelta(hours=1), {"reason": "wrong image"}),
        (at, {"reason": "wrong image"}),
    ]
    assert len(store.audit.list(subject="y")[0]) == 2
