"""Restore of a SQLite file from its backup and its change journal, also across migrations."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from protocol.errors import DatabaseDamagedError, DatabaseError
from sender.store.backup.backup import backup_path, check_connection, new_segment, open_lock, sync_file
from sender.store.backup.journal import (
    Entry,
    Segment,
    apply_entry,
    find_segments,
    read_entries,
    read_state,
    sync_directory,
)
from sender.store.database.engine import WRITES, make_engine
from sender.store.database.errors import Place, translate
from sender.store.database.schema import current_revision, migrate


@dataclasses.dataclass(frozen=True, slots=True)
class Restored:
    """Summary of a restore.

    Attributes:
        path: the restored database.
        kept: the damaged files, under their new names.
        changes_count: transactions that were replayed from the journal.
        missing_count: transactions that are neither in the backup nor in a readable line of the journal.
    """

    path: Path
    kept: tuple[Path, ...]
    changes_count: int
    missing_count: int


def restore(place: Place, now: datetime, progress: Callable[[str], None] = lambda _: None) -> Restored:
    """Restore the database from its backup and its journal; keep the damaged files beside it.

    Raises ``DatabaseUnavailableError`` while a daemon uses the database, ``DatabaseError`` without a backup.
    """
    assert place.path is not None
    database = place.path
    source = backup_path(database)
    fresh = database.with_name(f"{database.name}.restoring")
    try:
        with open_lock(database, exclusive=True):
            if not source.exists():
                raise DatabaseError(
                    f"database {database}: there is no backup {source} to restore from; if one was moved away, put it "
                    "back"
                )
            progress(f"copying {source}")
            shutil.copyfile(source, fresh)
            fresh.chmod(0o600)
            changes_count, missing_count = _bring_up_to_date(fresh, database, place, progress)
            kept = _set_aside(database, now)
            sync_file(fresh)
            fresh.replace(database)
            sync_directory(database.parent)
            return Restored(database, kept, changes_count, missing_count)
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise translate(error, place) from error
    finally:
        for suffix in ("", "-wal", "-shm"):
            fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)


def roll_forward(connection: sa.Connection, database: Path, place: Place) -> int:
    """Replay journal entries that the database doesn't have, in the current transaction; return their number.

    These are a change whose commit was cut short by a power failure or a kill, and all changes since the copy if an
    older copy of the file was put in place.
    """
    state = read_state(connection)
    segments = find_segments(database)
    for segment in segments:
        if segment.database_id and segment.database_id != state.database_id:
            raise DatabaseError(
                f"database {place.text}: {segment.path.name} belongs to another database; move it away together with "
                f"{backup_path(database).name}, or put back the database that it belongs to"
            )
    count = len(_replay(connection, segments, state.sequence, place))
    if count:
        new_segment(connection, database)
    return count


def _bring_up_to_date(
    fresh: Path, database: Path, place: Place, progress: Callable[[str], None]
) -> tuple[int, int]:
    """Replay the journal of ``database`` on ``fresh``; return the counts of replayed and of missing transactions."""
    engine = make_engine(sa.URL.create("sqlite", database=str(fresh)), pooled=False)
    with engine.connect().execution_options(**{WRITES: True}) as connection:
        state = read_state(connection)
        connection.rollback()
        # Rows come in the order of their tables' names, not of their references.
        driver_connection = connection.connection.driver_connection
        assert driver_connection is not None
        driver_connection.execute("PRAGMA foreign_keys = OFF")
        problem = check_connection(driver_connection, quick=False)
        if problem:
            raise DatabaseDamagedError(
                f"backup {backup_path(database)} is damaged too ({problem}); put an older copy of it there, from the "
                "machine's own backup, with its journal files"
            )
        segments = [
            segment for segment in find_segments(database) if segment.database_id in ("", state.database_id)
        ]
        with connection.begin():
            numbers = _replay(connection, segments, state.sequence, place, progress)
            new_segment(connection, database)
        broken = driver_connection.execute("PRAGMA foreign_key_check").fetchall()
        if broken:
            progress(f"{len(broken)} rows refer to rows that don't exist")
        driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    expected = numbers[-1] - state.sequence if numbers else 0
    return len(numbers), expected - len(numbers)


def _replay(
    connection: sa.Connection,
    segments: Iterable[Segment],
    after: int,
    place: Place,
    progress: Callable[[str], None] = lambda _: None,
) -> list[int]:
    """Replay the entries after number ``after``; return their numbers in order.

    An entry's rows have the columns of the schema that they were written with, so the database is migrated to each
    segment's schema before its first entry. Of several entries with one number the last counts: the transactions of the
    others failed. The connection has foreign keys switched off and is in a transaction.
    """
    chosen: dict[int, tuple[str, Entry]] = {}
    for segment in segments:
        progress(f"reading {segment.path.name}")
        for entry in read_entries(segment):
            if entry.sequence > after:
                chosen[entry.sequence] = (segment.revision, entry)
        if segment.bad_line_count:
            progress(f"{segment.path.name}: {segment.bad_line_count} lines are unreadable")
    for revision, group in itertools.groupby(
        (chosen[number] for number in sorted(chosen)), lambda item: item[0]
    ):
        # A segment whose first line is damaged doesn't name its schema: most likely it is the current one.
        if revision not in ("", current_revision(connection)):
            migrate(connection, place, revision)
        for _, entry in group:
            apply_entry(connection, entry)
    return sorted(chosen)


def _set_aside(database: Path, now: datetime) -> tuple[Path, ...]:
    kept = []
    mark = now.strftime("%Y%m%dT%H%M%S%f")
    for suffix in ("", "-wal", "-shm"):
        path = database.with_name(database.name + suffix)
        if path.exists():
            renamed = database.with_name(f"{database.name}.damaged-{mark}{suffix}")
            path.rename(renamed)
            kept.append(renamed)
    return tuple(kept)
