"""Requests at a machine's console: the machine asks with its own secret, and only an operator starts anything."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from protocol.control.image_requests import LIBRARY_IMAGES, REQUEST_STATUS, RequestState
from sender.store.records.access import Role
from tests.api.served import Served
from tests.api.test_refusals import check_problem
from tests.api.test_rooms_and_casts import check_in

DISK = "/dev/sda, Samsung SSD 980, serial S64ANS0T123456, 500.1 GB"


class Technician:
    """A machine with its secret, and a technician at its console."""

    def __init__(self, served: Served, name: str, mac: str) -> None:
        with served.client(Role.ENROL) as agent:
            answer = agent.post("/check-in", json=check_in(name, mac)).json()
        self.machine_id: str = answer["machine_id"]
        self.path = f"/machines/{self.machine_id}"
        self.client = served.client(None, headers={"Authorization": f"Bearer {answer['machine_secret']}"})

    def ask(self, served: Served) -> dict[str, Any]:
        choice = {"image_id": served.image.manifest.image_id.hex(), "disk": DISK}
        response = self.client.post(f"{self.path}/requests", json=choice)
        assert response.status_code == 201, response.text
        asked: dict[str, Any] = response.json()
        return asked

    def state(self, code: str) -> RequestState:
        answer = self.client.get(f"{self.path}/requests/{code}").json()
        return REQUEST_STATUS.decode_untrusted("status", answer).state


@pytest.fixture
def technician(guarded: Served, request: pytest.FixtureRequest) -> Iterator[Technician]:
    number = zlib.crc32(request.node.name.encode()) & 0xFFFF
    one = Technician(guarded, f"pc-{number}", f"52:54:00:dd:{number >> 8:02x}:{number & 0xFF:02x}")
    with one.client:
        yield one


def test_an_approved_request_becomes_a_cast_for_that_machine_alone(
    guarded: Served, operator: httpx.Client, technician: Technician
) -> None:
    listed = LIBRARY_IMAGES.decode_untrusted(
        "images", technician.client.get(f"{technician.path}/images").json()
    )
    assert [(image.name, image.image_id) for image in listed.images] == [
        ("made", guarded.image.manifest.image_id)
    ]
    before = len(operator.get("/casts").json()["items"])
    asked = technician.ask(guarded)
    assert technician.state(asked["code"]) is RequestState.WAITING
    assert len(operator.get("/casts").json()["items"]) == before, "asking starts nothing"
    [shown] = operator.get("/requests").json()["items"]
    assert (shown["machine_id"], shown["image_name"], shown["disk"]) == (technician.machine_id, "made", DISK)
    check_problem(operator.post(f"{technician.path}/requests/approve", json={"code": "AAAAAA"}), 409)
    approved = operator.post(f"{technician.path}/requests/approve", json={"code": asked["code"]})
    assert approved.status_code == 201, approved.text
    plan = approved.json()["plan"]
    assert (plan["machine_ids"], plan["room_id"], plan["wait_for"]) == ([technician.machine_id], None, 1)
    answer = technician.client.get(f"{technician.path}/requests/{asked['code']}").json()
    assert (answer["state"], answer["cast_id"]) == ("approved", approved.json()["cast_id"])
    check_problem(operator.post(f"{technician.path}/requests/approve", json={"code": asked["code"]}), 409)
    assert len(operator.get("/casts").json()["items"]) == before + 1
    actions = [entry["action"] for entry in operator.get("/audit").json()["items"]]
    assert {"machine.request_image", "machine.approve_request", "cast.create"} <= set(actions)
    operator.post(f"/casts/{approved.json()['cast_id']}/cancel")


def test_a_declined_request_starts_nothing(
    guarded: Served, operator: httpx.Client, technician: Technician
) -> None:
    before = len(operator.get("/casts").json()["items"])
    code = technician.ask(guarded)["code"]
    declined = operator.post(f"{technician.path}/requests/decline", json={"code": code})
    assert declined.json()["state"] == "declined"
    assert technician.state(code) is RequestState.DECLINED
    assert len(operator.get("/casts").json()["items"]) == before


def test_a_machines_secret_is_for_its_own_paths_alone(guarded: Served, technician: Technician) -> None:
    """A machine that somebody took over must not have others imaged, nor decide its own request."""
    other = Technician(guarded, "pc-other", "52:54:00:dd:ff:ff")
    choice = {"image_id": guarded.image.manifest.image_id.hex(), "disk": DISK}
    other.client.close()
    check_problem(technician.client.get(f"{other.path}/images"), 403)
    check_problem(technician.client.post(f"{other.path}/requests", json=choice), 403)
    check_problem(technician.client.get(f"{other.path}/requests/7KX2QM"), 403)
    code = technician.ask(guarded)["code"]
    for path, body in (
        (f"{technician.path}/requests/approve", {"code": code}),
        ("/casts", {"image": "made", "machine_ids": [technician.machine_id]}),
    ):
        check_problem(technician.client.post(path, json=body), 401)
    assert technician.state(code) is RequestState.WAITING


def test_an_image_that_the_library_does_not_have_is_refused(technician: Technician) -> None:
    choice = {"image_id": "ee" * 32, "disk": DISK}
    problem = check_problem(technician.client.post(f"{technician.path}/requests", json=choice), 422)
    assert "no image" in str(problem["detail"])
    for wrong in ({}, {"image_id": "zz", "disk": DISK}, {"image_id": "ee" * 32, "disk": "\x1b[2J"}):
        check_problem(technician.client.post(f"{technician.path}/requests", json=wrong), 422)
