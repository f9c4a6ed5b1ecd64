"""An unavailable, locked or full database is reported clearly and in time, and is used again when it works."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from protocol.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseFullError,
    DatabaseUnavailableError,
)
from sender.store import store as store_module
from sender.store.backup.restore import restore
from sender.store.database.errors import Place
from sender.store.machines.machine_report import MachineReport
from sender.store.open_store import open_database
from sender.store.store import Store
from tests.store.samples import Clock, add_cast, line, room
from tests.store.test_damage import lasting_rows
from tests.support.disks.devices import mounted
from tests.support.postgres.server import PASSWORD, PostgresServer, postgres_server

BOUND_S = 60.0
"""Ten times the store's own limits, for a busy machine."""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Start a server for this module, whose tests stop it."""
    with postgres_server() as started:
        yield started


@pytest.fixture
def stopped_and_started(server: PostgresServer) -> Iterator[tuple[PostgresServer, Store]]:
    store = open_database(sa.make_url(server.new_database()), now=Clock(), upkeep=False)
    yield server, store
    store.close()


def test_a_stopped_server_is_reported_in_time_and_used_again(
    stopped_and_started: tuple[PostgresServer, Store],
) -> None:
    server, store = stopped_and_started
    store.rooms.add(room())
    server.stop()
    started_at = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match=r"server doesn't answer .* start it") as caught:
        store.rooms.list()
    assert time.monotonic() - started_at < BOUND_S
    assert caught.value.exit_code == 82
    assert PASSWORD not in str(caught.value)
    assert "p%40ss" not in str(caught.value)
    assert "diskcast:***@127.0.0.1" in str(caught.value)
    first = store.problem
    with pytest.raises(DatabaseUnavailableError):
        store.rooms.add(room("attic"))
    assert store.problem.since == first.since
    server.start()
    assert [item.room_id for item in store.rooms.list()[0]] == ["lab"]
    assert store.problem is None
    store.rooms.add(room("attic"))


def test_connections_that_died_in_the_pool_fail_no_call(
    stopped_and_started: tuple[PostgresServer, Store],
) -> None:
    server, store = stopped_and_started
    store.rooms.add(room())
    server.kill()
    server.start()
    store.rooms.change("lab", name="Lab 2")
    assert store.rooms.get("lab").name == "Lab 2"
    with server.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'diskcast'"
        )
    assert store.rooms.get("lab").name == "Lab 2"


def test_the_wait_for_a_locked_row_is_bounded(
    stopped_and_started: tuple[PostgresServer, Store],
) -> None:
    server, store = stopped_and_started
    store.rooms.add(room())
    name = sa.make_url(store.place).database
    with server.connect(str(name)) as other, other.transaction():
        other.execute("SELECT * FROM rooms FOR UPDATE")
        started_at = time.monotonic()
        with pytest.raises(DatabaseUnavailableError, match="didn't answer in time"):
            store.rooms.change("lab", name="x")
        assert time.monotonic() - started_at < BOUND_S
    assert store.rooms.change("lab", name="x") is not None


def test_a_transaction_is_retried_after_a_deadlock(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the deadlock ends the wait, however late the other thread is.
    for name in (
        "database.engine.LOCK_WAIT_S",
        "database.engine.STATEMENT_WAIT_S",
        "repositories.transactions.RETRY_WITHIN_S",
    ):
        monkeypatch.setattr(f"sender.store.{name}", BOUND_S)
    with contextlib.closing(open_database(sa.make_url(server.new_database()), upkeep=False)) as store:
        _cross(store)


def _cross(store: Store) -> None:
    """Change the same two rooms in opposite order in two transactions."""
    for name in ("a", "b"):
        store.rooms.add(room(name))
    met, through = threading.Barrier(2), threading.Event()
    tries: list[str] = []

    def crosswise(first: str, second: str) -> None:
        def work() -> None:
            tries.append(first)
            if tries.count(first) > 1:  # prevent a second deadlock
                assert through.wait(BOUND_S)
            store.rooms.change(first, name=first + first)
            if tries.count(first) == 1:
                met.wait(BOUND_S)
            store.rooms.change(second, description=first)

        store._database.perform(work, writes=True)
        through.set()

    other = threading.Thread(target=crosswise, args=("b", "a"))
    other.start()
    crosswise("a", "b")
    other.join(BOUND_S)
    assert sorted(tries) in (["a", "a", "b"], ["a", "b", "b"]), (
        "one was the deadlock's victim, and went through"
    )
    assert {item.name for item in store.rooms.list()[0]} == {"aa", "bb"}


def test_two_daemons_that_change_the_same_machines_never_deadlock(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("database.engine.LOCK_WAIT_S", "database.engine.STATEMENT_WAIT_S"):
        monkeypatch.setattr(f"sender.store.{name}", BOUND_S)
    url = sa.make_url(server.new_database())
    with (
        contextlib.closing(open_database(url, upkeep=False)) as store,
        server.connect(str(url.database)) as holder,
        server.connect(str(url.database)) as watcher,
    ):
        watcher.autocommit = True
        agents = [MachineReport(f"pc{n}", (), f"SN{n}", "", "10.0.0.9", "1", {}) for n in range(3)]
        machines = sorted(store.machines.record(agents), key=lambda machine: machine.machine_id)
        first, second, third = (agents[int(machine.serial[-1])] for machine in machines)
        first, third = (dataclasses.replace(agent, agent_version="2") for agent in (first, third))
        second = dataclasses.replace(second, address="10.0.0.77")
        failed: list[DatabaseError] = []

        def enrol(*enrolments: MachineReport) -> None:
            try:
                with store.transaction():  # without a retry
                    store.machines.record(enrolments)
            except DatabaseError as error:
                failed.append(error)

        # Each kind of change is one statement, so the two transactions would lock the rows in different orders.
        one = threading.Thread(target=enrol, args=(first, second, third))
        other = threading.Thread(target=enrol, args=(second, third))
        with holder.transaction():
            holder.execute(
                "SELECT 1 FROM machines WHERE machine_id = %s FOR UPDATE", (machines[2].machine_id,)
            )
            for waiting_count, thread in enumerate((one, other), 1):
                thread.start()
                _until_waiting(watcher, waiting_count)
        one.join(BOUND_S)
        other.join(BOUND_S)
        assert not failed
        assert [machine.agent_version for machine in store.machines.list()[0]].count("2") == 2


def _until_waiting(watcher: psycopg.Connection[tuple[object, ...]], count: int) -> None:
    """Wait until this many transactions wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    give_up_at = time.monotonic() + BOUND_S
    while watcher.execute(query).fetchone() != (count,):
        assert time.monotonic() < give_up_at, f"{count} never wait"
        time.sleep(0.01)


def test_a_wrong_password_and_a_missing_database_name_the_cause(server: PostgresServer) -> None:
    url = sa.make_url(server.url)
    with pytest.raises(DatabaseUnavailableError, match="password") as caught:
        open_database(url.set(password="not-that-one"), upkeep=False)
    assert "not-that-one" not in str(caught.value)
    with pytest.raises(DatabaseUnavailableError, match="nowhere"):
        open_database(url.set(database="nowhere"), upkeep=False)
    with pytest.raises(ConfigurationError, match="in memory and would lose every record"):
        open_database(sa.make_url("sqlite://"), upkeep=False)
    assert "secret" not in Place(sa.make_url("postgresql+psycopg://u@h/d?password=secret")).text


def test_a_locked_file_is_reported_and_used_again(file_url: sa.URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sender.store.database.engine.BUSY_WAIT_S", 0.05)
    store = open_database(file_url, upkeep=False)
    with contextlib.closing(sqlite3.connect(str(file_url.database), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseUnavailableError, match="another program keeps it locked"):
            store.rooms.add(room())
        assert store.rooms.list() == ([], None), "readers aren't held up by a writer"
        other.execute("ROLLBACK")
    store.rooms.add(room())
    store.close()


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    url = sa.URL.create("sqlite", database=str(tmp_path / "file" / "diskcast.db"))
    with pytest.raises(DatabaseError, match=r"file/diskcast\.db"):
        open_database(url, upkeep=False)


@pytest.mark.needs_root
def test_a_full_disk_changes_nothing_and_recovers_with_free_space(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(mounted("tmpfs", tmp_path / "small", "-t", "tmpfs", "-o", "size=3m"))
        url = sa.URL.create("sqlite", database=str(folder / "diskcast.db"))
        store = stack.enter_context(contextlib.closing(open_database(url, upkeep=False)))
        store.rooms.add(room())
        add_cast(store)
        ballast = folder / "ballast"
        for free_bytes in (0, 5_000, 40_000):
            before = lasting_rows(url)
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * 4096)
            with ballast.open("r+b") as file:
                file.truncate(max(0, ballast.stat().st_size - free_bytes))
            confirmed = []

            def write_until_full(confirmed: list[str], mark: int) -> None:
                for number in range(1000):
                    name = f"pc-{mark}-{number}"
                    store.casts.put_machine(line(name=name, error="e" * 3000))
                    confirmed.append(name)

            with pytest.raises(DatabaseFullError, match=r"disk is full .* nothing was changed") as caught:
                write_until_full(confirmed, free_bytes)
            assert str(folder) in str(caught.value)
            assert caught.value.exit_code == 83
            with contextlib.suppress(DatabaseFullError):
                # Reads mostly succeed, unless SQLite's shared index needs more space; they prove nothing.
                store.rooms.get("lab")
            assert store.problem is not None
            assert "full" in store.problem.text
            ballast.unlink()
            after = lasting_rows(url)
            names = {item.name for item in store.casts.machines("00000001")}
            assert {name for name in names if name.startswith(f"pc-{free_bytes}-")} == set(confirmed)
            assert {name: rows for name, rows in after.items() if name != "cast_machines"} == {
                name: rows for name, rows in before.items() if name != "cast_machines"
            }
            store.rooms.change("lab", name=f"after {free_bytes}")
            assert store.problem is None
            store._database.engine.dispose()
        rows = lasting_rows(url)
        store.close()
        # The journal has exactly the confirmed changes.
        Path(str(url.database)).write_bytes(b"damaged" * 1000)
        restore(Place(url), Clock()())
        assert lasting_rows(url) == rows


async def _hang(store: Store, release: threading.Event) -> list[BaseException | None]:
    async def one() -> BaseException | None:
        try:
            await store.run(release.wait, BOUND_S)
        except DatabaseUnavailableError as error:
            return error
        return None

    calls = [asyncio.ensure_future(one()) for _ in range(store_module.RUN_PENDING_MAX + 1)]
    results = await asyncio.gather(*calls)
    release.set()
    return list(results)


def test_a_hanging_database_delays_no_call_beyond_the_limit(
    file_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RUN_WAIT_S", 0.3)
    store = open_database(file_url, upkeep=False)
    release = threading.Event()
    results = asyncio.run(_hang(store, release))
    assert all(isinstance(result, DatabaseUnavailableError) for result in results)
    assert sum("requests wait for it already" in str(result) for result in results) == 1
    assert sum("no answer for 0.3 s" in str(result) for result in results) == store_module.RUN_PENDING_MAX
    assert store.problem is not None
    monkeypatch.setattr(store_module, "RUN_WAIT_S", BOUND_S)
    assert asyncio.run(store.run(store.rooms.list)) == ([], None)
    assert store.problem is None
    store.close()


def test_a_frozen_server_is_disconnected_and_used_again(
    stopped_and_started: tuple[PostgresServer, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, store = stopped_and_started
    monkeypatch.setattr(store_module, "RUN_WAIT_S", 0.5)
    store.rooms.add(room())
    with server.connect() as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'diskcast' AND datname = %s"
        pids = [int(str(row[0])) for row in connection.execute(query, [sa.make_url(store.place).database])]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(DatabaseUnavailableError, match="no answer for"):
            asyncio.run(store.run(store.rooms.list))
        # The server's other processes accept connections, and the thread that waited for the frozen one is free.
        monkeypatch.setattr(store_module, "RUN_WAIT_S", BOUND_S)
        for _ in range(store_module.THREADS_COUNT):
            assert len(asyncio.run(store.run(store.rooms.list))[0]) == 1
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
