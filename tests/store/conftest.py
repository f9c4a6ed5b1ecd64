"""Stores of both kinds: SQLite in the test's folder, and a database of a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from sender.store.database import tables
from sender.store.open_store import open_database
from sender.store.store import Store
from tests.store.samples import Clock
from tests.support.postgres.server import PostgresServer, postgres

__all__ = ["postgres"]


@pytest.fixture(scope="session")
def shared_database(postgres: PostgresServer) -> sa.URL:
    """Return a database that is migrated once and emptied for each test: ten times as fast as creating one."""
    url = sa.make_url(postgres.new_database())
    open_database(url, upkeep=False).close()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> sa.URL:
    if request.param == "sqlite":
        return sa.URL.create("sqlite", database=str(tmp_path / "diskcast.db"))
    shared: sa.URL = request.getfixturevalue("shared_database")
    engine = sa.create_engine(shared)
    with engine.begin() as connection:
        names = ", ".join(
            table.name for table in tables.metadata.sorted_tables if table is not tables.store_state
        )
        connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
    engine.dispose()
    return shared


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(url: sa.URL, clock: Clock) -> Iterator[Store]:
    opened = open_database(url, now=clock, upkeep=False)
    yield opened
    opened.close()


@pytest.fixture
def file_url(tmp_path: Path) -> sa.URL:
    return sa.URL.create("sqlite", database=str(tmp_path / "diskcast.db"))
