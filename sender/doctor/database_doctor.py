"""Check the daemon's database without changing it: a file is opened read-only."""

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
"""Largest file to run quick_check on, which reads all of it."""
JOURNAL_BYTES_MAX = 1 << 30
"""Journal that a restore replays in a few minutes."""
CONNECT_TIMEOUT_S = 5
CLOCK_DIFFERENCE_S_MAX = 2.0
"""Daemons don't depend on the database's clock, but operators compare the logs of both."""

_CHECK = "database"
_RESTORE = "stop the daemon and run diskcast database restore, which uses backup and journal"
_HARMLESS = ("-wal", "-shm")


def examine_database(config: ServerConfig) -> list[Finding]:
    """Open the database of a configuration and check it."""
    if config.server.database.startswith("sqlite"):
        return _examine_sqlite(Path(config.server.database.removeprefix("sqlite:///")))
    return _examine_postgresql(config)


def newest_schema() -> str:
    """Return the latest migration of this version."""
    from sender.store.database.schema import head

    return head()


def known_schemas() -> set[str]:
    """Return all migrations that this version knows."""
    from sender.store.database.schema import scripts

    return {script.revision for script in scripts().walk_revisions()}


def judge_schema(revision: str | None, newest: str, known: set[str]) -> Finding:
    """Check that this version can use a database with that schema."""
    check = "database schema"
    if revision == newest:
        return ok(check, f"{revision}, the latest")
    if revision is None or revision in known:
        return ok(check, f"{revision or 'none yet'}: upgraded to {newest} at the next start")
    detail = f"{revision} is from a newer version of diskcast"
    return fail(check, detail, "install that version again, or restore the backup from before the upgrade")


def _examine_sqlite(path: Path) -> list[Finding]:
    if not path.exists():
        return [ok(_CHECK, f"{path}, created at the first start")]
    if not os.access(path, os.R_OK | os.W_OK):
        return [
            fail(
                _CHECK,
                f"can't read and write {path}",
                f"ls -l {path}: it must belong to the daemon's user",
            )
        ]
    # Without both companions SQLite would have to create them; then the file alone is complete anyway.
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
    checked = "all pages are intact" if whole else "too large for a check here"
    found = [ok(_CHECK, f"SQLite, {path}, {format_bytes(size_bytes)}, {checked}")]
    found.append(judge_schema(revision, newest_schema(), known_schemas()))
    found.append(_journal(path))
    needed_bytes = 2 * size_bytes
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < needed_bytes:
        detail = f"{format_bytes(free_bytes)} free, a backup next to its database needs {format_bytes(needed_bytes)}"
        found.append(warn("space for a backup", detail, f"free some space: df -h {path.parent}"))
    return found


def _journal(path: Path) -> Finding:
    """Check that the changes since the last backup could be restored, and how large they are."""
    from sender.store.backup.backup import backup_path
    from sender.store.backup.journal import find_segments

    check = "change journal"
    try:
        size_bytes = sum(segment.path.stat().st_size for segment in find_segments(path))
        backup = backup_path(path).exists()
    except OSError as error:
        return fail(
            check, f"can't read it: {error}", f"ls -l {path}.*: they must belong to the daemon's user"
        )
    detail = f"{format_bytes(size_bytes)} of changes since {'the last backup' if backup else 'the beginning'}"
    if size_bytes > JOURNAL_BYTES_MAX:
        return warn(check, f"{detail}: a restore would take long", "run diskcast database backup")
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
            return _query_postgresql(connection, config.server.database_shown)
    except sa.exc.SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        fix = "check the server, the user in its pg_hba.conf, and the password; psql connects in the same way"
        return [fail(_CHECK, f"can't connect to {config.server.database_shown}: {cause}", fix)]


def _query_postgresql(connection: sqlalchemy.Connection, shown: str) -> list[Finding]:
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
            fail("database is writable", "it's a standby or read-only", "set server.database to the primary")
        )
    exists = connection.scalar(sa.text("SELECT to_regclass('alembic_version') IS NOT NULL"))
    revision = connection.scalar(sa.text("SELECT version_num FROM alembic_version")) if exists else None
    found.append(judge_schema(revision, newest_schema(), known_schemas()))
    if not exists and not connection.scalar(
        sa.text("SELECT has_schema_privilege(current_user, current_schema(), 'CREATE')")
    ):
        fix = "GRANT CREATE ON SCHEMA public TO this user, or make it the owner of the database"
        found.append(fail("database privileges", "this user can't create tables", fix))
    difference_s = abs((now - before).total_seconds())
    if difference_s > CLOCK_DIFFERENCE_S_MAX:
        detail = f"{difference_s:.0f} s apart, which makes the history of several daemons hard to read"
        found.append(warn("clocks of daemon and database", detail, "timedatectl set-ntp true on both"))
    return found
