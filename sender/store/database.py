"""The store: everything the daemon keeps, in SQLite or PostgreSQL, opened, migrated, kept well and closed.

Its methods block for milliseconds; code on the event loop calls them through :meth:`Store.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar

import sqlalchemy as sa

from protocol.errors import ConfigurationError, DatabaseDamagedError, DatabaseError, DatabaseUnavailableError
from sender.config.server_config import ServerConfig
from sender.store.audit import Audit
from sender.store.backup import (
    Backup,
    back_up,
    backup_path,
    check_connection,
    new_segment,
    opened,
    restore,
    roll_forward,
)
from sender.store.casts import Casts
from sender.store.engine import WRITES, make_engine
from sender.store.errors import Place, damaged_text, translate
from sender.store.history import History
from sender.store.idempotency import Idempotency
from sender.store.images import Images
from sender.store.journal import Journal, find_segments
from sender.store.leases import Leases
from sender.store.machines import Machines
from sender.store.records import Problem
from sender.store.retention import Retention
from sender.store.rooms import Rooms
from sender.store.schedules import Schedules
from sender.store.schema import current_revision, head, migrate
from sender.store.tokens import Tokens
from sender.store.transactions import Database

THREADS_COUNT = 4
"""Threads of :meth:`Store.run`; a transaction takes milliseconds, so four do hundreds a second."""
RUN_WAIT_S = 10.0
"""Nobody waits longer for the database; what runs then still ends by itself."""
RUN_PENDING_MAX = 512
"""Calls that may wait: many more than four threads do in the time that anybody waits for a busy disk. More are refused
at once. What a whole room asks at the same moment goes through :mod:`sender.store.group_commit`."""
UPKEEP_INTERVAL_S = 60.0
BACKUP_INTERVAL = timedelta(hours=24)
JOURNAL_BYTES_MAX = 32 << 20
"""A longer journal is exchanged for a new backup: putting it together again takes seconds, not minutes."""

_T = TypeVar("_T")
_P = ParamSpec("_P")
_log = logging.getLogger(__name__)


class Store:
    """All that is kept. Thread-safe. Made by :func:`open_store`.

    Attributes:
        rooms: and so on: the parts, whose methods are one transaction each.
    """

    def __init__(self, database: Database, guard: contextlib.ExitStack) -> None:
        self._database = database
        self._guard = guard
        self.audit = Audit(database)
        self.rooms = Rooms(database, self.audit)
        self.machines = Machines(database, self.audit)
        self.casts = Casts(database, self.audit)
        self.leases = Leases(database)
        self.schedules = Schedules(database, self.audit)
        self.tokens = Tokens(database, self.audit)
        self.history = History(database)
        self.images = Images(database, self.audit)
        self.idempotency = Idempotency(database)
        self.retention = Retention(database, self.audit)
        self._threads = ThreadPoolExecutor(THREADS_COUNT, thread_name_prefix="database")
        self._pending_count = 0
        self._closing = threading.Event()
        self._upkeep = threading.Thread(target=self._keep_up, name="database-upkeep", daemon=True)
        self._upkeep_problem: Problem | None = None

    @property
    def problem(self) -> Problem | None:
        """What the last attempt to use the database failed with, or the last backup; None if all is well."""
        return self._database.problem or self._upkeep_problem

    @property
    def place(self) -> str:
        """File or URL of the database, without a password."""
        return self._database.place.text

    @property
    def exclusive(self) -> bool:
        """Whether no other daemon can share it: a file is one daemon's."""
        return self._database.place.path is not None

    def now(self) -> datetime:
        """The time that records get."""
        return self._database.now()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Let several calls of this thread be one transaction: all of them or, when one raises, none."""
        with self._database.transaction():
            yield

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a method of the store, or a function that calls several, in one of the store's own threads.

        Raises what it raises, and ``DatabaseUnavailableError`` when that takes longer than :data:`RUN_WAIT_S` or when
        too many calls wait already. A call that is given up may still be carried out.
        """
        async with self.patience(self._pending_count, RUN_PENDING_MAX):
            self._pending_count += 1
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, functools.partial(function, *args, **kwargs))
            finally:
                self._pending_count -= 1

    @contextlib.asynccontextmanager
    async def patience(self, waiting_count: int, waiting_max: int) -> AsyncIterator[None]:
        """The limits of every wait for the database: of how many wait already, and of :data:`RUN_WAIT_S`.

        Raises ``DatabaseUnavailableError`` beyond them.
        """
        if waiting_count >= waiting_max:
            raise self._told(
                f"database {self.place}: {waiting_max} requests wait for it already; see whether its disk or its "
                "server is overloaded"
            )
        try:
            async with asyncio.timeout(RUN_WAIT_S):
                yield
        except TimeoutError as error:
            self._database.hang_up()
            raise self._told(
                f"database {self.place}: no answer for {RUN_WAIT_S:g} s; see whether its disk or its server hangs. "
                "What was asked for may still be done later"
            ) from error

    def back_up(self) -> Backup | None:
        """Copy the database beside itself and begin a new journal; None for PostgreSQL, which has its own ways."""
        if self._database.journal is None:
            return None
        return back_up(self._database.engine, self._database.place)

    def upkeep(self) -> None:
        """What is to be done now and then: a backup that is due, old answers forgotten. Done by a thread of its own."""
        self.idempotency.expire()
        path = self._database.place.path
        if self._database.journal is None or path is None:
            return
        age = timedelta.max
        with contextlib.suppress(FileNotFoundError):
            made_at = datetime.fromtimestamp(backup_path(path).stat().st_mtime, UTC)
            age = datetime.now(UTC) - made_at
        size = sum(segment.path.stat().st_size for segment in find_segments(path))
        if age > BACKUP_INTERVAL or size > JOURNAL_BYTES_MAX:
            self.back_up()

    def close(self) -> None:
        """End the threads and close the database; what is being written is finished."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._upkeep.is_alive():
            self._upkeep.join()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._database.engine.dispose()
        if self._database.journal is not None:
            self._database.journal.close()
        self._guard.close()

    def start_upkeep(self) -> None:
        """Begin the thread that does :meth:`upkeep`."""
        self._upkeep.start()

    def _keep_up(self) -> None:
        while not self._closing.wait(UPKEEP_INTERVAL_S):
            try:
                self.upkeep()
                self._upkeep_problem = None
            except DatabaseError as error:
                before = self._upkeep_problem
                self._upkeep_problem = Problem("database", str(error), before.since if before else self.now())
                _log.warning("the database's upkeep failed: %s", error)

    def _told(self, text: str) -> DatabaseUnavailableError:
        error = DatabaseUnavailableError(text)
        self._database.note_problem(error)
        return error


def open_store(
    config: ServerConfig, *, now: Callable[[], datetime] = lambda: datetime.now(UTC), upkeep: bool = True
) -> Store:
    """Open the daemon's database, made and migrated as needed.

    Args:
        config: says which.
        now: the time of records.
        upkeep: have a thread that makes backups.

    Raises the ``DatabaseError`` tree; a damaged file is left as it is.
    """
    return open_database(database_url(config), now=now, upkeep=upkeep)


def database_url(config: ServerConfig) -> sa.URL:
    """The database's URL, with its password."""
    if not config.server.database:
        return sa.URL.create("sqlite", database=str(config.server.state_directory / "diskcast.db"))
    return sa.make_url(config.server.database)


def open_database(
    url: sa.URL, *, now: Callable[[], datetime] = lambda: datetime.now(UTC), upkeep: bool = True
) -> Store:
    """:func:`open_store` for a URL."""
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "a database in memory forgets everything; name a file: sqlite:////PATH/diskcast.db"
        )
    place = Place(url)
    with contextlib.ExitStack() as stack:
        try:
            journal = None
            if place.path is None:
                _migrate_server(url, place)
            else:
                place.path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(opened(place.path, alone=False))
                journal = _open_file(url, place)
            engine = make_engine(url)
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise translate(error, place) from error
        if journal is not None:
            sa.event.listen(engine, "connect", journal.watch)
        store = Store(Database(engine, place, now, journal), stack.pop_all())
    if upkeep:
        store.start_upkeep()
    return store


def _migrate_server(url: sa.URL, place: Place) -> None:
    engine = make_engine(url, pooled=False)
    with engine.connect() as connection:
        if current_revision(connection) == head():
            return
        connection.rollback()
        with connection.begin():
            migrate(connection, place)


def _open_file(url: sa.URL, place: Place) -> Journal:
    """Check the file, carry out what only its journal has, migrate it, and see that it has a backup."""
    path = place.path
    assert path is not None
    kept = backup_path(path).exists() or bool(find_segments(path))
    if not path.exists() and kept:
        raise DatabaseDamagedError(
            f"database {path} is gone, but its backup or its journal is there. Run `diskcast database restore`; or, to "
            f"begin with nothing, move {path.name}.* elsewhere"
        )
    engine = make_engine(url, pooled=False)
    with engine.connect().execution_options(**{WRITES: True}) as connection:
        driver_connection = connection.connection.driver_connection
        assert driver_connection is not None
        driver_connection.execute("PRAGMA foreign_keys = OFF")
        verdict = check_connection(driver_connection, quick=True)
        if verdict:
            raise DatabaseDamagedError(damaged_text(place, verdict))
        with connection.begin():
            if current_revision(connection) is None and kept:
                raise DatabaseDamagedError(damaged_text(place, "its tables are gone"))
            if current_revision(connection) is not None:
                changes_count = roll_forward(connection, path, place)
                if changes_count:
                    _log.warning("database %s: %d changes were taken from its journal", path, changes_count)
            if migrate(connection, place) and kept:
                # Rows of the new schema go into a file that says so.
                new_segment(connection, path)
            revision = current_revision(connection)
        assert revision is not None
        path.chmod(0o600)
    if not _has_fresh_backup(path, revision):
        back_up(engine, place)
    return Journal(path, revision)


def _has_fresh_backup(path: Path, revision: str) -> bool:
    """Whether backup and journal are there, of the schema that the database has now."""
    segments = find_segments(path)
    if not segments or segments[-1].revision != revision or not backup_path(path).exists():
        return False
    with contextlib.closing(sqlite3.connect(f"file:{backup_path(path)}?mode=ro", uri=True)) as copy:
        try:
            found = copy.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.DatabaseError:
            return False
    return found is not None and found[0] == revision


__all__ = ["Store", "database_url", "open_database", "open_store", "restore"]
