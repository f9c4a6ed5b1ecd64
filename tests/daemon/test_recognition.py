"""Which machine a plain agent is: an auditor couldn't say which machine got the image, or it would be the wrong one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from protocol.errors import DatabaseUnavailableError
from protocol.session_records import JoinRequest, MachineIdentity, ReceiverState
from sender.cast.shared_session import SharedSession
from sender.daemon import recognition
from sender.daemon.recognition import Recognition
from sender.store.database import Store, open_database
from sender.store.records import Machine
from tests.store.samples import machine
from tests.unit.sender_inputs import join_request, new_session

MAC = "52:54:00:00:00:07"
CARD = MachineIdentity((MAC,), "", "")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_database(sa.URL.create("sqlite", database=str(tmp_path / "diskcast.db")), upkeep=False)
    yield opened
    opened.close()


@pytest.fixture
def known(store: Store) -> Machine:
    return store.machines.add(machine("pc-07", macs=(MAC,), serial="SN7", asset_tag="LAB-7"))


@pytest.fixture
def shared() -> SharedSession:
    return SharedSession(new_session(), lambda: None)


def says(identity: MachineIdentity | None, agent: str = "a", **changes: object) -> JoinRequest:
    fields = {"name": "debian", "inventory": {"host": "debian"}, "identity": identity}
    return join_request(agent, **(fields | changes))


def joins(store: Store, shared: SharedSession, request: JoinRequest) -> tuple[str, str | None]:
    """Under which name, and as which machine."""
    recognised = asyncio.run(Recognition(store, lambda: shared).recognise(request))
    with shared.change() as (session, now):
        record = session.receivers[session.join(recognised, now).receiver_id]
    return record.name, record.inventory.get("machine_id")


@pytest.mark.parametrize(
    "identity",
    [CARD, MachineIdentity((), "sn7", ""), MachineIdentity((), "", "LAB-7")],
    ids=["card", "serial number", "asset tag"],
)
def test_a_machine_of_the_list_joins_as_what_the_operator_calls_it(
    store: Store, shared: SharedSession, known: Machine, identity: MachineIdentity
) -> None:
    assert joins(store, shared, says(identity)) == ("pc-07", known.machine_id)


@pytest.mark.parametrize(
    "identity",
    [
        None,
        MachineIdentity((), "", ""),
        MachineIdentity(("52:54:00:00:00:08",), "SN8", "To be filled by O.E.M."),
    ],
    ids=["an agent of an earlier version", "one that can't tell", "another machine"],
)
def test_a_machine_that_is_not_known_takes_part_under_its_own_name(
    store: Store, shared: SharedSession, known: Machine, identity: MachineIdentity | None
) -> None:
    assert joins(store, shared, says(identity)) == ("debian", None)


def test_an_agent_that_was_told_who_it_is_is_not_looked_up_again(
    store: Store, shared: SharedSession, known: Machine
) -> None:
    request = says(CARD, inventory={"machine_id": "m-other"}, name="pc-99")
    assert joins(store, shared, request) == ("pc-99", "m-other")


def test_a_machine_joins_at_once_though_the_database_is_away(
    store: Store, shared: SharedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_identity: object) -> None:
        raise DatabaseUnavailableError("no answer")

    monkeypatch.setattr(store.machines, "find", away)
    assert joins(store, shared, says(CARD)) == ("debian", None)


def test_a_machine_joins_soon_though_the_database_hangs(
    store: Store, shared: SharedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(store.machines, "find", lambda *_identity: answers.wait())
    monkeypatch.setattr(recognition, "LOOK_UP_S", 0.05)
    crowd = [Recognition(store, lambda: shared).recognise(says(CARD, f"agent {index}")) for index in range(3)]

    async def join_all() -> list[JoinRequest]:
        try:
            return await asyncio.gather(*crowd)
        finally:
            answers.set()

    assert {request.name for request in asyncio.run(join_all())} == {"debian"}


def test_an_agent_that_rejoins_is_the_same_machine_again(
    store: Store, shared: SharedSession, known: Machine
) -> None:
    assert joins(store, shared, says(CARD)) == joins(store, shared, says(CARD)) == ("pc-07", known.machine_id)
    with shared.look() as (session, _now):
        assert len(session.receivers) == 1


@pytest.mark.parametrize("state", [ReceiverState.RECEIVING, ReceiverState.COMPLETE])
def test_a_second_disk_of_one_machine_has_a_line_of_its_own(
    store: Store, shared: SharedSession, known: Machine, state: ReceiverState
) -> None:
    joins(store, shared, says(CARD, "first disk"))
    with shared.change() as (session, _now):
        (record,) = session.receivers.values()
        record.state = state
    assert joins(store, shared, says(CARD, "second disk")) == ("debian", None)


@pytest.mark.parametrize("state", [ReceiverState.LOST, ReceiverState.FAILED, ReceiverState.DROPPED])
def test_a_machine_that_was_started_again_takes_its_old_place(
    store: Store, shared: SharedSession, known: Machine, state: ReceiverState
) -> None:
    joins(store, shared, says(CARD, "first run"))
    with shared.change() as (session, _now):
        (record,) = session.receivers.values()
        record.state = state
    assert joins(store, shared, says(CARD, "second run")) == ("pc-07", known.machine_id)
    with shared.look() as (session, _now):
        assert len(session.receivers) == 1
