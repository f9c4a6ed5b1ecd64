"""Matching of joining receivers: a wrong match gives history the wrong machine, or none."""

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
CARD = MachineIdentity((MAC,), "", "")


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
    live.targets = dict.fromkeys(live.cast.plan.machine_ids, "")
    return live


@pytest.fixture
def live(store: Store, locked_session: LockedSession, known: Machine) -> CastJob:
    return run_of(store, locked_session, machine_ids=(known.machine_id,))


def plain_request(identity: MachineIdentity | None, agent: str = "a", **changes: object) -> JoinRequest:
    fields = {"name": "debian", "inventory": {"host": "debian"}, "identity": identity}
    return join_request(agent, **(fields | changes))


def joins(store: Store, live: CastJob, request: JoinRequest) -> tuple[str, str | None]:
    """Return the name and the machine id under which the request joins."""
    recognised = asyncio.run(MachineMatcher(store, live).match(request))
    with live.locked_session.update() as (session, now):
        record = session.receivers[session.join(recognised, now).receiver_id]
    return record.name, record.inventory.get("machine_id")


@pytest.mark.parametrize(
    "identity",
    [CARD, MachineIdentity((), "sn7", ""), MachineIdentity((), "", "LAB-7")],
    ids=["card", "serial number", "asset tag"],
)
def test_a_known_machine_joins_under_the_operators_name(
    store: Store, live: CastJob, known: Machine, identity: MachineIdentity
) -> None:
    assert joins(store, live, plain_request(identity)) == ("pc-07", known.machine_id)


@pytest.mark.parametrize(
    "identity",
    [
        None,
        MachineIdentity((), "", ""),
        MachineIdentity(("52:54:00:00:00:08",), "SN8", "To be filled by O.E.M."),
    ],
    ids=["an agent of an earlier version", "one that can't tell", "another machine"],
)
def test_an_unknown_machine_takes_part_under_its_own_name(
    store: Store, live: CastJob, known: Machine, identity: MachineIdentity | None
) -> None:
    assert joins(store, live, plain_request(identity)) == ("debian", None)


def claims(machine_id: str, agent: str = "", **changes: object) -> JoinRequest:
    """Return a request with the machine id of a check-in; ``agent`` isn't the machine's id."""
    fields = {"name": "pc-07", "inventory": {"machine_id": machine_id}, "identity": None}
    return join_request(agent or machine_id, **(fields | changes))


def test_an_agent_with_a_machine_id_is_not_looked_up_again(
    store: Store, live: CastJob, known: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "run", None)
    for _again in range(2):
        assert joins(store, live, claims(known.machine_id)) == ("pc-07", known.machine_id)


@pytest.mark.parametrize("state", [ReceiverState.RECEIVING, ReceiverState.COMPLETE, ReceiverState.LOST])
def test_an_unknown_machine_does_not_take_a_machines_history_line(
    store: Store, live: CastJob, known: Machine, state: ReceiverState
) -> None:
    joins(store, live, claims(known.machine_id))
    live.put_machine(line(name="pc-07", machine_id=known.machine_id))
    with live.locked_session.update() as (session, _now):
        (record,) = session.receivers.values()
        record.state = state
    stranger = claims(known.machine_id, "clone", name="clone", address="10.0.0.66")
    assert joins(store, live, stranger) == ("clone", None)
    assert joins(store, live, claims(known.machine_id)) == ("pc-07", known.machine_id), "it comes back"


@pytest.mark.parametrize("machine_id", ["m-nobody", "another"])
def test_a_machine_outside_the_plan_is_not_matched(
    store: Store, live: CastJob, known: Machine, machine_id: str
) -> None:
    other = store.machines.add(machine("pc-08", serial="SN8"))
    claimed = other.machine_id if machine_id == "another" else machine_id
    assert joins(store, live, claims(claimed, name="debian")) == ("debian", None)


def test_a_machine_that_claims_another_ones_id_is_matched_by_its_own_card(
    store: Store, live: CastJob, known: Machine
) -> None:
    assert joins(store, live, claims("m-nobody", identity=CARD)) == ("pc-07", known.machine_id)


def test_a_machine_that_another_daemon_assigned_joins(store: Store, locked_session: LockedSession) -> None:
    store.rooms.add(room("lab"))
    live = run_of(store, locked_session, room_id="lab")
    late = store.machines.add(machine("pc-08", room_id="lab"))
    assert joins(store, live, claims(late.machine_id, name="pc-08")) == ("pc-08", late.machine_id)


@pytest.mark.parametrize(
    ("who", "found"),
    [
        ({"agent": ""}, True),
        ({"agent": "", "address": "10.0.0.10"}, True),
        ({"agent": "an earlier version's"}, True),
        ({"agent": "clone", "address": "10.0.0.66"}, False),
        ({"agent": "clone", "name": "clone"}, False),
    ],
    ids=["itself", "at another address", "by name and address", "another address", "another name"],
)
def test_after_a_take_over_only_the_same_machine_continues_its_line(
    store: Store, locked_session: LockedSession, known: Machine, who: dict[str, Any], found: bool
) -> None:
    row = line(name="pc-07", machine_id=known.machine_id, state="receiving")
    live = run_of(store, locked_session, EarlierRuns([row]), machine_ids=(known.machine_id,))
    assert (joins(store, live, claims(known.machine_id, **who))[1] == known.machine_id) is found


def test_a_machine_joins_at_once_while_the_database_is_unavailable(
    store: Store, live: CastJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_identity: object) -> None:
        raise DatabaseUnavailableError("no answer")

    monkeypatch.setattr(store.machines, "find", away)
    assert joins(store, live, plain_request(CARD)) == ("debian", None)


def test_a_machine_joins_soon_while_the_database_hangs(
    store: Store, live: CastJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(store.machines, "find", lambda *_identity: answers.wait())
    monkeypatch.setattr(machine_matcher, "LOOK_UP_S", 0.05)
    crowd = [MachineMatcher(store, live).match(plain_request(CARD, f"agent {index}")) for index in range(3)]

    async def join_all() -> list[JoinRequest]:
        try:
            return await asyncio.gather(*crowd)
        finally:
            answers.set()

    assert {request.name for request in asyncio.run(join_all())} == {"debian"}


def test_an_agent_that_rejoins_is_the_same_machine_again(store: Store, live: CastJob, known: Machine) -> None:
    assert (
        joins(store, live, plain_request(CARD))
        == joins(store, live, plain_request(CARD))
        == ("pc-07", known.machine_id)
    )
    with live.locked_session.read() as (session, _now):
        assert len(session.receivers) == 1


@pytest.mark.parametrize("state", [ReceiverState.RECEIVING, ReceiverState.COMPLETE])
def test_a_second_disk_of_one_machine_has_a_line_of_its_own(
    store: Store, live: CastJob, known: Machine, state: ReceiverState
) -> None:
    joins(store, live, plain_request(CARD, "first disk"))
    with live.locked_session.update() as (session, _now):
        (record,) = session.receivers.values()
        record.state = state
    assert joins(store, live, plain_request(CARD, "second disk")) == ("debian", None)


@pytest.mark.parametrize("state", [ReceiverState.LOST, ReceiverState.FAILED, ReceiverState.DROPPED])
def test_a_restarted_machine_takes_its_old_place(
    store: Store, live: CastJob, known: Machine, state: ReceiverState
) -> None:
    joins(store, live, plain_request(CARD, "first run"))
    with live.locked_session.update() as (session, _now):
        (record,) = session.receivers.values()
        record.state = state
    assert joins(store, live, plain_request(CARD, "second run")) == ("pc-07", known.machine_id)
    with live.locked_session.read() as (session, _now):
        assert len(session.receivers) == 1
