"""A damaged SQLite file is reported, and every confirmed change is restored from backup and journal."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from protocol.errors import (
    ConfigurationError,
    DatabaseDamagedError,
    DatabaseError,
    DatabaseUnavailableError,
)
from sender.store.backup.backup import back_up, backup_path
from sender.store.backup.integrity_check import check_database
from sender.store.backup.journal import find_segments
from sender.store.backup.restore import restore
from sender.store.database import tables
from sender.store.database.engine import make_engine
from sender.store.database.errors import Place
from sender.store.database_command import database as database_command
from sender.store.open_store import open_database
from sender.store.records.access import Role
from sender.store.records.casts import CastEvent, CastPhase, CastRequest, Command, TimelinePoint
from sender.store.repositories.audit import AuditNote
from sender.store.store import Store
from tests.store.samples import START, add_cast, image, line, machine, report, room, schedule

NOTE = AuditNote("ci")
Rows = dict[str, list[tuple[object, ...]]]


def lasting_rows(url: sa.URL) -> Rows:
    """Return every row, without the fleeting columns."""
    engine = make_engine(url, pooled=False)
    rows: Rows = {}
    with engine.connect() as connection:
        for table in tables.metadata.sorted_tables:
            if table is not tables.store_state:
                columns = [column for column in table.columns if not column.info.get("fleeting")]
                found = connection.execute(sa.select(*columns).order_by(*table.primary_key))
                rows[table.name] = [tuple(map(repr, row)) for row in found]
    engine.dispose()
    return rows


def fill(store: Store) -> None:
    """Add, change and remove records of every kind."""
    for number in range(4):
        store.rooms.add(room(f"room-{number}"), audit=NOTE)
    store.rooms.remove("room-3", audit=NOTE)
    text = "name,mac\n" + "".join(f"pc-{n},02:00:00:00:00:{n:02x}\n" for n in range(20))
    store.machines.import_csv("room-0", text, audit=NOTE)
    first, second = store.machines.of_room("room-0")[:2]
    # An address moves to another machine: unique rows change places within a transaction.
    report(store, macs=[*first.macs, *second.macs], serial="S-1")
    store.machines.remove(second.machine_id, audit=NOTE)
    store.rooms.remove("room-1")
    for number in range(3):
        add_cast(store, f"{number:08x}", room_id="room-0")
        store.casts.put_machines([line(f"{number:08x}", f"pc-{n}") for n in range(30)])
        store.casts.add_event(f"{number:08x}", CastEvent(START, "x", "", "y"))
        store.casts.put_timeline(f"{number:08x}", [TimelinePoint(1.0, 2.0, 3.0, 0, 0, 0, 1, 0, "x")])
    store.casts.request(CastRequest("00000002", Command.PAUSE, "anna"), audit=NOTE)
    store.leases.acquire("one/1", START, (), 9)
    store.casts.change("00000000", phase=CastPhase.DONE, ended_at=START, progress=1.0)
    store.casts.put_machine(line("00000000", "pc-0", state="complete", bytes_verified=5, ended_at=START))
    store.casts.put_machine(line("00000000", "pc-0", state="complete", bytes_verified=9, ended_at=START))
    store.schedules.add(schedule(), audit=NOTE)
    store.schedules.claim("s1", START, None)
    store.tokens.create("ci", Role.VIEW, audit=NOTE)
    store.images.put(image())
    store.images.add_remote("https://images.lan/w.dci")
    store.idempotency.start("s", "k", "f")
    store.idempotency.finish("s", "k", 201, b"\x00\xff{}")


def overwrite(path: Path, seed: int) -> None:
    """Overwrite bytes in the middle of the file, as a failing disk or a careless dd does."""
    draw = random.Random(seed)
    with path.open("r+b") as file:
        for _ in range(4):
            file.seek(draw.randrange(path.stat().st_size // 4096) * 4096)
            file.write(draw.randbytes(3000))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backed_up", [False, True])
def test_confirmed_changes_are_restored_after_the_file_is_overwritten(
    file_url: sa.URL, tmp_path: Path, seed: int, backed_up: bool
) -> None:
    path = tmp_path / "diskcast.db"
    store = open_database(file_url, upkeep=False)
    fill(store)
    if backed_up:
        store.back_up()
        store.rooms.add(room("after-the-backup"), audit=NOTE)
        store.retention.apply(1)
    store.close()
    before = lasting_rows(file_url)
    overwrite(path, seed)
    damaged = path.read_bytes()
    with pytest.raises(DatabaseDamagedError, match=r"diskcast\.db is damaged .* `diskcast database restore`"):
        open_database(file_url, upkeep=False)
    assert path.read_bytes() == damaged, "it is left as it is"
    restored = restore(Place(file_url), START)
    assert restored.missing_count == 0
    assert restored.kept[0].read_bytes() == damaged
    assert lasting_rows(file_url) == before
    store = open_database(file_url, upkeep=False)
    store.rooms.add(room("goes-on"))
    assert store.problem is None
    store.close()
    check_database(file_url)
    again = lasting_rows(file_url)
    path.write_bytes(b"x" * 10_000)
    restore(Place(file_url), START)
    assert lasting_rows(file_url) == again, "and once more, from the same backup"


def test_damage_at_run_time_is_reported_and_nothing_confirmed_is_lost(
    file_url: sa.URL, tmp_path: Path
) -> None:
    path = tmp_path / "diskcast.db"
    store = open_database(file_url, upkeep=False)
    fill(store)
    with pytest.raises(DatabaseUnavailableError, match="in use by a running daemon"):
        restore(Place(file_url), START)
    with store._database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    before = lasting_rows(file_url)
    store._database.engine.dispose()
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(DatabaseDamagedError, match="restore"):
        store.rooms.add(room("never-confirmed"))
    assert store.problem is not None
    assert "damaged" in store.problem.text
    store.close()
    restore(Place(file_url), START)
    assert lasting_rows(file_url) == before


def test_a_missing_or_empty_file_isnt_silently_replaced_by_a_new_database(
    file_url: sa.URL, tmp_path: Path
) -> None:
    path = tmp_path / "diskcast.db"
    store = open_database(file_url, upkeep=False)
    fill(store)
    store.close()
    before = lasting_rows(file_url)
    path.unlink()
    with pytest.raises(DatabaseDamagedError, match="is missing"):
        open_database(file_url, upkeep=False)
    path.touch()
    with pytest.raises(DatabaseDamagedError, match="tables are missing"):
        open_database(file_url, upkeep=False)
    restore(Place(file_url), START)
    assert lasting_rows(file_url) == before


def test_an_older_copy_of_the_file_is_rolled_forward(file_url: sa.URL, tmp_path: Path) -> None:
    path = tmp_path / "diskcast.db"
    store = open_database(file_url, upkeep=False)
    store.close()
    shutil.copyfile(path, tmp_path / "old")
    store = open_database(file_url, upkeep=False)
    fill(store)
    store.close()
    before = lasting_rows(file_url)
    shutil.copyfile(tmp_path / "old", path)
    open_database(file_url, upkeep=False).close()
    assert lasting_rows(file_url) == before
    check_database(file_url)


def test_the_journal_of_another_database_is_refused(file_url: sa.URL, tmp_path: Path) -> None:
    open_database(file_url, upkeep=False).close()
    other = sa.URL.create("sqlite", database=str(tmp_path / "other.db"))
    open_database(other, upkeep=False).close()
    shutil.copyfile(tmp_path / "other.db", tmp_path / "diskcast.db")
    with pytest.raises(DatabaseError, match="belongs to another database"):
        open_database(file_url, upkeep=False)


def test_an_unfinished_journal_line_is_ignored_and_a_damaged_one_is_reported(
    file_url: sa.URL, tmp_path: Path
) -> None:
    store = open_database(file_url, upkeep=False)
    store.rooms.add(room("one"))
    [segment] = find_segments(tmp_path / "diskcast.db")
    with segment.path.open("ab") as file:
        file.write(b'12345678 {"n":2,"c":[["rooms",["two"]')
    store.rooms.add(room("three"))
    store.close()
    before = lasting_rows(file_url)
    assert restore(Place(file_url), START).missing_count == 0
    assert lasting_rows(file_url) == before
    data = segment.path.read_bytes().replace(b'"one"', b'"One"')
    segment.path.write_bytes(data)
    with pytest.raises(DatabaseDamagedError, match="journal"):
        check_database(file_url)
    assert restore(Place(file_url), START).missing_count == 1
    store = open_database(file_url, upkeep=False)
    assert [item.room_id for item in store.rooms.list()[0]] == ["three"]
    store.close()


def test_a_damaged_database_never_replaces_a_good_backup(file_url: sa.URL, tmp_path: Path) -> None:
    store = open_database(file_url, upkeep=False)
    fill(store)
    store.back_up()
    store.close()
    good = backup_path(tmp_path / "diskcast.db").read_bytes()
    before = lasting_rows(file_url)
    data = bytearray((tmp_path / "diskcast.db").read_bytes())
    data[20 * 4096 : 60 * 4096] = b"\xfe" * (40 * 4096)
    (tmp_path / "diskcast.db").write_bytes(data)
    engine = make_engine(file_url, pooled=False)
    with pytest.raises(DatabaseDamagedError):
        back_up(engine, Place(file_url))
    assert backup_path(tmp_path / "diskcast.db").read_bytes() == good
    assert not list(tmp_path.glob("*.partial"))
    restore(Place(file_url), START)
    assert lasting_rows(file_url) == before


_WRITER = """
import sys
import sqlalchemy as sa
from sender.store.open_store import open_database
from tests.store.samples import room
store = open_database(sa.URL.create("sqlite", database=sys.argv[1]), upkeep=False)
for number in range(100000):
    store.rooms.add(room(f"room-{number}"))
    print(number, flush=True)
    if number % 20 == 19:
        store.back_up()
"""


@pytest.mark.parametrize("seed", range(2))
def test_the_journal_of_a_killed_daemon_has_every_confirmed_change(
    file_url: sa.URL, tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "diskcast.db"
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    stop_after = random.Random(seed).randrange(20, 50)
    confirmed = -1
    with writer:
        for text in writer.stdout:
            confirmed = int(text)
            if confirmed == stop_after:
                writer.send_signal(signal.SIGKILL)
    path.write_bytes(os.urandom(50_000))
    restored = restore(Place(file_url), START)
    assert restored.missing_count == 0
    store = open_database(file_url, upkeep=False)
    count = len(store.rooms.list(limit=100_000)[0])
    store.close()
    assert confirmed + 1 <= count <= confirmed + 2


def test_the_commands_check_backup_and_restore(file_url: sa.URL, tmp_path: Path) -> None:
    store = open_database(file_url, upkeep=False)
    store.machines.add(machine())
    config = tmp_path / "diskcast.toml"
    config.write_text(f'[server]\nstate_directory = "{tmp_path}"\n')

    def run(*arguments: str) -> list[dict[str, object]]:
        done = CliRunner().invoke(
            database_command, [*arguments, "--config", str(config), "--json"], catch_exceptions=False
        )
        return [json.loads(text) for text in done.output.splitlines()]

    assert [item["event"] for item in run("check")] == ["checked", "checked", "checked", "result"]
    assert run("backup")[0]["path"] == str(tmp_path / "diskcast.db.backup")
    store.rooms.add(room())
    with pytest.raises(DatabaseUnavailableError, match="stop it first"):
        run("restore")
    store.close()
    (tmp_path / "diskcast.db").write_bytes(b"damaged" * 1000)
    with pytest.raises(DatabaseDamagedError, match="restore"):
        run("check")
    done = run("restore")
    assert (done[0]["event"], done[0]["changes"], done[0]["missing"]) == ("restored", 1, 0)
    assert len(run("check")) == 4
    config.write_text('[server]\ndatabase = "postgresql://diskcast@127.0.0.1:1/x"\n')
    with pytest.raises(DatabaseUnavailableError, match="doesn't answer"):
        run("check")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write what belongs to another user")
@pytest.mark.parametrize("command", ["check", "backup", "restore"])
def test_root_creates_no_files_that_the_daemon_cant_open(command: str, tmp_path: Path) -> None:
    open_database(sa.URL.create("sqlite", database=str(tmp_path / "diskcast.db")), upkeep=False).close()
    config = tmp_path / "diskcast.toml"
    config.write_text(f'[server]\nstate_directory = "{tmp_path}"\n')
    os.chown(tmp_path, 12345, -1)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigurationError, match=r"belongs to 12345.*runuser -u 12345"):
        CliRunner().invoke(database_command, [command, "--config", str(config)], catch_exceptions=False)
    assert sorted(tmp_path.iterdir()) == before
