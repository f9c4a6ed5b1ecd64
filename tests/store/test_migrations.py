"""Migrations: from an empty database to the tables of the code, and never backwards."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from protocol.errors import DatabaseError
from sender.store.backup.journal import find_segments
from sender.store.backup.restore import restore
from sender.store.database import schema, tables
from sender.store.database.engine import WRITES, make_engine
from sender.store.database.errors import Place
from sender.store.open_store import open_database
from sender.store.records.casts import CastRequest, Command
from tests.store.samples import START, add_old_cast, old_daemon, room
from tests.support.postgres.server import PostgresServer


def test_migrations_create_exactly_the_tables_of_the_code(url: sa.URL) -> None:
    open_database(url, upkeep=False).close()
    engine = make_engine(url, pooled=False)
    with engine.connect() as connection:
        assert schema.current_revision(connection) == schema.head()
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []
        made = sa.inspect(connection)
        for table in tables.metadata.sorted_tables:
            indexes = {index["name"] for index in made.get_indexes(table.name)}
            assert {index.name for index in table.indexes} <= indexes
    engine.dispose()


def test_a_database_of_a_newer_diskcast_is_refused(url: sa.URL, request: pytest.FixtureRequest) -> None:
    if url.get_backend_name() == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = sa.make_url(server.new_database())
    open_database(url, upkeep=False).close()
    engine = make_engine(url, pooled=False)
    with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(DatabaseError, match="made by a newer diskcast"):
        open_database(url, upkeep=False)


def test_daemons_that_start_together_migrate_once(postgres: PostgresServer, file_url: sa.URL) -> None:
    for url in (sa.make_url(postgres.new_database()), file_url):
        barrier = threading.Barrier(3)

        def start(_: int, url: sa.URL = url, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            open_database(url, upkeep=False).close()

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(start, range(3)))
        store = open_database(url, upkeep=False)
        store.rooms.add(room())
        store.close()


def test_requests_survive_the_migrations_from_the_first_schema(
    url: sa.URL, request: pytest.FixtureRequest
) -> None:
    if url.get_backend_name() == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = sa.make_url(server.new_database())
    with old_daemon("0001"):
        store = open_database(url, upkeep=False)
        add_old_cast(store)
        store.close()
    engine = make_engine(url, pooled=False)
    with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
        connection.execute(
            sa.text("INSERT INTO cast_requests (cast_id, command) VALUES ('00000001', 'cancel')")
        )
    engine.dispose()
    store = open_database(url, upkeep=False)
    store.leases.acquire("here", START, (), 1)
    assert store.casts.requests("here") == [CastRequest("00000001", Command.CANCEL, "the operator")]
    store.close()


def test_a_backup_from_before_a_migration_is_restored_across_it(
    file_url: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power fails between a migration and the backup that follows it."""
    path = tmp_path / "diskcast.db"
    store = open_database(file_url, upkeep=False)
    store.rooms.add(room())
    store.back_up()
    store.rooms.add(room("attic"))
    store.close()
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    for script in (schema.MIGRATIONS / "versions").glob("*.py"):
        (folder / "versions" / script.name).write_text(script.read_text())
    (folder / "versions" / "next.py").write_text(
        f"revision = 'next'\ndown_revision = '{schema.head()}'\n"
        "import sqlalchemy as sa\nfrom alembic import op\n"
        "def upgrade():\n    op.add_column('rooms', sa.Column('floor', sa.Text(), server_default='0'))\n"
    )
    monkeypatch.setattr(schema, "MIGRATIONS", folder)
    schema.scripts.cache_clear()
    try:
        with monkeypatch.context() as cut:
            cut.setattr("sender.store.open_store.back_up", lambda *_: None)
            store = open_database(file_url, upkeep=False)
            store.rooms.add(room("cellar"))
            store.close()
        path.write_bytes(b"damaged")
        restore(Place(file_url), START)
        store = open_database(file_url, upkeep=False)
        assert [item.room_id for item in store.rooms.list()[0]] == ["attic", "cellar", "lab"]
        store.close()
        assert find_segments(path)[-1].revision == "next"
    finally:
        schema.scripts.cache_clear()


def test_the_migrations_are_installed() -> None:
    code = (
        "from sender.store.database import schema\n"
        "print(schema.head(), len(list(schema.scripts().walk_revisions())))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert int(done.stdout.split()[1]) >= 1
