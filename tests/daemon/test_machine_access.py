"""Access of machines in the daemon: a revoked machine is out within seconds, whatever the database does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import DatabaseUnavailableError
from sender.actors import Actor
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.machine_access import MachineAccess, Revocation
from sender.store.machines.claims import Claim, secret_hash
from sender.store.machines.machine_report import MachineReport
from sender.store.records.machines import EnrolmentMode, EnrolmentState
from sender.store.store import Store
from sender.store.write_behind import Recorder

ANNA = Actor("anna", "r1")
PC7 = MachineReport("pc07", (), "SN7", "", "10.0.0.7", "1.0", {})


@pytest.fixture
def recorder(store: Store, tmp_path: Path) -> Recorder:
    return Recorder(store, tmp_path)


@pytest.fixture
def make_access(store: Store, recorder: Recorder) -> Callable[[], MachineAccess]:
    """Return a function that makes the access of one more daemon of the database."""
    return lambda: MachineAccess(store, recorder, CastRegistry(ended_kept_s=0.0))


def enrolled(store: Store, run: str = "first") -> tuple[str, str]:
    """Return id and secret of a machine that has just enrolled."""
    claim = Claim(PC7, secret_hash(run), "lab-agents", None, EnrolmentMode.TOKEN, lambda _id: None)
    [result] = store.enrolments.claim([claim])
    assert result.machine is not None
    return result.machine.machine_id, result.secret


def test_a_revoked_machine_is_out_at_once_here_and_at_the_next_poll_elsewhere(
    store: Store, make_access: Callable[[], MachineAccess]
) -> None:
    machine_id, secret = enrolled(store)

    async def meet() -> None:
        here, elsewhere = make_access(), make_access()
        assert await here.authenticate(secret) == await elsewhere.authenticate(secret) == machine_id
        assert await here.revoke(machine_id, ANNA) is Revocation.RECORDED
        assert await here.authenticate(secret) is None
        assert here.is_revoked(machine_id)
        await elsewhere.poll()
        assert await elsewhere.authenticate(secret) is None
        assert elsewhere.is_revoked(machine_id)
        assert await here.readmit(machine_id, ANNA) is not None
        await elsewhere.poll()
        assert not here.is_revoked(machine_id)
        assert not elsewhere.is_revoked(machine_id)
        assert await elsewhere.authenticate(secret) is None, "the old secret stays invalid"

    asyncio.run(meet())


def test_a_rotated_secret_is_forgotten_at_the_next_poll(
    store: Store, make_access: Callable[[], MachineAccess]
) -> None:
    machine_id, secret = enrolled(store)

    async def meet() -> None:
        access = make_access()
        assert await access.authenticate(secret) == machine_id
        store.enrolments.release(machine_id)
        _, new_secret = enrolled(store, "second")
        await access.poll()
        assert await access.authenticate(secret) is None
        assert await access.authenticate(new_secret) == machine_id

    asyncio.run(meet())


def test_a_revocation_counts_while_the_database_is_unavailable_and_is_recorded_later(
    store: Store,
    recorder: Recorder,
    make_access: Callable[[], MachineAccess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine_id, secret = enrolled(store)

    def unavailable(*_args: object, **_options: object) -> None:
        raise DatabaseUnavailableError("no answer")

    async def meet() -> None:
        access = make_access()
        assert await access.authenticate(secret) == machine_id
        with monkeypatch.context() as outage:
            for name in ("revoke", "hashes", "machine_of"):
                outage.setattr(store.enrolments, name, unavailable)
            assert await access.authenticate(secret) == machine_id, "a known machine takes part"
            assert await access.revoke(machine_id, ANNA) is Revocation.RECORDED_LATER
            assert access.is_revoked(machine_id)
            with pytest.raises(DatabaseUnavailableError):
                await access.authenticate(secret)
            with pytest.raises(DatabaseUnavailableError):
                await access.poll()
        await access.poll()
        assert access.is_revoked(machine_id), "though the database doesn't know it yet"
        writing = asyncio.create_task(recorder.run())
        assert await recorder.drain(10.0)
        writing.cancel()
        machine = store.machines.get(machine_id)
        assert machine is not None
        assert machine.enrolment is EnrolmentState.BLOCKED
        entries, _ = store.audit.list(subject=f"machine {machine_id}")
        assert [(entry.action, entry.actor) for entry in entries if entry.action == "machine.revoke"] == [
            ("machine.revoke", "anna")
        ]
        await access.poll()
        assert access.is_revoked(machine_id)

    asyncio.run(meet())


def test_an_unknown_machine_isnt_revoked(store: Store, make_access: Callable[[], MachineAccess]) -> None:
    async def meet() -> None:
        access = make_access()
        assert await access.revoke("m-unknown", ANNA) is Revocation.UNKNOWN_MACHINE
        assert not access.is_revoked("m-unknown")
        assert await access.readmit("m-unknown", ANNA) is None

    asyncio.run(meet())
