"""Connections to SQLite and PostgreSQL, with the settings that durability and bounded waits need."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import NullPool

BUSY_WAIT_S = 4.0
"""How long SQLite waits for another transaction's lock: those of the daemon take milliseconds."""
CONNECT_WAIT_S = 2
"""How long PostgreSQL may take to accept a connection; libpq allows no less."""
STATEMENT_WAIT_S = 4.0
"""How long PostgreSQL may work on one statement: lists are indexed and take milliseconds."""
LOCK_WAIT_S = 3.0
POOL_WAIT_S = 2.0
CONNECTIONS_MAX = 8
"""The store's own threads and some of the web server's; what is beyond waits :data:`POOL_WAIT_S`."""
WRITES = "diskcast_writes"
"""Execution option: this transaction will write, so SQLite takes the lock at its begin and can't fail half-way."""


def make_engine(url: sa.URL, *, pooled: bool = True) -> sa.Engine:
    """An engine for ``url``; nothing is opened yet.

    Args:
        url: sqlite or postgresql+psycopg.
        pooled: keep connections; False for programs that need one for a moment.
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
        # A daemon that hangs inside a transaction must not hold rows that others wait for.
        "idle_in_transaction_session_timeout": 10_000,
        "timezone": "UTC",
    }
    arguments = {
        "connect_timeout": CONNECT_WAIT_S,
        "application_name": "diskcast",
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        # A server whose machine is gone says nothing at all: the kernel must give up for us.
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "tcp_user_timeout": 6000,
    }
    return sa.create_engine(url, connect_args=arguments, pool_pre_ping=True, **options)


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # The driver's own idea of when a transaction begins is switched off: _begin_sqlite says it.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        if cursor.execute("PRAGMA page_count").fetchone()[0] == 0:
            # Only for a new file: said of an old one it is a write, even if that is so already.
            cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")
        cursor.execute("PRAGMA journal_mode = WAL")
        # FULL: a commit is on the disk when it is confirmed; WAL's default would lose the last ones with the power.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA temp_store = MEMORY")
        cursor.execute("PRAGMA journal_size_limit = 67108864")
        # A damaged page is told when it is read, rather than believed.
        cursor.execute("PRAGMA cell_size_check = ON")
    finally:
        cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
