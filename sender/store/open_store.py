"""Open the daemon's database: check it, roll it forward, migrate it and ensure that it has a backup."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from protocol.errors import ConfigurationError, DatabaseDamagedError
from sender.config.server_config import ServerConfig
from sender.store.backup.backup import (
    back_up,
    backup_path,
    check_connection,
    new_segment,
    open_lock,
)
from sender.store.backup.journal import Journal, find_segments
from sender.store.backup.restore import roll_forward
from sender.store.database.engine import WRITES, make_engine
from sender.store.database.errors import Place, damaged_text, translate
from sender.store.database.schema import current_revision, head, migrate
from sender.store.repositories.transactions import Database
from sender.store.store import Store

_log = logging.getLogger(__name__)


def open_store(
    config: ServerConfig, *, now: Callable[[], datetime] = lambda: datetime.now(UTC), upkeep: bool = True
) -> Store:
    """Open the daemon's database; create and migrate it as necessary.

    Args:
        config: the daemon's configuration, which names the database.
        now: clock of the records.
        upkeep: start the thread that makes backups.

    Raises the ``DatabaseError`` tree; a damaged file is left as it is.
    """
    return open_database(database_url(config), now=now, upkeep=upkeep)


def database_url(config: ServerConfig) -> sa.URL:
    """Return the database's URL, with its password."""
    if not config.server.database:
        return sa.URL.create("sqlite", database=str(config.server.state_directory / "diskcast.db"))
    return sa.make_url(config.server.database)


def open_database(
    url: sa.URL, *, now: Callable[[], datetime] = lambda: datetime.now(UTC), upkeep: bool = True
) -> Store:
    """Open a database by its URL, as :func:`open_store` does."""
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "database sqlite:// is in memory and would lose every record; name a file: sqlite:////PATH/diskcast.db"
        )
    place = Place(url)
    with contextlib.ExitStack() as stack:
        try:
            journal = None
            if place.path is None:
                _migrate_server(url, place)
            else:
                place.path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(open_lock(place.path, exclusive=False))
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
    """Check the file, replay changes that only its journal has, migrate it, and ensure that it has a backup."""
    path = place.path
    assert path is not None
    has_backup = backup_path(path).exists() or bool(find_segments(path))
    if not path.exists() and has_backup:
        raise DatabaseDamagedError(
            f"database {path} is missing, but its backup or journal exists. Run `diskcast database restore`; or, to "
            f"start with an empty database, move {path.name}.* elsewhere"
        )
    engine = make_engine(url, pooled=False)
    with engine.connect().execution_options(**{WRITES: True}) as connection:
        driver_connection = connection.connection.driver_connection
        assert driver_connection is not None
        driver_connection.execute("PRAGMA foreign_keys = OFF")
        problem = check_connection(driver_connection, quick=True)
        if problem:
            raise DatabaseDamagedError(damaged_text(place, problem))
        with connection.begin():
            if current_revision(connection) is None and has_backup:
                raise DatabaseDamagedError(damaged_text(place, "its tables are missing"))
            if current_revision(connection) is not None:
                changes_count = roll_forward(connection, path, place)
                if changes_count:
                    _log.warning(
                        "database %s: %d changes were replayed from its journal", path, changes_count
                    )
            if migrate(connection, place) and has_backup:
                # A segment names the schema of its rows.
                new_segment(connection, path)
            revision = current_revision(connection)
        assert revision is not None
        path.chmod(0o600)
    if not _has_fresh_backup(path, revision):
        back_up(engine, place)
    return Journal(path, revision)


def _has_fresh_backup(path: Path, revision: str) -> bool:
    """Return whether backup and journal exist and have the database's current schema."""
    segments = find_segments(path)
    if not segments or segments[-1].revision != revision or not backup_path(path).exists():
        return False
    with contextlib.closing(sqlite3.connect(f"file:{backup_path(path)}?mode=ro", uri=True)) as copy:
        try:
            found = copy.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.DatabaseError:
            return False
    return found is not None and found[0] == revision
