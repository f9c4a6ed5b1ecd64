"""SQLite: copies of the database, and putting a damaged one together again from the copy and the change journal."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from protocol.errors import DatabaseDamagedError, DatabaseError, DatabaseUnavailableError
from sender.store.backup.journal import (
    Entry,
    State,
    apply_entries,
    find_segments,
    read_entries,
    read_state,
    start_segment,
    sync_directory,
)
from sender.store.database.engine import WRITES, make_engine
from sender.store.database.errors import Place, damaged_text, translate
from sender.store.database.schema import current_revision, migrate


@dataclasses.dataclass(frozen=True, slots=True)
class Backup:
    """A copy that was made.

    Attributes:
        sequence: number of the last change that is in it.
    """

    path: Path
    bytes_count: int
    sequence: int


@dataclasses.dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did.

    Attributes:
        kept: where the damaged files are now.
        changes_count: transactions of the journal that were carried out on the copy.
        missing_count: transactions that neither the copy nor a readable line of the journal has.
    """

    path: Path
    kept: tuple[Path, ...]
    changes_count: int
    missing_count: int


def backup_path(database: Path) -> Path:
    """Where the copy of a database is."""
    return database.with_name(f"{database.name}.backup")


@contextlib.contextmanager
def opened(database: Path, *, alone: bool) -> Iterator[None]:
    """Hold the database's lock file: whoever uses the database shares it, who exchanges the file has it alone."""
    path = database.with_name(f"{database.name}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatabaseUnavailableError(
                f"database {database} is in use by a running daemon; stop it first"
                if alone
                else f"database {database} is being restored; try again when that is done"
            ) from error
        yield
    finally:
        os.close(descriptor)


def back_up(engine: sa.Engine, place: Place) -> Backup:
    """Copy a database that may be in use, check the copy, and begin a new journal.

    Of several that are asked for at once, one after the other is made. The journal begins anew first: a change is then
    in the copy, or in the new journal, or in both. The former copy and journal are removed only when the new copy is
    whole and on the disk.
    """
    assert place.path is not None
    database = place.path
    final = backup_path(database)
    partial = database.with_name(f"{database.name}.backup.partial")
    try:
        lock = os.open(f"{final}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise translate(error, place) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
            state = new_segment(connection, database)
        with engine.connect() as source, contextlib.closing(sqlite3.connect(partial)) as copy:
            copied = source.connection.driver_connection
            assert isinstance(copied, sqlite3.Connection)
            copied.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            verdict = check_connection(copy, quick=True)
            if verdict:
                raise DatabaseDamagedError(damaged_text(place, verdict))
            sequence: int = copy.execute("SELECT sequence FROM store_state").fetchone()[0]
        _sync(partial)
        partial.replace(final)
        sync_directory(database.parent)
        for segment in find_segments(database):
            if segment.number < state.segment:
                segment.path.unlink()
        return Backup(final, final.stat().st_size, sequence)
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise translate(error, place) from error
    finally:
        # Only whoever has the lock may touch the unfinished copy.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        os.close(lock)


def restore(place: Place, now: datetime, progress: Callable[[str], None] = lambda _: None) -> Restored:
    """Put the database together again from its copy and the journal; the damaged files are kept beside it.

    Raises ``DatabaseUnavailableError`` while a daemon uses it, ``DatabaseError`` if there is nothing to restore from.
    """
    assert place.path is not None
    database = place.path
    source = backup_path(database)
    fresh = database.with_name(f"{database.name}.restoring")
    try:
        with opened(database, alone=True):
            if not source.exists():
                raise DatabaseError(
                    f"database {database}: there is no backup {source} to restore from; if one was moved away, put it "
                    "there again"
                )
            progress(f"copying {source}")
            shutil.copyfile(source, fresh)
            fresh.chmod(0o600)
            changes_count, missing_count = _bring_up_to_date(fresh, database, place, progress)
            kept = _set_aside(database, now)
            _sync(fresh)
            fresh.replace(database)
            sync_directory(database.parent)
            return Restored(database, kept, changes_count, missing_count)
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise translate(error, place) from error
    finally:
        for suffix in ("", "-wal", "-shm"):
            fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)


def _bring_up_to_date(
    fresh: Path, database: Path, place: Place, progress: Callable[[str], None]
) -> tuple[int, int]:
    """Carry out the journal of ``database`` on ``fresh``; returns the changes carried out and those missing."""
    engine = make_engine(sa.URL.create("sqlite", database=str(fresh)), pooled=False)
    applied = 0
    with engine.connect().execution_options(**{WRITES: True}) as connection:
        state = read_state(connection)
        connection.rollback()
        # Rows come in the order of their tables' names, not of their references.
        driver_connection = connection.connection.driver_connection
        assert driver_connection is not None
        driver_connection.execute("PRAGMA foreign_keys = OFF")
        verdict = check_connection(driver_connection, quick=False)
        if verdict:
            raise DatabaseDamagedError(
                f"backup {backup_path(database)} is damaged too ({verdict}); put an older copy of it there, from the "
                "machine's own backup, with its journal files"
            )
        last = state.sequence
        newest = last
        missing = 0
        for segment in find_segments(database):
            if segment.database_id not in ("", state.database_id):
                continue
            progress(f"reading {segment.path.name}")
            with connection.begin():
                entries = [entry for entry in read_entries(segment) if entry.sequence > last]
                if entries and segment.revision not in ("", current_revision(connection)):
                    migrate(connection, place, segment.revision)
                numbers = apply_entries(connection, entries, last)
            for number in numbers:
                missing += max(0, number - newest - 1)
                newest = max(newest, number)
            applied += len(numbers)
            last = max(last, newest)
            if segment.bad_line_count:
                progress(f"{segment.path.name}: {segment.bad_line_count} lines can't be read")
        with connection.begin():
            new_segment(connection, database)
        broken = driver_connection.execute("PRAGMA foreign_key_check").fetchall()
        if broken:
            progress(f"{len(broken)} rows name rows that aren't there")
        driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return applied, missing


def roll_forward(connection: sa.Connection, database: Path, place: Place) -> int:
    """Carry out what the journal has and the database hasn't, in a transaction; returns how many changes.

    That is a change whose commit the power or a kill cut short, and everything since an older copy of the file that
    somebody put in its place.
    """
    state = read_state(connection)
    entries: list[Entry] = []
    for segment in find_segments(database):
        if segment.database_id and segment.database_id != state.database_id:
            raise DatabaseError(
                f"database {place.text}: {segment.path.name} belongs to another database; move it away together with "
                f"{backup_path(database).name}, or put the database that it belongs to here again"
            )
        entries += [entry for entry in read_entries(segment) if entry.sequence > state.sequence]
    count = len(apply_entries(connection, entries, state.sequence))
    if count:
        new_segment(connection, database)
    return count


def new_segment(connection: sa.Connection, database: Path) -> State:
    """Let the journal go on in a new file, within a transaction; one that already waits for its first entry stays."""
    state = read_state(connection)
    state = State(state.database_id, state.sequence, state.sequence + 1)
    connection.exec_driver_sql("UPDATE store_state SET segment = ?", (state.segment,))
    revision = current_revision(connection) or ""
    there = {segment.number: segment for segment in find_segments(database)}.get(state.segment)
    if there is None or (there.database_id, there.revision) != (state.database_id, revision):
        start_segment(database, state, revision)
    return state


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_connection(connection: sqlite3.Connection, *, quick: bool) -> str:
    """What SQLite's own check finds; empty if all is well."""
    rows = connection.execute(f"PRAGMA {'quick' if quick else 'integrity'}_check(5)").fetchall()
    found = [" ".join(str(row[0]).split()) for row in rows if row[0] != "ok"]
    return "; ".join(found)[:300]


def _set_aside(database: Path, now: datetime) -> tuple[Path, ...]:
    kept = []
    mark = now.strftime("%Y%m%dT%H%M%S%f")
    for suffix in ("", "-wal", "-shm"):
        path = database.with_name(database.name + suffix)
        if path.exists():
            aside = database.with_name(f"{database.name}.damaged-{mark}{suffix}")
            path.rename(aside)
            kept.append(aside)
    return tuple(kept)
