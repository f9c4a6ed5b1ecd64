"""SQLite's change journal: a second file that holds every change before it is confirmed.

SQLite's write-ahead log protects from a crash, not from a damaged file. So each transaction's changed rows are appended
to ``DATABASE.changes.NUMBER``, a segment, and synced before the transaction commits; a backup starts a new segment. The
last backup and the segments since then restore every confirmed row (:mod:`sender.store.backup.restore`).

Temporary triggers of each connection note the changes, so no statement can bypass them; changes of fleeting columns
alone aren't noted. An entry holds the rows as they are at the end of the transaction, so applying it twice does no
harm. A line is ``CRC32 JSON``; an incomplete one was never confirmed.

The order is: sync the entry, then commit. An entry whose commit fails is cut off again. If the power fails between the
two, the entry is replayed at the next start: no caller got an error for the change.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sender.store.backup.crc_lines import pack_line, unpack_line, write_all
from sender.store.database import tables

LINE_BYTES_MAX = 64 << 20
"""Size of an entry: an import of 10,000 machines takes 10 MB."""
_TABLES = {table.name: table for table in tables.metadata.sorted_tables if table is not tables.store_state}
"""The journalled tables."""
_NOTES = "journal_changes"


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """The row of ``store_state``.

    Attributes:
        database_id: identity of the database.
        sequence: number of the last entry that is in the database.
        segment: number of the segment for the next entry; its entries have this number or a higher one.
    """

    database_id: str
    sequence: int
    segment: int


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A transaction: rows at its end (None: removed), by table and key."""

    sequence: int
    changes: list[tuple[str, list[Any], dict[str, Any] | None]]


@dataclasses.dataclass(slots=True)
class Segment:
    """A file of entries, as read.

    Attributes:
        number: number of its first entry.
        path: the file.
        database_id: the database that it belongs to; empty if its first line is unreadable.
        revision: revision of the schema that its entries were written with.
        bad_line_count: unreadable lines; an unfinished last line isn't counted.
    """

    number: int
    path: Path
    database_id: str = ""
    revision: str = ""
    bad_line_count: int = 0


def segment_path(database: Path, number: int) -> Path:
    """Return the path of the segment for entries from ``number`` on."""
    return database.with_name(f"{database.name}.changes.{number:012d}")


def find_segments(database: Path) -> list[Segment]:
    """Return the segments beside ``database``, in order, with their first lines read."""
    segments = []
    for path in database.parent.glob(f"{database.name}.changes.*"):
        number = path.name.rpartition(".")[2]
        if number.isdigit():
            segment = Segment(int(number), path)
            with path.open("rb") as file:
                header = unpack_line(file.readline(LINE_BYTES_MAX))
            if isinstance(header, dict):
                segment.database_id = str(header.get("database", ""))
                segment.revision = str(header.get("revision", ""))
            segments.append(segment)
    return sorted(segments, key=lambda segment: segment.number)


def read_entries(segment: Segment) -> Iterator[Entry]:
    """Yield a segment's readable entries; count the unreadable lines in ``bad_line_count``."""
    with segment.path.open("rb") as file:
        segment.bad_line_count = 0 if segment.database_id else 1
        file.readline(LINE_BYTES_MAX)
        while line := file.readline(LINE_BYTES_MAX):
            if not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
                return
            data = unpack_line(line)
            if not isinstance(data, dict):
                segment.bad_line_count += 1
                continue
            yield Entry(int(data["n"]), [(table, key, _unpack(row)) for table, key, row in data["c"]])


def start_segment(database: Path, state: State, revision: str) -> None:
    """Create the file of ``state.segment`` durably; empty an existing one."""
    path = segment_path(database, state.segment)
    header = {"journal": 1, "database": state.database_id, "revision": revision}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, pack_line(header))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(database.parent)


def sync_directory(directory: Path) -> None:
    """Make a folder's new and renamed files survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_state(connection: sa.Connection) -> State:
    """Return the journal's position as recorded in the database."""
    row = connection.exec_driver_sql("SELECT database_id, sequence, segment FROM store_state").one()
    return State(*row)


def apply_entry(connection: sa.Connection, entry: Entry) -> None:
    """Write an entry's rows to the database, in the current transaction and with foreign keys switched off."""
    changes = [change for change in entry.changes if change[0] in _TABLES]
    for name, key, _row in changes:
        where = " AND ".join(f'"{column.name}" = ?' for column in _TABLES[name].primary_key)
        connection.exec_driver_sql(f'DELETE FROM "{name}" WHERE {where}', tuple(key))  # noqa: S608
    for name, _key, row in changes:
        if row is not None:
            columns = ", ".join(f'"{column}"' for column in row)
            marks = ", ".join("?" * len(row))
            connection.exec_driver_sql(
                f'INSERT OR REPLACE INTO "{name}" ({columns}) VALUES ({marks})',  # noqa: S608
                tuple(row.values()),
            )
    connection.exec_driver_sql("UPDATE store_state SET sequence = ?", (entry.sequence,))


class Journal:
    """The writing side, for one open database. Thread-safe; SQLite itself admits one writer at a time.

    Args:
        database: file of the database.
        revision: revision of its schema.
    """

    def __init__(self, database: Path, revision: str) -> None:
        self._database = database
        self._revision = revision
        self._lock = threading.Lock()
        self._descriptor = -1
        self._segment = -1
        self.entries_count = 0
        """Entries that this process has written and committed."""

    def watch(self, connection: Any, _record: object = None) -> None:
        """Note the changes of a new driver connection from now on."""
        cursor = connection.cursor()
        try:
            cursor.execute(f"CREATE TEMP TABLE {_NOTES} (name TEXT NOT NULL, key TEXT NOT NULL)")
            for table in _TABLES.values():
                for statement in _triggers(table):
                    cursor.execute(statement)
        finally:
            cursor.close()

    @contextlib.contextmanager
    def written(self, connection: sa.Connection) -> Iterator[None]:
        """Append the changes of the connection's transaction, which the block then commits.

        If the block fails, the entry is cut off again. Raises ``OSError`` if nothing could be appended.
        """
        noted = connection.exec_driver_sql(f"SELECT DISTINCT name, key FROM {_NOTES}").all()  # noqa: S608
        if not noted:
            yield
            return
        changes = [
            (name, key, _row(connection, tables.metadata.tables[name], key))
            for name, key in ((name, json.loads(key)) for name, key in noted)
        ]
        connection.exec_driver_sql(f"DELETE FROM {_NOTES}")  # noqa: S608
        state = read_state(connection)
        connection.exec_driver_sql("UPDATE store_state SET sequence = sequence + 1")
        with self._lock:
            size = self._append(state, pack_line({"n": state.sequence + 1, "c": changes}))
            try:
                yield
            except BaseException:
                self._cut(size)
                raise
            self.entries_count += 1

    def close(self) -> None:
        """Close the segment."""
        with self._lock:
            self._close()

    def _append(self, state: State, line: bytes) -> int:
        if len(line) > LINE_BYTES_MAX:
            raise OverflowError(f"one transaction changes {len(line) >> 20} MiB; change less at once")
        if self._segment != state.segment or not self._is_there():
            self._close()
            path = segment_path(self._database, state.segment)
            if not path.exists():
                start_segment(self._database, state, self._revision)
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            self._segment = state.segment
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            # A killed process left an unfinished last line.
            line = b"\n" + line
        try:
            write_all(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError:
            self._cut(size)
            raise
        return size

    def _is_there(self) -> bool:
        """Return whether the open file is still the one beside the database."""
        try:
            named = segment_path(self._database, self._segment).stat()
        except FileNotFoundError:
            return False
        opened = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)

    def _cut(self, size: int) -> None:
        # If even this fails, the next entry gets the same number, and the later of the two counts.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, size)
            os.fsync(self._descriptor)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = self._segment = -1


def _triggers(table: sa.Table) -> Iterator[str]:
    """Yield the statements that note changes of a table's rows."""
    lasting = [column.name for column in table.columns if not column.info.get("fleeting")]
    changed = " OR ".join(f'OLD."{name}" IS NOT NEW."{name}"' for name in lasting)
    if "ended_at" in table.columns and len(lasting) < len(table.columns):
        # The final values of something that has ended are lasting.
        changed += " OR NEW.ended_at IS NOT NULL"
    for event, condition, rows in (
        ("INSERT", "", ("NEW",)),
        ("UPDATE", f" WHEN {changed}", ("OLD", "NEW")),
        ("DELETE", "", ("OLD",)),
    ):
        notes = "; ".join(
            f"INSERT INTO {_NOTES} VALUES ('{table.name}', json_array({_keys(table, row)}))"  # noqa: S608
            for row in rows
        )
        name = f"journal_{table.name}_{event.lower()}"
        yield f'CREATE TEMP TRIGGER {name} AFTER {event} ON main."{table.name}"{condition} BEGIN {notes}; END'


def _keys(table: sa.Table, row: str) -> str:
    return ", ".join(f'{row}."{column.name}"' for column in table.primary_key)


def _row(connection: sa.Connection, table: sa.Table, key: list[Any]) -> dict[str, Any] | None:
    where = " AND ".join(f'"{column.name}" = ?' for column in table.primary_key)
    statement = f'SELECT * FROM "{table.name}" WHERE {where}'  # noqa: S608
    row = connection.exec_driver_sql(statement, tuple(key)).mappings().first()
    if row is None:
        return None
    return {
        name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in row.items()
    }


def _unpack(row: dict[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        name: base64.b64decode(value["base64"]) if isinstance(value, dict) else value
        for name, value in row.items()
    }
