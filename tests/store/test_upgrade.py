"""Upgrade of a daemon's state from 0.1.0: operators keep their rooms, machines, tokens, casts and history.

``state_0_1_0.sql`` was written by the code of that version; here it is opened by this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from sender.store.backup.integrity_check import check_database
from sender.store.database import schema
from sender.store.database.engine import WRITES, make_engine
from sender.store.machines.claims import Claim, ClaimDecision, secret_hash
from sender.store.machines.machine_report import MachineReport
from sender.store.open_store import open_database
from sender.store.records.access import Role, Token
from sender.store.records.casts import CastPhase
from sender.store.records.machines import EnrolmentMode, EnrolmentState
from sender.store.repositories.credentials import hash_secret
from sender.store.store import Store
from tests.store.samples import IMAGE_ID, START, Clock, machine, report
from tests.support.postgres.server import PostgresServer

STATE = Path(__file__).with_name("state_0_1_0.sql")
SECRETS = {
    "console": (Role.OPERATE, "dct_operate_xLuGw9HEJxA8NExBiesvHnvV1H5Eb87Co9gRc2EQ5Xg"),
    "wall display": (Role.VIEW, "dct_view_FsbpyS2ZvzWMLgcYgizkfKjHQQfmbLDksrP01Y2CymM"),
    "sticks": (Role.ENROL, "dct_enrol_hckkw1lxZMSmBYoAWBoisi3lBHJDPS5E_ti2uDV-RM0"),
}
EXPIRED = "dct_enrol_okL98R-PKxo588PmkxFDUdy-1Afj5rYFuZ6DBt2nSKY"


@pytest.fixture
def state(url: sa.URL, tmp_path: Path, request: pytest.FixtureRequest) -> sa.URL:
    """Return a database with the state of 0.1.0, not migrated yet."""
    if url.get_backend_name() == "sqlite":
        load(Path(str(url.database)))
        return url
    server: PostgresServer = request.getfixturevalue("postgres")
    url = sa.make_url(server.new_database())
    load(tmp_path / "old.db")
    copy_rows(tmp_path / "old.db", url)
    return url


def load(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(STATE.read_text())


def copy_rows(path: Path, url: sa.URL) -> None:
    """Create the schema of 0.1.0 by its migrations, and copy the rows of ``path`` into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "head", lambda: "0003")
        patch.setattr("sender.store.open_store.head", lambda: "0003")
        open_database(url, upkeep=False).close()
    target = make_engine(url, pooled=False)
    source = sa.create_engine(f"sqlite:///{path}")
    tables = sa.MetaData()
    with target.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
        tables.reflect(connection)
        for table in tables.sorted_tables:
            if table.name == "alembic_version":
                continue
            with source.connect() as old:
                rows = old.execute(sa.text(f'SELECT * FROM "{table.name}"')).mappings().all()
            columns = {column.name: column.type for column in table.columns}
            if rows:
                connection.execute(sa.delete(table))
                values = [{name: adapted(row[name], columns[name]) for name in row} for row in rows]
                connection.execute(sa.insert(table), values)
            for column in table.columns:
                if column.autoincrement is True or (
                    column.primary_key and isinstance(column.type, sa.Integer)
                ):
                    connection.execute(
                        sa.text(
                            f"SELECT setval(pg_get_serial_sequence('{table.name}', '{column.name}'), "
                            f"(SELECT coalesce(max({column.name}), 0) + 1 FROM {table.name}), false)"
                        )
                    )
    target.dispose()
    source.dispose()


def adapted(value: object, column_type: sa.types.TypeEngine[object]) -> object:
    if value is not None and isinstance(column_type, sa.JSON):
        return json.loads(str(value))
    return bool(value) if isinstance(column_type, sa.Boolean) and value is not None else value


def token_of(store: Store, secret: str) -> Token | None:
    """Return the token with which a request is authenticated; None if it is refused."""
    credential = store.credentials.find(hash_secret(secret))
    return None if credential is None else credential.token


@pytest.fixture
def store(state: sa.URL, clock: Clock) -> Iterator[Store]:
    with contextlib.closing(open_database(state, now=clock, upkeep=False)) as opened:
        yield opened


def test_the_upgraded_state_has_the_schema_of_this_version(state: sa.URL) -> None:
    open_database(state, upkeep=False).close()
    engine = make_engine(state, pooled=False)
    with engine.connect() as connection:
        assert schema.current_revision(connection) == schema.head()
    engine.dispose()
    check_database(state)


def test_tokens_keep_their_secrets_and_roles(store: Store, clock: Clock) -> None:
    """Otherwise every console, wall display and live system of an installation is locked out by the upgrade."""
    for name, (role, secret) in SECRETS.items():
        token = token_of(store, secret)
        assert token is not None
        assert (token.name, token.role) == (name, role)
    clock.time = START + timedelta(days=2)
    assert token_of(store, EXPIRED) is None
    names = [token.name for token in store.tokens.list()[0]]
    assert sorted(names) == sorted([*SECRETS, "old sticks"])


def test_machines_keep_their_identity_room_and_names(store: Store) -> None:
    machines = {item.name: item for item in store.machines.list()[0]}
    assert set(machines) == {"pc-01", "pc-02", "pc-11", "pc-12", "live"}
    first = machines["pc-01"]
    assert (first.room_id, first.macs, first.serial, first.asset_tag) == (
        "lab",
        ("52:54:00:00:00:01",),
        "SN1",
        "A1",
    )
    assert (first.position, first.note, first.address) == ("row 1, seat 1", "projector", "10.0.0.11")
    assert machines["pc-11"].room_id == "attic"
    assert machines["live"].inventory == {"cpu": "Ryzen 5", "memory": "16 GiB"}
    assert store.machines.find(("52:54:00:00:00:02",), "", "") == machines["pc-02"]


def test_a_machine_that_checks_in_after_the_upgrade_is_the_one_from_before(store: Store) -> None:
    before = store.machines.find((), "SN3", "")
    assert before is not None
    again = report(
        store, macs=("52:54:00:00:00:03",), serial="SN3", agent_version="0.3.0", address="10.0.0.99"
    )
    assert again.machine_id == before.machine_id
    assert (again.agent_version, again.address) == ("0.3.0", "10.0.0.99")
    added = store.machines.add(machine("pc-77", room_id="lab", macs=("52:54:00:00:00:77",)))
    assert store.machines.count("lab") == 3
    assert added.machine_id


def test_a_machine_from_before_enrols_with_a_token_from_before(store: Store) -> None:
    """An agent's token was its whole proof in 0.1.0; with the same token it gets a secret of its own now."""
    before = store.machines.find(("52:54:00:00:00:01",), "", "")
    token = token_of(store, SECRETS["sticks"][1])
    assert before is not None
    assert token is not None
    assert before.enrolment is EnrolmentState.NEW
    facts = MachineReport("live", before.macs, before.serial, "", "10.0.0.11", "0.3.0", {})
    claim = Claim(facts, secret_hash("run"), token.name, token.room_id, EnrolmentMode.TOKEN, lambda _id: None)
    [result] = store.enrolments.claim([claim])
    assert result.decision is ClaimDecision.GRANTED
    assert result.machine is not None
    assert (result.machine.machine_id, result.machine.name) == (before.machine_id, "pc-01")
    assert store.enrolments.machine_of(secret_hash(result.secret)) == result.machine


def test_casts_history_and_schedules_are_kept(store: Store) -> None:
    ended = store.casts.get("0000c0de")
    assert ended is not None
    assert (ended.phase, ended.reason, ended.complete_count) == (
        CastPhase.FAILED,
        "1 of 2 machines failed",
        1,
    )
    assert [point.bottleneck for point in store.casts.timeline("0000c0de")] == ["disk"]
    lines, _ = store.history.lines()
    outcomes = {line.machine_name: (line.state, line.exit_code, line.serial) for line in lines}
    assert outcomes == {"pc-01": ("complete", 0, "SN1"), "pc-02": ("failed", 30, "")}
    planned = store.casts.get("0000beef")
    assert planned is not None
    assert (planned.phase, planned.plan.room_id, planned.plan.wait_for) == (CastPhase.PLANNED, "attic", 2)
    [schedule] = store.schedules.list()[0]
    assert (schedule.cron, schedule.plan.image_id) == ("0 3 * * *", IMAGE_ID)


def test_rooms_images_and_audit_are_kept(store: Store) -> None:
    rooms = {room.room_id: room for room in store.rooms.list()[0]}
    assert (rooms["lab"].name, rooms["lab"].site, rooms["lab"].interface) == ("Lab 3.14", "campus", "eth1")
    assert rooms["lab"].machine_count == 2
    images = {image.name: image.state for image in store.images.list()[0]}
    assert {name: state.value for name, state in images.items()} == {
        "Windows 11": "available",
        "debian": "remote",
    }
    assert store.images.remotes() == [("https://example.org/debian.dci", "debian")]
    actions = [entry.action for entry in store.audit.list()[0]]
    assert {"room.create", "token.create", "machine.create", "cast.create", "schedule.create"} <= set(actions)


def test_the_upgraded_state_can_be_changed(store: Store) -> None:
    for item in store.machines.list()[0]:
        store.machines.change(item.machine_id, note="after the upgrade")
    assert {item.note for item in store.machines.list()[0]} == {"after the upgrade"}
    room = dataclasses.replace(store.rooms.list()[0][0], room_id="cellar", name="Cellar")
    store.rooms.add(room)
    token, secret = store.tokens.create("new sticks", Role.ENROL)
    found = token_of(store, secret)
    assert found is not None
    assert found.token_id == token.token_id
