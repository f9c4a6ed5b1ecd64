"""Casts, their results on machines, and requested commands."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

from sender.store.records.casts import CastEvent, CastPhase, CastRequest, Command, StartMode, TimelinePoint
from sender.store.store import Store
from tests.store.samples import IMAGE_ID, START, Clock, add_cast, line, machine, room


def test_a_cast_keeps_its_plan_and_progress(store: Store) -> None:
    planned = add_cast(
        store,
        room_id="lab",
        machine_ids=("m1", "m2"),
        start=StartMode.MANUAL,
        start_at=START,
        max_wait_s=None,
    )
    assert planned.plan.machine_ids == ("m1", "m2")
    assert planned.plan.start is StartMode.MANUAL
    assert planned.plan.start_at == START
    assert (planned.phase, planned.owner, planned.run_count) == (CastPhase.PLANNED, "", 0)
    changed = store.casts.change("00000001", phase=CastPhase.GATHERING, group="239.1.2.3", gathering_at=START)
    assert (changed.phase, changed.group, changed.gathering_at) == (CastPhase.GATHERING, "239.1.2.3", START)
    assert store.casts.get("00000001") == changed
    assert store.casts.change("ffffffff", paused=True) is None
    assert store.casts.list(phase=CastPhase.GATHERING) == ([changed], None)
    assert store.casts.list(room_id="attic") == ([], None)
    assert store.casts.list(ended=True) == ([], None)
    assert store.casts.list(ended=False) == ([changed], None)


def test_casts_are_listed_by_their_current_phase(store: Store) -> None:
    for number in range(5):
        add_cast(store, f"0000000{number}")
    store.casts.change("00000004", phase=CastPhase.CASTING)
    now = {"00000001": CastPhase.CASTING, "00000003": CastPhase.CASTING, "00000004": CastPhase.DONE}
    pages, cursor = [], None
    while not pages or cursor is not None:
        page, cursor = store.casts.list(CastPhase.CASTING, after=cursor, limit=1, phases_now=now)
        pages.append([cast.cast_id for cast in page])
    assert pages == [["00000003"], ["00000001"]]
    planned, _ = store.casts.list(CastPhase.PLANNED, phases_now=now)
    assert [cast.cast_id for cast in planned] == ["00000002", "00000000"]
    assert [cast.cast_id for cast in store.casts.list(CastPhase.CASTING)[0]] == ["00000004"]


def test_a_cut_off_daemon_overwrites_nothing_of_its_successor(store: Store) -> None:
    add_cast(store)
    [mine] = store.leases.acquire("one/1", START, (), 1)
    assert store.casts.save(dataclasses.replace(mine, phase=CastPhase.CASTING, bytes_sent=5))
    beat = store.leases.beats()["00000001"][1]
    assert store.leases.take_over("00000001", "one/1", beat, "two/1")
    successors = store.casts.get("00000001")
    assert (successors.owner, successors.run_count) == ("two", 2)
    assert not store.casts.save(dataclasses.replace(mine, phase=CastPhase.FAILED))
    assert not store.casts.save_progress(dataclasses.replace(mine, bytes_sent=1))
    assert not store.casts.put_machine(line(state="lost"), lease="one/1")
    assert not store.casts.put_timeline("00000001", [], lease="one/1")
    assert store.casts.change("00000001", lease="one/1", paused=True) is None
    assert store.casts.get("00000001") == successors
    done = dataclasses.replace(successors, phase=CastPhase.DONE, ended_at=START, bytes_sent=9)
    assert store.casts.save(done)
    assert not store.casts.save_progress(dataclasses.replace(done, bytes_sent=8)), (
        "what has ended stays as it ended"
    )
    assert store.casts.get("00000001") == done


def test_a_complete_machine_stays_complete(store: Store) -> None:
    add_cast(store)
    assert store.casts.put_machine(line(state="complete", bytes_verified=1 << 40, ended_at=START))
    assert store.casts.put_machine(line(state="receiving"))
    [kept] = store.casts.machines("00000001")
    assert (kept.state, kept.bytes_verified) == ("complete", 1 << 40)


def test_history_keeps_identifiers_of_renamed_and_removed_machines(store: Store) -> None:
    store.rooms.add(room())
    known = store.machines.add(machine(room_id="lab", serial="S-1", asset_tag="LAB-7"))
    add_cast(store, name="spring term")
    store.casts.put_machines(
        [
            line(name="pc-01", machine_id=known.machine_id, state="assigned", joined_at=None),
            line(name="stranger", state="failed", error="disk broke", exit_code=50),
        ]
    )
    store.machines.remove(known.machine_id)
    store.rooms.remove("lab")
    store.casts.put_machine(
        line(name="pc-01", machine_id=known.machine_id, state="complete", bytes_verified=7, ended_at=START)
    )
    lines, _ = store.history.lines(machine_id=known.machine_id)
    [history_line] = lines
    assert (history_line.serial, history_line.asset_tag, history_line.room_id, history_line.cast_name) == (
        "S-1",
        "LAB-7",
        "lab",
        "spring term",
    )
    assert (
        history_line.image_id,
        history_line.image_name,
        history_line.state,
        history_line.bytes_verified,
    ) == (
        IMAGE_ID,
        "windows",
        "complete",
        7,
    )
    assert [item.machine_name for item in store.history.lines(state="failed")[0]] == ["stranger"]
    assert len(store.history.lines(cast_id="00000001")[0]) == 2
    assert store.history.lines(image_id="cd" * 32) == ([], None)
    assert store.history.lines(until=START) == ([], None)
    assert len(store.history.lines(since=START, until=START + timedelta(seconds=1), room_id="lab")[0]) == 1


def test_the_latest_result_of_each_machine_is_found_in_one_call(store: Store) -> None:
    known = [store.machines.add(machine(f"pc-{i}")) for i in range(3)]
    for number in range(3):
        add_cast(store, f"0000000{number}")
        store.casts.put_machines(
            [
                line(
                    f"0000000{number}",
                    m.name,
                    machine_id=m.machine_id,
                    joined_at=START + timedelta(hours=number),
                )
                for m in known[: 3 - number]
            ]
        )
    latest = store.casts.latest_of_machines([m.machine_id for m in known] + ["nobody"])
    assert {m.name: latest[m.machine_id].cast_id for m in known} == {
        "pc-0": "00000002",
        "pc-1": "00000001",
        "pc-2": "00000000",
    }


def test_events_and_the_timeline_can_be_written_twice_without_harm(store: Store) -> None:
    add_cast(store)
    events = [
        CastEvent(START + timedelta(seconds=i), "receiver_joined", f"pc-{i}", "joined") for i in range(3)
    ]
    for event in [*events, *events]:
        store.casts.add_event("00000001", event)
    store.casts.add_event("ffffffff", events[0])
    assert store.casts.events("00000001") == events
    points = [
        TimelinePoint(float(i), 1e8, 9e7, 0.01, 0.05, i / 100, 30, 0, "slowest machine") for i in range(100)
    ]
    assert store.casts.put_timeline("00000001", points[:10])
    assert store.casts.put_timeline("00000001", points)
    assert store.casts.timeline("00000001") == points
    assert store.casts.timeline("ffffffff") == []
    assert not store.casts.put_timeline("ffffffff", points)


def test_requested_commands_reach_the_daemon_that_runs_the_cast_in_order(store: Store) -> None:
    def asks(command: Command, cast_id: str = "00000001") -> bool:
        return store.casts.request(CastRequest(cast_id, command, "anna", "so"))

    def commands() -> list[Command]:
        requests = store.casts.requests("one/1")
        assert {(request.actor, request.reason) for request in requests} == {("anna", "so")}
        return [request.command for request in requests]

    add_cast(store)
    assert not asks(Command.CANCEL, "ffffffff")
    assert asks(Command.START)
    assert asks(Command.PAUSE)
    assert asks(Command.PAUSE)
    store.leases.acquire("one/1", START, (), 1)
    assert commands() == [Command.START, Command.PAUSE]
    assert store.casts.requests("two/1") == []
    asks(Command.RESUME)
    assert commands() == [Command.START, Command.RESUME]
    store.casts.clear_request("00000001", Command.START)
    asks(Command.CANCEL)
    assert commands() == [Command.CANCEL]
    store.casts.clear_request("00000001")
    store.casts.change("00000001", phase=CastPhase.CANCELLED)
    assert not asks(Command.START), "it has ended"


def test_requests_for_an_ended_cast_are_removed(store: Store) -> None:
    add_cast(store)
    [cast] = store.leases.acquire("one/1", START, (), 1)
    store.casts.request(CastRequest("00000001", Command.PAUSE, "anna"))
    store.casts.save(dataclasses.replace(cast, phase=CastPhase.TAIL))
    assert len(store.casts.requests("one/1")) == 1
    store.casts.save(dataclasses.replace(cast, phase=CastPhase.DONE))
    assert store.casts.requests("one/1") == []


def test_retention_removes_old_rows_and_records_it(store: Store, clock: Clock) -> None:
    add_cast(store, "0000000a")
    store.casts.put_machines([line("0000000a", f"pc-{i}") for i in range(2500)])
    store.casts.add_event("0000000a", CastEvent(START, "x", "", ""))
    store.casts.change("0000000a", phase=CastPhase.DONE, ended_at=START)
    store.audit.add("anna", "x", "y")
    clock.time += timedelta(days=40)
    add_cast(store, "0000000b")
    store.casts.put_machine(line("0000000b"))
    store.casts.change("0000000b", phase=CastPhase.DONE, ended_at=clock())
    add_cast(store, "0000000c")
    assert store.retention.apply(None).casts_count == 0
    assert store.retention.apply(30, 0.0).unfinished
    removed = store.retention.apply(30)
    assert not removed.unfinished
    assert (removed.casts_count, removed.lines_count, removed.audit_count) == (1, 2500, 1)
    assert [cast.cast_id for cast in store.casts.list()[0]] == ["0000000c", "0000000b"]
    assert [entry.action for entry in store.audit.list()[0]] == ["history.remove"]
    assert len(store.history.lines()[0]) == 1
    assert store.retention.apply(30).casts_count == 0
