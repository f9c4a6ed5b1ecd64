"""Translation of errors of SQLite, PostgreSQL and the disk to diskcast's errors."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import psycopg
import sqlalchemy as sa

from protocol.errors import (
    ConfigurationError,
    DatabaseDamagedError,
    DatabaseError,
    DatabaseFullError,
    DatabaseUnavailableError,
)

FREE_BYTES_MIN = 256 << 10
"""Free space below which an I/O error of SQLite is reported as a full disk: SQLite needs space for its shared index."""


class ConflictError(ConfigurationError):
    """A request contradicts existing records: an id or a name is taken, a reference leads nowhere."""


class CursorError(ConfigurationError):
    """A cursor isn't one of the list."""


class Place:
    """Name of a database in messages: a file, or a server's URL without its password.

    Args:
        url: URL of the database.
    """

    def __init__(self, url: sa.URL) -> None:
        self.path = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
        hidden = url
        self._secrets = [str(url.password)] if url.password else []
        for name in [name for name in url.query if "password" in name]:
            self._secrets += [text for text in (url.query[name],) if isinstance(text, str) and text]
            hidden = hidden.update_query_dict({name: "***"})
        self.text = str(self.path) if self.path else hidden.render_as_string(hide_password=True)

    def without_secret(self, text: str) -> str:
        """Return ``text`` with every password masked."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    @property
    def disk_is_full(self) -> bool:
        """True if the file's disk has no space left."""
        if self.path is None:
            return False
        try:
            space = os.statvfs(self.path.parent)
        except OSError:
            return False
        return space.f_bavail * space.f_frsize < FREE_BYTES_MIN


def is_integrity(error: BaseException) -> bool:
    """Return whether a change violates a constraint of the tables."""
    return isinstance(error, sa.exc.IntegrityError)


def is_transient(error: BaseException) -> bool:
    """Return whether the same transaction may succeed when it is retried at once.

    That is the case for a connection that died in the pool, a deadlock, a serialization failure, and a transaction that
    SQLite aborted because of another one.
    """
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    origin = error.orig
    if isinstance(origin, sqlite3.Error):
        return getattr(origin, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY_SNAPSHOT
    if isinstance(origin, psycopg.errors.SerializationFailure | psycopg.errors.DeadlockDetected):
        return True
    return bool(error.connection_invalidated)


def fails_every_call(error: Exception) -> bool:
    """Return whether other calls at the same time would fail with the same error.

    They wouldn't if the error is in the request itself, or if another transaction holds a row locked.
    """
    if not isinstance(error, DatabaseError):
        return False
    cause = error.__cause__
    return not isinstance(
        cause.orig if isinstance(cause, sa.exc.DBAPIError) else None,
        psycopg.errors.QueryCanceled
        | psycopg.errors.LockNotAvailable
        | psycopg.errors.SerializationFailure
        | psycopg.errors.DeadlockDetected,
    )


def translate(error: BaseException, place: Place) -> DatabaseError | ConflictError:
    """Return the error of diskcast for an error of a database or a disk."""
    origin = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    cause = place.without_secret(" ".join(str(origin).split()))[:500]
    if isinstance(error, sa.exc.IntegrityError):
        return ConflictError(f"the request contradicts existing records: {cause}")
    if isinstance(origin, OverflowError | sa.exc.DataError | psycopg.DataError):
        return ConflictError(f"a value is out of the database's range: {cause}")
    if isinstance(error, sa.exc.TimeoutError):
        return DatabaseUnavailableError(
            f"database {place.text}: all connections are busy with earlier requests; check whether its disk or its "
            "server is overloaded"
        )
    if place.path is not None:
        return _translate_sqlite(origin, cause, place)
    return _translate_postgresql(origin, cause, place)


def _translate_sqlite(origin: BaseException, cause: str, place: Place) -> DatabaseError:
    code = getattr(origin, "sqlite_errorcode", 0) & 0xFF
    number = origin.errno if isinstance(origin, OSError) else None
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DatabaseDamagedError(damaged_text(place, cause))
    full = code == sqlite3.SQLITE_FULL or number in (errno.ENOSPC, errno.EDQUOT)
    if full or (code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and place.disk_is_full):
        return DatabaseFullError(
            f"database {place.text}: its disk is full ({cause}), nothing was changed; free space in "
            f"{place.path.parent if place.path else ''}, then it continues automatically"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseUnavailableError(
            f"database {place.text}: another program keeps it locked ({cause}); stop that program (fuser "
            f"{place.text} shows it), then try again"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM) or number in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
    ):
        return DatabaseUnavailableError(
            f"database {place.text}: it can't be opened for writing ({cause}); check that its folder exists, "
            "belongs to the daemon's user and isn't mounted read-only"
        )
    if code == sqlite3.SQLITE_IOERR or number is not None:
        return DatabaseUnavailableError(
            f"database {place.text}: its disk fails ({cause}); check the kernel's messages (dmesg) and move the "
            "state directory to a healthy disk"
        )
    return DatabaseError(f"database {place.text}: {cause}; run `diskcast database check`")


def _translate_postgresql(origin: BaseException, cause: str, place: Place) -> DatabaseError:
    if isinstance(origin, psycopg.errors.DiskFull | psycopg.errors.OutOfMemory):
        return DatabaseFullError(
            f"database {place.text}: the server's disk is full ({cause}), nothing was changed; free space there"
        )
    if isinstance(origin, psycopg.errors.DataCorrupted | psycopg.errors.IndexCorrupted):
        return DatabaseDamagedError(
            f"database {place.text}: the server reports damaged data ({cause}); restore it from the server's own "
            "backup"
        )
    if isinstance(origin, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
        return DatabaseUnavailableError(
            f"database {place.text}: it didn't answer in time ({cause}); check what keeps the server busy "
            "(pg_stat_activity)"
        )
    if isinstance(origin, psycopg.errors.SerializationFailure | psycopg.errors.DeadlockDetected):
        return DatabaseUnavailableError(
            f"database {place.text}: other transactions changed the same rows, twice ({cause}); try again"
        )
    if isinstance(origin, psycopg.errors.InvalidPassword | psycopg.errors.InvalidAuthorizationSpecification):
        return DatabaseUnavailableError(
            f"database {place.text}: the server refuses the login ({cause}); check the user and the password in the "
            "configuration"
        )
    if isinstance(origin, psycopg.errors.ReadOnlySqlTransaction):
        return DatabaseUnavailableError(
            f"database {place.text}: this server is read-only ({cause}); name the primary server in the URL"
        )
    if isinstance(origin, psycopg.errors.InsufficientPrivilege):
        return DatabaseError(
            f"database {place.text}: {cause}; grant the user the right to create and write tables"
        )
    if isinstance(origin, psycopg.OperationalError | psycopg.InterfaceError | OSError):
        return DatabaseUnavailableError(
            f"database {place.text}: the server doesn't answer ({cause}); start it, or correct the URL; waiting "
            "records are written when it is available again"
        )
    return DatabaseError(f"database {place.text}: {cause}")


def damaged_text(place: Place, cause: str) -> str:
    """Return the message for a damaged file."""
    return (
        f"database {place.text} is damaged ({cause}); it was left as it is. Stop the daemon and run "
        "`diskcast database restore`: it restores the last backup and every change since then"
    )
