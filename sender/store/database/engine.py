"""Connections to SQLite and PostgreSQL, with the settings that durability and bounded waits need."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import NullPool

BUSY_WAIT_S = 4.0
"""Timeout of SQLite for another transaction's lock: the daemon's own transactions take milliseconds."""
CONNECT_WAIT_S = 2
"""Timeout for a connection to PostgreSQL; the minimum of libpq."""
STATEMENT_WAIT_S = 4.0
"""Timeout of PostgreSQL for a statement: lists are indexed and take milliseconds."""
LOCK_WAIT_S = 3.0
POOL_WAIT_S = 2.0
CONNECTIONS_MAX = 8
"""Connections for the store's own threads and some of the web server's; more callers wait :data:`POOL_WAIT_S`."""
WRITES = "diskcast_writes"
"""Execution option of writing transactions: SQLite takes the lock at their start, so that they can't fail half-way."""


def make_engine(url: sa.URL, *, pooled: bool = True) -> sa.Engine:
    """Create an engine for ``url``; it opens no connection yet.

    Args:
        url: sqlite or postgresql+psycopg.
        pooled: keep connections open; False for programs that need one for a moment.
    """
    options: dict[str, Any] = (
        {"pool_size": CONNECTIONS_MAX, "max_overflow": 0, "pool_timeout": POOL_WAIT_S}
        if pooled
        else {"poolclass": NullPool}
    )
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(
            url, connect_args={"timeout": BUSY_WAIT_S, "check_same_thread": False}, **options
        )
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    settings = {
        "statement_timeout": int(STATEMENT_WAIT_S * 1000),
        "lock_timeout": int(LOCK_WAIT_S * 1000),
        # A daemon that hangs inside a transaction must not keep rows locked.
        "idle_in_transaction_session_timeout": 10_000,
        "timezone": "UTC",
    }
    arguments = {
        "connect_timeout": CONNECT_WAIT_S,
        "application_name": "diskcast",
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        # A server whose machine has crashed sends nothing at all: only the kernel can detect that.
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "tcp_user_timeout": 6000,
    }
    return sa.create_engine(url, connect_args=arguments, pool_pre_ping=True, **options)


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # Switch off the driver's implicit transactions: _begin_sqlite starts them.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        if cursor.execute("PRAGMA page_count").fetchone()[0] == 0:
            # Only for a new file: on an existing one this pragma writes, even if it changes nothing.
            cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")
        cursor.execute("PRAGMA journal_mode = WAL")
        # FULL: a confirmed commit is on the disk. WAL's default would lose the last commits in a power failure.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA temp_store = MEMORY")
        cursor.execute("PRAGMA journal_size_limit = 67108864")
        # Report a damaged page when it is read.
        cursor.execute("PRAGMA cell_size_check = ON")
    finally:
        cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
