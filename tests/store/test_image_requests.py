"""Requests of machines to be imaged, in the database: decided once, by one operator, and audited."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from protocol.control.image_requests import RequestState
from sender.store.database.errors import ConflictError
from sender.store.records.image_requests import ImageRequest
from sender.store.repositories.audit import AuditNote
from sender.store.repositories.image_requests import REQUEST_INTERVAL, REQUEST_LIFETIME, WAITING_MAX
from sender.store.store import Store
from tests.store.samples import IMAGE_ID, Clock, machine, room

ANNA = AuditNote("anna", "", "r1")


def ask(store: Store, machine_id: str, **fields: Any) -> ImageRequest:
    asked = {"image_id": IMAGE_ID, "image_name": "lab", "disk": "/dev/sda, serial S1", "address": "10.0.0.7"}
    request = store.image_requests.ask(machine_id, **(asked | fields))
    assert request is not None
    return request


@pytest.fixture
def machine_id(store: Store) -> str:
    store.rooms.add(room())
    return store.machines.add(machine(room_id="lab")).machine_id


def test_a_request_waits_until_an_operator_decides_it_once(store: Store, machine_id: str) -> None:
    """Two clicks, or two operators, must not start two casts."""
    request = ask(store, machine_id)
    assert (request.machine_name, request.room_id, request.state) == ("pc-01", "lab", RequestState.WAITING)
    assert store.image_requests.waiting() == [request]
    approved = store.image_requests.decide(
        machine_id, request.code.lower(), RequestState.APPROVED, audit=ANNA
    )
    assert approved is not None
    assert (approved.state, approved.decided_by) == (RequestState.APPROVED, "anna")
    assert store.image_requests.waiting() == []
    with pytest.raises(ConflictError, match="approved by anna already"):
        store.image_requests.decide(machine_id, request.code, RequestState.DECLINED, audit=ANNA)
    store.image_requests.settle(machine_id, request.code, "0000000a")
    found = store.image_requests.get(machine_id)
    assert found is not None
    assert (found.cast_id, found.state) == ("0000000a", RequestState.APPROVED)
    entries, _ = store.audit.list()
    assert [(entry.actor, entry.action) for entry in entries[:2]] == [
        ("anna", "machine.approve_request"),
        ("machine pc-01", "machine.request_image"),
    ]


def test_another_code_decides_nothing(store: Store, machine_id: str) -> None:
    """The operator looks at one machine, and clicks on the request of another."""
    ask(store, machine_id)
    with pytest.raises(ConflictError, match="shows another code"):
        store.image_requests.decide(machine_id, "AAAAAA", RequestState.APPROVED, audit=ANNA)
    assert len(store.image_requests.waiting()) == 1


def test_a_request_without_a_cast_waits_again(store: Store, machine_id: str) -> None:
    request = ask(store, machine_id)
    store.image_requests.decide(machine_id, request.code, RequestState.APPROVED, audit=ANNA)
    store.image_requests.settle(machine_id, request.code, "")
    assert store.image_requests.waiting() == [request]


def test_a_forgotten_request_expires(store: Store, clock: Clock, machine_id: str) -> None:
    """A request of yesterday must not erase a disk today."""
    request = ask(store, machine_id)
    clock.time += REQUEST_LIFETIME
    assert store.image_requests.waiting() == []
    found = store.image_requests.get(machine_id)
    assert found is not None
    assert found.state is RequestState.EXPIRED
    with pytest.raises(ConflictError, match="was expired already"):
        store.image_requests.decide(machine_id, request.code, RequestState.APPROVED, audit=ANNA)


def test_a_later_request_replaces_the_earlier_one_but_not_at_once(
    store: Store, clock: Clock, machine_id: str
) -> None:
    first = ask(store, machine_id)
    with pytest.raises(ConflictError, match="less than 5 s ago"):
        ask(store, machine_id)
    clock.time += REQUEST_INTERVAL
    second = ask(store, machine_id, image_name="other")
    assert second.code != first.code
    assert [request.image_name for request in store.image_requests.waiting()] == ["other"]


def test_the_number_of_waiting_requests_is_limited(store: Store, clock: Clock) -> None:
    ids = [store.machines.add(machine(f"pc-{n}")).machine_id for n in range(WAITING_MAX + 1)]
    for one in ids[:-1]:
        ask(store, one)
    with pytest.raises(ConflictError, match="wait for an operator"):
        ask(store, ids[-1])
    clock.time += REQUEST_LIFETIME + timedelta(seconds=1)
    ask(store, ids[-1])


def test_a_room_can_forbid_the_menu(store: Store, machine_id: str) -> None:
    store.rooms.change("lab", boot_menu=False)
    with pytest.raises(ConflictError, match="room 'lab' doesn't let its machines request"):
        ask(store, machine_id)
    store.machines.change(machine_id, room_id=None)
    assert ask(store, machine_id).room_id is None


def test_a_removed_machine_takes_its_request_with_it(store: Store, machine_id: str) -> None:
    ask(store, machine_id)
    store.machines.remove(machine_id)
    assert store.image_requests.get(machine_id) is None
    assert (
        store.image_requests.ask(machine_id, image_id=IMAGE_ID, image_name="lab", disk="d", address="")
        is None
    )
