"""Whether the daemon's database can be used, without touching it: a file is opened for reading only."""

from __future__ import annotations

import datetime
import os
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.program.findings import Finding, fail, ok, warn
from protocol.shared.units import format_bytes
from sender.config.server_config import ServerConfig

if TYPE_CHECKING:
    import sqlalchemy

CHECK_BYTES_MAX = 4 << 30
"""A larger file isn't read through: quick_check reads all of it."""
JOURNAL_BYTES_MAX = 1 << 30
"""Some minutes of a restore."""
CONNECT_TIMEOUT_S = 5
CLOCK_DIFFERENCE_S_MAX = 2.0
"""Daemons that share a database compare nothing with its clock, but an operator who reads two logs does."""

_CHECK = "database"
_RESTORE = "stop the daemon and run diskcast database restore, which rebuilds it from backup and journal"
_HARMLESS = ("-wal", "-shm")


def examine_database(config: ServerConfig) -> list[Finding]:
    """Open it as it is and look."""
    if config.server.database.startswith("sqlite"):
        return _examine_sqlite(Path(config.server.database.removeprefix("sqlite:///")))
    return _examine_postgresql(config)


def newest_schema() -> str:
    """The migration that this version's schema ends with."""
    from sender.store.database.schema import head

    return head()


def known_schemas() -> set[str]:
    """All migrations that this version knows."""
    from sender.store.database.schema import scripts

    return {script.revision for script in scripts().walk_revisions()}


def judge_schema(revision: str | None, newest: str, known: set[str]) -> Finding:
    """Whether this version can use a database of that schema."""
    check = "database schema"
    if revision == newest:
        return ok(check, f"{revision}, the newest")
    if revision is None or revision in known:
        return ok(check, f"{revision or 'none yet'}: brought to {newest} at the next start")
    detail = f"{revision} was made by a newer diskcast than this one"
    return fail(
        check, detail, "install that version again, or restore the backup that was made before the upgrade"
    )


def _examine_sqlite(path: Path) -> list[Finding]:
    if not path.exists():
        return [ok(_CHECK, f"{path}, made at the first start")]
    if not os.access(path, os.R_OK | os.W_OK):
        return [
            fail(
                _CHECK,
                f"{path} can't be read and written",
                f"ls -l {path}: it must belong to the daemon's user",
            )
        ]
    # Without its two companions SQLite would have to make them: then the file alone is the whole truth.
    mode = "mode=ro" if all(Path(f"{path}{end}").exists() for end in _HARMLESS) else "mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=CONNECT_TIMEOUT_S
        )
        try:
            size_bytes = path.stat().st_size
            whole = size_bytes <= CHECK_BYTES_MAX
            answer = str(connection.execute("PRAGMA quick_check(3)").fetchone()[0]) if whole else "ok"
            revision = _sqlite_revision(connection)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return [warn(_CHECK, f"{path} is locked by another program", f"fuser -v {path}")]
        return [fail(_CHECK, f"{path} is damaged: {error}", _RESTORE)]
    if answer != "ok":
        return [fail(_CHECK, f"{path} is damaged: {answer.splitlines()[0]}", _RESTORE)]
    checked = "every page is sound" if whole else "too large to be read through here"
    found = [ok(_CHECK, f"SQLite, {path}, {format_bytes(size_bytes)}, {checked}")]
    found.append(judge_schema(revision, newest_schema(), known_schemas()))
    found.append(_journal(path))
    needed_bytes = 2 * size_bytes
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < needed_bytes:
        detail = f"{format_bytes(free_bytes)} free, and a backup beside its database needs {format_bytes(needed_bytes)}"
        found.append(warn("space for a backup", detail, f"df -h {path.parent}"))
    return found


def _journal(path: Path) -> Finding:
    """Whether what came after the last backup could be put back, and how much it has become."""
    from sender.store.backup.backup import backup_path
    from sender.store.backup.journal import find_segments

    check = "change journal"
    try:
        size_bytes = sum(segment.path.stat().st_size for segment in find_segments(path))
        backup = backup_path(path).exists()
    except OSError as error:
        return fail(
            check, f"it can't be read: {error}", f"ls -l {path}.*: they must belong to the daemon's user"
        )
    detail = f"{format_bytes(size_bytes)} of changes since {'the last backup' if backup else 'the beginning'}"
    if size_bytes > JOURNAL_BYTES_MAX:
        return warn(check, f"{detail}: a restore would take long", "diskcast database backup")
    return ok(check, detail)


def _sqlite_revision(connection: sqlite3.Connection) -> str | None:
    exists = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if exists else None
    return None if row is None else str(row[0])


def _examine_postgresql(config: ServerConfig) -> list[Finding]:
    import sqlalchemy as sa

    try:
        engine = sa.create_engine(
            config.server.database,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "diskcast doctor"},
            poolclass=sa.NullPool,
        )
        with engine.connect() as connection:
            return _ask_postgresql(connection, config.server.database_shown)
    except sa.exc.SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        mend = "is the server up, does its pg_hba.conf admit this user, is the password right: psql tries the same"
        return [fail(_CHECK, f"{config.server.database_shown} doesn't open: {cause}", mend)]


def _ask_postgresql(connection: sqlalchemy.Connection, shown: str) -> list[Finding]:
    import sqlalchemy as sa

    before = datetime.datetime.now(datetime.UTC)
    version, now, writable = connection.execute(
        sa.text(
            "SELECT current_setting('server_version'), clock_timestamp(), "
            "NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'"
        )
    ).one()
    found = [ok(_CHECK, f"PostgreSQL {version}, {shown}")]
    if not writable:
        found.append(
            fail("database is writable", "it's a standby or read-only", "name the primary in server.database")
        )
    exists = connection.scalar(sa.text("SELECT to_regclass('alembic_version') IS NOT NULL"))
    revision = connection.scalar(sa.text("SELECT version_num FROM alembic_version")) if exists else None
    found.append(judge_schema(revision, newest_schema(), known_schemas()))
    if not exists and not connection.scalar(
        sa.text("SELECT has_schema_privilege(current_user, current_schema(), 'CREATE')")
    ):
        mend = "GRANT CREATE ON SCHEMA public TO its user, or make that user the database's owner"
        found.append(fail("database privileges", "this user may not make tables", mend))
    difference_s = abs((now - before).total_seconds())
    if difference_s > CLOCK_DIFFERENCE_S_MAX:
        detail = f"{difference_s:.0f} s apart: history of several daemons is hard to read"
        found.append(warn("clocks of daemon and database", detail, "timedatectl set-ntp true on both"))
    return found
