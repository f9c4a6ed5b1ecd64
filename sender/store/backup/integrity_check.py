"""Integrity check of the database, its backup and its journal, by reading all of them."""

from __future__ import annotations

import contextlib
import sqlite3

import sqlalchemy as sa

from protocol.errors import DatabaseDamagedError, DatabaseUnavailableError
from sender.store.backup.backup import backup_path, check_connection
from sender.store.backup.journal import find_segments, read_entries
from sender.store.database.engine import make_engine
from sender.store.database.errors import Place, damaged_text, translate
from sender.store.database.schema import current_revision


def check_database(url: sa.URL) -> list[tuple[str, str]]:
    """Check a database and return what was checked with the result, as texts; a running daemon isn't disturbed.

    Raises the ``DatabaseError`` tree for damage.
    """
    place = Place(url)
    try:
        if place.path is not None:
            return _check_file(place)
        engine = make_engine(url, pooled=False)
        with engine.connect() as connection:
            version = connection.exec_driver_sql("SHOW server_version").scalar_one()
            return [
                (
                    "database",
                    f"{place.text} answers: PostgreSQL {version}, schema {current_revision(connection)}",
                )
            ]
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise translate(error, place) from error


def _check_file(place: Place) -> list[tuple[str, str]]:
    path = place.path
    assert path is not None
    if not path.exists():
        if backup_path(path).exists():
            raise DatabaseDamagedError(damaged_text(place, "the file is missing"))
        raise DatabaseUnavailableError(
            f"there is no database {path} yet; run `diskcast serve`, which creates it"
        )
    found = []
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        problem = check_connection(connection, quick=False)
        if problem:
            raise DatabaseDamagedError(damaged_text(place, problem))
        broken = len(connection.execute("PRAGMA foreign_key_check").fetchall())
        if broken:
            raise DatabaseDamagedError(damaged_text(place, f"{broken} rows refer to rows that don't exist"))
        database_id, sequence = connection.execute("SELECT database_id, sequence FROM store_state").fetchone()
        found.append(("database", f"{path} is sound, after {sequence} changes"))
    saved = backup_path(path)
    if not saved.exists():
        raise DatabaseDamagedError(f"database {path} has no backup {saved}; run `diskcast database backup`")
    with contextlib.closing(sqlite3.connect(f"file:{saved}?mode=ro&immutable=1", uri=True)) as copy:
        problem = _problem(copy)
        if problem:
            raise DatabaseDamagedError(
                f"backup {saved} is damaged ({problem}), the database is not; run `diskcast database backup`"
            )
        first: int = copy.execute("SELECT sequence FROM store_state").fetchone()[0]
        found.append(("backup", f"{saved} is sound, after {first} changes"))
    numbers: set[int] = set()
    bad_line_count = 0
    for segment in find_segments(path):
        if segment.database_id in ("", database_id):
            numbers |= {entry.sequence for entry in read_entries(segment)}
            bad_line_count += segment.bad_line_count
    missing = set(range(first + 1, sequence + 1)) - numbers
    if missing or bad_line_count:
        raise DatabaseDamagedError(
            f"{len(missing)} changes are missing from the journal of database {path} ({bad_line_count} lines are "
            "unreadable), the database itself is sound; run `diskcast database backup`, which starts a new journal"
        )
    found.append(("journal", f"complete, with {sequence - first} changes since the backup"))
    return found


def _problem(connection: sqlite3.Connection) -> str:
    try:
        return check_connection(connection, quick=False)
    except sqlite3.DatabaseError as error:
        return str(error)
