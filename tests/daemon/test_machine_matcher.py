"""Identity of joining receivers: only a ticket says which machine it is, so nobody takes another's history line."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.errors import DatabaseUnavailableError
from protocol.model.session_records import JoinRequest, MachineIdentity, ReceiverState
from sender.cast.session.locked_session import LockedSession
from sender.daemon.jobs import machine_matcher
from sender.daemon.jobs.cast_job import CastJob, EarlierRuns
from sender.daemon.jobs.machine_matcher import MachineMatcher
from sender.daemon.jobs.owner import Owner
from sender.store.records.machines import Machine
from sender.store.store import Store
from sender.store.write_behind import Recorder
from tests.store.samples import add_cast, line, machine, room
from tests.unit.protocol.sending.sender_inputs import join_request, new_session

MAC = "52:54:00:00:00:07"
CARD = MachineIdentity((MAC,), "SN7", "LAB-7")


@pytest.fixture
def known(store: Store) -> Machine:
    return store.machines.add(machine("pc-07", macs=(MAC,), serial="SN7", asset_tag="LAB-7"))


@pytest.fixture
def locked_session() -> LockedSession:
    return LockedSession(new_session(), lambda: None)


def run_of(
    store: Store, locked_session: LockedSession, earlier: EarlierRuns | None = None, **plan: Any
) -> CastJob:
    """Return a job whose session is ``locked_session``."""
    live = CastJob(
        add_cast(store, **plan),
        Recorder(store, Path("unused")),
        owner=Owner("here", "d1", "r1"),
        earlier=earlier,
    )
    live.run = SimpleNamespace(locked_session=locked_session)  # type: ignore[assignment]  # as much of it as is used
    live.targets = dict.fromkeys(live.cast.plan.machine_ids, "pc-07")
    return live


@pytest.fixture
def live(store: Store, locked_session: LockedSession, known: Machine) -> CastJob:
    return run_of(store, locked_session, machine_ids=(known.machine_id,))


def request_of(machine_id: str | None, agent: str = "a", **changes: object) -> JoinRequest:
    """Return a request with a ticket of ``machine_id``, whose agent reports everything about pc-07."""
    fields = {"name": "debian", "inventory": {"host": "debian"}, "identity": CARD, "machine_id": machine_id}
    return join_request(agent, **(fields | changes))


def joins(store: Store, live: CastJob, request: JoinRequest) -> tuple[str, str | None]:
    """Return the name and the machine id under which the request joins."""
    recognised = asyncio.run(MachineMatcher(store, live).match(request))
    with live.locked_session.update() as (session, now):
        record = session.receivers[session.join(recognised, now).receiver_id]
    return record.name, record.inventory.get("machine_id")


def test_a_machine_joins_under_the_operators_name(store: Store, live: CastJob, known: Machine) -> None:
    for _again in range(2):
        assert joins(store, live, request_of(known.machine_id)) == ("pc-07", known.machine_id)
    with live.locked_session.read() as (session, _now):
        assert len(session.receivers) == 1


def test_reported_addresses_and_ids_identify_nobody(store: Store, live: CastJob, known: Machine) -> None:
    """They are on stickers, in DHCP logs and in every frame of the network."""
    claimed = request_of(None, inventory={"machine_id": known.machine_id})
    assert joins(store, live, claimed) == ("debian", None)
    other = request_of("m-other", "b", inventory={"machine_id": known.machine_id})
    assert joins(store, live, other)[1] == "m-other"


@pytest.mark.parametrize(
    "state", [ReceiverState.RECEIVING, ReceiverState.COMPLETE, ReceiverState.LOST, ReceiverState.FAILED]
)
def test_a_restarted_machine_takes_its_own_place_and_no_other_one_does(
    store: Store, live: CastJob, known: Machine, state: ReceiverState
) -> None:
    joins(store, live, request_of(known.machine_id, "first run"))
    with live.locked_session.update() as (session, _now):
        (record,) = session.receivers.values()
        record.state = state
    stranger = request_of("m-other", "first run", name="pc-07", address="10.0.0.9")
    assert joins(store, live, stranger)[1] == "m-other", "though it knows agent id, name and address"
    assert joins(store, live, request_of(known.machine_id, "second run")) == ("pc-07", known.machine_id)
    with live.locked_session.read() as (session, _now):
        assert len(session.receivers) == 2


def test_after_a_takeover_a_machine_continues_its_line(
    store: Store, locked_session: LockedSession, known: Machine
) -> None:
    row = line(name="pc-07-2", machine_id=known.machine_id, state="receiving")
    live = run_of(store, locked_session, EarlierRuns([row]), machine_ids=(known.machine_id,))
    assert joins(store, live, request_of(known.machine_id)) == ("pc-07-2", known.machine_id)


def test_a_machine_that_another_daemon_assigned_joins(store: Store, locked_session: LockedSession) -> None:
    store.rooms.add(room("lab"))
    live = run_of(store, locked_session, room_id="lab")
    late = store.machines.add(machine("pc-08", room_id="lab"))
    assert joins(store, live, request_of(late.machine_id)) == ("pc-08", late.machine_id)


def test_a_machine_joins_at_once_while_the_database_is_unavailable(
    store: Store, live: CastJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_machine_id: str) -> None:
        raise DatabaseUnavailableError("no answer")

    monkeypatch.setattr(store.machines, "get", away)
    assert joins(store, live, request_of("m-new")) == ("debian", "m-new")


def test_a_machine_joins_soon_while_the_database_hangs(
    store: Store, live: CastJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(store.machines, "get", lambda _machine_id: answers.wait())
    monkeypatch.setattr(machine_matcher, "LOOK_UP_S", 0.05)
    crowd = [
        MachineMatcher(store, live).match(request_of(f"m-{index}", f"agent {index}")) for index in range(3)
    ]

    async def join_all() -> list[JoinRequest]:
        try:
            return await asyncio.gather(*crowd)
        finally:
            answers.set()

    assert {request.name for request in asyncio.run(join_all())} == {"debian"}
