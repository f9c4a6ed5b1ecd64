"""Group commit: a whole room checks in within a few transactions, and each machine gets its own answer."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from protocol.errors import DatabaseError, DatabaseFullError, DatabaseUnavailableError
from sender.store import group_commit
from sender.store import store as store_module
from sender.store.backup import journal
from sender.store.database import engine
from sender.store.database.errors import ConflictError
from sender.store.group_commit import GroupCommit
from sender.store.machines.machine_report import MachineReport
from sender.store.open_store import open_database
from sender.store.records.machines import Machine
from sender.store.store import Store
from tests.support.network.lab import LIMIT_S
from tests.support.postgres.server import PostgresServer


def enrolment(index: int, **fields: object) -> MachineReport:
    return MachineReport(
        **{
            "name": f"pc{index:03}", "macs": (f"52:54:00:00:00:{index:02x}",), "serial": f"SN{index}",
            "asset_tag": "", "address": "10.0.0.9", "agent_version": "1", "inventory": {},
            **fields,
        }  # type: ignore[arg-type]
    )  # fmt: skip


class Enrolling:
    """Enrols through the store, counts its transactions, and refuses chosen machines."""

    def __init__(self, store: Store, refused: str = "") -> None:
        self.store = store
        self.refused = refused
        self.transactions_count = 0

    def __call__(self, requests: Sequence[MachineReport]) -> list[Machine]:
        self.transactions_count += 1
        with self.store.transaction():
            machines = self.store.machines.record(requests)
            if any(request.name == self.refused for request in requests):
                raise ConflictError(f"{self.refused} is refused")
        return machines


async def ask_all(
    calls: GroupCommit[MachineReport, Machine], requests: Sequence[MachineReport]
) -> list[Machine | BaseException]:
    return await asyncio.gather(*map(calls.submit, requests), return_exceptions=True)


def names(store: Store) -> list[str]:
    machines, _ = store.machines.list(limit=1000)
    return [machine.name for machine in machines]


def test_switching_on_a_room_costs_a_few_transactions(store: Store) -> None:
    enrolling = Enrolling(store)
    requests = [enrolment(index) for index in range(200)]
    answers = asyncio.run(ask_all(GroupCommit(store, enrolling), requests))
    assert [answer.name for answer in answers if isinstance(answer, Machine)] == [r.name for r in requests]
    assert names(store) == [request.name for request in requests]
    assert enrolling.transactions_count <= 3


def test_a_refused_machine_fails_no_other(store: Store) -> None:
    requests = [enrolment(index) for index in range(5)]
    answers = asyncio.run(ask_all(GroupCommit(store, Enrolling(store, refused="pc002")), requests))
    assert isinstance(answers[2], ConflictError)
    assert [answer.name for answer in answers if isinstance(answer, Machine)] == names(store)
    assert names(store) == ["pc000", "pc001", "pc003", "pc004"]


def test_no_request_succeeds_before_its_change_is_on_the_disk(
    file_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_database(file_url, upkeep=False)
    calls = GroupCommit(store, store.machines.record)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "fsync", full)
        answers = asyncio.run(ask_all(calls, [enrolment(index) for index in range(5)]))
    assert [type(answer) for answer in answers] == [DatabaseFullError] * 5
    assert names(store) == []
    assert isinstance(asyncio.run(ask_all(calls, [enrolment(0)]))[0], Machine)
    store.close()


def test_a_locked_row_delays_no_other_machine(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LOCK_WAIT_S", 0.2)
    store = open_database(sa.make_url(postgres.new_database()), upkeep=False)
    [locked] = store.machines.record([enrolment(0)])
    other = sa.create_engine(store._database.engine.url)
    with other.begin() as connection:
        lock = "SELECT 1 FROM machines WHERE machine_id = %s FOR UPDATE"
        connection.exec_driver_sql(lock, (locked.machine_id,))
        requests = [enrolment(index, address="10.0.0.77") for index in range(4)]
        answers = asyncio.run(ask_all(GroupCommit(store, store.machines.record), requests))
    assert isinstance(answers[0], DatabaseUnavailableError)
    assert all(isinstance(answer, Machine) for answer in answers[1:])
    assert names(store) == ["pc000", "pc001", "pc002", "pc003"]
    other.dispose()
    store.close()


def test_requests_beyond_the_limit_are_refused_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "WAITING_MAX", 3)
    answers = asyncio.run(
        ask_all(GroupCommit(store, store.machines.record), [enrolment(index) for index in range(5)])
    )
    assert [isinstance(answer, DatabaseError) for answer in answers] == [False] * 3 + [True] * 2
    assert names(store) == ["pc000", "pc001", "pc002"]


def test_no_request_waits_for_a_missing_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "BATCH_MAX", 3)
    short = False

    def enrol(requests: Sequence[MachineReport]) -> list[Machine]:
        return store.machines.record(requests)[: -1 if short else None]

    async def ask_twice() -> tuple[list[Machine | BaseException], list[Machine | BaseException]]:
        nonlocal short
        calls = GroupCommit(store, enrol)
        short = True
        first = await ask_all(calls, [enrolment(index) for index in range(5)])
        short = False
        return first, await ask_all(calls, [enrolment(index) for index in range(5)])

    # The store's own timeout would end the wait with another error.
    monkeypatch.setattr(store_module, "RUN_WAIT_S", LIMIT_S)
    failed, answers = asyncio.run(ask_twice())
    assert [type(answer) for answer in failed] == [ValueError] * 5
    assert all(isinstance(answer, Machine) for answer in answers)


def test_a_cancelled_request_affects_no_other(store: Store) -> None:
    async def meet() -> list[Machine | BaseException]:
        calls = GroupCommit(store, store.machines.record)
        requests = [asyncio.ensure_future(calls.submit(enrolment(index))) for index in range(3)]
        await asyncio.sleep(0)
        requests[1].cancel()
        return await asyncio.gather(*requests, return_exceptions=True)

    first, cancelled, last = asyncio.run(meet())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert isinstance(first, Machine)
    assert isinstance(last, Machine)


@pytest.mark.parametrize("seed", range(8))
def test_simultaneous_check_ins_match_machines_as_consecutive_ones_do(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    stores = []
    for name in ("together", "alone"):
        url = sa.URL.create("sqlite", database=str(tmp_path / f"{name}.db"))
        stores.append(open_database(url, upkeep=False))
    together, alone = stores
    for _ in range(6):
        requests = [
            enrolment(
                index,
                name=f"pc{draw.randrange(99)}",
                macs=tuple(f"52:54:00:00:00:{draw.randrange(12):02x}" for _ in range(draw.randrange(3))),
                serial=draw.choice(["", f"SN{draw.randrange(8)}"]),
                asset_tag=draw.choice(["", f"TAG{draw.randrange(8)}"]),
            )
            for index in range(draw.randrange(1, 7))
        ]
        together.machines.record(requests)
        for request in requests:
            alone.machines.record([request])
        assert books(together) == books(alone)
    for store in stores:
        store.close()


def books(store: Store) -> list[tuple[str, frozenset[str], str, str]]:
    machines, _ = store.machines.list(limit=1000)
    return sorted((m.name, frozenset(m.macs), m.serial, m.asset_tag) for m in machines)
