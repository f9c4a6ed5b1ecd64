"""Backups of a SQLite database, the lock of its file, and SQLite's own integrity check."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from protocol.errors import DatabaseDamagedError, DatabaseUnavailableError
from sender.store.backup.journal import State, find_segments, read_state, start_segment, sync_directory
from sender.store.database.engine import WRITES
from sender.store.database.errors import Place, damaged_text, translate
from sender.store.database.schema import current_revision


@dataclasses.dataclass(frozen=True, slots=True)
class Backup:
    """A finished backup.

    Attributes:
        path: file of the backup.
        bytes_count: size of the file.
        sequence: number of the last change in it.
    """

    path: Path
    bytes_count: int
    sequence: int


def backup_path(database: Path) -> Path:
    """Return the path of a database's backup."""
    return database.with_name(f"{database.name}.backup")


@contextlib.contextmanager
def open_lock(database: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the database's lock file: daemons and commands share it, a restore holds it exclusively."""
    path = database.with_name(f"{database.name}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatabaseUnavailableError(
                f"database {database} is in use by a running daemon; stop it first"
                if exclusive
                else f"database {database} is being restored; try again when that is done"
            ) from error
        yield
    finally:
        os.close(descriptor)


def back_up(engine: sa.Engine, place: Place) -> Backup:
    """Copy a database that may be in use, check the copy, and start a new journal.

    Concurrent calls run one after the other. The new journal starts first: each change is then in the copy, in the new
    journal, or in both. The previous backup and journal are removed only when the new backup is complete and synced.
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
            source_connection = source.connection.driver_connection
            assert isinstance(source_connection, sqlite3.Connection)
            source_connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            problem = check_connection(copy, quick=True)
            if problem:
                raise DatabaseDamagedError(damaged_text(place, problem))
            sequence: int = copy.execute("SELECT sequence FROM store_state").fetchone()[0]
        sync_file(partial)
        partial.replace(final)
        sync_directory(database.parent)
        for segment in find_segments(database):
            if segment.number < state.segment:
                segment.path.unlink()
        return Backup(final, final.stat().st_size, sequence)
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise translate(error, place) from error
    finally:
        # Safe only while the lock is held: another process may be writing its own copy.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        os.close(lock)


def new_segment(connection: sa.Connection, database: Path) -> State:
    """Continue the journal in a new file, within a transaction; reuse a file that still waits for its first entry."""
    state = read_state(connection)
    state = State(state.database_id, state.sequence, state.sequence + 1)
    connection.exec_driver_sql("UPDATE store_state SET segment = ?", (state.segment,))
    revision = current_revision(connection) or ""
    there = {segment.number: segment for segment in find_segments(database)}.get(state.segment)
    if there is None or (there.database_id, there.revision) != (state.database_id, revision):
        start_segment(database, state, revision)
    return state


def sync_file(path: Path) -> None:
    """Flush a file's data to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_connection(connection: sqlite3.Connection, *, quick: bool) -> str:
    """Return the findings of SQLite's own check; empty if there are none."""
    rows = connection.execute(f"PRAGMA {'quick' if quick else 'integrity'}_check(5)").fetchall()
    found = [" ".join(str(row[0]).split()) for row in rows if row[0] != "ok"]
    return "; ".join(found)[:300]
