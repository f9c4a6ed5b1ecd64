"""The daemon's doctor on databases that the store has created."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.program.findings import Finding, Status
from sender.config.config_file import load_config
from sender.config.server_config import ServerConfig
from sender.doctor.database_doctor import examine_database
from sender.store.database.schema import head
from sender.store.open_store import open_store
from tests.support.postgres.server import PASSWORD, PostgresServer


@pytest.fixture(params=["sqlite", "postgresql"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> ServerConfig:
    """Return the configuration of a daemon whose database is empty or not created yet."""
    database = None
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        database = server.new_database()
    return load_config(None, {"server.state_directory": str(tmp_path), "server.database": database})


def _by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_a_daemon_that_was_never_started_has_no_findings(config: ServerConfig, tmp_path: Path) -> None:
    assert {finding.status for finding in examine_database(config)} == {Status.OK}
    assert list(tmp_path.iterdir()) == []


def test_a_database_in_use_is_sound_and_up_to_date(config: ServerConfig) -> None:
    store = open_store(config)
    try:
        found = _by_check(examine_database(config))
    finally:
        store.close()
    assert {finding.status for finding in found.values()} == {Status.OK}, found
    assert found["database schema"].detail == f"{head()}, the latest"
    assert {finding.status for finding in examine_database(config)} == {Status.OK}, "and when it was closed"


def test_a_database_user_without_the_right_to_create_tables_is_found(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    name = url.rpartition("/")[2].partition("?")[0]
    with postgres.connect(name) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    config = load_config(
        None, {"server.database": f"postgresql://guest:guest@127.0.0.1:{postgres.port}/{name}"}
    )
    assert _by_check(examine_database(config))["database privileges"].status is Status.FAIL


def test_a_wrong_password_is_reported_without_the_password(postgres: PostgresServer) -> None:
    url = f"postgresql://diskcast:hunter2@127.0.0.1:{postgres.port}/postgres"
    (finding,) = examine_database(load_config(None, {"server.database": url}))
    assert finding.status is Status.FAIL
    assert "password" in finding.detail
    assert "hunter2" not in finding.detail + finding.fix
    assert PASSWORD not in finding.detail
