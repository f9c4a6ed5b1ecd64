"""Migration of a filled database of schema 0003, where a bottleneck was called a limiter: results and charts are kept.

No confirmed change may be lost: not when the power fails during the upgrade, not when the file is damaged before or
after it, not when an older copy of the file is put in its place.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from protocol.errors import DatabaseDamagedError, DatabaseError
from sender.store.backup.backup import backup_path
from sender.store.backup.crc_lines import pack_line, unpack_line
from sender.store.backup.integrity_check import check_database
from sender.store.backup.journal import find_segments
from sender.store.backup.restore import restore
from sender.store.database import schema
from sender.store.database.engine import make_engine
from sender.store.database.errors import Place
from sender.store.open_store import open_database
from sender.store.records.casts import TimelinePoint
from sender.store.store import Store
from tests.store.samples import START, add_cast, add_old_cast, line, old_daemon
from tests.support.postgres.server import PostgresServer

CASTS = [f"{number:08x}" for number in range(40)]
"""More casts than the migration has in memory at a time."""
UNREADABLE = {
    "000000a0": b"not compressed",
    "000000a1": zlib.compress(b"{not JSON"),
    "000000a2": zlib.compress(b'["limiter"]'),
    "000000a3": zlib.compress(b'{"limiter": 1}'),
    "000000a4": zlib.compress(json.dumps([{"at_s": 1.0, "limiter": "disk"}]).encode())[:-6],
}
POINT = {
    "at_s": 1.0,
    "rate_bytes_per_s": 2.0,
    "goodput_bytes_per_s": 3.0,
    "loss": 0.0,
    "parity": 0.0,
    "progress": 0.5,
}
COUNTS = {"active_count": 2, "complete_count": 0}


@contextlib.contextmanager
def daemon_0003(url: sa.URL) -> Iterator[Store]:
    """Open a store as a daemon of schema 0003 does, with its migrations and its journal."""
    with old_daemon("0003"), contextlib.closing(open_database(url, upkeep=False)) as store:
        yield store


def write_0003(store: Store, cast_id: str, name: str, limiter: str, points: bytes | None = None) -> None:
    """Add a machine's result and a timeline as a daemon of schema 0003 does."""
    values = {
        "cast_id": cast_id,
        "machine_key": f"name:{name}",
        "image_id": "",
        "serial": "",
        "asset_tag": "",
        "at": START.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "name": name,
        "address": "",
        "state": "complete",
        "error": "",
        "limiter": limiter,
        "progress": 1.0,
        "bytes_verified": 5,
        "bytes_kept": 0,
        "seconds": 1.0,
        "blocks_rewritten": 0,
        "rate_bytes_per_s": 1.0,
        "loss": 0.0,
        "nacks_count": 0,
        "socket_drops_count": 0,
        "demoted": False,
    }
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    packed = zlib.compress(json.dumps([{**POINT, **COUNTS, "limiter": limiter}] * 3).encode())
    with store.transaction():
        add_old_cast(store, cast_id)
        connection = store._database.connection
        connection.execute(sa.text(f"INSERT INTO cast_machines ({names}) VALUES ({marks})"), values)
        connection.execute(
            sa.text("INSERT INTO cast_timelines (cast_id, points) VALUES (:cast_id, :points)"),
            {"cast_id": cast_id, "points": packed if points is None else points},
        )


def check_0003(store: Store, cast_id: str, name: str, bottleneck: str) -> None:
    """Assert that what :func:`write_0003` wrote is read by this diskcast, under the new name."""
    [result] = store.casts.machines(cast_id)
    assert (result.name, result.bottleneck, result.bytes_verified) == (name, bottleneck, 5)
    assert store.casts.timeline(cast_id) == [TimelinePoint(**POINT, **COUNTS, bottleneck=bottleneck)] * 3


def packed_timeline(url: sa.URL, cast_id: str) -> bytes:
    engine = make_engine(url, pooled=False)
    with engine.connect() as connection:
        query = sa.text("SELECT points FROM cast_timelines WHERE cast_id = :cast_id")
        return bytes(connection.execute(query, {"cast_id": cast_id}).scalar_one())


def test_results_and_timelines_of_a_filled_database_keep_their_bottleneck(
    url: sa.URL, request: pytest.FixtureRequest
) -> None:
    if url.get_backend_name() == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = sa.make_url(server.new_database())
    with daemon_0003(url) as old:
        for cast_id in CASTS:
            write_0003(old, cast_id, f"pc-{cast_id}", f"disk {cast_id}")
        for cast_id, packed in UNREADABLE.items():
            write_0003(old, cast_id, "pc-x", "network", packed)
        add_old_cast(old, "000000b0")
    with contextlib.closing(open_database(url, upkeep=False)) as store:
        for cast_id in CASTS:
            check_0003(store, cast_id, f"pc-{cast_id}", f"disk {cast_id}")
        for cast_id, packed in UNREADABLE.items():
            with pytest.raises(DatabaseDamagedError, match=f"timeline of cast {cast_id}"):
                store.casts.timeline(cast_id)
            assert packed_timeline(url, cast_id) == packed, "left as it is"
            assert [result.bottleneck for result in store.casts.machines(cast_id)] == ["network"]
        assert store.casts.timeline("000000b0") == []
        store.casts.put_machine(line("000000b0", bottleneck="sender"))
        assert [result.bottleneck for result in store.casts.machines("000000b0")] == ["sender"]
    check_database(url)


def test_a_file_damaged_before_the_upgrade_is_restored_by_the_new_version(
    file_url: sa.URL, tmp_path: Path
) -> None:
    with daemon_0003(file_url) as old:
        write_0003(old, "00000001", "pc-1", "disk")
        old.back_up()
        write_0003(old, "00000002", "pc-2", "network")
        write_0003(old, "00000003", "pc-3", "network", UNREADABLE["000000a0"])
    (tmp_path / "diskcast.db").write_bytes(b"damaged")
    assert restore(Place(file_url), START).missing_count == 0
    with contextlib.closing(open_database(file_url, upkeep=False)) as store:
        check_0003(store, "00000001", "pc-1", "disk")
        check_0003(store, "00000002", "pc-2", "network")
        assert store.casts.machines("00000003")[0].bottleneck == "network"
    check_database(file_url)
    assert find_segments(tmp_path / "diskcast.db")[-1].revision == schema.head()


def upgrade_without_backup(url: sa.URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upgrade and write a result, as if the power failed between the migration and its backup."""
    with monkeypatch.context() as patch:
        patch.setattr("sender.store.open_store.back_up", lambda *_: None)
        with contextlib.closing(open_database(url, upkeep=False)) as store:
            add_cast(store, "000000b0")
            store.casts.put_machine(line("000000b0", bottleneck="sender"))


def check_all(url: sa.URL) -> None:
    with contextlib.closing(open_database(url, upkeep=False)) as store:
        check_0003(store, "00000001", "pc-1", "disk")
        check_0003(store, "00000002", "pc-2", "network")
        assert [result.bottleneck for result in store.casts.machines("000000b0")] == ["sender"]
    check_database(url)


def test_backup_and_journal_of_both_versions_are_put_together(
    file_url: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "diskcast.db"
    with daemon_0003(file_url) as old:
        write_0003(old, "00000001", "pc-1", "disk")
        old.back_up()
        write_0003(old, "00000002", "pc-2", "network")
    upgrade_without_backup(file_url, monkeypatch)
    assert {segment.revision for segment in find_segments(path)} == {"0003", schema.head()}
    path.write_bytes(b"damaged")
    restored = restore(Place(file_url), START)
    assert (restored.missing_count, restored.changes_count > 1) == (0, True)
    check_all(file_url)


def test_an_older_copy_of_the_file_is_rolled_forward_across_the_migration(
    file_url: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "diskcast.db"
    with daemon_0003(file_url) as old:
        write_0003(old, "00000001", "pc-1", "disk")
        old.back_up()
        write_0003(old, "00000002", "pc-2", "network")
    upgrade_without_backup(file_url, monkeypatch)
    shutil.copyfile(backup_path(path), path)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    check_all(file_url)


def test_a_change_that_only_the_journal_of_the_old_version_has_is_carried_out(
    file_url: sa.URL, tmp_path: Path
) -> None:
    """The old daemon was killed between the entry in its journal and the commit."""
    path = tmp_path / "diskcast.db"
    with daemon_0003(file_url) as old:
        write_0003(old, "00000001", "pc-1", "disk")
    copy = path.read_bytes()
    with daemon_0003(file_url) as old:
        write_0003(old, "00000002", "pc-2", "network")
    path.write_bytes(copy)
    with contextlib.closing(open_database(file_url, upkeep=False)) as store:
        check_0003(store, "00000001", "pc-1", "disk")
        check_0003(store, "00000002", "pc-2", "network")
    check_database(file_url)


def test_a_journal_of_a_newer_diskcast_is_refused(file_url: sa.URL, tmp_path: Path) -> None:
    path = tmp_path / "diskcast.db"
    with contextlib.closing(open_database(file_url, upkeep=False)) as store:
        store.back_up()
        add_cast(store)
    segment = find_segments(path)[-1]
    header, *entries = segment.path.read_bytes().splitlines(keepends=True)
    newer = {"journal": 1, "database": segment.database_id, "revision": "9999"}
    assert unpack_line(header) == {**newer, "revision": schema.head()}
    segment.path.write_bytes(pack_line(newer) + b"".join(entries))
    with pytest.raises(DatabaseError, match=r"made by a newer diskcast \(its schema is 9999"):
        restore(Place(file_url), START)
