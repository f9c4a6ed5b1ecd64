"""Repositories return the stored records, from SQLite and from PostgreSQL."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from sender.store.database.errors import ConflictError
from sender.store.records.access import Credential, Role
from sender.store.records.casts import CastPhase, CastPlan
from sender.store.records.images import ImageState
from sender.store.repositories.audit import AuditNote
from sender.store.repositories.credentials import SESSIONS_PER_TOKEN_MAX, hash_secret, new_session
from sender.store.store import Store
from tests.store.samples import IMAGE_ID, START, Clock, image, machine, report, room, schedule

NOTE = AuditNote("ci", request_id="r-1")


def test_rooms_keep_their_fields_and_count_their_machines(store: Store) -> None:
    lab = store.rooms.add(room(description="first floor", site="north"), audit=NOTE)
    assert lab == room(description="first floor", site="north")
    store.machines.add(machine(room_id="lab"))
    assert store.rooms.get("lab").machine_count == 1
    assert store.rooms.change("lab", name="Lab 2", audit=NOTE).name == "Lab 2"
    assert store.rooms.change("nowhere", name="x") is None
    with pytest.raises(ConflictError, match="room 'lab' exists already"):
        store.rooms.add(room())
    assert store.rooms.remove("lab", audit=NOTE)
    assert not store.rooms.remove("lab")
    [left], _ = store.machines.list()
    assert left.room_id is None, "the machine outlives its room"


def test_changes_are_audited_in_their_own_transaction(store: Store) -> None:
    store.rooms.add(room(), audit=NOTE)
    store.rooms.change("lab", site="north", audit=AuditNote("anna"))
    store.rooms.change("lab", site="north", audit=AuditNote("nobody"))
    with pytest.raises(ConflictError):
        store.rooms.add(room(), audit=AuditNote("nobody"))
    entries, cursor = store.audit.list()
    assert cursor is None
    assert [(entry.actor, entry.action, entry.subject) for entry in entries] == [
        ("anna", "room.change", "room lab"),
        ("ci", "room.create", "room lab"),
    ]
    assert entries[0].detail == {"from": {"site": ""}, "to": {"site": "north"}}
    assert entries[1].request_id == "r-1"
    assert store.audit.list(actor="ci", since=START, until=START + timedelta(days=1))[0] == entries[1:]
    assert store.audit.list(since=START + timedelta(days=1)) == ([], None)
    assert store.audit.list(subject="room lab", limit=1)[0] == entries[:1]


def test_a_machine_keeps_its_addresses_in_order_and_exclusively(store: Store) -> None:
    one = store.machines.add(
        machine(macs=("AA-BB-CC-00-00-02", "aabb.cc00.0004"), inventory={"cpu": "x"}), audit=NOTE
    )
    assert one.macs == ("aa:bb:cc:00:00:02", "aa:bb:cc:00:00:04")
    assert store.machines.get(one.machine_id) == one
    with pytest.raises(ConflictError, match="belongs to machine pc-01"):
        store.machines.add(machine("pc-02", macs=("aa:bb:cc:00:00:02",)))
    with pytest.raises(ConflictError, match="no room 'attic'"):
        store.machines.add(machine("pc-02", room_id="attic"))
    changed = store.machines.change(one.machine_id, macs=("aa:bb:cc:00:00:04",), position="row 2", audit=NOTE)
    assert changed.macs == ("aa:bb:cc:00:00:04",)
    assert changed.position == "row 2"
    assert store.machines.change("nobody", name="x") is None
    assert store.machines.count() == 1
    assert store.machines.get_many([one.machine_id, "nobody"]) == [changed]
    assert store.machines.remove(one.machine_id, audit=NOTE)
    assert store.machines.get(one.machine_id) is None
    assert not store.machines.remove(one.machine_id)


def test_a_machine_is_found_by_address_serial_or_asset_tag_but_not_by_placeholders(
    store: Store,
) -> None:
    one = store.machines.add(machine("one", macs=("aa:bb:cc:00:00:02",), serial="5CG1234XYZ"))
    two = store.machines.add(machine("two", serial="To be filled by O.E.M.", asset_tag="LAB-7"))
    find = store.machines.find
    assert find(["AA:BB:CC:00:00:02"], "", "") == one
    assert find([], "5cg1234xyz ", "") == one
    assert find([], "", "lab-7") == two
    assert find(["00:00:00:00:00:00", "nonsense"], "To Be Filled By O.E.M.", "Default string") is None
    assert find([], "0000000", "") is None
    moved_adapter = find(["aa:bb:cc:00:00:02"], "OTHER-1", "")
    assert moved_adapter is None, (
        "an adapter that is plugged into another machine doesn't make it the same one"
    )
    store.machines.add(machine("three", asset_tag="LAB-7"))
    assert find([], "", "LAB-7") is None, "a tag that two machines have identifies neither"


def test_an_agent_is_enrolled_once_and_changes_no_field_of_the_operator(store: Store, clock: Clock) -> None:
    store.rooms.add(room())
    first = report(
        store, macs=["aa:bb:cc:00:00:02"], serial="S-1", name="localhost", inventory={"ram": "8\0"}
    )
    assert first.room_id is None
    assert first.inventory == {"ram": "8\ufffd"}
    store.machines.change(first.machine_id, name="pc-01", room_id="lab")
    again = report(store, macs=["aa:bb:cc:00:00:04"], serial="S-1", name="localhost", address="10.0.0.10")
    assert (again.machine_id, again.name, again.room_id) == (first.machine_id, "pc-01", "lab")
    assert again.macs == ("aa:bb:cc:00:00:04", "aa:bb:cc:00:00:02")
    assert again.address == "10.0.0.10"
    other = report(store, macs=["aa:bb:cc:00:00:04"], serial="S-2")
    assert other.machine_id != first.machine_id
    assert store.machines.get(first.machine_id).macs == ("aa:bb:cc:00:00:02",), "the adapter has moved"
    seen = clock.time + timedelta(minutes=5)
    store.machines.touch({first.machine_id: seen, "nobody": seen})
    assert store.machines.get(first.machine_id).last_seen_at == seen


def test_tokens_are_found_by_their_secret_until_they_expire_or_are_removed(
    store: Store, clock: Clock
) -> None:
    token, secret = store.tokens.create(
        "ci", Role.OPERATE, START + timedelta(hours=1), created_by="anna", audit=NOTE
    )
    assert secret.startswith("dct_operate_")
    assert store.credentials.find(hash_secret(secret)) == Credential(token, None)
    assert store.credentials.all() == {hash_secret(secret): Credential(token, None)}
    assert store.credentials.find(hash_secret(secret[:-1])) is None
    assert secret not in repr(store.credentials.all())
    store.tokens.used(token.token_id)
    used_at = store.tokens.get(token.token_id).last_used_at
    store.tokens.used(token.token_id)
    assert store.tokens.get(token.token_id).last_used_at == used_at is not None
    with pytest.raises(ConflictError, match="token 'ci' exists already"):
        store.tokens.create("ci", Role.VIEW)
    clock.time += timedelta(hours=2)
    assert store.credentials.find(hash_secret(secret)) is None
    assert not store.credentials.all()
    _, lasting = store.tokens.create("agents", Role.ENROL)
    found = store.credentials.find(hash_secret(lasting)).token
    assert [t.name for t in store.tokens.list()[0]] == ["agents", "ci"]
    assert store.tokens.remove(found.token_id, audit=NOTE)
    assert store.credentials.find(hash_secret(lasting)) is None
    assert secret not in json.dumps([entry.detail for entry in store.audit.list()[0]])


def test_a_session_ends_with_its_time_its_token_or_by_logging_out(store: Store, clock: Clock) -> None:
    token, _ = store.tokens.create("anna", Role.OPERATE)
    made = [new_session(token, clock.time, timedelta(hours=12)) for _ in range(3)]
    for session, secret in made:
        store.credentials.add_session(session, audit=NOTE)
        store.credentials.add_session(session, audit=NOTE)  # a repetition after a lost answer
        assert store.credentials.find(hash_secret(secret)) == Credential(token, session)
    assert len(store.credentials.all()) == 4
    assert [entry.action for entry in store.audit.list()[0]] == ["session.create"] * 3
    (session, secret), (_, second), (_, third) = made
    assert store.credentials.remove_session(session.session_id, audit=NOTE)
    assert not store.credentials.remove_session(session.session_id, audit=NOTE)
    assert store.credentials.find(hash_secret(secret)) is None
    assert store.credentials.find(hash_secret(second)) is not None
    clock.time += timedelta(hours=12)
    assert store.credentials.find(hash_secret(second)) is None
    store.credentials.expire()
    clock.time -= timedelta(hours=1)
    assert store.credentials.find(hash_secret(third)) is None
    again, secret = new_session(token, clock.time, timedelta(hours=12))
    store.credentials.add_session(again)
    store.tokens.remove(token.token_id)
    assert store.credentials.find(hash_secret(secret)) is None
    store.credentials.add_session(again)
    assert not store.credentials.all(), "a session outlived its revoked token"


def test_a_session_does_not_outlive_its_token(store: Store, clock: Clock) -> None:
    token, _ = store.tokens.create("brief", Role.VIEW, clock.time + timedelta(hours=1))
    session, _ = new_session(token, clock.time, timedelta(hours=12))
    assert session.expires_at == token.expires_at


def test_a_token_has_a_limited_number_of_sessions(store: Store, clock: Clock) -> None:
    token, _ = store.tokens.create("script", Role.VIEW)
    secrets = []
    for _ in range(SESSIONS_PER_TOKEN_MAX + 2):
        clock.time += timedelta(seconds=1)
        session, secret = new_session(token, clock.time, timedelta(hours=12))
        store.credentials.add_session(session)
        secrets.append(secret)
    found = [store.credentials.find(hash_secret(secret)) is not None for secret in secrets]
    assert found == [False, False] + [True] * SESSIONS_PER_TOKEN_MAX


def test_of_two_daemons_only_one_creates_the_cast_of_a_schedule(store: Store) -> None:
    planned = store.schedules.add(schedule(), audit=NOTE)
    assert store.schedules.get("s1") == planned == schedule()
    assert store.schedules.due(START - timedelta(seconds=1)) == []
    assert store.schedules.due(START) == [planned]
    following = START + timedelta(days=1)
    assert store.schedules.claim("s1", START, following)
    assert not store.schedules.claim("s1", START, following)
    assert store.schedules.due(START) == []
    changed = store.schedules.change("s1", plan=CastPlan("cd" * 32), enabled=False, next_at=None, audit=NOTE)
    assert changed.plan.image_id == "cd" * 32
    assert changed.next_at is None
    assert store.schedules.list() == ([changed], None)
    with pytest.raises(ConflictError):
        store.schedules.add(schedule())
    assert store.schedules.remove("s1", audit=NOTE)
    assert store.schedules.change("s1", name="x") is None


def test_images_and_urls_of_remote_images_are_stored(store: Store) -> None:
    store.images.put(image())
    store.images.put(image(state=ImageState.GONE, first_seen_at=START + timedelta(days=9)))
    kept = store.images.get(IMAGE_ID)
    assert kept == image(state=ImageState.GONE)
    assert store.images.list() == ([kept], None)
    store.images.add_remote("https://images.lan/w.dci", "w", audit=NOTE)
    store.images.add_remote("https://images.lan/w.dci", "windows")
    assert store.images.remotes() == [("https://images.lan/w.dci", "windows")]
    assert store.images.remove_remote("https://images.lan/w.dci")
    assert not store.images.remove_remote("https://images.lan/w.dci")
    assert store.images.remove(IMAGE_ID, audit=NOTE)
    assert store.images.get(IMAGE_ID) is None


def test_a_repeated_request_gets_the_same_answer_for_a_day(store: Store, clock: Clock) -> None:
    start = store.idempotency.start
    assert start("ci POST /casts", "k", "f") is None
    assert start("ci POST /casts", "k", "f").status is None, "the first request is in progress"
    store.idempotency.finish("ci POST /casts", "k", 201, b'{"cast_id":"1"}', {"Location": "/casts/1"})
    known = start("ci POST /casts", "k", "other")
    assert (known.status, known.body, known.fingerprint) == (201, b'{"cast_id":"1"}', "f")
    assert known.headers == {"Location": "/casts/1"}
    assert start("anna POST /casts", "k", "f") is None, "each client has its own keys"
    store.idempotency.abandon("anna POST /casts", "k")
    assert start("anna POST /casts", "k", "f") is None
    clock.time += timedelta(minutes=2)
    assert start("anna POST /casts", "k", "f") is None, "its request was cut off"
    clock.time += timedelta(hours=25)
    assert start("ci POST /casts", "k", "new") is None
    assert store.idempotency.expire() == 1
    assert store.idempotency.count() == 1


def test_several_calls_are_one_transaction_or_nothing(store: Store) -> None:
    def half() -> None:
        with store.transaction():
            store.rooms.add(room())
            store.rooms.add(room())

    with pytest.raises(ConflictError):
        half()
    assert store.rooms.get("lab") is None
    with store.transaction():
        store.rooms.add(room())
        assert store.casts.list(phase=CastPhase.PLANNED) == ([], None)
    assert store.rooms.get("lab") is not None
    assert store.problem is None


def test_text_that_the_database_cant_store_fails_no_transaction(store: Store) -> None:
    odd = store.rooms.add(room(name="a\0b\ud800c\N{GRINNING FACE}"))
    assert odd.name == "a\ufffdb\ufffdc\N{GRINNING FACE}"
    with pytest.raises(ConflictError, match="range"):
        store.images.put(image(raw_bytes=1 << 70))
