"""Migrations of a database to the schema of this version."""

from __future__ import annotations

import functools
import secrets
from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from protocol.errors import DatabaseError
from sender.store.database import tables
from sender.store.database.errors import Place

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x6469736B63617374
"""PostgreSQL's advisory lock of a migration: several daemons may start at once."""


@functools.cache
def scripts() -> ScriptDirectory:
    """Return the migrations."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def head() -> str:
    """Return the revision of the latest migration."""
    revision = scripts().get_current_head()
    assert revision is not None
    return revision


def current_revision(connection: sa.Connection) -> str | None:
    """Return the revision of a database; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def migrate(connection: sa.Connection, place: Place, target: str | None = None) -> bool:
    """Migrate a database to ``target`` (None: the latest revision), in the current transaction of ``connection``.

    Returns:
        False if the database was at ``target`` already.

    Raises ``DatabaseError`` if a newer diskcast has migrated the database, or written ``target``.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    target = target or head()
    current = current_revision(connection)
    known = {None, *(script.revision for script in scripts().walk_revisions())}
    for revision in (current, target):
        if revision not in known:
            raise DatabaseError(
                f"database {place.text} was made by a newer diskcast (its schema is {revision}, this one knows "
                f"{head()}); install that diskcast, or restore a backup from before the upgrade"
            )
    if current == target:
        return False
    config = Config()
    context = EnvironmentContext(
        config, scripts(), fn=lambda revision, _: scripts()._upgrade_revs(target, revision)
    )
    with context:
        context.configure(connection=connection, target_metadata=None)
        with context.begin_transaction():
            context.run_migrations()
    if current is None:
        values = {"row_id": 1, "database_id": secrets.token_hex(16), "sequence": 0, "segment": 1}
        connection.execute(sa.insert(tables.store_state).values(**values))
    return True
