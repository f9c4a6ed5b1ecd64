"""What SQLite, PostgreSQL and the disk say, as diskcast's errors: the one edge where they are translated."""

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
"""Less free space than this, and an I/O error of SQLite is told as a full disk: it needs room for its shared index."""


class ConflictError(ConfigurationError):
    """What was asked for contradicts what is recorded: an id or a name that is taken, a reference to nothing."""


class CursorError(ConfigurationError):
    """A cursor that no list has given out."""


class Place:
    """What messages call the database: a file, or a server without its password.

    Args:
        url: of the database.
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
        """``text`` with the password struck out, wherever it stands."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    @property
    def disk_is_full(self) -> bool:
        """Whether the file's disk has no room left."""
        if self.path is None:
            return False
        try:
            room = os.statvfs(self.path.parent)
        except OSError:
            return False
        return room.f_bavail * room.f_frsize < FREE_BYTES_MIN


def is_integrity(error: BaseException) -> bool:
    """Whether a rule of the tables was broken, rather than the database."""
    return isinstance(error, sa.exc.IntegrityError)


def is_passing(error: BaseException) -> bool:
    """Whether the same transaction may succeed when it is tried again at once.

    That is: a connection that died while it lay in the pool, a deadlock, a serialization failure, and a transaction
    that SQLite gave up because of another one.
    """
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    origin = error.orig
    if isinstance(origin, sqlite3.Error):
        return getattr(origin, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY_SNAPSHOT
    if isinstance(origin, psycopg.errors.SerializationFailure | psycopg.errors.DeadlockDetected):
        return True
    return bool(error.connection_invalidated)


def stops_everybody(error: Exception) -> bool:
    """Whether other calls of the same moment would fail with it too.

    That isn't so of what a call itself got wrong, nor of a row that somebody else keeps locked.
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
    """What diskcast says of a database's or a disk's error; its text has the thing, the cause and the mend."""
    origin = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    cause = place.without_secret(" ".join(str(origin).split()))[:500]
    if isinstance(error, sa.exc.IntegrityError):
        return ConflictError(f"the database refuses a contradiction: {cause}")
    if isinstance(origin, OverflowError | sa.exc.DataError | psycopg.DataError):
        return ConflictError(f"a value is out of the database's range: {cause}")
    if isinstance(error, sa.exc.TimeoutError):
        return DatabaseUnavailableError(
            f"database {place.text}: all connections are busy, earlier requests are still waiting for it; "
            "see whether its disk or its server is overloaded"
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
            f"database {place.text}: its disk is full ({cause}), nothing was changed; make space in "
            f"{place.path.parent if place.path else ''}, it goes on by itself"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseUnavailableError(
            f"database {place.text}: another program keeps it locked ({cause}); end what has it open (fuser "
            f"{place.text} shows it), then try again"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM) or number in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
    ):
        return DatabaseUnavailableError(
            f"database {place.text}: it can't be opened for writing ({cause}); check that the folder is there, "
            "belongs to the daemon's user and isn't mounted read-only"
        )
    if code == sqlite3.SQLITE_IOERR or number is not None:
        return DatabaseUnavailableError(
            f"database {place.text}: its disk fails ({cause}); look at the kernel's messages (dmesg) and move the "
            "state directory to a healthy disk"
        )
    return DatabaseError(f"database {place.text}: {cause}; run `diskcast database check`")


def _translate_postgresql(origin: BaseException, cause: str, place: Place) -> DatabaseError:
    if isinstance(origin, psycopg.errors.DiskFull | psycopg.errors.OutOfMemory):
        return DatabaseFullError(
            f"database {place.text}: the server's disk is full ({cause}), nothing was changed; make space there"
        )
    if isinstance(origin, psycopg.errors.DataCorrupted | psycopg.errors.IndexCorrupted):
        return DatabaseDamagedError(
            f"database {place.text}: the server says that its data is damaged ({cause}); restore it from the "
            "server's own backup"
        )
    if isinstance(origin, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
        return DatabaseUnavailableError(
            f"database {place.text}: it didn't answer in time ({cause}); see what the server is busy with "
            "(pg_stat_activity)"
        )
    if isinstance(origin, psycopg.errors.SerializationFailure | psycopg.errors.DeadlockDetected):
        return DatabaseUnavailableError(
            f"database {place.text}: others changed the same at the same time, twice ({cause}); try again"
        )
    if isinstance(origin, psycopg.errors.InvalidPassword | psycopg.errors.InvalidAuthorizationSpecification):
        return DatabaseUnavailableError(
            f"database {place.text}: the server doesn't let this user in ({cause}); check the user and the password "
            "in the configuration"
        )
    if isinstance(origin, psycopg.errors.ReadOnlySqlTransaction):
        return DatabaseUnavailableError(
            f"database {place.text}: this server only reads ({cause}); name the primary server in the URL"
        )
    if isinstance(origin, psycopg.errors.InsufficientPrivilege):
        return DatabaseError(
            f"database {place.text}: {cause}; give the user the right to create and write tables"
        )
    if isinstance(origin, psycopg.OperationalError | psycopg.InterfaceError | OSError):
        return DatabaseUnavailableError(
            f"database {place.text}: the server doesn't answer ({cause}); start it, or correct the URL; what waits "
            "is written when it is back"
        )
    return DatabaseError(f"database {place.text}: {cause}")


def damaged_text(place: Place, cause: str) -> str:
    """The message for a damaged file, the same wherever it is found out."""
    return (
        f"database {place.text} is damaged ({cause}); it was left as it is. Stop the daemon and run "
        "`diskcast database restore`: it puts the last backup and every change since then together again"
    )
